"""Decoding: from the bytes of a video file to the frames of its clip."""
