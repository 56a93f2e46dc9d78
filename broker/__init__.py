"""Postbus: a durable message bus that speaks gRPC. See broker/README.md for the map."""

__version__ = "0.1.0"
