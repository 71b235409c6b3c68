"""Object storage that lies: what is committed is there, once, whoever else writes and whatever the server says."""

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.answer.answer_store import AnswerStore
from pipeline.answer.caption_runs import Views
from pipeline.corpus.fetch import fetch
from pipeline.corpus.segments import Durations
from pipeline.errors import StoreError, VideoError
from pipeline.evaluate.judge_store import ReplyStore
from pipeline.storage.filesystem import create_exclusive, list_files, open_root, read_bytes, read_many, renew, write_whole
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify
from tests.command import framefold, report
from tests.faults import storage
from tests.faults.clips import make_clips
from tests.faults.lying import ERROR, LIES, LyingProxy
from tests.faults.runs import MODEL

ROOT = Path(__file__).parents[2]
MEETING = ("kept", "overwritten")
TRUTHFUL_ABOUT_CONDITIONS = sorted(set(LIES) - {"kept", "overwritten", "late", "not implemented"})
"""Lies of servers that still decide which of two writers is first; one that knows no conditions does not."""
pytestmark = [pytest.mark.s3, pytest.mark.timeout(300)]


def patient(port: int, lie: str) -> dict[str, Any]:
    """Return the options of a writer: one that waits where the proxy holds it back."""
    options = storage.options(port)
    if lie in MEETING:
        options["config_kwargs"]["read_timeout"] = 90
    return options


def named(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}.parquet"


@pytest.mark.parametrize("lie", LIES)
def test_a_file_is_created_once_and_is_there(s3_port: int, bucket: tuple[str, dict[str, Any]], lie: str) -> None:
    """The writer that created it knows, whatever the server says of the condition or of what it holds; so does the next one."""
    url, truth = bucket
    with LyingProxy(s3_port, lie, truth) as proxy:
        fs, root = open_root(f"{url}/x", storage.options(proxy.port))
        contents = [b"one" * 100, b"two" * 200]
        for content in contents:
            path = f"{root}/{named(content)}"
            assert create_exclusive(fs, path, content)
            assert not create_exclusive(fs, path, content)
            renew(fs, path, content)
            assert read_bytes(fs, path) == content
        write_whole(fs, f"{root}/all.jsonl", b"{}\n")
        write_whole(fs, f"{root}/all.jsonl", b"[]\n")
        assert lie == "wrong" or read_bytes(fs, f"{root}/all.jsonl") == b"[]\n"  # whose name says nothing of what it holds
        paths = [f"{root}/{named(content)}" for content in contents]
        assert read_many(fs, paths) == dict(zip(paths, contents, strict=True))
        listed: dict[str, int] = {}
        for _ in range(4):
            listed = list_files(fs, root, ".parquet")
        assert listed == {path: len(content) for path, content in zip(paths, contents, strict=True)}
    past = fsspec.filesystem("s3", **truth, skip_instance_cache=True)
    assert [past.cat_file(path) for path in paths] == contents
    assert proxy.lies or lie in ("kept", "overwritten", "busy")


@pytest.mark.parametrize("lie", ["kept", "overwritten"])
def test_a_file_that_is_there_in_another_size_is_made_whole(s3_port: int, bucket: tuple[str, dict[str, Any]], lie: str) -> None:
    """It rotted, or a server tore it: what its name says is put in its place."""
    url, truth = bucket
    with LyingProxy(s3_port, lie, truth) as proxy:
        fs, root = open_root(url, storage.options(proxy.port))
        path = f"{root}/{named(b'whole')}"
        fs.pipe_file(path, b"who")
        assert create_exclusive(fs, path, b"whole")
        assert read_bytes(fs, path) == b"whole"


@pytest.mark.parametrize("lie", ["error", "busy", "late"])
def test_a_video_is_not_blamed_for_what_storage_sends_in_its_place(
    s3_port: int, bucket: tuple[str, dict[str, Any]], tmp_path: Path, lie: str
) -> None:
    """An error with the status 200 is storage's; a file that is one is told as what it is."""
    url, truth = bucket
    content = (ROOT / "tests" / "videos" / "testsrc2.mp4").read_bytes()
    past = fsspec.filesystem("s3", **truth)
    past.pipe({f"{url}/video.mp4": content, f"{url}/text.mp4": ERROR})
    with LyingProxy(s3_port, lie, truth) as proxy:
        fetched = fetch(f"{url}/video.mp4", tmp_path / "video", 1 << 20, storage.options(proxy.port))
        assert (tmp_path / "video").read_bytes() == content
        assert fetched.sha256 == hashlib.sha256(content).hexdigest()
        with pytest.raises(VideoError) as caught:
            fetch(f"{url}/text.mp4", tmp_path / "text", 1 << 20, storage.options(proxy.port))
    assert caught.value.code != "UNREADABLE"
    assert proxy.lies or lie != "error"


def test_a_server_that_never_stores_is_an_error(s3_port: int, bucket: tuple[str, dict[str, Any]], monkeypatch: Any) -> None:
    """200 to every PUT, and nothing there: no commit is believed."""
    monkeypatch.setattr("pipeline.storage.retry.FIRST_WAIT_S", 0.01)
    with LyingProxy(s3_port, "page", bucket[1]) as proxy:
        monkeypatch.setattr(proxy, "seen", Nothing())
        fs, root = open_root(bucket[0], storage.options(proxy.port))
        with pytest.raises(StoreError, match="has nothing"):
            create_exclusive(fs, f"{root}/{named(b'x')}", b"x")


class Nothing(set[Any]):
    """A memory that keeps nothing: each request is the first."""

    def __contains__(self, _: object) -> bool:
        return False


WRITER = """
import json, sys
from pipeline.answer.answer_store import ANSWERS, QUESTIONS_ASKED, AnswerStore
from pipeline.evaluate.judge_store import ReplyStore
from pipeline.corpus.segments import Durations
from pipeline.store.token_store import TokenStore
from pipeline.answer.caption_runs import View, Views
from tests.tables import SPEC, encoded, row
import pyarrow as pa
url, options, units = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])

def step(word):
    print(json.dumps(word), flush=True)
    sys.stdin.readline()

step("loaded")
store = TokenStore.create(f"{url}/store", SPEC, options)
answers = AnswerStore.create(f"{url}/answers", {"kind": "answers"}, options)
for unit in range(units):
    names = [f"v{unit}-{i}" for i in range(3)]
    store.refresh()
    step("ready")
    told = store.commit(encoded([row(name, tokens=64, width=64) for name in names]))
    said = [{"question_id": name, "question": "what?", "status": "ok", "prediction": name} for name in names]
    asked = [dict.fromkeys(ANSWERS.names) | row for row in said]
    unit = answers.commit(pa.Table.from_pylist(asked, schema=ANSWERS))
    step([told["status"].to_pylist(), unit["status"]])

step("ready")
Durations(f"{url}/store", options).add([{"uri": "v", "source_hint": "h", "duration_s": 2.5}])
reply = {"question": "q", "answer": "a", "prediction": "p", "bodies": ["{}"]}
ReplyStore(f"{url}/judge", {"kind": "judge"}, options).add(reply)
view = View(asked=pa.Table.from_pylist([{"question_id": sys.argv[4]}], schema=QUESTIONS_ASKED), answers="0", name=sys.argv[4])
Views(f"{url}/captions", options).commit(view)
step(["done", "done"])
"""


def overlapping(url: str, options: dict[str, Any], units: int) -> list[list[Any]]:
    """Run two writers in lockstep, in processes of their own; returns what each was told of each unit."""
    command = [sys.executable, "-c", WRITER, url, json.dumps(options), str(units)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [subprocess.Popen([*command, name], cwd=ROOT, text=True, **pipes) for name in ("one", "two")]
    told: list[list[Any]] = [[] for _ in writers]
    try:
        for step in range(2 * units + 3):
            for writer, heard in zip(writers, told, strict=True):
                assert writer.stdout is not None
                line = json.loads(writer.stdout.readline())
                heard += [line] if step and step % 2 == 0 else []
            for writer in writers:  # all are at the same place
                assert writer.stdin is not None
                writer.stdin.write("\n")
                writer.stdin.flush()
        assert [writer.wait() for writer in writers] == [0] * len(writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    return told


@pytest.mark.parametrize("lie", LIES)
def test_two_overlapping_writers_end_with_one_whole_store(s3_port: int, bucket: tuple[str, dict[str, Any]], lie: str) -> None:
    """Each video once, every entry readable, every answer, length, reply and view there: two processes write them at once."""
    url, truth = bucket
    units = 2
    with LyingProxy(s3_port, lie, truth, meet_s=60.0 * (lie in MEETING)) as proxy:
        told = overlapping(url, patient(proxy.port, lie), units)
    assert proxy.lies
    store = TokenStore.open(f"{url}/store", storage_options=truth)
    names = [f"v{unit}-{i}" for unit in range(units) for i in range(3)]
    assert store.ids() == names
    assert [store.read(name).video_id for name in names] == names
    found = verify(*open_root(f"{url}/store", truth))
    assert (found.problems, found.entries, found.fragments, found.shards, found.orphans) == ([], 3 * units, units, units, 0)
    answers = AnswerStore.create(f"{url}/answers", {"kind": "answers"}, truth).committed().to_pylist()
    assert sorted(row["question_id"] for row in answers) == names
    assert Durations(f"{url}/store", truth).known == {("v", "h"): 2.5}
    assert [*ReplyStore(f"{url}/judge", {"kind": "judge"}, truth).read()] == [("q", "a", "p")]
    assert {view.name for view in Views(f"{url}/captions", truth).read().values()} == {"one", "two"}
    for unit in zip(*(heard[:-1] for heard in told), strict=True):
        committed = [statuses == ["committed"] * 3 for statuses, _ in unit], [status == "committed" for _, status in unit]
        for said in committed:
            assert any(said), "nobody was told that the unit is committed"
            assert lie not in TRUTHFUL_ABOUT_CONDITIONS or not all(said), "both were told that they committed the unit"


def both(*words: str) -> list[dict[str, Any]]:
    """Run a command twice at the same time; return both reports, with the exit codes."""
    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda _: framefold(*words), range(2)))
    assert [one.returncode for one in ran] == [0, 0], [one.stderr[-2000:] for one in ran]
    return [report(one) for one in ran]


@pytest.mark.parametrize("lie", ["kept", "overwritten", "busy"])
def test_two_overlapping_encodes_and_answers_end_right(
    s3_port: int, bucket: tuple[str, dict[str, Any]], tmp_path: Path, lie: str
) -> None:
    """The commands themselves, each twice at once: exit 0 for all, a healthy store, each video and each question once."""
    url, truth = bucket
    clips = make_clips(tmp_path / "clips", 4, bad=0)
    questions = [{"video_id": name, "question": f"what is {name}", "question_id": f"q-{name}"} for name in clips.good]
    past = fsspec.filesystem("s3", **truth)
    past.pipe({f"{url}/clips/{path.name}": path.read_bytes() for path in clips.folder.iterdir()})
    past.pipe_file(f"{url}/q.jsonl", "".join(json.dumps(row) + "\n" for row in questions).encode())
    with LyingProxy(s3_port, lie, truth, meet_s=60.0 * (lie in MEETING)) as proxy:
        where = ["--model", str(MODEL), "--runner", "local", "--storage-options", json.dumps(patient(proxy.port, lie))]
        encoded = both("encode", f"{url}/clips", "--store", f"{url}/store", "--reducer", "spatial(k=4)", *where)
        answered = both("answer", f"{url}/q.jsonl", "--store", f"{url}/store", "--out", f"{url}/answers", *where)
    assert proxy.lies
    assert proxy.counts["met"] >= 5 * (lie in MEETING)  # two specs, a shard, a fragment, a unit of answers
    assert [(told["committed"], told["failed"], told["left"]) for told in encoded] == [(4, 0, 0)] * 2
    assert [told["statuses"] for told in answered] == [{"ok": 4}] * 2
    options = ["--storage-options", json.dumps(truth)]
    verified = report(framefold("store", "verify", f"{url}/store", *options))
    assert (verified["ok"], verified["entries"], verified["fragments"], verified["orphans"]) == (True, 4, 1, 0)
    lines = past.cat_file(f"{url}/answers/answers.jsonl").splitlines()
    assert sorted(json.loads(line)["question_id"] for line in lines) == sorted(row["question_id"] for row in questions)
