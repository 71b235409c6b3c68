"""Where the engine vllm reaches a limit, of memory, of its settings or of what it can do, it says so or goes on with less."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engines.transformers_engine import Reply, VideoQuestions
from pipeline.engines.vllm_config import VllmConfig
from pipeline.engines.vllm_engine import Embedder, VllmEngine, check_vllm
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from tests.models import tiny_model
from tests.pipeline.vllm_engines import (
    INSTALLED,
    ON_CPU,
    RAGGED,
    SHAPES,
    TEMPLATE,
    before_each_run,
    groups,
    lively_checkpoint,
    needs_vllm,
    reference,
)

pytestmark = pytest.mark.usefixtures("vllm_on_cpu")


@needs_vllm
def test_where_memory_ran_out_once_the_halves_are_answered(start: Any, tmp_path: Path) -> None:
    """The engine starts anew in between, and nothing is lost."""
    path = lively_checkpoint(tmp_path / "model", 0)
    videos = groups(RAGGED, 32)
    engine = start(path)
    began = engine._llm

    def burst(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    before_each_run(engine, burst)
    assert engine.answer(videos) == reference(path, videos)
    assert engine._llm is not began


@needs_vllm
@pytest.mark.timeout(1200)
def test_one_question_that_never_fits_is_out_of_memory_and_all_others_are_answered(start: Any, tmp_path: Path) -> None:
    """Memory runs out wherever more than 200 positions are read at once, in every engine that is started."""
    path = lively_checkpoint(tmp_path / "model", 0)
    asked = [*RAGGED[:2], *RAGGED[-1:]]
    videos = groups(asked, 32)

    class Small(VllmEngine):
        def _restart(self) -> None:
            super()._restart()
            shrink(self)

    def shrink(engine: VllmEngine) -> None:
        before_each_run(engine, burst)

    def burst(_: Any, given: Any) -> None:
        if len(given[0]) > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine = Small(Checkpoint.open(path), TEMPLATE, **ON_CPU)
    try:
        shrink(engine)
        got, expected = engine.answer(videos), reference(path, videos)
    finally:
        engine.close()
    assert got[:-1] == expected[:-1]
    assert [reply.status for reply in expected[-1]] == ["ok", "too_long"]
    assert [reply.status for reply in got[-1]] == ["out_of_memory", "too_long"]


@needs_vllm
def test_settings_reach_vllm_under_their_own_names(start: Any, tmp_path: Path) -> None:
    """And a shorter context makes a question too long that the model itself would have room for."""
    path = lively_checkpoint(tmp_path / "model", 0)
    options = '{"max_num_seqs": 3, "max_num_batched_tokens": 96, "enable_prefix_caching": false}'
    given = VllmConfig(max_model_len=160, gpu_memory_utilization=0.41, vllm_options=options)
    engine = start(path, dtype="bfloat16", vllm=given)
    config = engine._llm.llm_engine.vllm_config
    assert config.model_config.max_model_len == 160
    assert config.model_config.dtype is torch.bfloat16
    assert config.cache_config.gpu_memory_utilization == 0.41
    assert not config.cache_config.enable_prefix_caching
    assert (config.scheduler_config.max_num_seqs, config.scheduler_config.max_num_batched_tokens) == (3, 96)
    replies = engine.answer(groups([(120, ["what is it"]), (160, ["what is it"])], 32))
    assert [row[0].status for row in replies] == ["ok", "too_long"]


@needs_vllm
def test_a_shorter_context_cuts_answers_as_a_model_with_fewer_positions_would(start: Any, tmp_path: Path) -> None:
    """Room for an answer is what the prompt leaves, in both engines."""
    path = lively_checkpoint(tmp_path / "model", 0)
    short = lively_checkpoint(tmp_path / "short", 0, max_position_embeddings=180)
    videos = groups(RAGGED, 32)
    assert start(path, vllm=VllmConfig(max_model_len=180)).answer(videos) == reference(short, videos) != reference(path, videos)


@needs_vllm
def test_what_vllm_refuses_is_one_sentence(tmp_path: Path) -> None:
    """A model of 3 heads cannot be shared by two; vLLM's own reason is told."""
    checkpoint = Checkpoint.open(lively_checkpoint(tmp_path / "model", 0))
    with pytest.raises(ConfigError, match=r"^vLLM does not start: Total number of attention heads \(3\) must be divisible"):
        VllmEngine(checkpoint, TEMPLATE, **ON_CPU, vllm=VllmConfig(tensor_parallel_size=2))
    with pytest.raises(ConfigError, match=r"max_model_len is 257, the model has 256 positions"):
        check_vllm(checkpoint, "cpu", VllmConfig(max_model_len=257))


@needs_vllm
def test_tokens_of_another_model_are_refused(start: Any, tmp_path: Path) -> None:
    """A store that was encoded with another tower."""
    engine = start(lively_checkpoint(tmp_path / "model", 0))
    with pytest.raises(ConfigError, match=r"projector takes \(S, 32\)"):
        engine.answer(groups(RAGGED, 31))


@needs_vllm
def test_given_positions_are_refused(start: Any, tmp_path: Path) -> None:
    """vLLM would number them anew, in silence."""
    engine = start(lively_checkpoint(tmp_path / "model", 0))
    placed = {"features": torch.zeros(3, 32), "positions": torch.tensor([0, 2, 4]), "span": 5}
    with pytest.raises(ConfigError, match="positions compact"):
        engine.answer([VideoQuestions(**placed, questions=["what is it"])])


@needs_vllm
def test_conversations_are_refused(start: Any, tmp_path: Path) -> None:
    """With a sentence that names the engine that holds them."""
    engine = start(lively_checkpoint(tmp_path / "model", 0))
    with pytest.raises(ConfigError, match="engine transformers"):
        engine.converse(VideoQuestions(features=torch.zeros(3, 32), questions=["what is it"]))


@needs_vllm
def test_nothing_asked_is_nothing_answered(start: Any, tmp_path: Path) -> None:
    """No videos, and a video with no questions."""
    engine = start(lively_checkpoint(tmp_path / "model", 0))
    assert engine.answer([]) == []
    assert engine.answer(groups([(3, []), (3, [""])], 32)) == [[], [Reply(text=None, status="empty_question")]]


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_vllm_the_choice_gives_one_sentence() -> None:
    """It says what to install, before anything is loaded or exported."""
    with pytest.raises(ConfigError, match=r"pip install 'framefold\[vllm\]'"):
        VllmEngine(Checkpoint.open(str(SHAPES)), TEMPLATE, **ON_CPU)


def test_a_checkpoint_without_its_projector_is_refused(tmp_path: Path) -> None:
    """It would answer about noise."""
    path = Path(lively_checkpoint(tmp_path / "model", 0))
    tensors = load_file(path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "linear_2.bias" not in name}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    config = tiny_model(hidden_size=96).config
    with pytest.raises(ConfigError, match=r"1 tensors of the projector are missing, first linear_2\.bias"):
        Embedder(Checkpoint.open(str(path)), config, "cpu", torch.float32)
