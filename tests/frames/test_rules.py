"""The rules of decoding, one test for each row of the tables in docs/decoding.md."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.corpus.start_codes import elementary_demuxer, is_transport_stream
from pipeline.decode.decord_reader import refusal
from pipeline.decode.order import DisplayOrder
from pipeline.decode.plan import runs_for
from pipeline.decode.sampling import frame_indices, snapped
from pipeline.decode.video_file import VideoFile
from tests.frames.checking import clip_of, opened
from tests.frames.numbered import numbers_of
from tests.frames.test_kinds import B_FRAMES, HEVC, MPEG2, MPEG4, OPEN
from tests.frames.writing import Coding, remux, sequential, write

CLOSED = Coding(options={"g": "24", "bf": "2", "crf": "14"})
REFRESH = Coding(private="intra-refresh=1:keyint=24:bframes=0")
VP8 = Coding(encoder="libvpx", options={"g": "30", "deadline": "realtime", "cpu-used": "8", "b": "2M"})
VP9 = Coding(encoder="libvpx-vp9", options={"g": "30", "deadline": "realtime", "cpu-used": "8", "b": "2M"})
AV1 = Coding(encoder="libsvtav1", options={"g": "30", "preset": "11", "crf": "20"})


def turned(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 48
    content[at : at + 4] = (-1 << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


def timed_in_decode_order(folder: Path) -> Path:
    """Far from zero, so that no edit list hides the pictures whose times are wrong."""

    def change(_: int, packet: av.Packet) -> bool:
        packet.pts = packet.dts = packet.dts + 1_000_000
        return True

    return remux(write(folder / "source.mp4", 60, CLOSED), folder / "v.mp4", change=change)


def without_its_first_packet(folder: Path) -> Path:
    return remux(write(folder / "source.mp4", 60, CLOSED), folder / "v.mp4", change=lambda number, _: number > 0)


DECORD_REFUSES: dict[str, Any] = {
    "times that are missing, used twice, or not in display order": timed_in_decode_order,
    "packets that show no frame": without_its_first_packet,
    "the container avi": lambda folder: write(folder / "v.avi", 60, CLOSED),
    "the codec mpeg4": lambda folder: write(folder / "v.mp4", 60, MPEG4),
    "the codec hevc": lambda folder: write(folder / "v.mp4", 60, HEVC),
    "the pixel format yuv444p": lambda folder: write(folder / "v.mp4", 60, Coding(pixels="yuv444p")),
    "the pixel format yuv420p10le": lambda folder: write(folder / "v.mp4", 60, Coding(pixels="yuv420p10le")),
    "keyframes of the container at which decoding cannot begin": lambda folder: write(folder / "v.mp4", 60, OPEN),
    "keyframes of the container": lambda folder: write(folder / "v.mp4", 60, REFRESH),
    "a display matrix": lambda folder: turned(write(folder / "v.mp4", 60, CLOSED)),
}


@pytest.mark.parametrize("reason", DECORD_REFUSES)
def test_decord_is_refused_where_its_frames_are_not_provably_right(reason: str, tmp_path: Path) -> None:
    file = opened(DECORD_REFUSES[reason](tmp_path), decoder="decord")
    assert file.decord_refusal.startswith(reason)
    assert file.clip().decoder == "pyav"


def trimmed(folder: Path) -> Path:
    """An edit list hides the first frames."""

    def change(_: int, packet: Any) -> bool:
        packet.pts, packet.dts = packet.pts - 3 * 512, packet.dts - 3 * 512
        return True

    source = write(folder / "source.mp4", 60, CLOSED)
    return remux(source, folder / "trimmed.mp4", mux_options={"avoid_negative_ts": "disabled"}, change=change)


def test_decord_is_refused_for_packets_that_an_edit_list_hides(tmp_path: Path) -> None:
    file = opened(trimmed(tmp_path), decoder="decord")
    assert file.decord_refusal == "packets that show no frame"
    assert numbers_of(file.clip().frames) == [index + 3 for index in frame_indices(57, 8)]


@pytest.mark.parametrize("time", [None, 0])
def test_decord_is_refused_for_times_that_are_missing_or_used_twice(time: int | None, tmp_path: Path) -> None:
    file = opened(write(tmp_path / "v.mp4", 60, CLOSED))
    assert isinstance(file.order, DisplayOrder)
    assert refusal(file.scan, file.order, is_turned=False) == ""
    packets = (*file.scan.packets[:-1], replace(file.scan.packets[-1], pts=time))
    said = refusal(replace(file.scan, packets=packets), file.order, is_turned=False)
    assert said == "times that are missing, used twice, or not in display order"


def test_decord_is_refused_for_several_video_streams(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "v.mp4", 60, CLOSED))
    assert isinstance(file.order, DisplayOrder)
    assert refusal(replace(file.scan, streams=2), file.order, is_turned=False) == "2 video streams"


def test_decord_is_refused_where_it_seeks_to_packets_that_are_no_random_access_points(tmp_path: Path) -> None:
    """Without recovery points the I pictures of open groups are none; decord's FFmpeg believes the sample table."""
    path = tmp_path / "v.mp4"
    with av.open(str(write(tmp_path / "open.mp4", 60, OPEN))) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        no_messages = av.bitstream.BitStreamFilterContext("filter_units=remove_types=6", stream, copy)
        for packet in source.demux(stream):
            is_key = packet.is_keyframe
            for filtered in no_messages.filter(packet if packet.size else None):
                filtered.stream, filtered.is_keyframe = copy, is_key
                target.mux(filtered)
    clip = clip_of(path, decoder="decord")
    assert clip.decoder == "pyav"
    assert numbers_of(clip.frames) == frame_indices(60, 8)


@pytest.mark.parametrize(
    ("name", "coding"), [("v.mp4", CLOSED), ("v.mov", CLOSED), ("v.mkv", CLOSED), ("v.webm", VP8), ("v.webm", VP9)]
)
def test_decord_option_gives_the_frames_of_the_plan(name: str, coding: Coding, tmp_path: Path) -> None:
    path = write(tmp_path / name, 90, coding)
    clip = clip_of(path, decoder="decord")
    assert clip.decoder == "decord"
    assert numbers_of(clip.frames) == frame_indices(90, 8)
    assert clip.timestamps_s == clip_of(path).timestamps_s


STARTS = {
    "h264": ("v.mp4", CLOSED, 24),
    "hevc": ("v.mp4", Coding(encoder="libx265", private="keyint=24:min-keyint=24:open-gop=0:scenecut=0"), 24),
    "mpeg4": ("v.mp4", Coding(encoder="mpeg4", options={"g": "24", "bf": "0", "sc_threshold": "1000000000"}), 24),
    "mpeg2": ("v.ts", Coding(encoder="mpeg2video", options={"g": "24", "bf": "0", "sc_threshold": "1000000000"}), 24),
    "vp8": ("v.webm", VP8, 30),
    "vp9": ("v.webm", VP9, 30),
    "av1": ("v.mkv", AV1, 30),
    "mjpeg": ("v.avi", Coding(encoder="mjpeg", pixels="yuvj420p"), 1),
}


@pytest.mark.parametrize("codec", STARTS)
def test_random_access_points_are_read_from_the_bitstream(codec: str, tmp_path: Path) -> None:
    """Where the encoder was told to put them."""
    name, coding, distance = STARTS[codec]
    path = write(tmp_path / name, 90, coding)
    order = opened(path).order
    assert isinstance(order, DisplayOrder)
    assert list(order.starts) == list(range(0, 90, distance))


def test_random_access_points_of_intra_refresh_are_its_first_picture_alone(tmp_path: Path) -> None:
    """The container flags every recovery point."""
    file = opened(write(tmp_path / "v.mp4", 120, REFRESH))
    assert isinstance(file.order, DisplayOrder)
    assert file.order.starts == (0,)
    assert sum(packet.key for packet in file.scan.packets) > 1


@pytest.mark.parametrize("coding", [OPEN, HEVC, MPEG4, MPEG2], ids=["h264", "hevc", "mpeg4", "mpeg2"])
def test_leading_pictures_are_decoded_from_the_random_access_point_before(coding: Coding, tmp_path: Path) -> None:
    path = write(tmp_path / "v.mkv", 90, coding, muxer="matroska")
    everything = sequential(path)
    file = opened(path)
    order = file.order
    assert isinstance(order, DisplayOrder)
    leading = [
        index
        for index, packet in enumerate(order.shown)
        if any(start <= packet and order.ranks[start] > order.ranks[packet] for start in order.starts)
    ]
    assert leading
    for index in leading[:4]:
        clip = file.clip((index / 25, index / 25 + 0.04))
        assert (clip.frames[0] == everything[index]).all()


def test_plan_decodes_nothing_that_no_shown_frame_refers_to(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "v.mp4", 200, CLOSED))
    order = file.order
    assert isinstance(order, DisplayOrder)
    targets = [order.shown[index] for index in frame_indices(200, 8)]
    packets = file.scan.packets
    for run in runs_for(order, packets, targets):
        assert packets[run.start].picture.start  # type: ignore[union-attr]
        unneeded = [n for n in run.packets if not packets[n].picture.reference and n not in run.targets]  # type: ignore[union-attr]
        assert not unneeded
        assert run.end == max(run.targets)


def test_plan_leaves_out_leading_pictures_of_its_random_access_point(tmp_path: Path) -> None:
    """RASL pictures are references too, and cannot be decoded from the CRA picture they follow."""
    coding = Coding(**{**vars(HEVC), "private": "keyint=12:bframes=5:open-gop=1:b-pyramid=1:rc-lookahead=10"})
    file = opened(write(tmp_path / "v.mkv", 120, coding, muxer="matroska"))
    order, packets = file.order, file.scan.packets
    assert isinstance(order, DisplayOrder)
    pictures = {number: packet.picture for number, packet in enumerate(packets) if packet.picture is not None}
    leading = {number for number, picture in pictures.items() if picture.leading}
    assert any(pictures[number].reference for number in leading)
    for target in order.shown:
        (run,) = runs_for(order, packets, [target])
        assert not leading & set(run.packets) or target in leading or run.start < max(n for n in order.starts if n <= target)


def test_run_that_breaks_its_promise_is_decoded_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A display order that is wrong is noticed by the order in which frames come out."""
    path = write(tmp_path / "v.mp4", 90, B_FRAMES)
    file = opened(path)
    order = file.order
    assert isinstance(order, DisplayOrder)
    ranks = {number: number for number in order.ranks}
    wrong = DisplayOrder(shown=tuple(sorted(order.shown)), ranks=ranks, starts=order.starts, depth=0)
    monkeypatch.setattr(VideoFile, "order", wrong)
    clip = VideoFile(path, "mov", file.config).clip()
    assert numbers_of(clip.frames) == frame_indices(90, 8)
    assert "out of turn" in clip.reason


@pytest.mark.parametrize("coding", [CLOSED, OPEN, HEVC, MPEG4, VP9], ids=["closed", "open", "hevc", "mpeg4", "vp9"])
def test_keyframe_policy_shows_distinct_random_access_points_at_their_times(coding: Coding, tmp_path: Path) -> None:
    path = write(tmp_path / "v.mkv", 400, coding, muxer="matroska")
    everything, file = sequential(path), opened(path, policy="keyframe")
    clip = file.clip()
    shown = [round(time * 25) for time in clip.timestamps_s]
    assert (clip.frames == np.stack([everything[index] for index in shown])).all()
    assert len(set(shown)) == 8
    assert isinstance(file.order, DisplayOrder)
    assert {file.order.shown[index] for index in shown} <= set(file.order.starts)
    moved = max(abs(a - b) for a, b in zip(shown, frame_indices(400, 8), strict=True)) / 25
    assert clip.displaced_s == pytest.approx(moved, abs=0.01)


def test_keyframe_policy_with_too_few_random_access_points_shows_the_exact_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", 90, Coding(options={"g": "250"}))
    clip, exact = clip_of(path, policy="keyframe"), clip_of(path)
    assert (clip.frames == exact.frames).all()
    assert clip.displaced_s == 0.0


def test_snapped_points_are_distinct_rising_and_near() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = sorted(rng.choice(500, rng.integers(8, 60), replace=False).tolist())
        asked = frame_indices(500, 8)
        found = snapped(asked, points)
        assert found == sorted(set(found))
        assert set(found) <= set(points)
        if len(points) == 8:
            assert found == points


HEADS = {
    b"\x00\x00\x00\x01\x67\x42": "h264",
    b"\x00\x00\x01\x09\x10": "h264",
    b"\x00\x00\x00\x01\x09\xf0": "h264",
    b"\x00\x00\x00\x01\x06\x05": "h264",
    b"\x00\x00\x01\x27\x64": "h264",
    b"\x00\x00\x00\x01\x40\x01": "hevc",
    b"\x00\x00\x01\x46\x01": "hevc",
    b"\x00\x00\x00\x01\x42\x01": "hevc",
    b"\x00\x00\x01\x4e\x01": "hevc",
    b"\x00\x00\x01\xba\x44": "mpeg",
    b"\x00\x00\x01\xe0\x07": "mpeg",
    b"\x00\x00\x01\xb3\x14": "mpegvideo",
    b"\x00\x00\x01\xb0\x01": "m4v",
    b"\x00\x00\x01\x00\x00\x00\x01\x20": "m4v",
    b"\x00\x00\x01\x0f\xca": "vc1",
    b"\x00\x00\x02\x67\x42": "",
    b"\x00\x01\x67\x42\x00": "",
    b"\xff\xd8\xff\xe0": "",
    b"": "",
}


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.hex() or "nothing")
def test_elementary_stream_is_known_by_its_first_start_code(head: bytes) -> None:
    assert elementary_demuxer(head + b"\x80" * 8 if head else head) == HEADS[head]


@pytest.mark.parametrize("size", [188, 192, 204])
@pytest.mark.parametrize("partial", [0, 1, 77, 187])
def test_transport_stream_is_known_wherever_its_first_packet_begins(size: int, partial: int) -> None:
    packets = (b"\x47" + bytes(size - 1)) * 20
    assert is_transport_stream(packets[partial:])
    assert not is_transport_stream(packets[partial:].replace(b"\x47", b"\x46"))


def test_stream_of_a_codec_that_is_not_read_is_decoded_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "v.avi", 60, Coding(encoder="msmpeg4", options={"g": "12", "qmin": "2", "qmax": "3"}))
    clip = clip_of(path)
    assert numbers_of(clip.frames) == frame_indices(60, 8)
    assert clip.reason == "the codec msmpeg4v3 is not read: everything was decoded"


def test_packed_pictures_are_decoded_in_order(tmp_path: Path) -> None:
    """As DivX wrote them into AVI: a packet with two pictures, then one that holds a place."""
    source = write(tmp_path / "source.avi", 60, Coding(encoder="mpeg4", options={"g": "12", "bf": "1", "qmin": "2"}))
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    joined = [packets[0]]
    for first, second in zip(packets[1::2], packets[2::2], strict=False):
        joined += [first + second, b"\x00\x00\x01\xb6\x56\x40"]

    path = tmp_path / "packed.avi"
    with av.open(str(source)) as inside, av.open(str(path), "w") as outside:
        copy = outside.add_stream_from_template(inside.streams.video[0])
        for number, content in enumerate(joined):
            packet = av.Packet(content)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = inside.streams.video[0].time_base, copy, number == 0
            outside.mux(packet)
    truth = numbers_of(sequential(path))
    assert opened(path).order == "a packet holds several pictures"
    assert len(set(truth)) > 20
    assert numbers_of(clip_of(path).frames) == [truth[index] for index in frame_indices(len(truth), 8)]
