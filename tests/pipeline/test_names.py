"""Names as ids, URIs and lines of text: no two names become one, and the way back leads to the file."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from pipeline.corpus.fetch import content_sha256, fetch
from pipeline.corpus.listing import read_corpus
from pipeline.corpus.segments import file_of, span_of
from pipeline.names import (
    MAX_ID_BYTES,
    ODD,
    clean_id,
    escape,
    json_line,
    local_path,
    local_uri,
    one_line,
    unquoted,
    with_digest,
)
from pipeline.redaction import redact
from pipeline.schema import CORPUS

PARTS = (
    b"\t", b"\n", b"\x7f", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xaf", b"\xc3\xa9", b"\xe9", b"\xff", b"\xc3",
    b"\xed\xa0\x80", b"%", b"25", b"%09", b"%0a", b"%0A", b"%E9", b"%C3", b"%C3%A9", b"%2509", b"%252509", b"%20", b"%41",
    b"09", b"A", b" ", b"~", b"#t=0.000,1.000", b"%23t=0.000,1.000", b"?key=x", b"&sig=y", b"user:word@", b"::", b"[a]", b"*",
    b"\\", b".mp4", b".",
)  # fmt: skip
NAMES = (st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map(b"".join) | st.binary(min_size=1, max_size=24)).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)
"""What Linux takes for the name of a file."""


@given(NAMES, NAMES)
@settings(max_examples=500)
@example(b"a\t", b"a%09")
@example(b"a%09", b"a%2509")
@example(b"\xc3%A9", "é".encode())
@example(b"%\xe9", b"%25\xe9")
def test_escape_of_different_names_gives_different_ids_that_can_be_stored(one: bytes, other: bytes) -> None:
    ids = [escape(os.fsdecode(name)) for name in (one, other)]
    assert (ids[0] == ids[1]) == (one == other)
    assert all(name.encode() and not ODD.search(name) for name in ids)


ALPHABET = (b"%", b"2", b"5", b"0", b"9", b"\t", b"E", b"\xe9")


def test_escape_of_all_short_names_of_a_small_alphabet_is_injective() -> None:
    names = [b""]
    for _ in range(5):
        names += [name + part for name in names if len(name) == len(names[-1]) for part in ALPHABET]
    assert len({escape(os.fsdecode(name)) for name in set(names)}) == len(set(names))


@pytest.mark.parametrize(
    "name",
    [
        "film", "Screen Recording 2024-01-05 at 3.15.22\u202fPM", "東京\u3000散歩", "fam 👨\u200d👩\u200d👧",
        "Snímek v\u00a013.05", "100%", "100%25", "a%20b", "caf%C3%A9", "%e9", "a%0ab", "%zz", "e\u0301", "\u202egpj",
        "\ufeffbom", "\ue000", "🏳\ufe0f\u200d🌈",
    ],
)  # fmt: skip
def test_escape_of_a_printable_name_returns_it(name: str) -> None:
    assert escape(name) == name == clean_id(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tab\tname", "tab%09name"), ("new\nline", "new%0Aline"), ("latin1\udce9", "latin1%E9"), ("nel\x85", "nel%C2%85"),
        ("ls\u2028", "ls%E2%80%A8"), ("50%\t", "50%25%09"), ("tab%09name", "tab%2509name"), ("latin1%E9", "latin1%25E9"),
        ("é\udce9", "é%E9"),
    ],
)  # fmt: skip
def test_escape_of_an_odd_name_is_percent_encoded(name: str, expected: str) -> None:
    assert escape(name) == expected


@given(NAMES)
@settings(max_examples=300)
def test_local_uri_of_any_path_leads_back_to_it(name: bytes) -> None:
    """Even where no file has the name, and through what the store does to a URI."""
    path = os.fsdecode(b"/nowhere/" + name)
    uri = local_uri(path)
    assert str(local_path(uri)) == str(Path(path))
    assert redact(uri) == one_line(uri) == uri
    uri.encode()


@pytest.mark.parametrize("name", ["a%20b.mp4", "byte%E9.mp4", "tab%09.mp4", "c%2520d.mp4"])
def test_local_uri_of_a_file_that_is_gone_does_not_lead_to_another(tmp_path: Path, name: str) -> None:
    """One that is called like the name without its escapes lies beside it."""
    literal, other = tmp_path / name, tmp_path / unquoted(name)
    other.write_text("another")
    for path in (literal, other):
        assert local_path(local_uri(str(path))) == path


@given(st.sets(NAMES, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example({b"a", b"a.mp4", b"a.mp4.mp4", b"a.mkv"})
@example({b"a.", b"a..", b"a%", b"a%25"})
@example({b"\xe9", b"%E9", b"%25E9", b"%2525E9"})
def test_read_corpus_lists_every_byte_name_under_an_id_of_its_own(names: set[bytes]) -> None:
    """Ids are unique and storable, and the URI of each leads to the bytes of its own file, in a directory and in a glob."""
    assume(all(len(name) < 200 for name in names))
    with tempfile.TemporaryDirectory() as folder:
        files = {name + b".mp4" for name in names}
        for name in files:
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name)
        visible = {name for name in files if not name.startswith(b".")}
        if visible:
            assert _contents(folder) == visible
        assert _contents(f"{folder}/*") >= visible


def _contents(spec: str) -> set[bytes]:
    table = read_corpus(spec)
    assert table.schema == CORPUS
    table.validate(full=True)
    ids, uris = table["video_id"].to_pylist(), table["uri"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert all(name.strip() and span_of(name)[1] is None and one_line(name) == name for name in ids)
    assert all(one_line(uri) == redact(uri) == uri for uri in uris)
    contents = []
    for uri in uris:
        path = local_path(file_of(uri))
        assert path is not None
        contents.append(path.read_bytes())
        assert content_sha256(file_of(uri)) is not None
    assert len(set(contents)) == len(contents)
    return set(contents)


def test_read_corpus_of_folders_with_odd_names_lists_their_videos(tmp_path: Path) -> None:
    """The corpus itself may be called like a pattern or a chain of protocols, or have a suffix of manifests."""
    for number, name in enumerate((b"[2024] trip", b"a::b", b"st*r?", b"sp ace%20", b"lat\xe9\n", b"clips.csv", b"~")):
        folder = tmp_path / os.fsdecode(name) / os.fsdecode(b"sub\xff")
        folder.mkdir(parents=True)
        (folder / "v.mp4").write_bytes(b"x" * number)
        for spec in (folder.parent, f"{folder.parent}/", f"file://{folder.parent}"):
            row = read_corpus(str(spec)).to_pylist()[0]
            assert row["video_id"] == "sub%FF/v"
            assert local_path(row["uri"]) == folder / "v.mp4"


def test_read_corpus_of_names_that_take_each_others_forms_gives_each_an_id(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv", "a.mp4.avi", "a.mp4.avi.mov", "b.mp4", "\u3000.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    ids = read_corpus(str(tmp_path))["video_id"].to_pylist()
    assert ids == ["a.mkv", "a.mp4", "a.mp4.avi", "a.mp4.avi.mov", "b", "\u3000.mp4"]


def test_read_corpus_of_a_path_longer_than_an_id_ends_it_in_a_digest(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*[f"{number}{'é' * 100}" for number in range(8)])
    folder.mkdir(parents=True)
    for name in ("one.mp4", "two.mp4", "three\t.mp4"):
        (folder / name).write_bytes(name.encode())
    table = read_corpus(str(tmp_path))
    ids = table["video_id"].to_pylist()
    assert len(set(ids)) == 3
    assert all(len(name.encode()) <= MAX_ID_BYTES and name.startswith("0éé") for name in ids)
    assert {local_path(uri).read_bytes() for uri in table["uri"].to_pylist()} == {b"one.mp4", b"two.mp4", b"three\t.mp4"}


def test_read_corpus_of_a_path_longer_than_the_system_takes_lists_the_others(tmp_path: Path) -> None:
    """The file is a row whose class the decode stage tells; one behind a folder of that length cannot be seen at all."""
    (tmp_path / "ok.mp4").write_bytes(b"ok")
    here, depth = os.open(tmp_path, os.O_RDONLY), 0
    while len(os.fsencode(tmp_path)) + 201 * (depth + 1) < 4080:
        os.mkdir("d" * 200, dir_fd=here)
        here, parent = os.open("d" * 200, os.O_RDONLY, dir_fd=here), here
        os.close(parent)
        depth += 1
    for name in ("s.mp4", "l" * 240 + ".mp4"):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.mkdir("f" * 240, dir_fd=here)
    os.close(here)
    table = read_corpus(str(tmp_path)).to_pylist()
    assert len(table) == 3
    assert [row["video_id"] for row in table if row["source_hint"] != "{}"][-1] == "ok"
    assert len({row["video_id"] for row in table}) == 3


def test_with_digest_of_names_that_begin_alike_differ() -> None:
    long = "x" * 2000
    assert with_digest(long, long) != with_digest(long, long + "y")
    assert len(with_digest("é" * 2000, long).encode()) <= MAX_ID_BYTES


BREAKS = st.sampled_from('\ud800\udce9\u2028\u2029\x85\x0b\x1c\x7f\n"\\')
TEXTS = st.lists(st.text(max_size=3) | BREAKS, max_size=6).map("".join)


@given(TEXTS)
def test_json_line_is_one_line_and_reads_back(text: str) -> None:
    line = json_line({"text": text})
    assert len(line.splitlines()) == 1
    line.encode()
    assert json.loads(line) == json.loads(json.dumps({"text": text}))
    assert len(f"a{one_line(text)}".splitlines()) == 1


def test_fetch_of_a_byte_name_copies_the_video(tmp_path: Path) -> None:
    video = Path(__file__).parents[1] / "videos" / "testsrc2.mp4"
    for number, name in enumerate((b"latin1\xe9", b"latin1%E9", b"tab\t", b"a b", b"a%20b")):
        path = tmp_path / os.fsdecode(name)
        shutil.copy2(video, path)
        with path.open("ab") as file:
            file.write(b"\0" * number)
    sizes = {}
    for row in read_corpus(f"{tmp_path}/*").to_pylist():
        sizes[row["video_id"]] = fetch(row["uri"], tmp_path / "copy", 0).bytes - video.stat().st_size
    assert sizes == {"latin1%E9": 0, "latin1%25E9": 1, "tab%09": 2, "a b": 3, "a%20b": 4}
