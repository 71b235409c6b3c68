"""A store that an earlier version wrote is listed, verified, exported and answered from; see tests/stores/v0/README.md."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.cli import main
from pipeline.errors import ConfigError
from pipeline.store.token_store import TokenStore

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "pipeline" / "synthetic" / "checkpoint"
FOLDER = ROOT / "tests" / "stores" / "v0"
RECORDED: list[dict[str, Any]] = json.loads((FOLDER / "recorded.json").read_text())
RUNS = [(spec["fingerprint"], run["flags"], run["answers"]) for spec in RECORDED for run in spec["answered"]]
each_spec = pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["fingerprint"][:8])


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A copy, so that no test can change the original."""
    return str(shutil.copytree(FOLDER / "store", tmp_path / "store"))


@each_spec
def test_old_store_is_listed_as_before(recorded: dict[str, Any], store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "ls", store, "--fingerprint", recorded["fingerprint"][:12]]) == 0
    shown = [set(line.split("\t")) for line in capsys.readouterr().out.splitlines() if "\t" in line]
    assert len(shown) == len(recorded["listed"]) == 4
    assert all(any(set(fields) <= line for line in shown) for fields in recorded["listed"])


def test_old_store_is_opened_by_each_of_its_fingerprints(store: str) -> None:
    for recorded in RECORDED:
        found = TokenStore.open(store, recorded["fingerprint"][:8])
        assert found.fingerprint == recorded["fingerprint"]
        assert found.ids() == sorted(recorded["exported"])
    with pytest.raises(ConfigError, match="several fingerprints"):
        TokenStore.open(store)


def test_old_store_is_verified(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", store]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["ok"], report["entries"], report["shards"], report["fragments"]) == (True, 6, 2, 2)


@each_spec
def test_old_store_is_exported_to_the_last_bit(recorded: dict[str, Any], store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--fingerprint", recorded["fingerprint"][:12], "--out", str(out), "--format", "npz"]
    assert main(["store", "export", store, *flags]) == 0
    found = {}
    for line in (out / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        with np.load(out / row["file"], allow_pickle=False) as arrays:
            found[row["video_id"]] = {name: hashlib.sha256(arrays[name].tobytes()).hexdigest()[:16] for name in arrays.files}
    assert found == recorded["exported"]


@pytest.mark.parametrize(("fingerprint", "flags", "answers"), RUNS, ids=[" ".join([n[:8], *flags]) for n, flags, _ in RUNS])
def test_old_store_gives_the_answers_it_gave(
    fingerprint: str, flags: list[str], answers: dict[str, str | None], store: str, tmp_path: Path, one_thread: None
) -> None:
    out = tmp_path / "answers"
    told = ["--store", store, "--out", str(out), "--model", str(BUNDLED), "--runner", "local"]
    assert main(["answer", str(FOLDER / "questions.jsonl"), *told, "--fingerprint", fingerprint[:12], *flags]) == 0
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert {row["question_id"]: row["prediction"] for row in rows} == answers
    assert {row["question_id"] for row in rows if row["status"] == "missing_video"} == {"b0"}
