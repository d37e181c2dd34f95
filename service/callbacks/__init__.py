"""Clients' URLs are told what became of their requests."""
