"""Methods compared and tuned on a home's own data."""
