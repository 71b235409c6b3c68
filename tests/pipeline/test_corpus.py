"""A corpus from a directory, a glob or a manifest, and what is refused."""

import errno
import json
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.corpus.listing import read_corpus
from pipeline.errors import ConfigError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * len(name))


def test_a_directory_gives_its_videos_by_path_without_suffix(tmp_path: Path) -> None:
    """Other files are no videos, and hidden order of the file system does not matter."""
    touch(tmp_path, "b.mp4", "a/c.webm", "a/notes.txt", "UPPER.MKV")
    table = read_corpus(str(tmp_path))
    assert table["video_id"].to_pylist() == ["UPPER", "a/c", "b"]
    hints = [json.loads(hint) for hint in table["source_hint"].to_pylist()]
    assert [hint["size"] for hint in hints] == [9, 8, 5]
    assert all("mtime" in hint for hint in hints)


def test_hidden_files_are_left_out_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a shell's `*` leaves them out, at any depth; the directory itself may be hidden, and a manifest may name one."""
    corpus = tmp_path / ".data"
    touch(corpus, "a.mp4", "._a.mp4", ".cache/b.mp4", "c/.d/e.mp4", "f/g.mp4")
    with caplog.at_level("INFO"):
        assert read_corpus(str(corpus))["video_id"].to_pylist() == ["a", "f/g"]
    assert f"3 hidden files are left out of {corpus}" in caplog.text
    (tmp_path / "m.jsonl").write_text(json.dumps({"video_id": "x", "uri": str(corpus / "._a.mp4")}))
    assert read_corpus(str(tmp_path / "m.jsonl")).num_rows == 1


def test_files_that_differ_in_their_suffix_keep_it(tmp_path: Path) -> None:
    """Two files are two videos, whatever their names share."""
    touch(tmp_path, "a.mp4", "a.avi", "b.mp4")
    assert read_corpus(str(tmp_path))["video_id"].to_pylist() == ["a.avi", "a.mp4", "b"]


def test_a_glob_takes_what_it_matches(tmp_path: Path) -> None:
    """Ids are relative to the folder in front of the first wildcard."""
    touch(tmp_path, "x/one.mp4", "x/two.bin", "y/one.mp4")
    assert read_corpus(f"{tmp_path}/x/*")["video_id"].to_pylist() == ["one", "two"]
    assert read_corpus(f"{tmp_path}/*/one.mp4")["video_id"].to_pylist() == ["x/one", "y/one"]


def test_one_file_is_a_corpus_of_one(tmp_path: Path) -> None:
    """Its id is its stem."""
    touch(tmp_path, "only.mp4")
    assert read_corpus(str(tmp_path / "only.mp4"))["video_id"].to_pylist() == ["only"]


def test_any_fsspec_url_lists() -> None:
    """Not only local paths; URIs keep their protocol."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/corpus-test/a.mp4", b"123")
    table = read_corpus("memory://corpus-test")
    assert table["uri"].to_pylist() == ["memory:///corpus-test/a.mp4"]
    assert json.loads(table["source_hint"][0].as_py())["size"] == 3


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_manifests_of_each_kind_give_the_same_table(tmp_path: Path, suffix: str) -> None:
    """Columns video_id and uri, others ignored; a changed file changes its hint."""
    touch(tmp_path, "v.mp4")
    rows = [{"video_id": "q", "uri": str(tmp_path / "v.mp4"), "note": "n"}, {"video_id": "p", "uri": "/none", "note": ""}]
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "csv":
        lines = [",".join(row.values()) for row in rows]
        path.write_text("\n".join(["video_id,uri,note", *lines]))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    table = read_corpus(str(path))
    assert table["video_id"].to_pylist() == ["p", "q"]
    before = table["source_hint"].to_pylist()
    assert before[0] == "{}"
    (tmp_path / "v.mp4").write_bytes(b"other content")
    assert read_corpus(str(path))["source_hint"].to_pylist()[1] != before[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("video_id,uri\na,x\na,y\nb,z\n", "more than once: a"),
        ("id,uri\na,x\n", "missing ['video_id']"),
        ("video_id,uri\na,\n", "first in row 1"),
        ("video_id,uri\n", "expected"),
    ],
)
def test_a_wrong_manifest_is_named_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    """What was expected, and what came."""
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_corpus(str(tmp_path / "m.csv"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["/no/such/directory", "nope://bucket/x", "/no/such/*.mp4", "/no/such.csv"])
def test_what_cannot_be_read_is_a_setting_to_mend(spec: str) -> None:
    """Missing directories, unknown protocols, globs that match nothing."""
    with pytest.raises(ConfigError):
        read_corpus(spec)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    """A typo in a path must not look like a finished job."""
    with pytest.raises(ConfigError, match="at least one video"):
        read_corpus(str(tmp_path))


def test_links_to_videos_are_videos(tmp_path: Path) -> None:
    """As in a data set of links into a shared store; size and time are those of the file, so that its change is seen."""
    touch(tmp_path, "real/a.mp4")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.mp4").symlink_to(tmp_path / "real" / "a.mp4")
    for spec in (f"{tmp_path}/links", f"{tmp_path}/links/*.mp4", f"{tmp_path}/links/b.mp4"):
        table = read_corpus(spec)
        assert table["video_id"].to_pylist() == ["b"]
        assert table["source_hint"].to_pylist() == read_corpus(f"{tmp_path}/real")["source_hint"].to_pylist()


def test_a_link_that_leads_nowhere_is_listed_for_the_decode_stage_to_class(tmp_path: Path) -> None:
    """A disk that is not mounted is no reason to leave its videos out in silence."""
    touch(tmp_path, "a.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert read_corpus(str(tmp_path))["video_id"].to_pylist() == ["a", "gone"]


def test_a_link_to_a_directory_is_told_of_and_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It could lead back above itself."""
    touch(tmp_path, "corpus/a.mp4")
    (tmp_path / "corpus" / "round").symlink_to(tmp_path / "corpus")
    assert read_corpus(f"{tmp_path}/corpus")["video_id"].to_pylist() == ["a"]
    assert "1 links to directories are not followed" in caplog.text


class Faulty(LocalFileSystem):
    """Local disk, on which some folders cannot be listed."""

    protocol = "faulty"
    errors: ClassVar[dict[str, OSError]] = {}

    def ls(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if error := self.errors.get(path.rsplit("/", 1)[-1]):
            raise error
        return super().ls(path, *args, **kwargs)


def test_a_folder_that_fails_is_not_an_empty_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its videos are not gone; one that may not be read is told of, one that vanished meanwhile is nothing."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    touch(tmp_path, "a.mp4", "private/b.mp4", "gone/c.mp4", "sub/d.mp4")
    Faulty.errors = {"private": PermissionError("private"), "gone": FileNotFoundError("gone")}
    assert read_corpus(f"faulty://{tmp_path}")["video_id"].to_pylist() == ["a", "sub/d"]
    assert [record.getMessage() for record in caplog.records] == ["a folder that may not be read is left out: private"]
    Faulty.errors = {"sub": OSError(errno.ENOSPC, "no room for a listing")}
    with pytest.raises(ConfigError, match="cannot be listed: OSError"):
        read_corpus(f"faulty://{tmp_path}")
