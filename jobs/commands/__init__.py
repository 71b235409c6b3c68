"""The commands of `framefold`, one module each."""
