"""Parts of a video: the frames that full decoding shows at these times, from one fetch and one look at the file."""

import gc
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest

from pipeline.corpus.fetch import demuxer_of
from pipeline.corpus.segments import segment_rows, spans
from pipeline.decode import reader, video_file
from pipeline.decode.config import DecodeConfig
from pipeline.decode.scan import scan
from pipeline.decode.stage import Decode
from pipeline.decode.tempdirs import PREFIX
from pipeline.decode.video_file import VideoFile
from pipeline.errors import VideoError
from pipeline.schema import CORPUS
from tests.http_server import http_server

VIDEOS = Path(__file__).parents[1] / "videos"
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov")
STEP = 8
"""Rows of a table, as the jobs cut them."""
CODERS = {
    "h264.mp4": ("libx264", {"preset": "ultrafast", "bf": "3", "x264-params": "open-gop=1:log-level=-1"}),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=0"}),
    "open.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=1"}),
    "open.mkv": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=1"}),
}
FRAMES, SECONDS = 600, 2.0


def made(path: Path) -> Path:
    """Write 24 s of a bar that moves, with keyframes 40 frames apart, in the codec that the name calls for."""
    name, options = CODERS[path.name]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=25, options=options)
        stream.width = stream.height = 64
        stream.gop_size = 40
        for number in range(FRAMES):
            pixels = np.full((64, 64, 3), number % 256, np.uint8)
            pixels[:, number % 64] = (255, number // 4, 0)
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def damaged(path: Path) -> Path:
    """Overwrite some bytes of a file of `made`, far from its beginning."""
    content = bytearray(path.read_bytes())
    start = len(content) // 3
    content[start : start + 400] = b"\x55" * 400
    path.write_bytes(content)
    return path


def opened(path: Path, decoder: str) -> VideoFile:
    return VideoFile(path, demuxer_of(path.read_bytes()[:4096]), DecodeConfig(decoder=decoder))


def clip(file: VideoFile, span: tuple[float, float]) -> Any:
    try:
        found = file.clip(span)
    except VideoError as error:
        return error.code
    return found.frames.tobytes(), found.timestamps_s, found.decoder, found.substituted


@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.parametrize("name", sorted(path.name for path in VIDEOS.iterdir() if path.suffix in SUFFIXES))
def test_a_part_is_the_same_whatever_was_read_before_it(name: str, decoder: str) -> None:
    """One file gives all of its parts, forwards and then backwards, as a file of its own gives each."""
    path = VIDEOS / name
    file = opened(path, decoder)
    parts = spans(file.duration_s, max(file.duration_s / 4, 0.5))
    alone = [clip(opened(path, decoder), part) for part in parts]
    assert [clip(file, part) for part in parts] == alone
    assert [clip(file, part) for part in reversed(parts)] == alone[::-1]


@pytest.mark.parametrize("name", CODERS)
def test_parts_of_a_long_video_are_those_of_full_decoding(name: str, tmp_path: Path) -> None:
    """By a plan, each frame bit for bit, whichever codec and container."""
    path = made(tmp_path / name)
    file = opened(path, "pyav")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(everything) == FRAMES
    for part in spans(file.duration_s, SECONDS):
        found = file.clip(part)
        numbers = [round(time_s * 25) for time_s in found.timestamps_s]
        assert numbers[0] == part[0] * 25
        assert (found.frames == np.stack([everything[number] for number in numbers])).all()


def test_parts_of_a_damaged_video_are_the_same_alone_and_together(tmp_path: Path) -> None:
    """Everything is decoded once for the timeline, and once more for all parts."""
    path = damaged(made(tmp_path / "open.mp4"))
    file = opened(path, "pyav")
    parts = spans(FRAMES / 25, SECONDS)
    together = [clip(file, part) for part in parts]
    assert file.walk is not None
    assert together == [clip(opened(path, "pyav"), part) for part in parts]
    assert "CORRUPT" in together
    assert together[0] != "CORRUPT"


def test_part_between_two_keyframes_feeds_each_packet_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part has 50 frames, of three groups of pictures; a seek for each of eight frames would decode 164."""
    fed: list[int] = []
    feed = reader._Decoder.feed

    def counting(self: Any, packet: Any, number: int) -> list[Any]:
        fed.append(number)
        return feed(self, packet, number)

    monkeypatch.setattr(reader._Decoder, "feed", counting)
    opened(made(tmp_path / "hevc.mp4"), "pyav").clip((10.0, 12.0))
    assert len(fed) == len(set(fed))
    assert len(fed) < 100


def test_file_is_read_without_decoding_once_for_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[Path] = []
    monkeypatch.setattr(video_file, "scan", lambda *given: scans.append(given[0]) or scan(*given))
    file = opened(VIDEOS / "nasa_13013.mp4", "auto")
    for part in ((0.0, 4.0), (4.0, 8.0), (0.0, 4.0)):
        file.clip(part)
    assert len(scans) == 1


def tables(uri: str, hint: str = "{}") -> list[pa.Table]:
    """Return the 26 segments of a video of 13 s, in tables as the jobs cut them."""
    rows = segment_rows({"video_id": "v", "uri": uri, "source_hint": hint}, 13.0, 0.5)
    table = pa.Table.from_pylist(rows, schema=CORPUS)
    return [table.slice(start, STEP) for start in range(0, len(rows), STEP)]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the files at work, apart from those of others on this machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def folders(own: Path) -> int:
    return len(list(own.glob(f"{PREFIX}*")))


def test_a_file_is_fetched_once_for_all_its_segments(own: Path) -> None:
    """Over all tables; again when storage tells of another state; and nothing of it is left on this machine."""
    content = (VIDEOS / "nasa_13013.mp4").read_bytes()
    with http_server({"/v.mp4": content, "/w.mp4": content}) as (url, asked):
        with Decode(DecodeConfig(), side_px=28) as stage:
            rows = [row for table in tables(f"{url}/v.mp4") for row in stage(table).to_pylist()]
            fetched = [path for method, path in asked if method == "GET"]
            assert fetched == ["/v.mp4"]
            assert len({row["frames"] for row in rows}) == len(rows) == 26
            stage(tables(f"{url}/v.mp4", '{"size":1}')[0])
            stage(tables(f"{url}/w.mp4")[0])
            assert [path for method, path in asked if method == "GET"] == ["/v.mp4", "/v.mp4", "/w.mp4"]
            assert folders(own) == 1
        assert folders(own) == 0


def test_a_stage_that_nobody_closed_leaves_no_file(own: Path) -> None:
    stage = Decode(DecodeConfig(), side_px=28)
    stage(tables(str(VIDEOS / "nasa_13013.mp4"))[0])
    assert folders(own) == 1
    child = stage.child
    del stage
    gc.collect()
    assert folders(own) == 0
    child.close()


def test_a_file_that_could_not_be_fetched_is_tried_again(tmp_path: Path) -> None:
    """The next segments find it there."""
    path = tmp_path / "v.mp4"
    first, second = tables(str(path))[:2]
    with Decode(DecodeConfig(), side_px=28) as stage:
        assert set(stage(first)["error_class"].to_pylist()) == {"NOT_FOUND"}
        path.write_bytes((VIDEOS / "nasa_13013.mp4").read_bytes())
        assert set(stage(second)["error_class"].to_pylist()) == {None}
