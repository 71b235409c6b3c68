"""Entry points: the command line, and where stages meet Ray."""
