"""`framefold bench answer` with the engine vllm beside ours: same weights, same questions, where vLLM is installed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = find_spec("vllm") is not None
BASELINES = [
    "documentation's loop",
    "full tokens cached, one prompt a question",
    "reduced tokens cached, one prompt a question",
]
OURS = ["framefold answer"]
VLLM = ["full tokens cached, engine vllm", "framefold answer, engine vllm"]


def bench(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    small = ["--videos", "1", "--questions", "3", "--baseline-questions", "1", "--max-new-tokens", "2", "--dtype", "float32"]
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "bench", "answer", *small, "--device", "cpu", *flags],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", **env},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "ours"),
    [
        ([], [*OURS, *VLLM] if INSTALLED else OURS),
        (["--engines", "transformers"], OURS),
        pytest.param(["--engines", "vllm"], VLLM, marks=pytest.mark.skipif(not INSTALLED, reason="vllm is not installed")),
    ],
    ids=["default", "transformers", "vllm"],
)
def test_each_engine_has_its_lines(tmp_path: Path, flags: list[str], ours: list[str]) -> None:
    """By default ours, and vLLM's where it is installed; its exported weights do not stay behind."""
    ran = bench(*flags, FRAMEFOLD_CACHE=str(tmp_path / "cache"))
    assert ran.returncode == 0, ran.stderr
    arms = json.loads(ran.stdout.splitlines()[-1])["arms"]
    assert list(arms) == [*BASELINES, *ours]
    assert all(arm["answers_per_s"] > 0 for arm in arms.values())
    for name in ours:
        if name.startswith("framefold answer"):
            assert name.replace("framefold answer", "framefold encode and answer together") in ran.stdout
    shares = [line.split(": ")[1].split("%")[0] for line in ran.stdout.splitlines() if "in the prefix cache" in line]
    assert len(shares) == (2 if ours != OURS else 0)
    assert all(0 < int(share) < 100 * 2 / 3 for share in shares)  # the first of three questions found nothing
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_asked_for_where_it_is_not_installed_the_engine_vllm_is_one_sentence() -> None:
    """Before weights are made and videos encoded."""
    ran = bench("--engines", "transformers", "vllm")
    assert ran.returncode == 2
    assert "framefold: the engine vllm is not installed; pip install 'framefold[vllm]'" in ran.stderr
    assert "documentation's loop" not in ran.stdout
