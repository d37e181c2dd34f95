"""Methods and references studied over many subjects."""
