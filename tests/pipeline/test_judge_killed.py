"""What a judge leaves on storage under kill -9: all of the old verdicts or all of the new, and no half reply."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.evaluate.judge_store import ReplyStore

Place = tuple[str, dict[str, Any]]
ROOT = Path(__file__).parents[2]

WRITER = """
import sys
sys.path.insert(0, {root!r})
from pipeline.evaluate.judge_store import ReplyStore
store, version = ReplyStore({url!r}, {{"model": "m"}}, {options!r}), int(sys.argv[1])
rows = [{{"prediction": "p" * 1_000_000, "version": version, "of": 32}}] * 32
print("writing", flush=True)
while True:
    store.write_judged(rows)
    store.add({{"question": "q" * 100_000, "answer": "a", "prediction": str(version), "bodies": []}})
"""


def killed(place: Place, version: int) -> None:
    """Write over and over, and end it within a write: on local disk when a file is seen to grow, else at some instant."""
    code = WRITER.format(root=str(ROOT), url=place[0], options=place[1])
    writer = subprocess.Popen([sys.executable, "-c", code, str(version)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()
    before = sizes(place[0])
    while place[0].startswith("/") and sizes(place[0]) == before:
        continue
    time.sleep(0.002 * version if place[0].startswith("/") else 0.02 * version)
    writer.send_signal(signal.SIGKILL)
    writer.wait()


def sizes(folder: str) -> dict[str, int]:
    """Name and size of the files right in a folder of the local disk."""
    found = {}
    for path in Path(folder).glob("*.*"):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_size
    return found


def test_a_killed_judge_leaves_whole_verdicts(place: Place) -> None:
    """Each writer has verdicts of its own; at every moment the file holds all rows of one of them."""
    store = ReplyStore(place[0], {"model": "m"}, place[1])
    path = store.write_judged([{"version": 0, "of": 1}])
    for version in range(1, 6):
        killed(place, version)
        rows = [json.loads(line) for line in store.fs.cat_file(path).splitlines()]
        assert {row["version"] for row in rows} == {rows[0]["version"]}
        assert len(rows) == rows[0]["of"]
        assert all(len(question) == 100_000 for question, _, _ in store.read())


def test_a_torn_reply_is_never_taken_for_a_whole_one(place: Place) -> None:
    """Cut anywhere, its name no longer fits; the name says which file it was."""
    store = ReplyStore(place[0], {"model": "m"}, place[1])
    for answer in "ab":
        store.add({"question": "q", "answer": answer, "prediction": "p", "bodies": ["raw"]})
    for path in store.fs.find(store.folder):
        content = store.fs.cat_file(path)
        for length in (0, 1, len(content) // 2, len(content) - 1):
            store.fs.pipe_file(path, content[:length])
            with pytest.raises(StoreError, match="changed after they were stored"):
                store.read()
        store.fs.pipe_file(path, content)
    assert len(store.read()) == 2


def test_verdicts_that_cannot_be_written_are_a_setting_to_mend(tmp_path: Path) -> None:
    """A folder stands in the way: one line, and nothing beside it is left."""
    store = ReplyStore(str(tmp_path), {"model": "m"})
    (tmp_path / "judged.jsonl").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"judged\.jsonl: cannot be written"):
        store.write_judged([{"version": 1}])
    assert sorted(tmp_path.iterdir()) == before
