"""A part of a video."""

Span = tuple[float, float]
"""Start and end of a part of a video, in seconds."""
