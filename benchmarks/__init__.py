"""Benchmarks of `jaxattn` and its peers: `python -m benchmarks`."""
