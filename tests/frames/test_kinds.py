"""Every kind of file whose frames were wrong: the numbers of the pictures are read off the clip."""

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.decode.sampling import frame_indices
from pipeline.errors import VideoError
from tests.frames.checking import clip_of, opened, verdict
from tests.frames.numbered import numbers_of, picture
from tests.frames.writing import Coding, remux, sequential, write

B_FRAMES = Coding(options={"g": "30", "bf": "3", "crf": "12"})
OPEN = Coding(options={"g": "12", "preset": "veryfast", "crf": "14"}, private="bframes=5:open-gop=1:b-pyramid=strict")
MPEG4 = Coding(encoder="mpeg4", options={"g": "12", "bf": "2", "qmin": "2", "qmax": "3"})
MPEG2 = Coding(encoder="mpeg2video", options={"g": "15", "bf": "2", "qmin": "2", "qmax": "3"})
HEVC = Coding(
    encoder="libx265", options={"preset": "ultrafast"}, private="keyint=12:bframes=3:open-gop=1", width=128, height=96
)
FORMATS: dict[str, tuple[Coding, str | None, dict[str, str]]] = {
    "h264.avi": (B_FRAMES, None, {}),
    "h264.asf": (B_FRAMES, None, {}),
    "h264.ts": (B_FRAMES, None, {}),
    "h264.m2ts": (B_FRAMES, "mpegts", {"mpegts_m2ts_mode": "1"}),
    "h264.mpg": (B_FRAMES, "mpeg", {}),
    "h264.flv": (B_FRAMES, None, {}),
    "h264.h264": (B_FRAMES, None, {}),
    "fragmented.mp4": (B_FRAMES, "mp4", {"movflags": "frag_keyframe+empty_moov"}),
    "live.mkv": (B_FRAMES, "matroska", {"live": "1"}),
    "open.mp4": (OPEN, None, {}),
    "open.mov": (OPEN, None, {}),
    "open.mkv": (OPEN, "matroska", {}),
    "open.flv": (OPEN, None, {}),
    "mpeg4.mp4": (MPEG4, None, {}),
    "mpeg4.mov": (MPEG4, None, {}),
    "mpeg4.mkv": (MPEG4, "matroska", {}),
    "mpeg4.avi": (MPEG4, None, {}),
    "mpeg4.ts": (MPEG4, None, {}),
    "mpeg4.m4v": (MPEG4, "m4v", {}),
    "mpeg2.ts": (MPEG2, None, {}),
    "mpeg2.mpg": (MPEG2, "mpeg", {}),
    "hevc.mp4": (HEVC, None, {}),
    "hevc.mkv": (HEVC, "matroska", {}),
    "hevc.ts": (HEVC, None, {}),
    "hevc.hevc": (HEVC, None, {}),
    "refresh.mp4": (Coding(private="intra-refresh=1:keyint=40:bframes=0"), None, {}),
    "refresh.mkv": (Coding(private="intra-refresh=1:keyint=40:bframes=0", pixels="yuv444p"), "matroska", {}),
    "slices.ts": (Coding(private="slices=3:keyint=24:bframes=2"), None, {}),
    "aud.h264": (Coding(private="aud=1:keyint=24"), None, {}),
    "aud.hevc": (Coding(encoder="libx265", private="aud=1", width=128, height=96), None, {}),
}


def made(folder: Path, name: str, frames: int = 130, **changes: Any) -> Path:
    coding, muxer, options = FORMATS[name]
    return write(folder / name, frames, Coding(**{**vars(coding), **changes}), muxer=muxer, mux_options=options)


@pytest.mark.parametrize("policy", ["linspace", "arange"])
@pytest.mark.parametrize("name", FORMATS)
def test_clip_of_any_container_and_codec_shows_the_frames_asked_for_at_their_times(
    name: str, policy: str, tmp_path: Path
) -> None:
    clip = clip_of(made(tmp_path, name), policy=policy)
    asked = frame_indices(130, 8, policy)  # type: ignore[arg-type]
    assert numbers_of(clip.frames) == asked
    assert clip.timestamps_s == pytest.approx([index / 25 for index in asked], abs=0.002)
    assert (clip.substituted, clip.reason) == (0, "")


@pytest.mark.parametrize("coding", [B_FRAMES, MPEG4], ids=["h264", "mpeg4"])
def test_container_whose_table_of_keyframes_is_lost_gives_the_same_clip(coding: Coding, tmp_path: Path) -> None:
    """Without the box every sample counts as a keyframe."""
    path = write(tmp_path / "v.mp4", 200, coding)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    assert verdict(path, list(range(200))).is_right


def test_false_keyframe_flags_move_no_frame(tmp_path: Path) -> None:
    """The table names the packets behind the true ones."""
    path = write(tmp_path / "flags.mp4", 90, Coding(encoder="mpeg4", options={"g": "30", "bf": "0", "qmin": "2", "qmax": "3"}))
    content = bytearray(path.read_bytes())
    at = content.index(b"stss") + 8
    for entry in range(int.from_bytes(content[at : at + 4], "big")):
        place = at + 4 + 4 * entry
        content[place : place + 4] = (int.from_bytes(content[place : place + 4], "big") + 7).to_bytes(4, "big")
    path.write_bytes(content)
    assert [number for number, packet in enumerate(opened(path).scan.packets) if packet.key] == [7, 37, 67]
    assert verdict(path, list(range(90))).is_right


def test_messages_in_packets_of_their_own_are_no_damage(tmp_path: Path) -> None:
    """FFmpeg's ASF demuxer splits recovery points off, and misses a picture in them."""
    path = remux(write(tmp_path / "open.mp4", 130, OPEN), tmp_path / "v.asf")
    assert any(packet.is_message for packet in opened(path).scan.packets)
    assert verdict(path, list(range(130))).is_right


def test_packets_with_decode_times_only_get_times_from_the_frame_rate(tmp_path: Path) -> None:
    clip = clip_of(made(tmp_path, "h264.mpg"))
    assert clip.timestamps_s == pytest.approx([index / 25 for index in frame_indices(130, 8)], abs=0.002)


@pytest.mark.parametrize("cut", [3, 17, 41])
@pytest.mark.parametrize("name", ["open.mp4", "mpeg4.mov", "hevc.mp4", "open.mov"])
def test_file_trimmed_by_an_edit_list_shows_what_is_left(name: str, cut: int, tmp_path: Path) -> None:
    """Frames before the cut are decoded and hidden."""
    path = made(tmp_path, name, 90)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]
    begin = sorted(pts for pts, _ in times)[cut]
    first = max(number for number, (pts, key) in enumerate(times) if key and pts <= begin)

    def change(number: int, packet: Any) -> bool:
        packet.pts, packet.dts = packet.pts - begin, packet.dts - begin
        return number >= first

    trimmed = remux(path, tmp_path / f"trimmed{path.suffix}", mux_options={"avoid_negative_ts": "disabled"}, change=change)
    truth = numbers_of(sequential(trimmed))
    assert truth[0] == cut
    assert verdict(trimmed, truth).is_right


def with_edits(path: Path, edits: list[tuple[int, int]]) -> Path:
    """Replace the edit list of an MP4 file whose index is at its end; an edit is a duration in ms and a media time in ticks."""
    content = bytearray(path.read_bytes())
    moov = content.rindex(b"moov") - 4
    trak, edts, elst = (content.index(name, moov) - 4 for name in (b"trak", b"edts", b"elst"))
    entries = b"".join(struct.pack(">IIHH", duration, time, 1, 0) for duration, time in edits)
    new = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    (old,) = struct.unpack_from(">I", content, elst)
    content[elst : elst + old] = new
    for at in (moov, trak, edts):
        content[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", content, at)[0] + len(new) - old)
    path.write_bytes(content)
    return path


EDITS = {
    "twice": [(1000, 1024), (1000, 1024)],
    "the end first": [(800, 21504), (1200, 1024)],
    "three parts": [(500, 5120), (500, 15360), (300, 2048)],
}


@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize("coding", [B_FRAMES, OPEN, MPEG4], ids=["closed", "open", "mpeg4"])
def test_file_with_several_edits_shows_them_one_after_the_other(coding: Coding, edits: str, tmp_path: Path) -> None:
    """Each begins at a random-access point, where nothing before it is missed."""
    path = with_edits(write(tmp_path / "v.mp4", 90, coding), EDITS[edits])
    truth = numbers_of(sequential(path))
    assert len(truth) > 30
    found = verdict(path, truth)
    assert found.is_right, found


@pytest.mark.parametrize(("name", "step"), [("h264.ts", 188), ("h264.m2ts", 192), ("mpeg2.ts", 188), ("hevc.ts", 188)])
@pytest.mark.parametrize("share", [0.2, 0.35, 0.7])
def test_stream_cut_inside_a_group_of_pictures_begins_at_its_first_random_access_point(
    name: str, step: int, share: float, tmp_path: Path
) -> None:
    path = made(tmp_path, name)
    content = path.read_bytes()
    for partial in (0, 77):
        path.write_bytes(content[int(len(content) * share) // step * step + partial :])
        truth = numbers_of(sequential(path))
        assert truth[-1] == 129
        assert verdict(path, truth).is_right


@pytest.mark.parametrize("name", ["h264.ts", "mpeg4.ts", "mpeg2.ts", "hevc.ts"])
def test_streams_joined_end_to_end_are_shown_one_after_the_other(name: str, tmp_path: Path) -> None:
    """Their times begin again; the clip's go on."""
    path = made(tmp_path, name, 40)
    path.write_bytes(path.read_bytes() * 3)
    found = verdict(path, [*range(40)] * 3)
    assert found.is_right, found
    times = clip_of(path).timestamps_s
    assert times == sorted(times)
    assert times[-1] == pytest.approx(119 / 25, abs=0.1)


def test_size_that_changes_is_scaled_to_the_first(tmp_path: Path) -> None:
    parts = [Coding(options={"crf": "8"}), Coding(options={"crf": "8"}, width=192, height=160, first=30)]
    paths = [write(tmp_path / f"{number}.ts", 30, coding) for number, coding in enumerate(parts)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in paths))
    clip = clip_of(path)
    assert clip.frames.shape == (8, 64, 96, 3)
    assert numbers_of(clip.frames) == frame_indices(60, 8)


@pytest.mark.parametrize("name", ["h264.h264", "aud.h264", "hevc.hevc", "aud.hevc"])
@pytest.mark.parametrize("codes", ["four bytes", "three bytes", "zeros before"])
def test_raw_stream_is_read_whatever_its_first_start_code_looks_like(name: str, codes: str, tmp_path: Path) -> None:
    path = made(tmp_path, name, 40)
    content = path.read_bytes()
    assert content.startswith(b"\x00\x00\x00\x01")
    path.write_bytes({"four bytes": content, "three bytes": content[1:], "zeros before": bytes(5) + content}[codes])
    assert verdict(path, list(range(40))).is_right


@pytest.mark.parametrize("reference", [1, 2, 3])
def test_raw_stream_may_begin_with_any_nal_reference_value(reference: int, tmp_path: Path) -> None:
    path = made(tmp_path, "h264.h264", 20)
    content = bytearray(path.read_bytes())
    content[4] = reference << 5 | content[4] & 31
    path.write_bytes(content)
    assert verdict(path, list(range(20))).is_right


MATRICES = {
    "hflip": ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
    "vflip": ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
    "180": ((-1, 0, 0, -1), lambda pixels: pixels[::-1, ::-1]),
    "90 clockwise": ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
    "90 counter-clockwise": ((0, -1, 1, 0), np.rot90),
    "transpose": ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
    "antitranspose": ((0, -1, -1, 0), lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2)),
}


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_whole_display_matrix_is_applied(encoder: str, matrix: str, decoder: str, tmp_path: Path) -> None:
    """Quarter turns and mirrors, with both decoders and in both codecs."""
    path = write(tmp_path / "v.mp4", 12, Coding(encoder=encoder, options={"crf": "4"}, width=128, height=96))
    plain = sequential(path)[0].astype(int)
    (a, b, c, d), expected = MATRICES[matrix]
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 8 + (20 if content[content.index(b"tkhd") + 4] == 0 else 32) + 16
    content[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    assert np.abs(clip_of(path, decoder=decoder).frames[0].astype(int) - expected(plain)).mean() < 1


def test_default_stream_of_several_is_shown(tmp_path: Path) -> None:
    """As FFmpeg's player chooses: the default disposition counts more than the order."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25, options={"x264-params": "log-level=-1"}) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        streams[0].disposition = 0
        streams[1].disposition = av.stream.Disposition.default
        for number, stream in ((n, s) for n in range(30) for s in streams):
            first = 0 if stream is streams[0] else 500
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(first + number), format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    assert verdict(path, list(range(500, 530))).is_right
    assert opened(path).scan.streams == 2


def test_attached_picture_is_no_video(tmp_path: Path) -> None:
    """A cover that is larger than the video and stands before it; and a file that has nothing else."""
    path, alone = tmp_path / "cover.mp4", tmp_path / "alone.mp4"
    for target, with_video in ((path, True), (alone, False)):
        with av.open(str(target), "w") as container:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 320, 240, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            video = container.add_stream("mpeg4", rate=25) if with_video else None
            if video is not None:
                video.width, video.height, video.pix_fmt, video.bit_rate = 96, 64, "yuv420p", 4_000_000
                for number in range(20):
                    container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
                container.mux(video.encode())
            container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((240, 320, 3), np.uint8), format="rgb24")))
            container.mux(cover.encode())
    assert verdict(path, list(range(20))).is_right
    with pytest.raises(VideoError) as caught:
        clip_of(alone)
    assert caught.value.code == "NO_VIDEO_STREAM"


def test_variable_frame_rate_keeps_the_times_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "vfr.mkv", 60, B_FRAMES, muxer="matroska", times=lambda index: index * index // 8 + index)
    clip = clip_of(path)
    asked = frame_indices(60, 8)
    assert numbers_of(clip.frames) == asked
    assert clip.timestamps_s == pytest.approx([(index * index // 8 + index) / 25 for index in asked], abs=0.002)


def test_subtitles_that_outlast_the_video_are_no_missing_frames(tmp_path: Path) -> None:
    """The duration of Matroska is that of the stream that ends last."""
    path, source, lines = tmp_path / "v.mkv", made(tmp_path, "open.mp4", 60), tmp_path / "lines.srt"
    lines.write_text("1\n00:00:00,500 --> 00:00:01,500\na\n\n2\n00:00:30,000 --> 00:00:50,000\nb\n")
    with av.open(str(source)) as video, av.open(str(lines)) as text, av.open(str(path), "w") as target:
        streams = video.streams.video[0], text.streams.subtitles[0]
        copies = [target.add_stream_from_template(stream) for stream in streams]
        for container, stream, copy in zip((video, text), streams, copies, strict=True):
            for packet in container.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    assert opened(path).scan.declared_s == pytest.approx(50, abs=0.1)
    assert verdict(path, list(range(60))).is_right


def test_matroska_file_that_begins_late_is_as_long_as_its_frames(tmp_path: Path) -> None:
    """Recorders write the time since they were switched on."""
    path = write(tmp_path / "v.mkv", 60, B_FRAMES, muxer="matroska", times=lambda index: index + 25 * 400_000)
    assert verdict(path, list(range(60))).is_right
    assert clip_of(path).timestamps_s[-1] == pytest.approx(59 / 25, abs=0.002)


@pytest.mark.parametrize("seed", range(3))
def test_interlaced_mpeg4_with_b_pictures_shows_the_pixels_of_decoding_in_order(seed: int, tmp_path: Path) -> None:
    """FFmpeg scales the vectors of their fields by the first B picture that it meets."""
    options = {"g": "30", "bf": "2", "flags": "+ildct+ilme", "qmin": "2", "qmax": "3"}
    path = write(tmp_path / "v.avi", 130, Coding(encoder="mpeg4", options=options, seed=seed))
    truth = sequential(path)
    for frames in (2, 5, 8, 13, 21, 34, 55):
        clip = clip_of(path, frames=frames)
        expected = np.stack([truth[index] for index in frame_indices(len(truth), frames)])
        assert (clip.frames == expected).all()
    assert "interlaced" in clip.reason
