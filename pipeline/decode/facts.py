"""What is told of a video by the process that decodes it, and the check of what it tells.

Light: the parent reads this module, which loads no native library. What has read a hostile file may answer anything, so every
value is compared with its type before it is used.
"""

import math
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
Part = Literal["stream", "clip"]
"""What the packets say, or what decoding gave."""


@dataclass(frozen=True, kw_only=True)
class RandomAccess:
    """Packets at which decoding can begin, beside those that the container calls keyframes."""

    points: int
    """True random-access points with all parameter sets at hand, read from the bitstream."""
    first_points: list[int]
    longest_gap: int
    """Packets from one true point to the next, or to the end, at most."""
    flags: int
    """Packets that the container calls keyframes."""
    first_flags: list[int]
    false_flags: int
    """Flagged packets at which decoding cannot begin."""
    first_false: list[int]
    missing_flags: int
    """True points without a flag."""
    first_missing: list[int]
    leading_pictures: int
    """Pictures decoded after a random-access point and shown before it; -1 where the display order is unknown."""
    open_gops: int
    """Random-access points whose leading pictures need what lies before the point; -1 likewise."""


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Packets that show no frame, by the reason."""

    discarded: int
    """An edit list hides their frames."""
    not_shown: int
    """Pictures that are only referred to, as in VP8 and VP9."""
    without_picture: int
    """Parameter sets, messages or the end of a sequence alone."""
    before_start: int
    """Before the first random-access point, or leading pictures of it that cannot be decoded."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is wrong with a stream by its packets, from its first random-access point on."""

    packets: int
    """Packets that contradict themselves, or at which something is missing."""
    first: list[str]
    missing_bytes: int
    """How much shorter the file is than its header says."""
    broken_at: int
    """Byte at which the container's elements do not follow one another; -1 where they do."""
    ended: str
    """What stopped the demuxer before the end; empty where nothing did."""
    lost_at_end: int
    """Frames that the header declares and the file does not hold."""
    declared_frames: int
    """How many frames the header declares; 0 where it does not say."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """Packets that are decoded one after another, from a true random-access point on."""

    start: int
    end: int
    packets: int
    """From start to end."""
    fed: int
    """Packets of these that the decoder is given."""
    shows: list[int]
    """Frames that are taken from this run, by display index."""


@dataclass(frozen=True, kw_only=True)
class StreamFacts:
    """A video stream and the plan for its clip, from the packets alone; nothing was decoded."""

    container: str
    """FFmpeg's demuxer."""
    container_name: str
    codec: str
    pixel_format: str
    width: int
    height: int
    stream: int
    """Index of the chosen stream among all streams of the file."""
    video_streams: int
    """Video streams in the file, pictures about the video not counted."""
    rate: str
    """Frames per second as a fraction; empty where nothing tells."""
    rate_fps: float
    """The same as a number; 0 where nothing tells."""
    duration_s: float
    packets: int
    shown_frames: int
    """Frames that the packets show; -1 where only decoding can tell."""
    order: str
    """Where the display order comes from."""
    order_unknown: str
    """Why the packets do not tell the display order; empty where they do."""
    reordered: bool
    """Whether frames are shown in another order than they are decoded; false where the order is unknown."""
    packets_without_pts: int
    packets_with_repeated_pts: int
    random_access: RandomAccess | None
    """None where the bitstream of the codec is not read."""
    hidden: Hidden | None
    """None where the display order is unknown."""
    damage: Damage
    asked: list[int]
    """Display indices by the sampling policy; empty where only decoding can tell how many frames there are."""
    shown: list[int]
    """Display indices that are taken in their place: the same, but for the policy `keyframe`."""
    times_s: list[float]
    """When each of these is shown, since the first frame of the file."""
    runs: list[PlannedRun]
    """Empty where everything is decoded in order."""


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What decoding a clip gave."""

    choice: str
    """The setting `decoder` of the process that decoded."""
    decoder: str
    """What the frames come from: pyav or decord; empty where there is no clip."""
    decord_refused: str
    """Why decord is not used although it is asked for; empty where it is used, or not asked for."""
    in_order: bool
    """Whether everything was decoded from the first random-access point on."""
    why_in_order: str
    frames_decoded: int
    """Frames of the file where everything was decoded, lost ones included; -1 elsewhere."""
    frames_lost: int
    """Those of these that did not come out; -1 elsewhere."""
    shown: list[int]
    """Display indices of the clip's frames."""
    times_s: list[float]
    proven: list[bool]
    """Whether each is proven to be the frame that was asked for."""
    displaced_s: float
    """How far the policy `keyframe` moved a frame at most."""
    reason: str
    """What speaks against frames that are not proven, or for decoding everything."""
    rotation_deg: int
    """How far the display matrix turns the frames, clockwise."""
    mirrored: bool
    """Whether it mirrors the frames from left to right before it turns them."""
    matrix: list[int]
    """a, b, c, d of the display matrix in 1/65536; empty where no frame could be decoded."""
    error_class: str
    """Class of the failure; empty where the clip can be used."""
    error: str


def from_json(kind: type[T], data: Any) -> T:
    """Return the dataclass that parsed JSON holds. Any: it may hold anything. Raises ValueError where it is not one."""
    if not isinstance(data, dict) or set(data) != {field.name for field in fields(kind)}:  # type: ignore[arg-type]
        raise ValueError(f"expected the fields of {kind.__name__}")
    return kind(**{name: _checked(hint, data[name]) for name, hint in get_type_hints(kind).items()})


def _checked(hint: Any, value: Any) -> Any:
    """Return a value of a type. Any: types and values of parsed JSON. Raises ValueError."""
    options = get_args(hint)
    if get_origin(hint) is list and isinstance(value, list):
        return [_checked(options[0], item) for item in value]
    if NoneType in options:
        return None if value is None else _checked(next(kind for kind in options if kind is not NoneType), value)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"expected {hint}, got a {type(value).__name__}")
    return value
