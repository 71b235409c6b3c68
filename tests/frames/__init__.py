"""Frames that name themselves: videos of every kind, and whether a clip shows the frames that were asked for."""
