"""Language models that answer from visual tokens."""
