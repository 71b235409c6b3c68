"""URIs of manifests as people and programs write them: quoted or not, relative, from home, with spaces around them."""

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.fetch import fetch
from pipeline.corpus.listing import read_corpus
from pipeline.corpus.segments import file_of, span_of
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.errors import ConfigError
from pipeline.names import UNSTORABLE, local_path
from tests.tables import corpus as rows_of

VIDEO = Path(__file__).parents[1] / "videos" / "testsrc2.mp4"
FILES = ("a b.mp4", "c%20d.mp4", "c d.mp4", "sub dir/x.mp4", "é.mp4", "t\tb.mp4", "100%.mp4", "e#f.mp4", "g?h.mp4", "~/i.mp4")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files that hold their own names, which is the home folder as well."""
    found = tmp_path / "videos"
    for name in FILES:
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text(name)
    monkeypatch.setenv("HOME", str(found))
    return found


def resolved(manifest: Path, *uris: str) -> list[dict[str, str]]:
    lines = [json.dumps({"video_id": f"{number:03}", "uri": uri}) for number, uri in enumerate(uris)]
    manifest.write_text("\n".join(lines))
    return list(read_corpus(str(manifest)).to_pylist())


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("{}/a b.mp4", "a b.mp4"),
        ("file://{}/a b.mp4", "a b.mp4"),
        ("file://{}/a%20b.mp4", "a b.mp4"),
        ("file:{}/a%20b.mp4", "a b.mp4"),
        ("FILE://{}/a%20b.mp4", "a b.mp4"),
        ("file://localhost{}/a%20b.mp4", "a b.mp4"),
        ("file://localhost{}/a b.mp4", "a b.mp4"),
        ("local://{}/a%20b.mp4", "a b.mp4"),
        ("{}/a%20b.mp4", "a b.mp4"),
        ("~/a b.mp4", "a b.mp4"),
        ("file://~/a%20b.mp4", "a b.mp4"),
        ("~/~/i.mp4", "~/i.mp4"),
        ("a b.mp4", "a b.mp4"),
        ("a%20b.mp4", "a b.mp4"),
        ("sub dir/x.mp4", "sub dir/x.mp4"),
        ("./sub dir/../a b.mp4", "a b.mp4"),
        ("sub%20dir/x.mp4", "sub dir/x.mp4"),
        (" {}/a b.mp4 ", "a b.mp4"),
        ("  file://{}/a%20b.mp4", "a b.mp4"),
        ("file://{}/c%20d.mp4", "c%20d.mp4"),
        ("file://{}/c%2520d.mp4", "c%20d.mp4"),
        ("file://localhost{}/c%20d.mp4", "c d.mp4"),
        ("{}/c%20d.mp4", "c%20d.mp4"),
        ("file://{}/%C3%A9.mp4", "é.mp4"),
        ("file://{}/t\tb.mp4", "t\tb.mp4"),
        ("file://{}/t%09b.mp4", "t\tb.mp4"),
        ("{}/t\tb.mp4", "t\tb.mp4"),
        ("file://{}/100%.mp4", "100%.mp4"),
        ("file://{}/100%25.mp4", "100%.mp4"),
        ("file://{}/e%23f.mp4", "e#f.mp4"),
        ("file://{}/e#f.mp4", "e#f.mp4"),
        ("file://{}/g%3fh.mp4", "g?h.mp4"),
        ("file://{}/a%20b.mp4#t=0.000,1.000", "a b.mp4"),
    ],
)
def test_a_uri_however_it_is_written_leads_to_its_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str, name: str
) -> None:
    """What is stored leads there from any folder, with any home, and is found again by the same rule."""
    found = resolved(folder / "m.jsonl", uri.format(folder))[0]
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.chdir("/")
    assert local_path(file_of(found["uri"])).read_text() == name
    assert json.loads(found["source_hint"])["size"] == len(name.encode())
    assert span_of(found["uri"])[1] == span_of(uri)[1]
    again = resolved(folder / "m.jsonl", found["uri"])[0]
    assert again == {**found, "video_id": "000"}


def test_a_relative_uri_is_looked_for_in_the_working_folder_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "work" / "sub dir").mkdir(parents=True)
    (folder / "work" / "sub dir" / "x.mp4").write_text("of the working folder")
    monkeypatch.chdir(folder / "work")
    first, second = resolved(folder / "m.jsonl", "sub dir/x.mp4", "a b.mp4")
    assert local_path(first["uri"]) == folder / "work" / "sub dir" / "x.mp4"
    assert local_path(second["uri"]) == folder / "a b.mp4"


@pytest.mark.parametrize(
    "uri", ["/nowhere/a.mp4", "file:///nowhere/a%20b.mp4", "nowhere/a.mp4", "~/nowhere.mp4", "s3x://b/a%20b.mp4"]
)
def test_a_uri_that_leads_nowhere_is_kept_as_it_is(folder: Path, uri: str) -> None:
    assert resolved(folder / "m.jsonl", uri) == [{"video_id": "000", "uri": uri, "source_hint": "{}"}]


def test_names_that_python_wrote_as_surrogates_lead_to_the_bytes(folder: Path) -> None:
    """As `json.dumps(os.listdir())` writes a name that is not UTF-8; an id likewise."""
    path = folder / os.fsdecode(b"latin1\xe9.mp4")
    path.write_text("bytes")
    manifest = folder / "m.jsonl"
    manifest.write_text(json.dumps({"video_id": "latin1\udce9", "uri": str(path)}))
    row = read_corpus(str(manifest)).to_pylist()[0]
    assert row["video_id"] == "latin1%E9"
    assert row["uri"] == f"file://localhost{folder}/latin1%E9.mp4"
    assert local_path(row["uri"]) == path


ODD_ONES = st.sampled_from("\t\n\x00%/\u2028\udce9")
TEXTS = st.lists(st.text(max_size=3) | ODD_ONES, max_size=8).map("".join).filter(str.strip)


@given(TEXTS)
def test_a_manifest_of_any_text_is_a_table_that_can_be_stored(text: str) -> None:
    """A row that leads nowhere meets its class in the decode stage."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/manifests/any.jsonl", json.dumps({"video_id": text, "uri": f"/nowhere/{text}"}).encode())
    table = read_corpus("memory://manifests/any.jsonl")
    table.validate(full=True)
    assert table["video_id"][0].as_py().isprintable() or not text.isprintable()


@pytest.mark.parametrize("column", ["video_id", "uri"])
def test_half_of_a_surrogate_pair_that_stands_for_no_byte_is_refused(folder: Path, column: str) -> None:
    manifest = folder / "m.jsonl"
    manifest.write_text(json.dumps({"video_id": "a", "uri": "/v.mp4"} | {column: "what \ud83d"}))
    with pytest.raises(ConfigError, match=f"row 1, column {column}: got half of a surrogate pair"):
        read_corpus(str(manifest))


def test_ids_that_become_one_are_refused_by_name(folder: Path) -> None:
    manifest = folder / "m.jsonl"
    lines = [{"video_id": name, "uri": str(folder / "a b.mp4")} for name in ("tab\tname", "tab%09name")]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(Exception, match="1 video ids appear more than once: tab%09name"):
        read_corpus(str(manifest))


def test_an_object_whose_name_is_no_unicode_is_a_row_with_a_class() -> None:
    """The others of its folder are decoded; nothing that is called like the escape is taken for it."""
    fs = fsspec.filesystem("memory")
    for name in ("ok.mp4", "half\ud800.mp4", "half%ED%A0%80.mp4", "bytes\udcff.mp4"):
        fs.pipe(f"/odd-objects/{name}", VIDEO.read_bytes())
    table = read_corpus("memory://odd-objects")
    table.validate(full=True)
    with Decode(DecodeConfig(), side_px=28) as stage:
        rows = {row["video_id"]: (row["error_class"], row["error"] or "") for row in stage(table).to_pylist()}
    assert {name: code for name, (code, _) in rows.items()} == {
        "ok": None, "half%25ED%25A0%2580": None, "half%ED%A0%80": "UNREADABLE", "bytes%FF": "UNREADABLE",
    }  # fmt: skip
    assert "not valid Unicode: rename" in rows["bytes%FF"][1]
    assert UNSTORABLE not in rows["bytes%FF"][1]


REMOTE = (
    "ok", "Rec 3.15\u202fPM", "東京\u3000散歩", "a%20b", "a b", "[2024] x", "st*r", "q?x", "a::b", "a#b", "film#t=0.000,1.000",
    "tab\tx", "new\nline", "a&key=b", "tab%09x",
)  # fmt: skip


@pytest.mark.s3
def test_objects_with_odd_names_are_listed_and_fetched(bucket: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """On a real S3 server, in a folder, by a pattern, and by a manifest beside them with names quoted and not."""
    url, options = bucket
    fs, root = fsspec.core.url_to_fs(url, **options)
    content = VIDEO.read_bytes()
    for name in REMOTE:
        fs.pipe_file(f"{root}/[in] a/{name}.mp4", content + name.encode())
    for spec in (f"{url}/[in] a", f"{url}/?in? a/*.mp4"):
        rows = read_corpus(spec, options).to_pylist()
        assert {row["video_id"].removeprefix("[in] a/") for row in rows} == {
            *REMOTE[:10], "film%23t=0.000,1.000", "tab%09x", "new%0Aline", "a&key=b", "tab%2509x",
        }  # fmt: skip
        assert {_tail(row["uri"], options, tmp_path) for row in rows} == set(REMOTE)
    written = [{"video_id": "q", "uri": f"{url}/[in]%20a/a::b.mp4"}, {"video_id": "r", "uri": "[in] a/a%20b.mp4"}]
    fs.pipe_file(f"{root}/m.jsonl", "\n".join(map(json.dumps, written)).encode())
    rows = read_corpus(f"{url}/m.jsonl", options).to_pylist()
    assert [_tail(row["uri"], options, tmp_path) for row in rows] == ["a::b", "a%20b"]


def _tail(uri: str, options: dict[str, Any], tmp_path: Path) -> str:
    fetch(file_of(uri), tmp_path / "copy", 0, options)
    return (tmp_path / "copy").read_bytes()[VIDEO.stat().st_size :].decode()


def test_the_decode_stage_alone_finds_a_quoted_uri(tmp_path: Path) -> None:
    (tmp_path / "a b.mp4").write_bytes(VIDEO.read_bytes())
    table = rows_of("v").set_column(1, "uri", [[f"file://{tmp_path}/a%20b.mp4"]])
    with Decode(DecodeConfig(), side_px=28) as stage:
        assert stage(table)["error_class"].to_pylist() == [None]
