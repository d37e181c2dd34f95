"""Secrets of the service and of its clients."""
