"""Nothing stale: a source that changes is encoded again; by content, nothing is encoded twice."""

import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.commands.encode import run
from pipeline.storage.filesystem import open_root
from pipeline.store.maintenance import compact, gc, repair
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify
from tests.command import framefold, report
from tests.http_server import http_server, web_server
from tests.staleness.encoding import REDUCER, VIDEOS, encoded_by, job, padded, put

Place = tuple[str, dict[str, Any]]


def test_a_video_replaced_under_its_name_is_encoded_again(model: str, place: Place) -> None:
    """The new one has the same size; on local disk its time tells, on object storage its ETag."""
    url, options = place
    one, other = (padded(name, 800_000) for name in ("testsrc2.mp4", "unordered.mov"))
    put(f"{url}/clips", "v.mp4", one, options)
    a_job = job(f"{url}/clips", f"{url}/store", model, storage_options=json.dumps(options))
    assert encoded_by(a_job) == [1, 0, 0]
    old = TokenStore.open(f"{url}/store", storage_options=options).read("v")
    put(f"{url}/clips", "v.mp4", other, options)
    assert encoded_by(a_job) == [1, 0, 0]
    new = TokenStore.open(f"{url}/store", storage_options=options).read("v")
    assert new.source_sha256 == hashlib.sha256(other).hexdigest() != old.source_sha256
    assert new.features.tobytes() != old.features.tobytes()
    assert encoded_by(a_job) == [0, 0, 0]


def test_a_video_replaced_on_a_web_server_is_encoded_again(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own server tells the size, which is the same, and the time of change, but no ETag."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    film, listed = tmp_path / "v.mp4", tmp_path / "list.jsonl"
    film.write_bytes(padded("testsrc2.mp4", 800_000))
    with web_server(tmp_path) as url:
        listed.write_text(json.dumps({"video_id": "v", "uri": f"{url}/v.mp4"}))
        a_job = job(listed, tmp_path / "store", model)
        assert encoded_by(a_job) == [1, 0, 0]
        assert encoded_by(a_job) == [0, 0, 0]
        film.write_bytes(padded("unordered.mov", 800_000))
        os.utime(film, (1e9, 1e9))
        assert encoded_by(a_job) == [1, 0, 0]
    read = TokenStore.open(str(tmp_path / "store")).read("v")
    assert read.source_sha256 == hashlib.sha256(film.read_bytes()).hexdigest()


def test_where_only_a_size_is_told_another_address_is_another_video(model: str, tmp_path: Path) -> None:
    """A manifest that gives a name a new address, on a server that tells of no ETag and no time."""
    films = {f"/{name}": padded(name, 800_000) for name in ("testsrc2.mp4", "unordered.mov")}
    listed = tmp_path / "list.jsonl"
    with http_server(films) as (url, _):
        a_job = job(listed, tmp_path / "store", model)
        for film in films:
            listed.write_text(json.dumps({"video_id": "v", "uri": url + film}))
            assert encoded_by(a_job) == [1, 0, 0]
            assert encoded_by(a_job) == [0, 0, 0]


@pytest.mark.parametrize(
    ("other", "code"),
    [(b"", "EMPTY"), (b"no video at all\n" * 9, "CORRUPT"), (b"ID3" + bytes(900), "NO_VIDEO_STREAM"),
     (b"#EXTM3U\n", "FORBIDDEN_PROTOCOL"), (bytes(900_000), "TOO_LARGE")],
)  # fmt: skip
def test_a_video_replaced_by_what_is_none_is_not_served_any_more(model: str, place: Place, other: bytes, code: str) -> None:
    """Such a file is refused before all of it is read, so it has no digest; that the video is another is known all the same."""
    url, options = place
    put(f"{url}/clips", "v.mp4", (VIDEOS / "unordered.mov").read_bytes(), options)
    a_job = job(f"{url}/clips", f"{url}/store", model, max_bytes=800_000, storage_options=json.dumps(options))
    assert encoded_by(a_job) == [1, 0, 0]
    put(f"{url}/clips", "v.mp4", other, options)
    told = run(a_job)
    assert (told["committed"], told["failed_by_class"], told["exit_code"]) == (0, {code: 1}, 1)
    assert TokenStore.open(f"{url}/store", storage_options=options).ids() == []
    assert encoded_by(a_job) == [0, 0, 0]
    put(f"{url}/clips", "v.mp4", (VIDEOS / "testsrc2.mp4").read_bytes(), options)
    assert encoded_by(a_job) == [1, 0, 0]


def test_a_renamed_video_is_served_by_content_when_asked(model: str, place: Place) -> None:
    """Nothing is decoded, no shard is written, and the tokens are read under the new id; by name it is encoded again."""
    url, options = place
    content = (VIDEOS / "testsrc2.mp4").read_bytes()
    put(f"{url}/clips", "old.mp4", content, options)
    put(f"{url}/clips", "other.mov", (VIDEOS / "unordered.mov").read_bytes(), options)
    by_name = job(f"{url}/clips", f"{url}/store", model, storage_options=json.dumps(options))
    assert encoded_by(by_name) == [2, 0, 0]
    fs, root = open_root(url, options)
    fs.rm_file(f"{root}/clips/old.mp4")
    put(f"{url}/clips", "below/new.mp4", content, options)
    before = fs.find(f"{root}/store/tokens")
    by_content = replace(by_name, identity="content")
    assert encoded_by(by_content) == [0, 1, 0]
    assert encoded_by(by_content) == encoded_by(by_name) == [0, 0, 0]
    assert fs.find(f"{root}/store/tokens") == before
    store = TokenStore.open(f"{url}/store", storage_options=options)
    assert store.ids() == ["below/new", "old", "other"]
    assert store.payloads()["below/new"] == store.payloads()["old"] != store.payloads()["other"]
    assert store.read("below/new").features.tobytes() == store.read("old").features.tobytes()
    assert verify(fs, f"{root}/store").problems == []
    put(f"{url}/clips", "third.mp4", content, options)
    assert encoded_by(by_name) == [1, 0, 0]


def test_files_that_were_only_touched_are_not_encoded_again_by_content(model: str, tmp_path: Path) -> None:
    """Restored from a backup, say: another time, the same bytes; what did change is encoded."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in "ab":
        (clips / f"{name}.mp4").write_bytes(padded("testsrc2.mp4", 800_000 + ord(name)))
    by_content = job(clips, tmp_path / "store", model, identity="content")
    assert encoded_by(by_content) == [2, 0, 0]
    os.utime(clips / "a.mp4", (1, 1))
    (clips / "b.mp4").write_bytes(padded("unordered.mov", 800_000 + ord("b")))
    assert encoded_by(by_content) == [1, 1, 0]
    store = TokenStore.open(str(tmp_path / "store"))
    assert store.index.get("a")["stored_id"] is None
    assert store.read("b").source_sha256 == hashlib.sha256((clips / "b.mp4").read_bytes()).hexdigest()
    assert encoded_by(by_content) == [0, 0, 0]


def test_a_name_that_has_a_new_content_does_not_take_the_other_names_with_it(model: str, tmp_path: Path) -> None:
    """A renamed to B, then another video under A: B keeps the old tokens, A has new ones, and care keeps both."""
    clips, root = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    (clips / "a.mp4").write_bytes(padded("testsrc2.mp4", 800_000))
    by_content = job(clips, root, model, identity="content")
    assert encoded_by(by_content) == [1, 0, 0]
    first = TokenStore.open(str(root)).read("a").features.tobytes()
    (clips / "a.mp4").rename(clips / "b.mp4")
    assert encoded_by(by_content) == [0, 1, 0]
    (clips / "a.mp4").write_bytes(padded("unordered.mov", 800_000))
    assert encoded_by(by_content) == [1, 0, 0]
    compact(TokenStore.open(str(root)))
    fs, path = open_root(str(root))
    gc(fs, path, now=time.time() + 1e6)
    store = TokenStore.open(str(root))
    assert store.read("b").features.tobytes() == first != store.read("a").features.tobytes()
    report = verify(fs, path)
    assert (report.problems, report.orphans, report.entries) == ([], 0, 2)


def test_names_of_one_content_are_cared_for_together(model: str, tmp_path: Path) -> None:
    """Compaction moves their entry once, damage takes all of them out, and one is encoded again for all."""
    clips, root = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    content = (VIDEOS / "testsrc2.mp4").read_bytes()
    by_content = job(clips, root, model, identity="content")
    for name in ("a", "b", "c"):
        (clips / f"{name}.mp4").write_bytes(content if name != "c" else (VIDEOS / "unordered.mov").read_bytes())
        run(by_content)
    fs, path = open_root(str(root))
    assert compact(TokenStore.open(str(root)))["shards_written"] == 1
    gc(fs, path, now=time.time() + 1e6)
    (shard,) = fs.find(f"{path}/tokens")
    assert pq.ParquetFile(shard).metadata.num_rows == 2
    store = TokenStore.open(str(root))
    row = store.index.get("b")
    truth = store.read("b").features.tobytes()
    assert row["stored_id"] == "a"
    damaged = bytearray(Path(shard).read_bytes())
    damaged[row["offset"] + 200] ^= 1
    Path(shard).write_bytes(bytes(damaged))
    assert sorted(verify(fs, path).damaged) == ["a", "b"]
    assert sorted(repair(fs, path).entries) == ["a", "b"]
    assert TokenStore.open(str(root)).ids() == ["c"]
    assert encoded_by(by_content) == [2, 0, 0]
    gc(fs, path, now=time.time() + 1e6)
    assert verify(fs, path).problems == []
    assert TokenStore.open(str(root)).read("b").features.tobytes() == truth


def test_a_segment_never_stands_for_its_file(model: str, tmp_path: Path) -> None:
    """Both have the digest of the file; what was encoded in segments is encoded whole when it is asked for whole."""
    clips, root = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    (clips / "a.mp4").write_bytes((VIDEOS / "testsrc2.mp4").read_bytes())
    by_name = job(clips, root, model)
    parts = encoded_by(replace(by_name, segments=0.5))[0]
    assert parts >= 2
    assert encoded_by(replace(by_name, identity="content")) == [1, 0, 0]
    store = TokenStore.open(str(root))
    assert store.read("a").payload_sha256 not in {store.payloads()[name] for name in store.ids() if name != "a"}


def test_what_is_served_by_content_is_listed_without_secrets(model: str, tmp_path: Path) -> None:
    """A signed URL is stored without its signature, as that of an encoded video is."""
    clips, store = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    content = (VIDEOS / "testsrc2.mp4").read_bytes()
    (clips / "a.mp4").write_bytes(content)
    run(job(clips, store, model))
    listed = tmp_path / "list.jsonl"
    with http_server({"/new.mp4": content}) as (url, _):
        listed.write_text(json.dumps({"video_id": "b", "uri": f"{url}/new.mp4?X-Amz-Signature=s3cr3t"}))
        assert encoded_by(job(listed, store, model, identity="content")) == [0, 1, 0]
    assert TokenStore.open(str(store)).index.get("b")["uri"] == f"{url}/new.mp4?X-Amz-Signature=***"


def test_a_file_that_breaks_off_while_it_is_hashed_stops_no_job(model: str, tmp_path: Path) -> None:
    """Its size is known, so it is read; the drivers of web servers raise errors of their own."""
    clips, store, listed = tmp_path / "clips", tmp_path / "store", tmp_path / "list.jsonl"
    clips.mkdir()
    content = padded("unordered.mov", 12_000_000)
    (clips / "a.mov").write_bytes(content)
    run(job(clips, store, model))
    with http_server({"/b.mov": content}, cut={"/b.mov": 9_000}) as (url, _):
        listed.write_text(json.dumps({"video_id": "b", "uri": f"{url}/b.mov"}))
        told = run(job(listed, store, model, identity="content"))
    assert (told["failed_by_class"], told["same_content"]) == ({"UNREADABLE": 1}, 0)


def test_questions_are_joined_by_the_new_name(model: str, tmp_path: Path) -> None:
    """`framefold encode --identity content`, then `framefold answer`: nothing but the index knows of the old name."""
    clips, store, out = tmp_path / "clips", str(tmp_path / "store"), str(tmp_path / "out")
    clips.mkdir()
    (clips / "old.mov").write_bytes((VIDEOS / "unordered.mov").read_bytes())
    run(job(clips, store, model))
    (clips / "old.mov").rename(clips / "new.mov")
    where = ["--store", store, "--model", model, "--runner", "local"]
    told = report(framefold("encode", str(clips), *where, "--reducer", REDUCER, "--identity", "content"))
    assert (told["committed"], told["same_content"], told["exit_code"]) == (1, 1, 0)
    asked = {"video_id": "new", "question": "what is it", "question_id": "1"}
    (tmp_path / "q.jsonl").write_text(json.dumps(asked))
    assert report(framefold("answer", str(tmp_path / "q.jsonl"), *where, "--out", out))["statuses"] == {"ok": 1}
