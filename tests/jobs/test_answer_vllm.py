"""The choice of engine, from the command line to the answer file."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from jobs.answer import AnswerJob
from pipeline.answer import ENGINES, AnswerConfig, answer_spec
from pipeline.checkpoint import Checkpoint
from pipeline.engine import TransformersEngine
from pipeline.engine_vllm import VllmEngine
from pipeline.errors import ConfigError
from tests import command
from tests.command import ROOT, report

MODEL = str(ROOT / "pipeline" / "shapes" / "checkpoint")
INSTALLED = find_spec("vllm") is not None


def framefold(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command with threads that vLLM does not bind to cores."""
    return command.framefold(*args, VLLM_CPU_OMP_THREADS_BIND="nobind", **env)


def encoded(folder: Path) -> list[str]:
    """Write and encode two clips of moving shapes; return the arguments that answer their questions."""
    assert report(framefold("shapes", str(folder / "corpus"), "--videos", "2"))["questions"]
    store = str(folder / "store")
    encode = ["encode", str(folder / "corpus" / "videos"), "--store", store, "--model", MODEL, "--reducer", "spatial(k=4)"]
    assert report(framefold(*encode, "--runner", "local"))["committed"] == 2
    return ["answer", str(folder / "corpus" / "test_q.json"), "--store", store, "--model", MODEL, "--dataset", "activitynet-qa"]


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_without_vllm_the_command_says_what_to_install_and_writes_nothing(tmp_path: Path, runner: str) -> None:
    """One line, exit 2, and no Ray is started for it."""
    ran = framefold(*encoded(tmp_path), "--out", str(tmp_path / "out"), "--engine", "vllm", "--runner", runner)
    assert ran.returncode == 2
    assert [line for line in ran.stderr.splitlines() if line.startswith("framefold: ")] == [
        "framefold: the engine vllm is not installed; pip install 'framefold[vllm]', or answer with the engine transformers"
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not INSTALLED, reason="vllm is not installed; make test-vllm makes an environment that has it")
@pytest.mark.timeout(600)
def test_both_engines_write_the_same_answers_under_their_own_fingerprints(tmp_path: Path) -> None:
    """The bundled model on generated clips, in this process and as a Ray actor."""
    args, found, prints = encoded(tmp_path), {}, set()
    for name, more in {
        "transformers": ["--runner", "local"],
        "vllm": ["--engine", "vllm", "--runner", "local"],
        "vllm on ray": ["--engine", "vllm", "--runner", "ray"],
    }.items():
        out = tmp_path / name.replace(" ", "-")
        told = report(framefold(*args, "--out", str(out), *more, FRAMEFOLD_CACHE=str(tmp_path / "cache")))
        assert told["statuses"] == {"ok": told["questions"]}
        prints.add(told["answers_fingerprint"])
        rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
        found[name] = [(row["question_id"], row["prediction"], row["answer_tokens"]) for row in rows]
    assert found["vllm"] == found["vllm on ray"] == found["transformers"]
    assert len({text for _, text, _ in found["vllm"]}) > 3
    assert len(prints) == 2
    assert len(list((tmp_path / "cache" / "llama").glob("[!.]*"))) == 1


def test_names_and_versions_in_the_fingerprint_are_the_engines_own() -> None:
    """And the choice changes the fingerprint."""
    assert {engine.name: engine.version for engine in (TransformersEngine, VllmEngine)} == ENGINES
    checkpoint = Checkpoint.open(MODEL)
    specs = [answer_spec(AnswerConfig(model=MODEL, engine=name), checkpoint, "0" * 64) for name in ("transformers", "vllm")]
    assert [spec["engine"] for spec in specs] == [{"name": "transformers", "version": 1}, {"name": "vllm", "version": 1}]


def test_an_unknown_engine_and_a_part_of_a_gpu_are_refused() -> None:
    """vLLM shares no GPU with another engine."""
    with pytest.raises(ConfigError, match="unknown engine 'sglang', expected one of transformers, vllm"):
        AnswerConfig(model=MODEL, engine="sglang")  # type: ignore[arg-type]
    asked = {"questions": "q", "store": "s", "out": "o", "answer": AnswerConfig(model=MODEL, engine="vllm")}
    for gpus in (0.5, 2.0):
        with pytest.raises(ConfigError, match="one whole GPU or none"):
            AnswerJob(**asked, gpus_per_engine=gpus)
