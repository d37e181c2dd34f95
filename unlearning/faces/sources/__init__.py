"""Where faces come from: importers of public data sets, and generators."""
