"""The serving process: from images to answers."""
