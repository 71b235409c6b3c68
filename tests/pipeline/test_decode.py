"""Real files through the real stage: each gives what full sequential decoding shows, or its class of failure."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.corpus.fetch import fetch
from pipeline.corpus.listing import read_corpus
from pipeline.decode.config import LIMITS, DecodeConfig, decode_spec
from pipeline.decode.sampling import frame_indices
from pipeline.decode.stage import Decode
from pipeline.decode.transforms import fit_square
from pipeline.errors import VIDEO_CODES, ConfigError, VideoError
from pipeline.schema import DECODED
from tests.http_server import http_server
from tests.pipeline.decoding import VIDEOS, corpus
from tests.poison import craft

GOOD = {
    "av1_video.mkv": 125,
    "discard_first_keyframe.mp4": 25,
    "h265_10bits.mp4": 30,
    "h265_video.mp4": 10,
    "nasa_13013.mp4": 390,
    "nasa_13013_rotated.mp4": 17,
    "testsrc2.mp4": 60,
    "testsrc2_mpeg4.avi": 30,
    "testsrc2_mpeg4.mp4": 1,
    "testsrc2_odd_height_and_width_vp9.mp4": 25,
    "testsrc2_vp9.webm": 30,
    "unordered.mov": 4,
    "video_90.mov": 3,
}
"""Frames that full decoding shows."""


def sequential(path: Path) -> list[np.ndarray]:
    """Every frame that PyAV shows, upright, decoded from the first packet to the last by one thread."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"  # what stands in for damaged slices depends on the number of threads
        for packet in (*container.demux(stream), None):
            try:
                shown = stream.codec_context.decode(packet) if packet is None or packet.size else []
            except av.error.FFmpegError:
                continue
            frames += [np.rot90(f.to_ndarray(format="rgb24"), (f.rotation // 90) % 4) for f in shown]
    return frames


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.parametrize("policy", ["linspace", "arange"])
def test_sampled_frames_are_those_of_full_sequential_decoding(name: str, decoder: str, policy: str) -> None:
    """Byte for byte with PyAV; decord converts colours otherwise, by a few levels."""
    everything = sequential(VIDEOS / name)
    assert len(everything) == GOOD[name]
    with Decode(DecodeConfig(policy=policy, decoder=decoder), side_px=56) as stage:
        row = stage(corpus(str(VIDEOS / name))).to_pylist()[0]
    assert (row["error_class"], row["error"], row["substituted_frames"]) == (None, None, 0)
    ours = np.frombuffer(row["frames"], np.uint8).reshape(8, 56, 56, 3).astype(int)
    expected = fit_square(np.stack([everything[index] for index in frame_indices(GOOD[name], 8, policy)]), 56).astype(int)
    assert np.abs(ours - expected).mean() <= (0.0 if row["decoder"] == "pyav" else 2.0)


def test_decord_option_reads_only_files_in_which_its_frames_are_provably_right() -> None:
    """Plain H.264 and VP9 in MP4, MOV and WebM; everything else is read by PyAV."""
    with Decode(DecodeConfig(decoder="decord"), side_px=28) as stage:
        rows = stage(corpus(*(str(VIDEOS / name) for name in GOOD))).to_pylist()
    by_decord = {name for name, row in zip(GOOD, rows, strict=True) if row["decoder"] == "decord"}
    assert by_decord == {
        "testsrc2.mp4",
        "testsrc2_odd_height_and_width_vp9.mp4",
        "testsrc2_vp9.webm",
        "unordered.mov",
    }


def test_damaged_file_is_corrupt_and_says_where_unless_substitutes_are_allowed() -> None:
    """Packet 30 of 50 cannot be read, and no later packet is a random-access point."""
    path = corpus(str(VIDEOS / "corrupted.mp4"))
    with Decode(DecodeConfig(), side_px=28) as stage:
        row = stage(path).to_pylist()[0]
    assert row["error_class"] == "CORRUPT"
    assert "3 of 8 frames" in row["error"]
    assert "packet 29 of 50" in row["error"]
    with Decode(DecodeConfig(max_substituted=3), side_px=28) as stage:
        row = stage(path).to_pylist()[0]
    assert (row["error_class"], row["substituted_frames"]) == (None, 3)


def test_clip_of_a_short_video_repeats_frames_and_substitutes_none(stage: Decode) -> None:
    """One frame shown eight times is the frame that was asked for eight times."""
    row = stage(corpus(str(VIDEOS / "testsrc2_mpeg4.mp4"))).to_pylist()[0]
    assert row["substituted_frames"] == 0
    assert row["timestamps_s"] == [0.0] * 8


def sparse_video(path: Path, times_s: tuple[int, ...]) -> Path:
    """Frames that stand on the screen for many seconds, as in a recording of slides; each a brighter grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 60 * number + 30, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_s, Fraction(1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_segment_in_which_no_frame_begins_shows_the_one_on_the_screen(stage: Decode, tmp_path: Path) -> None:
    """Slides stand for long; a video of one frame is a segment of no length. Beyond the end there is nothing to show."""
    slides, one = sparse_video(tmp_path / "slides.mkv", (0, 2, 30, 32)), VIDEOS / "testsrc2_mpeg4.mp4"
    asked = [f"{slides}#t=0.000,10.000", f"{slides}#t=10.000,20.000", f"{one}#t=0.000,0.000"]
    whole, still, single = stage(corpus(*asked)).to_pylist()
    assert [row["error_class"] for row in (whole, still, single)] == [None] * 3
    assert still["timestamps_s"] == [2.0] * 8
    assert still["frames"][:30] == whole["frames"][-30:]
    assert single["frames"] == stage(corpus(str(one)))["frames"][0].as_py()
    for wrong in ("90.000,99.000", "10.000,5.000"):
        assert stage(corpus(f"{slides}#t={wrong}"))["error_class"].to_pylist() == ["CORRUPT"]


def test_timestamps_start_at_zero_and_rise(stage: Decode) -> None:
    """Seconds since the first frame, for both backends."""
    rows = stage(corpus(str(VIDEOS / "testsrc2.mp4"), str(VIDEOS / "av1_video.mkv"))).to_pylist()
    for row in rows:
        assert row["timestamps_s"][0] == 0
        assert np.isfinite(row["timestamps_s"]).all()
        assert row["timestamps_s"] == sorted(row["timestamps_s"])
    assert rows[0]["timestamps_s"][-1] == pytest.approx(59 / 30, abs=0.01)


def test_every_bad_input_is_a_row_with_its_class(stage: Decode, tmp_path: Path) -> None:
    """Good neighbours are not touched by any of them."""
    bad = {
        "none.mp4": (None, "NOT_FOUND"),
        "empty.mp4": (b"", "EMPTY"),
        "zeros.mp4": (bytes(100_000), "CORRUPT"),
        "text.mp4": (b"hello, this is no video", "CORRUPT"),
        "list.mp4": (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n", "FORBIDDEN_PROTOCOL"),
        "concat.mp4": (b"ffconcat version 1.0\nfile /etc/hostname\n", "FORBIDDEN_PROTOCOL"),
        "dash.mp4": (b"<?xml version='1.0'?>\n<MPD><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>", "FORBIDDEN_PROTOCOL"),
        "sine.mp4": ((VIDEOS / "sine_mono_s16.wav").read_bytes(), "NO_VIDEO_STREAM"),
        "cut.mp4": ((VIDEOS / "nasa_13013.mp4").read_bytes()[:100_000], "CORRUPT"),
    }
    uris = []
    for name, (content, _) in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        uris.append(str(tmp_path / name))
    rows = stage(corpus(*uris, str(VIDEOS / "testsrc2.mp4"))).to_pylist()
    assert [row["error_class"] for row in rows] == [code for _, code in bad.values()] + [None]
    assert {row["error_class"] for row in rows[:-1]} <= VIDEO_CODES
    assert all(row["frames"] is None and row["error"] for row in rows[:-1])
    assert stage(corpus(*uris)).schema == DECODED


@pytest.mark.parametrize("name", ["a[1]*.mov", "-x ü #1.mov", "q?x=1%20.mov", "a::b.mov", " .mov"])
def test_a_file_may_have_any_name(stage: Decode, tmp_path: Path, name: str) -> None:
    """Characters that mean something to globs, URLs or fsspec are part of the name, by path and by directory."""
    (tmp_path / name).write_bytes((VIDEOS / "unordered.mov").read_bytes())
    listed = read_corpus(str(tmp_path))
    assert stage(listed)["error_class"].to_pylist() == [None]
    assert stage(corpus(str(tmp_path / name)))["error_class"].to_pylist() == [None]


def test_limits_are_flags_and_name_themselves(tmp_path: Path) -> None:
    """Bytes, pixels, seconds and frames each refuse a video that is fine otherwise."""
    for limit in ({"max_bytes": 1000}, {"max_pixels": 1000}, {"max_duration_s": 0.5}, {"max_frames": 59}):
        with Decode(DecodeConfig(**limit), side_px=32) as stage:
            row = stage(corpus(str(VIDEOS / "testsrc2.mp4"))).to_pylist()[0]
        assert row["error_class"] == "TOO_LARGE", limit
        assert str(int(*limit.values())) in row["error"]


def test_zero_lifts_every_limit() -> None:
    """Each of them at once; the deadline stays."""
    with Decode(DecodeConfig(**dict.fromkeys(LIMITS, 0)), side_px=32) as stage:
        assert stage(corpus(str(VIDEOS / "testsrc2.mp4")))["error_class"].to_pylist() == [None]


def test_a_video_without_a_length_in_its_header_is_measured_by_its_packets(tmp_path: Path) -> None:
    """As a live recording is; one stray timestamp is no length."""
    times = list(range(0, 30_000, 1000))
    for name, odd in (("long", times), ("stray", [*range(29), 30_000])):
        (tmp_path / name).write_bytes(craft.matroska(64, 64, packets=(b"\x00",) * 30, times_ms=odd))
    with Decode(DecodeConfig(max_duration_s=20), side_px=32) as stage:
        rows = stage(corpus(str(tmp_path / "long"), str(tmp_path / "stray"))).to_pylist()
    assert [row["error_class"] for row in rows] == ["TOO_LARGE", "CORRUPT"]
    assert "s long" in rows[0]["error"]


def test_what_is_no_regular_file_is_refused_at_once(stage: Decode, tmp_path: Path) -> None:
    """A pipe that nobody writes to would keep the stage waiting for ever."""
    os.mkfifo(tmp_path / "pipe.mp4")
    rows = stage(corpus(str(tmp_path / "pipe.mp4"), f"file://{tmp_path}/pipe.mp4", "/dev/zero", str(tmp_path))).to_pylist()
    assert [row["error_class"] for row in rows] == ["UNREADABLE"] * 4


def test_what_is_refused_is_not_copied(tmp_path: Path) -> None:
    """A gigabyte of zeros by its first bytes, ten by their number."""
    for size, code in ((1 << 30, "CORRUPT"), (10 << 30, "TOO_LARGE")):
        with (tmp_path / "zeros.mp4").open("wb") as file:
            file.truncate(size)
        with pytest.raises(VideoError) as caught:
            fetch(str(tmp_path / "zeros.mp4"), tmp_path / "copy", DecodeConfig().max_bytes)
        assert caught.value.code == code
        assert (tmp_path / "copy").stat().st_size == 0


def test_a_connection_that_breaks_is_a_class_of_failure(stage: Decode) -> None:
    """Whatever the library for the protocol raises; a body that comes byte by byte is a video all the same."""
    content = (VIDEOS / "unordered.mov").read_bytes()
    with http_server({"/whole": content, "/broken": content}, cut={"/broken": 700}) as (url, asked):
        rows = stage(corpus(f"{url}/broken", f"{url}/whole", f"{url}/none")).to_pylist()
    assert [row["error_class"] for row in rows] == ["UNREADABLE", None, "NOT_FOUND"]
    assert {path for _, path in asked} == {"/broken", "/whole", "/none"}


@pytest.mark.parametrize("change", [{"policy": "arange"}, {"policy": "keyframe"}, {"frames": 4}, {"decoder": "decord"}])
def test_what_changes_pixels_changes_the_spec(change: dict) -> None:
    """Each field that changes a pixel is in the spec."""
    assert decode_spec(DecodeConfig(**change)) != decode_spec(DecodeConfig())


def test_limits_do_not_change_the_spec() -> None:
    """A longer deadline is no reason to encode a corpus again."""
    assert decode_spec(DecodeConfig(deadline_s=5, **dict.fromkeys(LIMITS, 7), max_substituted=3)) == decode_spec(DecodeConfig())
    assert decode_spec(DecodeConfig(decoder="pyav")) == decode_spec(DecodeConfig(decoder="auto"))


WRONG = [
    {"frames": 0},
    {"max_substituted": 9},
    {"max_substituted": -1},
    {"deadline_s": 0}, {"max_frames": -1}, {"policy": "random"}, {"decoder": "vlc"},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    """Before any video is read."""
    with pytest.raises(ConfigError):
        DecodeConfig(**wrong)


def test_a_directory_of_real_files_decodes(stage: Decode) -> None:
    """The folder of test videos as a corpus: all fourteen videos, one of them damaged, none of the licence texts."""
    videos = read_corpus(str(VIDEOS))
    assert videos.num_rows == len(GOOD) + 1
    assert stage(videos)["error_class"].null_count == len(GOOD)
