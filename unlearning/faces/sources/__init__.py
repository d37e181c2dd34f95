"""Importers of public data sets, and generators of faces."""
