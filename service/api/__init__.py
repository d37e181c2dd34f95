"""The request API."""
