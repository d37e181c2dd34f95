"""Reference banks: built, stored, kept fresh."""
