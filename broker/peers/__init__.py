"""How nodes talk to each other: links, and calls over them. Map: broker/README.md."""
