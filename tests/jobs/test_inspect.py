"""`framefold inspect`: what it says of a video is what is in the file, and what its picture shows are the frames asked for."""

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.description import quarter_turn
from pipeline.decode.inspection import split_segment
from pipeline.decode.orientation import turned
from pipeline.decode.sampling import frame_indices
from tests.command import framefold, report
from tests.frames.checking import clip_of
from tests.frames.numbered import numbers_of
from tests.frames.sweep import draw
from tests.frames.writing import Coding, remux, sequential, write
from tests.jobs.inspecting import HEIGHT, VIDEOS, WIDTH, facts, inspected, x264


@pytest.mark.parametrize("seed", range(12))
def test_random_file_inspected_shows_the_frames_of_the_clip_and_a_plan_that_covers_them(seed: int, tmp_path: Path) -> None:
    """Whatever the kind of file: indices, times and pictures are those that `encode` gets, each shown by exactly one run."""
    try:
        drawn = draw(random.Random(f"inspect {seed}"), tmp_path, seed)
        truth = numbers_of(sequential(drawn.path))
    except (av.error.FFmpegError, ValueError, AttributeError):
        pytest.skip("FFmpeg cannot write or read the drawn file")
    found = inspected(drawn.path)
    if not truth:  # cut so that no picture can be decoded
        assert found.error_class == "CORRUPT"
        return
    assert found.error_class == "", (drawn.story, found.error)
    assert found.stream is not None
    assert found.clip is not None
    assert found.thumbnails is not None
    assert found.clip.shown == frame_indices(len(truth), 8)
    assert found.clip.times_s == clip_of(drawn.path).timestamps_s
    assert numbers_of(found.thumbnails) == [truth[index] for index in found.clip.shown], drawn.story
    if found.clip.in_order:
        return
    assert sorted(index for run in found.stream.runs for index in run.shows) == sorted(set(found.clip.shown))
    assert all(1 <= run.fed <= run.packets == run.end - run.start + 1 for run in found.stream.runs)
    assert found.stream.shown_frames == len(truth)


@pytest.mark.parametrize("seed", range(6))
def test_random_access_points_found_are_those_that_the_encoder_was_told_to_make(seed: int, tmp_path: Path) -> None:
    """Closed and open GOPs of any length; leading pictures are those that the container's times show before their point."""
    rng = random.Random(f"points {seed}")
    gop, frames, is_open = rng.randint(4, 20), rng.randint(30, 90), seed % 2
    private = f"bframes={rng.randint(1, 3)}:b-adapt=0:open-gop={is_open}:min-keyint=2"
    path = x264(tmp_path / "a.mp4", frames, private, gop)
    (found,) = facts(path)
    access, leading = found["stream"]["random_access"], leading_by_times(path)
    assert access["points"] == access["flags"] == len(leading) == -(-frames // gop)
    assert (access["false_flags"], access["missing_flags"]) == (0, 0)
    assert access["leading_pictures"] == sum(leading)
    assert access["open_gops"] == sum(count > 0 for count in leading)
    if not is_open:
        assert access["first_points"] == [gop * place for place in range(min(len(leading), 5))]
        assert access["longest_gap"] == min(gop, frames)


def leading_by_times(path: Path) -> list[int]:
    """How many packets follow each flagged one, up to the next, and are shown before it."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    counts: list[int] = []
    for packet in packets:
        if packet.is_keyframe:
            counts.append(0)
            shown = packet.pts
        counts[-1] += packet.pts < shown
    return counts


@pytest.mark.parametrize("gop", [7, 20])
def test_lost_table_of_keyframes_warns_of_every_false_flag(gop: int, tmp_path: Path) -> None:
    coding = Coding(encoder="mpeg4", options={"g": str(gop), "bf": "0", "sc_threshold": "1000000000"})
    path = write(tmp_path / "a.mp4", 50, coding)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    (found,) = facts(path)
    access, points = found["stream"]["random_access"], list(range(0, 50, gop))
    assert (access["points"], access["first_points"]) == (len(points), points[:5])
    assert (access["flags"], access["false_flags"], access["missing_flags"]) == (50, 50 - len(points), 0)
    assert access["first_false"] == [number for number in range(50) if number % gop][:5]
    assert f"{50 - len(points)} false keyframe flags" in framefold("inspect", str(path)).stdout


def test_intra_refresh_warns_of_flags_at_which_decoding_cannot_begin(tmp_path: Path) -> None:
    path = x264(tmp_path / "refresh.mkv", 60, "intra-refresh=1:bframes=0:keyint=15", 15)
    ran = framefold("inspect", str(path))
    assert "1 true random-access point: packet 0" in ran.stdout
    assert "WARNING" in ran.stdout
    assert "false keyframe flag" in ran.stdout
    assert "from packet 0 to 59: feed 60 of 60 packets" in ran.stdout


def test_hidden_packets_are_counted_by_their_reason(tmp_path: Path) -> None:
    """Edit list; a stream cut inside a GOP."""
    (trimmed,) = facts(VIDEOS / "discard_first_keyframe.mp4")
    assert trimmed["stream"]["hidden"] == {"discarded": 5, "not_shown": 0, "without_picture": 0, "before_start": 0}
    whole = x264(tmp_path / "a.ts", 60, "bframes=0", 20)
    cut = remux(whole, tmp_path / "cut.ts", change=lambda number, packet: number >= 7)
    (found,) = facts(cut)
    assert found["stream"]["hidden"]["before_start"] == 13
    assert (found["stream"]["packets"], found["stream"]["shown_frames"]) == (53, 40)
    assert found["stream"]["random_access"]["first_points"] == [13, 33]


def test_stream_facts_are_those_of_the_file(tmp_path: Path) -> None:
    """The default stream of several, its size, rate and length; a stream without presentation times."""
    first, second = x264(tmp_path / "1.mp4", 20, "bframes=0"), x264(tmp_path / "2.mp4", 30, "bframes=2")
    both = tmp_path / "both.mp4"
    with av.open(str(first)) as one, av.open(str(second)) as two, av.open(str(both), "w") as out:
        copies = [out.add_stream_from_template(source.streams.video[0]) for source in (one, two)]
        copies[0].disposition, copies[1].disposition = av.stream.Disposition(0), av.stream.Disposition.default
        for source, copy in zip((one, two), copies, strict=True):
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = copy
                    out.mux(packet)
    raw = x264(tmp_path / "raw.h264", 25, "bframes=2", muxer="h264")
    two_streams, no_times = (found["stream"] for found in facts(both, raw))
    assert (two_streams["stream"], two_streams["video_streams"], two_streams["packets"]) == (1, 2, 30)
    assert (two_streams["width"], two_streams["height"], two_streams["codec"]) == (WIDTH, HEIGHT, "h264")
    assert (Fraction(two_streams["rate"]), two_streams["duration_s"]) == (25, 1.2)
    assert (no_times["container"], no_times["packets_without_pts"], no_times["reordered"]) == ("h264", 25, True)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_turn_told_of_a_display_matrix_is_what_happens_to_the_pixels(turns: int, is_mirrored: bool) -> None:
    """All eight matrices: mirrored from left to right first, then turned clockwise."""
    pixels = np.random.default_rng(turns).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    upright = np.rot90(pixels[:, ::-1] if is_mirrored else pixels, -turns)
    quarter = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][turns]
    sign = -1 if is_mirrored else 1
    matrix = tuple(v * 65536 for v in (sign * quarter[0], sign * quarter[1], quarter[2], quarter[3]))
    assert np.array_equal(turned(pixels, matrix), upright)  # type: ignore[arg-type]
    assert quarter_turn(matrix) == (90 * turns, is_mirrored)


def test_rotation_of_real_files_is_told() -> None:
    shown = {found["video"].split("/")[-1]: found["clip"] for found in facts(*VIDEOS.glob("*90.mov"), VIDEOS / "testsrc2.mp4")}
    assert (shown["video_90.mov"]["rotation_deg"], shown["video_90.mov"]["mirrored"]) == (90, False)
    assert shown["testsrc2.mp4"]["rotation_deg"] == 0


def test_damage_is_told_and_decides_with_max_substituted() -> None:
    """CORRUPT with the frames that are not proven, and usable where so many are allowed; packets that are damaged are named."""
    path = VIDEOS / "corrupted.mp4"
    (refused,) = facts(path)
    assert (refused["error_class"], refused["clip"]["in_order"]) == ("CORRUPT", True)
    substituted = refused["clip"]["proven"].count(False)
    assert 0 < substituted < 8
    assert refused["clip"]["frames_lost"] == 1
    assert refused["stream"]["damage"]["first"][0].startswith("packet 30: ")
    (allowed,) = facts(path, "--max-substituted", str(substituted))
    assert allowed["error_class"] is None
    ran = framefold("inspect", str(path))
    assert ran.returncode == 1
    assert "not usable    CORRUPT: 3 of 8 frames" in ran.stdout
    assert ", not proven)" in ran.stdout


def test_file_cut_short_tells_missing_bytes_and_lost_frames(tmp_path: Path) -> None:
    path = x264(tmp_path / "a.mp4", 60, "bframes=0", mux_options={"movflags": "faststart"})
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    path.write_bytes(whole[: ends[34]])
    inside = tmp_path / "inside.mp4"
    inside.write_bytes(whole[: ends[34] + 20])
    between, torn = facts(path, inside)
    assert between["stream"]["damage"]["missing_bytes"] == len(whole) - ends[34]
    assert between["stream"]["damage"]["lost_at_end"] == 25
    assert (between["error_class"], torn["error_class"]) == ("CORRUPT", "CORRUPT")
    assert torn["stream"]["damage"]["first"][0].startswith("packet 35: ")
    assert torn["clip"]["frames_lost"] == 25


def test_unusable_files_have_a_class_and_the_others_are_inspected(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all, but text")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\nhttp://127.0.0.1:9/x.ts\n")
    names = ["gone.mp4", "empty.mp4", "text.mp4", "list.m3u8"]
    good = VIDEOS / "unordered.mov"
    paths = [str(tmp_path / name) for name in names]
    ran = framefold("inspect", *paths, str(VIDEOS / "sine_mono_s16.wav"), str(good))
    classes = {"NOT_FOUND": 1, "EMPTY": 1, "CORRUPT": 1, "FORBIDDEN_PROTOCOL": 1, "NO_VIDEO_STREAM": 1}
    assert (ran.returncode, report(ran)["failed_by_class"], report(ran)["usable"]) == (1, classes, 1)
    assert "4 packets, 4 shown frames" in ran.stdout


WRONG = {
    "no video": [],
    "no frames": ["x.mp4", "--frames", "0"],
    "an unknown policy": ["x.mp4", "--policy", "best"],
    "a picture that is none by its name": ["gone.mp4", "--png", "x.mp4"],
    "a picture that would replace a video": ["x.mp4", "v.png", "--png", "./v.png"],
    "options that are no JSON": ["x.mp4", "--storage-options", "{"],
    "a picture below a file": ["x.mp4", "--png", "FILE/strip.png"],
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_exit_2_and_write_nothing(case: str, tmp_path: Path) -> None:
    before = (VIDEOS / "unordered.mov").read_bytes()
    names = ["v.png", "x.mp4"]
    for name in names:
        (tmp_path / name).write_bytes(before)
    ran = framefold("inspect", *[word.replace("FILE", str(tmp_path / "x.mp4")) for word in WRONG[case]], cwd=tmp_path)
    assert ran.returncode == 2, ran.stdout
    assert [line for line in ran.stderr.splitlines() if line.startswith("framefold: ")]
    assert "Traceback" not in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes() == before for name in names)


def test_policy_keyframe_shows_random_access_points_and_how_far_frames_moved(tmp_path: Path) -> None:
    path = x264(tmp_path / "a.mp4", 100, "bframes=0:min-keyint=10", 10)
    (found,) = facts(path, "--policy", "keyframe", "--frames", "4")
    assert found["stream"]["asked"] == [0, 33, 66, 99]
    assert found["clip"]["shown"] == [0, 30, 70, 90]
    assert found["clip"]["displaced_s"] == pytest.approx(9 / 25)
    ran = framefold("inspect", str(path), "--policy", "keyframe", "--frames", "4")
    assert "moved to random-access points: frames 33 to 30, 66 to 70, 99 to 90" in ran.stdout


def test_decord_is_named_where_it_is_used_and_why_where_not(tmp_path: Path) -> None:
    right = x264(tmp_path / "a.mp4", 40, "bframes=0")
    unfit = x264(tmp_path / "a.avi", 40, "bframes=0")
    used, refused = facts(right, unfit, "--decoder", "decord")
    assert (used["clip"]["decoder"], used["clip"]["decord_refused"]) == ("decord", "")
    assert (refused["clip"]["decoder"], refused["clip"]["decord_refused"]) == ("pyav", "the container avi")
    ran = framefold("inspect", str(right), str(unfit), "--decoder", "decord")
    assert "decord, as asked" in ran.stdout
    assert "pyav: decord is not used for this file: the container avi" in ran.stdout


def test_codec_that_is_not_read_is_decoded_in_order_and_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "a.asf", 30, Coding(encoder="wmv2", options={"qmin": "2", "qmax": "3"}))
    (found,) = facts(path)
    assert found["stream"]["random_access"] is None
    assert "wmv2 is not read" in found["stream"]["order_unknown"]
    assert (found["clip"]["in_order"], found["clip"]["frames_decoded"]) == (True, 30)
    assert found["clip"]["shown"] == frame_indices(30, 8)


def test_segment_is_inspected_between_its_times(tmp_path: Path) -> None:
    """With any number of decimals; beyond the end it is CORRUPT; a file that is itself named like a segment is whole."""
    path = x264(tmp_path / "a.mp4", 100, "bframes=2")
    odd = tmp_path / "b.mp4#t=1.000,2.000"
    odd.write_bytes(path.read_bytes())
    part, beyond, whole = facts(f"{path}#t=1,2.2", f"{path}#t=50,60.5", odd)
    assert (part["segment"], part["clip"]["shown"]) == ([1.0, 2.2], [25 + index for index in frame_indices(30, 8)])
    assert part["clip"]["times_s"][0] == 1.0
    assert (beyond["error_class"], beyond["stream"]["packets"]) == ("CORRUPT", 100)
    assert (whole["segment"], whole["clip"]["shown"]) == (None, frame_indices(100, 8))


@pytest.mark.parametrize("video", ["a.mp4", "a#t=1", "a#t=x,2", "s3://b/a.mp4", "#t=1,2", "a#t=1,2#t=3"])
def test_name_without_a_segment_stays_whole(video: str) -> None:
    assert split_segment(video) == (video, None)
