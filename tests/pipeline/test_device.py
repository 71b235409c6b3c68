"""Where a model runs and in which type: decided in one place, and what cannot be is refused before anything is written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.commands import answer, encode, train
from jobs.runtime.cluster import ClusterConfig, placed
from pipeline.answer.stage import AnswerConfig
from pipeline.encode.stage import EncodeConfig
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "pipeline" / "synthetic" / "checkpoint")
CLIP = str(ROOT / "tests" / "videos" / "unordered.mov")
NO_GPU = f"cuda:{torch.cuda.device_count()}"
"""A GPU that is one too many on every machine."""


@pytest.mark.parametrize(
    ("config", "on_cpu", "on_gpu"),
    [
        (EncodeConfig(model="m"), "float32", "float16"),
        (AnswerConfig(model="m"), "float32", "bfloat16"),
        (EncodeConfig(model="m", compute_dtype="bfloat16"), "bfloat16", "bfloat16"),
        (AnswerConfig(model="m", dtype="float16"), "float16", "float16"),
    ],
)
def test_the_type_follows_the_device_unless_it_is_named(config: Any, on_cpu: str, on_gpu: str) -> None:
    """Encoding wants float16 on a GPU, answering bfloat16; what a flag names stays, on every device."""
    found = [config.on(device) for device in ("cpu", "cuda", "cuda:1")]
    names = [getattr(one, "compute_dtype", None) or one.dtype for one in found]
    assert names == [on_cpu, on_gpu, on_gpu]
    assert [one.device for one in found] == ["cpu", "cuda", "cuda:1"]


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "mps", "CPU", "meta", ""])
def test_a_device_that_no_job_knows_is_refused(device: str) -> None:
    """By every config that has one."""
    for build in (EncodeConfig, AnswerConfig):
        with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or cuda:N"):
            build(model="m", device=device)
    with pytest.raises(ConfigError, match="device must be"):
        train.TrainJob(out="o", device=device)


@pytest.mark.parametrize("dtype", ["half", "int8", "", "Float32"])
def test_a_type_that_no_job_computes_in_is_refused(dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"compute_dtype must be one of auto, float32, bfloat16, float16, got '{dtype}'"):
        EncodeConfig(model="m", compute_dtype=dtype)
    with pytest.raises(ConfigError, match=f"^dtype must be one of auto, float32, bfloat16, float16, got '{dtype}'"):
        AnswerConfig(model="m", dtype=dtype)


def test_on_ray_the_gpus_of_a_worker_decide() -> None:
    """Ray shows an actor the GPUs that it reserved and no others; a driver without a GPU decides for workers that have one."""
    config, ray = EncodeConfig(model="m"), ClusterConfig()
    assert placed(config, ray, 1, "--gpus").device == "cuda"
    assert placed(config, ray, 0.5, "--gpus").compute_dtype == "float16"
    assert placed(config, ray, 0, "--gpus").device == "cpu"
    assert placed(EncodeConfig(model="m", device="cuda:3"), ray, 1, "--gpus").device == "cuda"
    assert placed(AnswerConfig(model="m", device="cpu"), ray, 0, "--gpus").dtype == "float32"
    for device, gpus in (("cpu", 1), ("cuda", 0)):
        with pytest.raises(ConfigError, match=f"--device {device} and --gpus {gpus} contradict each other"):
            placed(EncodeConfig(model="m", device=device), ray, gpus, "--gpus")


@pytest.mark.parametrize(("runner", "said"), [("local", "torch finds"), ("ray", "contradict each other")])
def test_a_gpu_that_is_not_there_leaves_nothing_written(runner: str, said: str, tmp_path: Path) -> None:
    """Not a spec, not a folder: the sentence comes first."""
    flags = ["--model", MODEL, "--device", NO_GPU, "--runner", runner]
    given = {"model": MODEL, "device": NO_GPU}
    job = encode.EncodeJob(
        corpus=CLIP, store=str(tmp_path / "s"), encode=EncodeConfig(**given), cluster=ClusterConfig(runner=runner)
    )
    with pytest.raises(ConfigError, match=said):
        encode.run(job)
    assert list(tmp_path.iterdir()) == []
    assert encode.main([CLIP, "--store", str(tmp_path / "s"), *flags]) == 2
    assert list(tmp_path.iterdir()) == []


def test_answers_on_a_gpu_that_is_not_there_are_refused_as_well(tmp_path: Path) -> None:
    """And nothing is written beside the store."""
    store, questions = str(tmp_path / "s"), tmp_path / "q.jsonl"
    questions.write_text('{"video_id": "unordered", "question": "what ?"}\n')
    flags = ["--store", store, "--model", MODEL, "--runner", "local"]
    assert encode.main([CLIP, *flags, "--reducer", "spatial(k=4)"]) == 0
    asked = [str(questions), *flags, "--out", str(tmp_path / "o"), "--device", NO_GPU]
    assert answer.main(asked) == 2
    assert not (tmp_path / "o").exists()
