"""The choice of engine, from the command line to the answer file."""

import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from jobs.commands.answer import AnswerJob
from pipeline.answer.stage import ENGINES, AnswerConfig, answer_spec
from pipeline.engines.transformers_engine import TransformersEngine
from pipeline.engines.vllm_config import VllmConfig
from pipeline.engines.vllm_engine import VllmEngine
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from tests import command
from tests.command import ROOT, environment, report

MODEL = str(ROOT / "pipeline" / "synthetic" / "checkpoint")
INSTALLED = find_spec("vllm") is not None
UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}

needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vllm is not installed; make test-vllm makes an environment that has it")


def framefold(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command with threads that vLLM does not bind to cores."""
    return command.framefold(*args, **UNBOUND, **env)


def encoded(folder: Path, videos: int = 2) -> list[str]:
    """Write and encode clips of moving shapes; return the arguments that answer their questions."""
    assert report(framefold("shapes", str(folder / "corpus"), "--videos", str(videos)))["questions"]
    store = str(folder / "store")
    encode = ["encode", str(folder / "corpus" / "videos"), "--store", store, "--model", MODEL, "--reducer", "spatial(k=4)"]
    assert report(framefold(*encode, "--runner", "local"))["committed"] == videos
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


@needs_vllm
@pytest.mark.timeout(1200)
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


@needs_vllm
@pytest.mark.timeout(1200)
def test_a_run_killed_in_the_middle_is_finished_by_the_next_and_another_engine_answers_anew(tmp_path: Path) -> None:
    """kill -9 once an answer is committed: the next run answers the rest, a third nothing, another engine or setting all."""
    args = [*encoded(tmp_path, videos=12), "--out", str(tmp_path / "out"), "--runner", "local", "--videos-per-unit", "1"]
    cache = {"FRAMEFOLD_CACHE": str(tmp_path / "cache")}
    running = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *args, "--engine", "vllm"], cwd=ROOT, env=environment(**UNBOUND, **cache),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (kept := committed(tmp_path / "out")):
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = committed(tmp_path / "out")
    assert 0 < len(kept) < 12
    again = report(framefold(*args, "--engine", "vllm", **cache))
    assert again["statuses"] == {"ok": again["questions"]}
    assert 0 < again["this_run"]["answered"] < again["questions"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    ours = answers(tmp_path / "out")
    assert "answered" not in report(framefold(*args, "--engine", "vllm", **cache))["this_run"]
    theirs = report(framefold(*args))
    assert theirs["this_run"]["answered"] == theirs["questions"]
    assert theirs["answers_fingerprint"] != again["answers_fingerprint"]
    assert answers(tmp_path / "out") == ours
    shorter = report(framefold(*args, "--engine", "vllm", "--max-model-len", "1000", **cache))
    assert shorter["this_run"]["answered"] == shorter["questions"]


def committed(out: Path) -> dict[Path, int]:
    """Return the units of answers that are there, with the time each was written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet") if path.name != "answers.parquet"}


def answers(out: Path) -> list[tuple[str, str, int]]:
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return [(row["question_id"], row["prediction"], row["answer_tokens"]) for row in rows]


@needs_vllm
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("runner", "flags", "said"),
    [
        ("local", ["--vllm-options", '{"max_num_sequences": 3}'], "holds max_num_sequences, which is no setting of vllm"),
        ("ray", ["--max-model-len", "5000"], "max_model_len is 5000, the model has 4096 positions"),
        ("local", ["--device", "cuda"], "expected the GPU cuda, torch finds 0 GPUs here"),
        ("ray", ["--tensor-parallel-size", "2"], "vLLM does not start: Total number of attention heads (3)"),
    ],
    ids=["option", "length", "device", "start"],
)
def test_a_setting_that_vllm_has_no_use_for_is_one_sentence(
    tmp_path: Path, store_args: list[str], runner: str, flags: list[str], said: str
) -> None:
    """Exit 2, in this process and as a Ray actor; what can be told beforehand is told before anything is written."""
    cache = {"FRAMEFOLD_CACHE": str(tmp_path / "cache")}
    ran = framefold(*store_args, "--out", str(tmp_path / "out"), "--engine", "vllm", "--runner", runner, *flags, **cache)
    told = [line for line in ran.stderr.splitlines() if line.startswith("framefold: ")]
    assert ran.returncode == 2, ran.stderr
    assert len(told) == 1
    assert said in told[0]
    assert (tmp_path / "out").exists() == said.startswith("vLLM does not start")


@pytest.fixture(scope="module")
def store_args(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return encoded(tmp_path_factory.mktemp("settings"))


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
        with pytest.raises(ConfigError, match=r"requires --gpus-per-engine 0 or .* expected 0 or 1"):
            AnswerJob(**asked, gpus_per_engine=gpus)
    shared = AnswerConfig(model=MODEL, engine="vllm", vllm=VllmConfig(tensor_parallel_size=2))
    AnswerJob(**{**asked, "answer": shared}, gpus_per_engine=2)
    with pytest.raises(ConfigError, match="expected 0 or 2, got 1"):
        AnswerJob(**{**asked, "answer": shared}, gpus_per_engine=1)


@needs_vllm
@pytest.mark.timeout(1200)
def test_both_engines_caption_alike(tmp_path: Path) -> None:
    """From the command line; encoded once, captioned by each."""
    encoded(tmp_path)
    args = ["caption", str(tmp_path / "corpus" / "videos"), "--store", str(tmp_path / "store"), "--model", MODEL]
    args += ["--reducer", "spatial(k=4)", "--max-new-tokens", "8", "--runner", "local"]
    found = []
    for engine in ("transformers", "vllm"):
        out = tmp_path / engine
        told = report(framefold(*args, "--out", str(out), "--engine", engine, FRAMEFOLD_CACHE=str(tmp_path / "cache")))
        assert (told["captioned"], "committed" in told["encode"]["this_run"]) == (2, False)
        rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
        found.append([(row["video_id"], row["caption"]) for row in rows])
    assert found[0] == found[1]
