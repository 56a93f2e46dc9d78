"""The Python client of Postbus."""
