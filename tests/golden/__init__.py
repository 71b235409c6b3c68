"""Golden vectors: `python -m tests.golden DIR` runs every case of a directory against our reducers."""
