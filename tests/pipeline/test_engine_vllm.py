"""vLLM must answer as the transformers engine does: the same text, the same length, the same status.

In float32 on the CPU, where both are exact enough that no answer may differ. Without vLLM installed only the tests of what
happens then are run.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engines import vllm_engine
from pipeline.engines.transformers_engine import STATUSES, TransformersEngine
from pipeline.engines.vllm_config import VllmConfig
from pipeline.engines.vllm_engine import Embedder, VllmEngine
from pipeline.models.checkpoint import Checkpoint
from tests.models import tiny_tokenizer
from tests.pipeline.vllm_engines import (
    ON_CPU,
    RAGGED,
    SHAPES,
    TEMPLATE,
    groups,
    lively_checkpoint,
    needs_vllm,
    reference,
    watch,
)

pytestmark = pytest.mark.usefixtures("vllm_on_cpu")
ABOUT_SHAPES = [
    (500, ["What color is the circle?", "How many objects are there?", "Is there a red square?", "Which way does it move?"]),
    (64, ["Is there a blue object?", "What shape is it?"]),
    (300, ["Where is the square?", "What color is the circle?", "Is there a red square?"]),
]


@needs_vllm
@pytest.mark.parametrize("caching", [True, False])
def test_answers_about_shapes_equal_those_of_the_transformers_engine(start: Any, caching: bool) -> None:
    """The bundled model, with and without prefix caching."""
    width = Checkpoint.open(str(SHAPES)).tower_shape().width
    videos = groups(ABOUT_SHAPES, width)
    engine = start(str(SHAPES), enable_prefix_caching=caching)
    expected = reference(str(SHAPES), videos)
    assert engine.answer(videos) == expected
    assert engine.answer(videos) == expected
    assert {reply.status for row in expected for reply in row} == {"ok"}


@needs_vllm
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("caching", [True, False])
def test_random_models_answer_alike_in_text_length_and_status(start: Any, tmp_path: Path, seed: int, caching: bool) -> None:
    """Ragged videos, early ends, no room left, empty questions, a question that holds the video token."""
    path = lively_checkpoint(tmp_path / "model", seed)
    videos = groups(RAGGED, 32, seed)
    expected = reference(path, videos)
    assert start(path, enable_prefix_caching=caching).answer(videos) == expected
    replies = [reply for row in expected for reply in row]
    assert {reply.status for reply in replies} == {"ok", "empty_question", "reserved_token", "too_long"} <= set(STATUSES)
    assert len({reply.text for reply in replies}) > len(replies) / 3
    assert len({reply.tokens for reply in replies}) > 2


@needs_vllm
def test_a_prompt_read_in_pieces_gives_the_same_answers(start: Any, tmp_path: Path) -> None:
    """vLLM reads long prompts in chunks; 64 positions at a time here."""
    path = lively_checkpoint(tmp_path / "model", 0)
    videos = groups(RAGGED, 32)
    engine = start(path, max_num_batched_tokens=64, max_num_seqs=4)
    seen = watch(engine)
    assert engine.answer(videos) == reference(path, videos)
    assert max(seen) <= 64


@needs_vllm
def test_embeddings_in_several_batches_give_the_same_answers(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held at once changes nothing."""
    path = lively_checkpoint(tmp_path / "model", 0)
    videos = groups(RAGGED, 32)
    monkeypatch.setattr(vllm_engine, "PROMPT_POSITIONS", 100)
    assert start(path).answer(videos) == reference(path, videos)


@needs_vllm
@pytest.mark.parametrize("caching", [True, False])
def test_the_prefix_of_a_video_is_read_once(start: Any, caching: bool) -> None:
    """Ten questions about 500 tokens: with caching, whole blocks of 128 are read once; without, ten times."""
    width = Checkpoint.open(str(SHAPES)).tower_shape().width
    video = groups([(500, [f"How many objects are there{'?' * n}" for n in range(1, 11)])], width)
    engine = start(str(SHAPES), max_new_tokens=1, **({} if caching else {"enable_prefix_caching": False}))  # on by default
    seen = watch(engine)
    engine.answer(video)
    if caching:
        assert 500 < sum(seen) < 500 + 10 * (128 + 30)
    else:
        assert sum(seen) > 10 * 500


@needs_vllm
@pytest.mark.parametrize("caching", [True, False])
def test_vllm_itself_counts_prefix_cache_hits_video_by_video(start: Any, caching: bool) -> None:
    """Its own metrics: with caching, all whole blocks of each video but for its first question; without, none at all."""
    width = Checkpoint.open(str(SHAPES)).tower_shape().width
    questions = [f"How many objects are there{'?' * n}" for n in range(1, 6)]
    videos = groups([(440, questions), (300, questions), (270, questions)], width)
    engine = start(str(SHAPES), max_new_tokens=1, enable_prefix_caching=caching, disable_log_stats=False)
    before = hits(engine)
    engine.answer(videos)
    queries, found = (now - then for now, then in zip(hits(engine), before, strict=True))
    if caching:
        assert queries == engine.seen
        assert found == engine.found == (len(questions) - 1) * 128 * (440 // 128 + 300 // 128 + 270 // 128)
        assert found / queries > 0.6
    else:
        assert found == engine.found == 0
        assert engine.seen > 5 * (440 + 300 + 270)


def hits(engine: VllmEngine) -> tuple[int, int]:
    """Return vLLM's counts of positions looked for in its prefix cache and found there, those of earlier engines included."""
    counts = {"vllm:prefix_cache_queries": 0, "vllm:prefix_cache_hits": 0}
    for metric in engine._llm.get_metrics():
        if metric.name in counts:
            counts[metric.name] += metric.value
    return counts["vllm:prefix_cache_queries"], counts["vllm:prefix_cache_hits"]


@needs_vllm
def test_another_video_of_the_same_length_is_another_prefix(start: Any) -> None:
    """Embeddings, not placeholders, tell prefixes apart: the same question about two videos, one after the other."""
    width = Checkpoint.open(str(SHAPES)).tower_shape().width
    one, other = groups([(300, ["What color is the circle?"]), (300, ["What color is the circle?"])], width)
    engine = start(str(SHAPES))
    seen = watch(engine)
    assert engine.answer([one]) + engine.answer([other]) == reference(str(SHAPES), [one, other])
    assert sum(seen) > 600


@needs_vllm
def test_ids_that_no_answer_may_hold_never_win(start: Any, tmp_path: Path) -> None:
    """Rows of the output layer that would win every time, as the random rows of the published conversion can."""
    path = lively_checkpoint(tmp_path / "model", 0)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    head = tensors[next(name for name in tensors if name.endswith("lm_head.weight"))]
    head[[0, 4, 5, *range(len(tiny_tokenizer().get_vocab()), len(head))]] *= 40
    save_file(tensors, file, metadata={"format": "pt"})
    videos = groups(RAGGED, 32)
    assert start(path).answer(videos) == reference(path, videos)


@needs_vllm
def test_ids_that_no_answer_may_hold_never_win_where_all_others_are_unlikely(start: Any, tmp_path: Path) -> None:
    """Every other logit is far below zero, which is what the rows of these ids give.

    Column 0 of the residual stream is made a constant that every other row of the output layer counts against.
    """
    path = lively_checkpoint(tmp_path / "model", 0)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("embed_tokens.weight"):
            tensor[:, 0] = 12
        elif name.endswith(("o_proj.weight", "down_proj.weight", "linear_2.weight")) and "tower" not in name:
            tensor[0] = 0
        elif name.endswith("linear_2.bias"):
            tensor[0] = 12
        elif name.endswith("lm_head.weight"):
            tensor[:, 0] = -60
    save_file(tensors, file, metadata={"format": "pt"})
    videos = groups(RAGGED, 32)
    assert start(path).answer(videos) == reference(path, videos)


@needs_vllm
@pytest.mark.timeout(1200)
def test_two_processes_share_the_weights_and_give_the_same_answers(start: Any, tmp_path: Path) -> None:
    """Tensor parallelism, on a CPU."""
    path = lively_checkpoint(tmp_path / "model", 0, hidden_size=64, num_attention_heads=2, num_key_value_heads=2)
    videos = groups(RAGGED, 32)
    engine = start(path, vllm=VllmConfig(tensor_parallel_size=2))
    assert engine._llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size == 2
    assert engine.answer(videos) == reference(path, videos)


@torch.inference_mode()
@pytest.mark.parametrize("source", ["lively", "shapes"])
def test_prompt_embeddings_are_those_of_the_transformers_engine(tmp_path: Path, source: str) -> None:
    """Projector and input embedding, bit for bit."""
    path = lively_checkpoint(tmp_path / "model", 0) if source == "lively" else str(SHAPES)
    theirs = TransformersEngine.load(path, TEMPLATE, **ON_CPU)
    ours = Embedder(Checkpoint.open(path), theirs.model.config, "cpu", torch.float32)
    features = torch.randn(7, ours.width)
    assert torch.equal(ours.video(features), theirs.model.model.multi_modal_projector(features))
    assert torch.equal(ours.ids([1, 3, 7]), theirs._embed(torch.tensor([1, 3, 7])))


@pytest.mark.parametrize("named", [True, False])
def test_ends_are_read_as_the_transformers_engine_reads_them(tmp_path: Path, named: bool) -> None:
    """From generation_config.json, or from the model's config where there is no such file."""
    path = Path(lively_checkpoint(tmp_path / "model", 0))
    if not named:
        (path / "generation_config.json").unlink()
    theirs = TransformersEngine.load(path, TEMPLATE, **ON_CPU)
    ours = vllm_engine._generation(path, theirs.model.config)
    assert ours.eos_token_id == theirs.model.generation_config.eos_token_id
    assert (len(theirs.eos) > 1) == named
