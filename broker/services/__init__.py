"""The RPCs: thin servicers over the layers below. Map: broker/README.md."""
