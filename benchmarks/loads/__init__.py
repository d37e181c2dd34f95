"""What the serving benchmarks share: homes to serve from, load on them, and tables of what came back."""
