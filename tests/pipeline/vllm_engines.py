"""Checkpoints that vLLM has kernels for, questions for them, and a look into a started engine."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engines.transformers_engine import Reply, TransformersEngine, VideoQuestions
from pipeline.engines.vllm_engine import VllmEngine
from pipeline.models.prompts import PromptTemplate
from tests.models import tiny_model, tiny_tokenizer

INSTALLED = find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vllm is not installed; make test-vllm makes an environment that has it")
SHAPES = Path(__file__).parents[2] / "pipeline" / "synthetic" / "checkpoint"
TEMPLATE = PromptTemplate()
NEW = 9
ON_CPU = {"device": "cpu", "dtype": "float32", "max_new_tokens": NEW}

RAGGED = [
    (37, ["what is it", "who runs over there in the green field", "a"]),
    (1, ["is this a much longer question than the whole prefix of the video or is it not", "b"]),
    (150, ["one question alone", "yes or no", "what is it"]),
    (12, ["yes or no", "", "how many are there", "what is <video> it", "how many are there"]),
    (0, ["what is it", "yes or no"]),
    (240, ["yes or no", "is this a much longer question than the whole prefix of the video or is it not"]),
]


def lively_checkpoint(folder: Path, seed: int, **changes: int) -> str:
    """Random weights large enough that answers differ and some end early; heads of a width that vLLM has kernels for."""
    torch.manual_seed(seed)
    model = tiny_model(**{"hidden_size": 96, "max_position_embeddings": 256, **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "tower" not in name:
                parameter.normal_(0, 0.35)
    model.generation_config.eos_token_id = [2, *range(20, 40)]
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def groups(asked: list[tuple[int, list[str]]], width: int, seed: int = 0) -> list[VideoQuestions]:
    draw = torch.Generator().manual_seed(seed)
    return [VideoQuestions(features=torch.randn(n, width, generator=draw), questions=q) for n, q in asked]


def reference(path: str, videos: list[VideoQuestions]) -> list[list[Reply]]:
    return TransformersEngine.load(path, TEMPLATE, **ON_CPU).answer(videos)


def watch(engine: VllmEngine) -> list[int]:
    """Return a list that grows by the positions of each run of the language model."""
    seen: list[int] = []
    before_each_run(engine, lambda _, args: seen.append(len(args[0])))
    return seen


def before_each_run(engine: VllmEngine, hook: Callable[[Any, Any], None]) -> None:
    """Call a hook with the arguments of the first block: positions, hidden states, residual."""
    engine._llm.apply_model(lambda model: model.model.layers[0].register_forward_pre_hook(hook) and None)
