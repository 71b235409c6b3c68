"""An entry that rotted costs its own questions and nothing else, until it is repaired."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.commands import answer as answer_job
from jobs.commands.answer import AnswerJob
from jobs.runtime.cluster import ClusterConfig
from jobs.runtime.launch import DONE, FAULT
from pipeline.answer.stage import AnswerConfig
from pipeline.errors import StorageError, StoreError
from pipeline.storage.filesystem import open_root
from pipeline.store.maintenance import repair
from pipeline.store.token_store import TokenStore
from tests.selection.stored import NAMES, SHAPES


@pytest.fixture
def store(whole: TokenStore, tmp_path: Path) -> TokenStore:
    """A copy of three entries, the first of them with one flipped byte in its middle."""
    shutil.copytree(whole.root, tmp_path / "store")
    copied = TokenStore.open(str(tmp_path / "store"))
    row = copied.index.get(NAMES[0])
    assert row is not None
    shard = Path(copied.tokens) / f"{row['shard']}.parquet"
    content = bytearray(shard.read_bytes())
    content[row["offset"] + row["length"] // 2] ^= 1
    shard.write_bytes(content)
    return copied


def answered(store: TokenStore, folder: Path) -> dict[str, Any]:
    asked = folder / "asked.csv"
    asked.write_text("video_id,question\n" + "".join(f"{name},what is it ?\n" for name in NAMES))
    config, where = AnswerConfig(model=SHAPES, max_new_tokens=2), ClusterConfig(runner="local")
    job = AnswerJob(questions=str(asked), store=store.root, out=str(folder / "out"), answer=config, cluster=where)
    return answer_job.run(job)


def test_a_damaged_entry_costs_its_own_questions(store: TokenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others are answered; the exit code and the log say what happened; asking again tries only what is left."""
    with pytest.raises(StoreError):
        store.read(NAMES[0])
    report = answered(store, tmp_path)
    assert (report["statuses"], report["exit_code"]) == ({"damaged": 1, "ok": 2}, FAULT)
    assert "row group 0 is damaged" in caplog.text
    assert answered(store, tmp_path)["this_run"]["without answer"] == 1


def test_storage_that_fails_is_no_damage(store: TokenStore, tmp_path: Path) -> None:
    """Where a disk gives an error, nothing is said about entries: the job ends."""
    shard = next(Path(store.tokens).glob("*.parquet"))
    shard.unlink()
    shard.mkdir()  # to read it is an error of storage
    with pytest.raises(StorageError, match="IsADirectoryError"):
        answered(store, tmp_path)


def test_once_it_is_repaired_it_is_asked_again(store: TokenStore, whole: TokenStore, tmp_path: Path) -> None:
    """Repair takes the entry out; what encoding brings back is the same, and its question gets its answer."""
    assert answered(store, tmp_path)["statuses"] == {"damaged": 1, "ok": 2}
    repair(*open_root(store.root))
    assert answered(store, tmp_path)["statuses"] == {"missing_video": 1, "ok": 2}
    shutil.rmtree(store.root)
    shutil.copytree(whole.root, store.root)
    report = answered(store, tmp_path)
    assert (report["statuses"], report["exit_code"], report["this_run"]["answered"]) == ({"ok": 3}, DONE, 1)
