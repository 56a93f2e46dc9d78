"""Who reads what: consumer groups as pure state machines, and their coordinator. Map: broker/README.md."""
