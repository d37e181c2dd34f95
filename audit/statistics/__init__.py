"""Statistics on arrays of margins."""
