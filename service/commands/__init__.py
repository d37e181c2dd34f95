"""The groups of `expunge …`; `service/cli.py` puts them together."""
