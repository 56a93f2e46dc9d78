"""Bytes that survive: RocksDB behind one module, partition logs, group commit. Map: broker/README.md."""
