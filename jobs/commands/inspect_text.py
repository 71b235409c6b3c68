"""An inspected video as lines for a person."""

import unicodedata
from collections.abc import Iterator, Sequence

from pipeline.decode.config import DecodeConfig
from pipeline.decode.facts import ClipFacts, Damage, Hidden, PlannedRun, RandomAccess, StreamFacts
from pipeline.decode.inspection import Inspection

LISTED = 16
"""How many frames or runs are listed."""
LABEL_CHARS = 14
HALF_TURN = 180
UNSEEN = frozenset({"Cc", "Cs", "Cn", "Co", "Zl", "Zp"})
"""Unicode categories of characters that no line of text can show."""
DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
Line = tuple[str, str]
"""What a line is about, empty where it goes on, and what it says."""


def lines(found: Inspection, config: DecodeConfig) -> list[str]:
    """Return what is known of a video, one fact per line."""
    said = [*_file(found)]
    if found.stream is not None:
        said += [*_stream(found.stream), *_points(found.stream), *_order(found.stream), *_damage(found.stream.damage)]
        said += _plan(found.stream, found.clip, config)
    if found.clip is not None:
        said += _clip(found.clip, config)
    if found.error_class:
        said.append(("not usable", f"{found.error_class}: {found.error}"))
    return [visible(found.video), *(visible(f"  {label:<{LABEL_CHARS}}{text}") for label, text in said)]


def visible(text: str) -> str:
    """Return a text with escapes in the place of characters that a terminal would obey instead of showing them."""
    return "".join(_escape(c) if unicodedata.category(c) in UNSEEN or c in DIRECTIONS else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _file(found: Inspection) -> Iterator[Line]:
    if found.segment is not None:
        yield "segment", f"{found.segment[0]:.3f} to {found.segment[1]:.3f} s"
    if found.fetched is not None:
        name = f", {found.stream.container_name}" if found.stream else ""
        yield "container", f"{found.fetched.demuxer}{name}"
        yield "file", f"{found.fetched.bytes} bytes, SHA-256 {found.fetched.sha256}"


def _stream(stream: StreamFacts) -> Iterator[Line]:
    which = f"stream {stream.stream} of the file, {counted(stream.video_streams, 'video stream')} in it"
    if stream.video_streams == 1:
        which = f"stream {stream.stream} of the file, its only video stream"
    pixels = stream.pixel_format or "unknown pixel format"
    yield "video", f"{stream.codec}, {pixels}, {stream.width} x {stream.height} px, {which}"
    shown = "shown frames unknown before decoding" if stream.shown_frames < 0 else counted(stream.shown_frames, "shown frame")
    rate = f"{stream.rate_fps:g} frames per second ({stream.rate})" if stream.rate else "no frame rate told, 25 assumed"
    yield "frames", f"{counted(stream.packets, 'packet')}, {shown}, {rate}, {stream.duration_s:.3f} s"


def _points(stream: StreamFacts) -> Iterator[Line]:
    access = stream.random_access
    if access is None:
        yield "random access", f"unknown: {stream.order_unknown}"
        return
    yield "random access", f"{counted(access.points, 'true random-access point')}{_at(access.first_points, access.points)}"
    yield "", f"{counted(access.flags, 'keyframe flag')} of the container{_at(access.first_flags, access.flags)}"
    if access.false_flags:
        at = _at(access.first_false, access.false_flags)
        yield "WARNING", f"{counted(access.false_flags, 'false keyframe flag')}, where decoding cannot begin{at}"
    if access.missing_flags:
        at = _at(access.first_missing, access.missing_flags)
        yield "WARNING", f"{counted(access.missing_flags, 'true point')} without a flag{at}"
    yield "GOP", _gop(access)


def _gop(access: RandomAccess) -> str:
    length = f"at most {counted(access.longest_gap, 'packet')} from a point to the next"
    if access.leading_pictures < 0:
        return f"{length}; open or closed is unknown"
    leading = counted(access.leading_pictures, "leading picture")
    if access.open_gops:
        return f"open: {counted(access.open_gops, 'point')} with leading pictures that need earlier ones ({leading}); {length}"
    return f"closed ({leading}); {length}"


def _order(stream: StreamFacts) -> Iterator[Line]:
    if stream.order_unknown:
        yield "display order", f"found by {stream.order}: {stream.order_unknown}"
    else:
        yield "display order", f"{stream.order}; {'frames are reordered' if stream.reordered else 'equal to decode order'}"
    if stream.packets_without_pts or stream.packets_with_repeated_pts:
        missing, repeated = stream.packets_without_pts, stream.packets_with_repeated_pts
        yield "times", f"{counted(missing, 'packet')} without presentation time, {repeated} with one that is used before"
    if stream.hidden is not None and (told := _hidden(stream.hidden)):
        yield "hidden", told


def _hidden(hidden: Hidden) -> str:
    parts = (
        (hidden.discarded, "hidden by an edit list"),
        (hidden.not_shown, "with a picture that is only referred to"),
        (hidden.without_picture, "without a picture"),
        (hidden.before_start, "that cannot be decoded from the first random-access point"),
    )
    return ", ".join(f"{counted(count, 'packet')} {what}" for count, what in parts if count)


def _damage(damage: Damage) -> Iterator[Line]:
    if damage.packets:
        yield "WARNING", f"{counted(damage.packets, 'packet')} damaged or with a loss before it"
        yield from (("", text) for text in damage.first)
    if damage.broken_at >= 0:
        yield "WARNING", f"the container is damaged at byte {damage.broken_at}"
    if damage.missing_bytes:
        yield "WARNING", f"the file is cut short: {counted(damage.missing_bytes, 'byte')} missing by its own header"
    if damage.ended:
        yield "WARNING", f"the demuxer stopped before the end: {damage.ended}"
    if damage.lost_at_end:
        yield "WARNING", f"{counted(damage.lost_at_end, 'frame')} lost at the end, by the duration in the header"


def _plan(stream: StreamFacts, clip: ClipFacts | None, config: DecodeConfig) -> Iterator[Line]:
    yield "plan", f"{counted(config.frames, 'frame')} by the policy {config.policy}{_moved(stream)}"
    if clip is not None and clip.decoder == "decord":
        yield "", f"decord seeks to {counted(len(set(clip.shown)), 'frame')} by index"
    elif clip is not None and clip.in_order:
        yield "", f"everything is decoded in order: {clip.why_in_order}"
    elif stream.runs:
        yield from (("", _run(run)) for run in stream.runs[:LISTED])
        if len(stream.runs) > LISTED:
            yield "", f"and {counted(len(stream.runs) - LISTED, 'run')} more"
        fed = sum(run.fed for run in stream.runs)
        yield "", f"{counted(len(stream.runs), 'run')}, {fed} of {counted(stream.packets, 'packet')} decoded"
    else:
        yield "", f"everything is decoded in order: {stream.order_unknown or 'packets are damaged'}"


def _moved(stream: StreamFacts) -> str:
    moved = [f"{a} to {b}" for a, b in zip(stream.asked, stream.shown, strict=False) if a != b]
    return f", moved to random-access points: frames {_some(moved)}" if moved else ""


def _run(run: PlannedRun) -> str:
    frames = f"frame{'s' * (len(run.shows) != 1)} {_some([str(index) for index in run.shows])}"
    return f"from packet {run.start} to {run.end}: feed {run.fed} of {counted(run.packets, 'packet')}, show {frames}"


def _clip(clip: ClipFacts, config: DecodeConfig) -> Iterator[Line]:
    yield "decoder", _decoder(clip, config)
    marks = ("" if proven else ", not proven" for proven in clip.proven)
    shown = zip(clip.shown, clip.times_s, marks, strict=False)
    yield "clip", _some([f"{index} ({time_s:.3f} s{mark})" for index, time_s, mark in shown])
    if clip.displaced_s:
        yield "", f"a frame is moved by {clip.displaced_s:.3f} s at most"
    yield "upright", _turn(clip)
    if clip.frames_lost > 0:
        yield "WARNING", f"{clip.frames_lost} of {counted(clip.frames_decoded, 'frame')} lost"
    substituted = clip.proven.count(False)
    if substituted:
        yield "WARNING", f"{substituted} of {counted(len(clip.proven), 'frame')} lost or not provably right: {clip.reason}"


def _decoder(clip: ClipFacts, config: DecodeConfig) -> str:
    if clip.decoder == "decord":
        return "decord, as asked: its frames are provably right in this file"
    if config.decoder == "decord" and clip.choice != "decord":
        return "pyav: decord hung, crashed or used up the memory, and PyAV had the second try"
    if clip.decord_refused:
        return f"pyav: decord is not used for this file: {clip.decord_refused}"
    return f"{clip.decoder}, {'as asked' if config.decoder == 'pyav' else 'the default'}"


def _turn(clip: ClipFacts) -> str:
    if not clip.matrix:
        return "rotation unknown: no frame could be decoded"
    if clip.mirrored and clip.rotation_deg == HALF_TURN:
        return "mirrored from top to bottom"
    mirror = "mirrored from left to right" if clip.mirrored else ""
    turn = f"turned by {clip.rotation_deg} degrees clockwise" if clip.rotation_deg else ""
    return ", then ".join(part for part in (mirror, turn) if part) or "neither turned nor mirrored"


def _at(first: Sequence[int], count: int) -> str:
    """Return which packets, some of them where there are many."""
    if not first:
        return ""
    more = ", ..." if count > len(first) else ""
    return f": packet{'s' * (count != 1)} {', '.join(map(str, first))}{more}"


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(words[:LISTED]) + more


def counted(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}{'s' * (count != 1)}"
