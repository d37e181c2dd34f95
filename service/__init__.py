"""Everything that touches HTTP, the database or the disk's state."""

__version__ = "0.1.0"
