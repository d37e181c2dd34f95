"""The operators' listener: pages about requests, runs and models, and the worker's metrics."""
