"""One replicated log, Raft's: a core without I/O and its driver. Map: broker/README.md."""
