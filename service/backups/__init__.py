"""One file with everything that cannot be made again, and a home made from it in which nobody erased comes back."""
