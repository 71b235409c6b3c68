"""Files named .mp4 that name other files or addresses: nothing of it is opened, by a server's word and by a pipe's."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import fsspec
import pytest

from pipeline.corpus.fetch import content_sha256
from pipeline.corpus.listing import read_corpus
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.decode.video_file import read_clip
from pipeline.errors import VideoError
from tests.http_server import Asked, http_server
from tests.poison import craft
from tests.poison.mutate import VIDEOS
from tests.poison.push import NEIGHBOUR, one

SEGMENTS = "#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"
DASH = (
    '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static" '
    'mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="9">'
    "<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>"
)
TEXTS = {
    "hls": "#EXTM3U\n" + SEGMENTS,
    "hls behind blanks": "\ufeff\r\n  #EXTM3U\n" + SEGMENTS,
    "hls key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n' + SEGMENTS,
    "hls master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\n{target}\n",
    "hls without a head": "{target}\n{target}\n",
    "dash": "<?xml version='1.0'?>\n" + DASH,
    "dash without a declaration": DASH,
    "dash behind a comment": "<!-- " + "x" * 300 + " -->\n" + DASH,
    "dash in utf-16": "\ufeff" + DASH,
    "entity": "<!DOCTYPE MPD [<!ENTITY x SYSTEM '{target}'>]><MPD>&x;</MPD>",
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "concat without a head": "file '{target}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nu={target}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 26\n",
    "pls": "[playlist]\nNumberOfEntries=1\nFile1={target}\n",
    "reference": "[Reference]\nRef1={target}\n",
    "asx": '<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
    "smil": '<smil><body><video src="{target}"/></body></smil>',
    "xspf": "<?xml version='1.0'?>\n<playlist><trackList><track><location>{target}</location></track></trackList></playlist>",
    "shortcut": "[InternetShortcut]\nURL={target}\n",
    "subtitles index": "# VobSub index file, v7 (do not modify this line!)\n{target}\n",
}  # fmt: skip
NAMED = {"hls", "hls behind blanks", "hls key", "hls master", "dash", "dash without a declaration", "concat", "sdp", "pls"}
"""What the class says by its name; the others are no known container."""
LOOSE = {"safe": "0", "allowed_extensions": "ALL", "extension_picky": "0", "allowed_segment_extensions": "ALL"}


class Trap:
    """A pipe at a path: its writer gets on only if somebody opens it to read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self.writer = threading.Thread(target=lambda: os.close(os.open(path, os.O_WRONLY)))
        self.writer.start()

    def was_read(self, within_s: float = 0.05) -> bool:
        self.writer.join(within_s)
        return not self.writer.is_alive()

    def close(self) -> None:
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.writer.join()
        os.close(reader)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    with contextlib.closing(Trap(tmp_path / "target.ts")) as trap:
        yield trap


@pytest.fixture
def server() -> Iterator[tuple[str, Asked]]:
    with http_server({"/target.ts": (VIDEOS / "testsrc2.mp4").read_bytes()}) as found:
        yield found


@pytest.fixture(scope="module")
def stage() -> Iterator[Decode]:
    with Decode(DecodeConfig(deadline_s=60), side_px=32) as stage:
        yield stage


def write(path: Path, name: str, target: str) -> Path:
    path.write_text(TEXTS[name].replace("{target}", target), encoding="utf-16-le" if "utf-16" in name else "utf-8")
    return path


@pytest.mark.parametrize("name", TEXTS)
def test_a_playlist_called_mp4_reads_nothing(
    name: str, stage: Decode, trap: Trap, server: tuple[str, Asked], tmp_path: Path
) -> None:
    """Neither from the server nor from the disk; and not even if its first bytes had been taken for a video's."""
    url, asked = server
    targets = (f"{url}/target.ts", str(trap.path), f"file://{trap.path}", "target.ts")
    for number, target in enumerate(targets):
        path = write(tmp_path / f"{number}.mp4", name, target)
        row, _ = one(stage, path)
        assert row["error_class"] == ("FORBIDDEN_PROTOCOL" if name in NAMED else row["error_class"])
        assert row["error_class"] in ("FORBIDDEN_PROTOCOL", "CORRUPT")
        for demuxer in ("mov", "matroska", "mpegts"):
            with pytest.raises(VideoError):
                read_clip(path, demuxer, DecodeConfig())
    assert asked == []
    assert not trap.was_read()
    assert stage.child.ended == {}


def opened(path: Path, options: dict[str, str]) -> None:
    """Open as a careless program does: whatever the content asks for."""
    with contextlib.suppress(av.error.FFmpegError), av.open(str(path), options=options) as container:
        next(iter(container.demux()), None)


@pytest.mark.parametrize("name", ["hls", "concat"])
def test_the_server_and_the_pipe_would_have_told(name: str, trap: Trap, server: tuple[str, Asked], tmp_path: Path) -> None:
    """The same texts, opened without care, are followed: what the test above sees is not blindness."""
    url, asked = server
    loose = {"protocol_whitelist": "file,http,tcp,crypto", **LOOSE}
    opened(write(tmp_path / "http.m3u8", name, f"{url}/target.ts"), loose)  # FFmpeg 8 wants this suffix for HLS
    assert {path for _, path in asked} == {"/target.ts"}
    opened(write(tmp_path / "file.m3u8", name, str(trap.path)), loose)
    assert trap.was_read(within_s=60)


def test_a_data_reference_to_another_file_is_not_followed(stage: Decode, trap: Trap, tmp_path: Path) -> None:
    """A real MOV whose pictures are elsewhere; FFmpeg follows it where it is told to."""
    path = tmp_path / "video.mp4"
    path.write_bytes(craft.pointing_at(str(trap.path)))
    assert one(stage, path)[0]["error_class"] == "CORRUPT"
    with pytest.raises(VideoError):
        read_clip(path, "mov", DecodeConfig())  # beside what it names; the stage's own copy stands alone in a folder
    assert not trap.was_read()
    opened(path, {"enable_drefs": "1"})
    assert trap.was_read(within_s=60)


def test_frames_of_a_file_that_is_only_named_never_come_out(stage: Decode, tmp_path: Path) -> None:
    """The file beside it is a good video; a reference to it is none."""
    (tmp_path / "good.mov").write_bytes(NEIGHBOUR.read_bytes())
    (tmp_path / "video.mp4").write_bytes(craft.pointing_at(str(tmp_path / "good.mov")))
    with av.open(str(tmp_path / "video.mp4"), options={"enable_drefs": "1"}) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 4
    row, _ = one(stage, tmp_path / "video.mp4")
    assert (row["error_class"], row["frames"]) == ("CORRUPT", None)


@pytest.mark.parametrize("chain", ["reference://v.mp4::{url}/refs.json", "simplecache::reference://v.mp4::{url}/refs.json"])
def test_a_manifest_cannot_name_a_list_of_references(chain: str, stage: Decode, tmp_path: Path) -> None:
    """fsspec would fetch the list, fill its templates in and open what it names; neither the driver nor the stage does.

    Nor does the driver of `--identity content`, which hashes files before they are decoded.
    """
    refs = json.dumps({"v.mp4": [str(NEIGHBOUR)]}).encode()
    with http_server({"/refs.json": refs}) as (url, asked):
        uri = chain.replace("{url}", url)
        (tmp_path / "m.jsonl").write_text(json.dumps({"video_id": "v", "uri": uri}))
        videos = read_corpus(str(tmp_path / "m.jsonl"))
        row = stage(videos).to_pylist()[0]
        assert row["error_class"] == "FORBIDDEN_PROTOCOL"
        assert content_sha256(uri) is None
        assert asked == []
        with fsspec.open(uri) as file:
            assert file.read() == NEIGHBOUR.read_bytes()
        assert asked
