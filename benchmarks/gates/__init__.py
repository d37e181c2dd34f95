"""What the gate's benchmark is made of: models trained with and without subjects, and figures of their margins."""
