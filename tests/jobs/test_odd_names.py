"""One odd name in a folder of good ones, as a user meets it: encoded, listed, answered, captioned, talked about."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.names import one_line
from tests.command import ROOT, framefold, report

VIDEO = ROOT / "tests" / "videos" / "testsrc2.mp4"
MODEL = ["--model", str(ROOT / "pipeline" / "synthetic" / "checkpoint"), "--runner", "local"]
REDUCER = ["--reducer", "nest(keep=16,superset=16)"]

NAMES = {
    b"Screen Recording 2024-01-05 at 3.15.22\xe2\x80\xafPM": "Screen Recording 2024-01-05 at 3.15.22\u202fPM",
    "東京\u3000散歩".encode(): "東京\u3000散歩",
    "fam 👨\u200d👩\u200d👧".encode(): "fam 👨\u200d👩\u200d👧",
    "Snímek v\u00a013.05".encode(): "Snímek v\u00a013.05",
    b"tab\tname": "tab%09name",
    b"new\nline": "new%0Aline",
    b"latin1\xe9": "latin1%E9",
    b"lines\xe2\x80\xa8\xc2\x85": "lines%E2%80%A8%C2%85",
    b"tab%09name": "tab%2509name",
    b"a&key=b": "a&key=b",
    b"100%25": "100%25",
    b"\xff/\t/film#t=0.000,1.000": "%FF/%09/film%23t=0.000,1.000",
}
"""Bytes of a name, and the id of the file."""
ONE_OF_EACH = dict(list(NAMES.items())[::2])
"""Unicode spaces, a joiner, a control character, bytes, an escape, a percent sign."""


def with_good_one(folder: Path, *names: bytes) -> Path:
    for number, name in enumerate((b"ok", *names)):
        path = folder / os.fsdecode(name + b".mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(VIDEO.read_bytes() + b"\0" * number)
    return folder


@pytest.mark.parametrize("name", ONE_OF_EACH, ids=ONE_OF_EACH.values())
def test_a_folder_with_one_odd_name_is_encoded_and_listed(tmp_path: Path, name: bytes) -> None:
    corpus, store = with_good_one(tmp_path / "videos", name), str(tmp_path / "store")
    ran = framefold("encode", str(corpus), "--store", store, *MODEL)
    assert (ran.returncode, report(ran)["committed"]) == (0, 2), ran.stderr
    listed = framefold("store", "ls", store).stdout
    assert len(listed.splitlines()) == 3
    fields = [line.split("\t") for line in listed.split("\n")[:2]]
    assert {line[1] for line in fields} == {"ok", NAMES[name]}
    again = framefold("encode", str(corpus), "--store", store, *MODEL)
    assert "committed" not in report(again)["this_run"]


def test_a_folder_of_odd_names_goes_through_every_command(tmp_path: Path) -> None:
    """Segments with subtitles, answers by id and by raw name, content under other names, an export that is a manifest."""
    corpus, store, out = with_good_one(tmp_path / "videos", *NAMES), str(tmp_path / "store"), tmp_path / "out"
    flags = ["--store", store, "--out", str(out), *MODEL, *REDUCER, "--segments", "5", "--max-new-tokens", "2"]
    ran = framefold("caption", str(corpus), *flags)
    assert (ran.returncode, report(ran)["videos"]) == (0, len(NAMES) + 1), ran.stderr
    lines = (out / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == pq.read_table(out / "captions.parquet").to_pylist()
    assert {json.loads(line)["video_id"] for line in lines} == {"ok", *NAMES.values()}
    for ending in ("srt", "vtt"):
        files = [path.name for path in (out / ending).iterdir()]
        assert len(files) == len(NAMES) + 1
        assert all(name.isascii() and one_line(name) == name for name in files)

    whole = str(tmp_path / "whole")
    assert report(framefold("encode", str(corpus), "--store", whole, *MODEL, *REDUCER))["committed"] == len(NAMES) + 1
    moved = with_good_one(tmp_path / "moved", *NAMES)
    same = report(framefold("encode", str(moved), "--store", whole, *MODEL, *REDUCER, "--identity", "content"))
    assert same["this_run"].get("committed", 0) == 0

    raw = [os.fsdecode(name) for name in NAMES if b"\xff" not in name and b"\xe9" not in name]
    asked = [*("ok", *NAMES.values()), *raw]
    rows = [{"video_id": name, "question": f"what is in {number}"} for number, name in enumerate(asked)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--store", whole, "--out", str(tmp_path / "answers"), *MODEL, "--max-new-tokens", "1", "--dataset", "plain"]
    answered = framefold("answer", str(tmp_path / "q.jsonl"), *flags)
    assert report(answered)["statuses"] == {"ok": len(rows)}, answered.stderr

    assert framefold("store", "export", whole, "--out", str(tmp_path / "export"), "--format", "npz").returncode == 0
    manifest = tmp_path / "export" / "manifest.jsonl"
    assert {json.loads(line)["video_id"] for line in manifest.read_text().splitlines()} == {"ok", *NAMES.values()}
    resumed = report(framefold("encode", str(manifest), "--store", whole, *MODEL, *REDUCER))
    assert (resumed["committed"], resumed["left"], resumed["failed"]) == (len(NAMES) + 1, 0, 0)
    assert "committed" not in resumed["this_run"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of all names, and a store of it."""
    folder = tmp_path_factory.mktemp("odd")
    corpus, store = with_good_one(folder / "videos", *NAMES), str(folder / "store")
    assert framefold("encode", str(corpus), "--store", store, *MODEL).returncode == 0
    return corpus, store


@pytest.mark.parametrize("name", NAMES, ids=NAMES.values())
def test_store_show_finds_an_odd_name_by_path_id_and_url(stored: tuple[Path, str], name: bytes) -> None:
    corpus, store = stored
    path = corpus / os.fsdecode(name + b".mp4")
    uris = set()
    for asked in (str(path), NAMES[name], os.path.relpath(path, corpus)):
        ran = framefold("store", "show", store, asked, cwd=corpus)
        assert ran.returncode == 0, ran.stderr
        uris.add(report(ran)["uri"])
    assert len(uris) == 1
    assert "***" not in (uri := uris.pop())
    assert report(framefold("store", "show", store, uri, cwd=corpus))["uri"] == uri


def test_chat_about_a_video_by_a_path_of_bytes(stored: tuple[Path, str]) -> None:
    corpus, store = stored
    path = corpus / os.fsdecode(b"latin1\xe9.mp4")
    ran = framefold("chat", str(path), "--store", store, *MODEL[:2], "--ask", "what is it")
    assert (ran.returncode, report(ran)["video"]) == (0, "latin1%E9"), ran.stderr
    wrong = framefold("chat", str(corpus / os.fsdecode(b"none\xe9\n.mp4")), "--store", store, *MODEL[:2], "--ask", "what is it")
    assert wrong.returncode == 2
    assert "none%E9%0A.mp4 is not in the store" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_listing_goes_to_an_output_that_knows_ascii_only(stored: tuple[Path, str]) -> None:
    """A report stays JSON, a line shows an escape for what the output lacks."""
    from tests.command import afresh

    _, store = stored
    ran = afresh("store", "ls", store, PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == len(NAMES) + 2
    assert "3.15.22\\u202fPM" in ran.stdout
    shown = afresh("store", "show", store, "東京\u3000散歩", PYTHONIOENCODING="ascii")
    assert report(shown)["video_id"] == "東京\u3000散歩"


def test_files_that_differ_in_an_escape_only_are_two_videos(tmp_path: Path) -> None:
    """Each with the tokens of its own file."""
    names = (b"e\xe9", b"e%E9", b"e%25E9")
    corpus, store = with_good_one(tmp_path / "videos", *names), str(tmp_path / "store")
    assert report(framefold("encode", str(corpus), "--store", store, *MODEL))["committed"] == 4
    sizes = {
        name: report(framefold("store", "show", store, name))["source_bytes"] - VIDEO.stat().st_size
        for name in ("ok", "e%E9", "e%25E9", "e%2525E9")
    }
    assert sizes == {"ok": 0, "e%E9": 1, "e%25E9": 2, "e%2525E9": 3}
