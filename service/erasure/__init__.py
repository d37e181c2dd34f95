"""An erasure run from a batch of requests to certificates. Read `pipeline.py` first."""
