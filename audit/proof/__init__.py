"""Certificates and the log, and checking them."""
