"""How far a partition is safe: high watermarks and who waits for them. Map: broker/README.md."""
