"""Damaged files: a frame that is not the one asked for is counted, and by default the file is refused with the reason."""

import random
import struct
from pathlib import Path

import av
import pytest

from pipeline.decode.sampling import frame_indices
from pipeline.decode.structure import MOST_ELEMENTS, first_break
from pipeline.errors import VideoError
from tests.frames.checking import clip_of, opened
from tests.frames.damage import damaged, unnoticed
from tests.frames.numbered import numbers_of
from tests.frames.writing import Coding, remux, write

H264 = Coding(options={"g": "30", "bf": "2", "crf": "14"})
MPEG4 = Coding(encoder="mpeg4", options={"g": "12", "bf": "2", "qmin": "2", "qmax": "3"})
FASTSTART = {"movflags": "faststart"}
LENGTHS = {"v.mp4": FASTSTART, "v.mov": FASTSTART, "v.mkv": {}, "v.avi": {}, "v.flv": {}}
"""Containers that tell how long the video is, with options that put this in front."""


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize("name", LENGTHS)
def test_file_cut_short_is_corrupt_and_says_so(name: str, tmp_path: Path) -> None:
    """Not a clip of its beginning."""
    path = cut(write(tmp_path / name, 200, H264, mux_options=LENGTHS[name]), 0.4)
    with pytest.raises(VideoError) as caught:
        clip_of(path)
    assert caught.value.code == "CORRUPT"
    assert "of 8 frames are lost or cannot be proven right" in caught.value.detail


@pytest.mark.parametrize("name", LENGTHS)
def test_substitutes_of_a_file_cut_short_stand_at_the_places_of_the_whole_one(name: str, tmp_path: Path) -> None:
    """Frames that are there are those of the intact file, and the others are counted."""
    path = write(tmp_path / name, 200, H264, mux_options=LENGTHS[name])
    intact = clip_of(path)
    found = clip_of(cut(path, 0.6), max_substituted=8)
    asked = frame_indices(200, 8)
    right = [index for index, number in zip(asked, numbers_of(found.frames), strict=True) if index == number]
    assert 2 <= len(right) <= 6
    assert found.substituted >= 8 - len(right)
    assert found.timestamps_s == pytest.approx(intact.timestamps_s, abs=0.05)


def test_asf_cut_short_is_corrupt(tmp_path: Path) -> None:
    """Its duration is lost with its index, so no frame's place is certain."""
    path = cut(write(tmp_path / "v.asf", 200, H264), 0.5)
    assert clip_of(path, max_substituted=8).substituted == 8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["cut", "zeros", "noise", "hole"])
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts", "v.flv", "v.asf"])
@pytest.mark.parametrize("coding", [H264, MPEG4], ids=["h264", "mpeg4"])
def test_no_frame_of_a_damaged_file_is_wrong_without_being_counted(
    coding: Coding, name: str, kind: str, seed: int, tmp_path: Path
) -> None:
    """Bytes overwritten or lost, or the end cut off. Single flipped bits may decode to something else without any error."""
    if name == "v.flv" and coding is MPEG4:
        pytest.skip("FLV holds no MPEG-4 part 2")
    path = write(tmp_path / name, 160, coding)
    intact = clip_of(path)
    content, story = damaged(random.Random(seed), path.read_bytes(), kind, 2000)
    path.write_bytes(content)
    if kind == "cut" and name == "v.ts":
        pytest.skip("a transport stream does not say how long it is")
    try:
        found = clip_of(path, max_substituted=8)
    except VideoError:
        return
    assert unnoticed(intact, found) == 0, story


def test_lost_reference_picture_spoils_what_follows_up_to_the_next_random_access_point(tmp_path: Path) -> None:
    """The gap in frame_num shows it; FFmpeg itself says nothing."""
    source = write(tmp_path / "source.mp4", 120, Coding(options={"g": "40", "bf": "0", "crf": "14"}, private="ref=1"))
    path = remux(source, tmp_path / "gap.mp4", change=lambda number, _: number != 50)
    found = clip_of(path, max_substituted=8)
    assert found.substituted == sum(50 <= index < 79 for index in frame_indices(119, 8))
    assert "reference picture before it is missing" in found.reason
    with pytest.raises(VideoError):
        clip_of(path)


@pytest.mark.parametrize("b_frames", ["0", "2"])
@pytest.mark.parametrize("muxer", ["mpegts", "matroska"])
def test_lost_picture_of_mpeg2_is_noticed_by_its_temporal_references(muxer: str, b_frames: str, tmp_path: Path) -> None:
    coding = Coding(encoder="mpeg2video", options={"g": "20", "bf": b_frames, "qmin": "2", "qmax": "3"})
    source = write(tmp_path / "source.mkv", 120, coding, muxer="matroska")
    intact = clip_of(source)
    for lost in (4, 7, 31, 50, 77):
        path = remux(source, tmp_path / "v.mkv", muxer=muxer, change=lambda number, _, lost=lost: number != lost)
        found = clip_of(path, max_substituted=8)
        assert found.substituted > 0
        assert unnoticed(intact, found) == 0


def test_part_before_the_damage_is_usable(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", 200, H264, mux_options=FASTSTART)
    expected = clip_of(path, (0.0, 2.0)).frames
    assert (clip_of(cut(path, 0.6), (0.0, 2.0)).frames == expected).all()


def test_header_that_declares_ages_costs_no_memory(tmp_path: Path) -> None:
    """Thirty years, in milliseconds; nothing limits it."""
    path = write(tmp_path / "v.mkv", 60, H264)
    content = bytearray(path.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3
    content[at : at + 8] = struct.pack(">d", 1e12)
    path.write_bytes(content)
    found = clip_of(path, max_substituted=8, max_duration_s=0, max_frames=0)
    assert found.substituted == 7


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_file_whose_cut_end_holds_no_frame_is_whole(name: str, tmp_path: Path) -> None:
    """Tags or an index behind the last frame are lost; every frame is there."""
    path = write(tmp_path / name, 60, H264, mux_options=LENGTHS[name])
    content = path.read_bytes()
    expected = clip_of(path).frames
    path.write_bytes(content + b"\x00\x00\x10\x00free" if name == "v.mp4" else content[:-8])
    assert opened(path).scan.missing_bytes > 0
    assert (clip_of(path).frames == expected).all()


@pytest.mark.parametrize("name", ["v.mkv", "v.flv"])
def test_overwritten_element_of_a_container_is_noticed(name: str, tmp_path: Path) -> None:
    """A whole group of pictures is lost, which no counter of the bitstream shows; FFmpeg goes on at the next element."""
    path = write(tmp_path / name, 160, H264)
    assert opened(path).scan.broken_at == -1
    content = path.read_bytes()
    at = len(content) // 2
    for length in (300, 12_000):
        path.write_bytes(content[:at] + b"\xa5" * length + content[at + length :])
        assert 0 < opened(path).scan.broken_at <= at + length
        with pytest.raises(VideoError, match=r"damaged|mismatch|missing|Invalid|lost"):
            clip_of(path)


@pytest.mark.parametrize("options", [{"live": "1"}, {"cluster_time_limit": "200"}])
def test_intact_containers_have_no_break(options: dict[str, str], tmp_path: Path) -> None:
    """Segments and clusters of unknown length too."""
    path = write(tmp_path / "v.mkv", 60, H264, mux_options=options)
    assert opened(path).scan.broken_at == -1


def test_walk_of_a_container_is_bounded_and_reads_its_header(tmp_path: Path) -> None:
    """Millions of tiny elements, bytes behind the segment, and an FLV header that is longer than usual."""
    path = write(tmp_path / "v.mkv", 30, H264)
    content = path.read_bytes()
    path.write_bytes(content + b"\xec\x80" * 100_000 + b"\x00garbage")
    assert first_break(path, "matroska") == -1
    path.write_bytes(b"\xec\x80" * (MOST_ELEMENTS + 10) + b"\x00garbage")
    assert first_break(path, "matroska") == -1
    flv = write(tmp_path / "v.flv", 30, H264).read_bytes()
    path.write_bytes(flv[:5] + (13).to_bytes(4, "big") + bytes(4) + flv[9:])
    assert first_break(path, "flv") == -1
    path.write_bytes(b"")
    assert first_break(path, "flv") == -1


def test_small_packet_overwritten_with_zeros_keeps_its_place(tmp_path: Path) -> None:
    """It holds no start code, so it is no message: frames behind it are not moved up."""
    source = write(tmp_path / "source.mp4", 160, MPEG4)
    intact = clip_of(source)
    packets = opened(source).scan.packets
    number, packet = min(enumerate(packets), key=lambda item: item[1].bytes)
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        at = next(p.pos for n, p in enumerate(container.demux(video=0)) if n == number)
    content[at : at + packet.bytes] = bytes(packet.bytes)
    source.write_bytes(content)
    assert packet.bytes < 64
    assert opened(source).scan.packets[number].damage
    assert unnoticed(intact, clip_of(source, max_substituted=8)) == 0


def test_limit_of_substitutes_is_exact(tmp_path: Path) -> None:
    path = cut(write(tmp_path / "v.mp4", 200, H264, mux_options=FASTSTART), 0.6)
    count = clip_of(path, max_substituted=8).substituted
    assert clip_of(path, max_substituted=count).substituted == count
    with pytest.raises(VideoError):
        clip_of(path, max_substituted=count - 1)


def test_file_cut_short_in_which_nothing_can_be_decoded_is_corrupt_and_says_so(tmp_path: Path) -> None:
    source = write(tmp_path / "source.mp4", 60, H264)
    path = remux(source, tmp_path / "v.mkv", change=lambda number, _: 5 <= number < 25)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(VideoError, match="could be decoded"):
        clip_of(path)


@pytest.mark.parametrize("name", ["v.avi", "v.mp4", "v.mkv"])
@pytest.mark.parametrize("lost", [4, 7, 10, 13])
def test_lost_p_vop_is_noticed_by_the_times_of_the_b_vops_behind_it(lost: int, name: str, tmp_path: Path) -> None:
    """They are not between their references any more, and FFmpeg drops some of them."""
    source = write(tmp_path / "source.mp4", 160, MPEG4)
    intact = clip_of(source)
    path = remux(source, tmp_path / name, change=lambda number, _: number != lost)
    with pytest.raises(VideoError, match="a reference picture before it is missing"):
        clip_of(path, frames=159)
    if name != "v.mp4":  # whose sample table numbers what is left
        assert unnoticed(intact, clip_of(path, max_substituted=8)) == 0
