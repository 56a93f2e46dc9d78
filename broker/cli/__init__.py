"""The postbus command. Map: broker/README.md."""
