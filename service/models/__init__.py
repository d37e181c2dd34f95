"""Model versions, and which one answers."""
