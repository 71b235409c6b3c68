"""Visual-token reducers: pure torch, one method per file."""
