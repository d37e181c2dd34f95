"""Erasure requests: filed, decided on, followed through their states."""
