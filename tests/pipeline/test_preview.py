"""Stores that are looked at without being written, and places where nothing could be written."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.answer.answer_store import AnswerStore
from pipeline.errors import ConfigError
from pipeline.storage.filesystem import open_root
from pipeline.storage.preflight import check_can_create
from pipeline.store.specs import fingerprints
from pipeline.store.token_store import TokenStore
from tests.tables import SPEC, corpus, encoded, row


def test_preview_of_a_store_that_does_not_exist_is_empty_and_writes_nothing(place: tuple[str, dict[str, Any]]) -> None:
    url, options = place
    store = TokenStore.preview(url, SPEC, options)
    fs, root = open_root(url, options)
    assert (store.ids(), store.missing(corpus("a")).num_rows) == ([], 1)
    assert fs.find(root) == []
    store.write_spec()
    store.commit(encoded([row("a")]))
    assert fingerprints(fs, root) == [store.fingerprint]
    again = TokenStore.preview(url, SPEC, options)
    assert (again.fingerprint, again.ids()) == (store.fingerprint, ["a"])
    assert again.read("a").video_id == "a"


def test_preview_of_answers_writes_nothing(tmp_path: Path) -> None:
    spec = {"kind": "answer"}
    answers = AnswerStore.preview(str(tmp_path / "out"), spec)
    assert answers.committed().num_rows == 0
    assert not (tmp_path / "out").exists()
    answers.write_spec(spec)
    assert Path(answers.spec_path).read_text() == '{"kind":"answer"}'


@pytest.mark.parametrize("name", ["file", "file/below", "dangling", "dangling/below", "x" * 300])
def test_preview_refuses_a_place_with_the_message_of_create(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    said = []
    for build in (TokenStore.preview, TokenStore.create):
        with pytest.raises(ConfigError) as refusal:
            build(str(tmp_path / name), SPEC)
        said.append(str(refusal.value).split(": [Errno")[0].split(": OSError")[0])
    assert said[0] == said[1]


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question to the system is replaced: root may write everywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    fs, root = open_root(str(tmp_path))
    with pytest.raises(ConfigError, match=r"x/y\.json: no permission to write: \[Errno 13\]"):
        check_can_create(fs, f"{root}/x/y.json")
    (tmp_path / "x").mkdir()
    check_can_create(fs, f"{root}/x/y.json")


def test_a_read_only_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says of the file system is replaced: mounting one needs privileges."""
    sealed = os.statvfs_result([*os.statvfs(tmp_path)[:8], os.ST_RDONLY, 255])
    monkeypatch.setattr(os, "statvfs", lambda path: sealed)
    with pytest.raises(ConfigError, match=r"x\.json: cannot be written: OSError: \[Errno 30\] Read-only file system"):
        check_can_create(open_root(str(tmp_path))[0], f"{tmp_path}/x.json")


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_a_warning(
    bucket: tuple[str, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    url, options = bucket
    TokenStore.preview(url, SPEC, options)
    assert "does not exist" not in caplog.text
    store = TokenStore.preview("s3://nosuchbucket/store", SPEC, options)
    assert "the bucket nosuchbucket does not exist" in caplog.text
    assert not store.fs.exists("nosuchbucket")
