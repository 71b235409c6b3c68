"""Segments: parts of a long video that are entries of their own.

The id of a segment is the video's id and a media fragment, `name#t=30.000,60.000`, in seconds, start included, end not. Its
uri is the video's with the same fragment, and the decode stage samples inside it.

Source of the notation: W3C Media Fragments URI 1.0, temporal dimension.
"""

import re
from typing import Any

from pipeline.errors import ConfigError

FRAGMENT = re.compile(r"(?P<name>.+)#t=(?P<start>\d+\.\d{3}),(?P<end>\d+\.\d{3})", re.DOTALL)
SHORTEST = 0.5
"""A last segment shorter than this share of the others belongs to the one before it."""

Span = tuple[float, float]
"""Start and end in seconds."""


def span_of(name: str) -> tuple[str, Span | None]:
    """Return the id or uri of the video and the span of a segment; the name itself and None for a whole video."""
    found = FRAGMENT.fullmatch(name)
    if found is None:
        return name, None
    return found["name"], (float(found["start"]), float(found["end"]))


def spans(duration_s: float, seconds: float) -> list[Span]:
    """Return the segments of a video, each `seconds` long but the last; its end is that of the video.

    Which segments there are depends on both numbers only, so ids stay as they are when a job runs again.
    """
    if not seconds > 0:
        raise ConfigError(f"segments must be longer than 0 seconds, got {seconds}")
    count = max(1, int(duration_s // seconds))
    if duration_s - count * seconds >= SHORTEST * seconds:
        count += 1
    starts = [number * seconds for number in range(count)]
    return list(zip(starts, [*starts[1:], max(duration_s, starts[-1])], strict=True))


def segment_rows(row: dict[str, Any], duration_s: float, seconds: float) -> list[dict[str, Any]]:
    """Return the rows of `schema.CORPUS` of the segments of a video."""
    marks = [f"#t={start:.3f},{end:.3f}" for start, end in spans(duration_s, seconds)]
    return [{**row, "video_id": row["video_id"] + mark, "uri": row["uri"] + mark} for mark in marks]
