"""Training: what a trial is about, and where it runs."""
