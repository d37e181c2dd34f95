"""Callbacks: tell clients' URLs what became of their requests."""
