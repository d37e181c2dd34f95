"""Everything that touches HTTP, the database or the disk's state."""
