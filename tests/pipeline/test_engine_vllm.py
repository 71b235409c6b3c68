"""vLLM must answer as the transformers engine does: the same text, the same length, the same status.

In float32 on the CPU, where both are exact enough that no answer may differ. Without vLLM installed only the tests of what
happens then are run.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import engine_vllm
from pipeline.checkpoint import Checkpoint
from pipeline.engine import STATUSES, Reply, TransformersEngine, VideoQuestions
from pipeline.engine_vllm import Embedder, VllmEngine, check_vllm
from pipeline.errors import ConfigError
from pipeline.prompts import PromptTemplate
from pipeline.vllm_settings import VllmConfig
from tests.models import tiny_model, tiny_tokenizer

INSTALLED = find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vllm is not installed; make test-vllm makes an environment that has it")
SHAPES = Path(__file__).parents[2] / "pipeline" / "shapes" / "checkpoint"
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
ABOUT_SHAPES = [
    (500, ["What color is the circle?", "How many objects are there?", "Is there a red square?", "Which way does it move?"]),
    (64, ["Is there a blue object?", "What shape is it?"]),
    (300, ["Where is the square?", "What color is the circle?", "Is there a red square?"]),
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


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports go to the test's own folder; OpenMP's threads are not bound to cores that other work may hold."""
    monkeypatch.setenv("FRAMEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@pytest.fixture
def start() -> Iterator[Any]:
    """Start an engine, and close it after the test."""
    started: list[VllmEngine] = []

    def one(path: str, **options: Any) -> VllmEngine:
        started.append(VllmEngine(Checkpoint.open(path), TEMPLATE, **{**ON_CPU, **options}))
        return started[-1]

    yield one
    for engine in started:
        engine.close()


def watch(engine: VllmEngine) -> list[int]:
    """Return a list that grows by the positions of each run of the language model."""
    seen: list[int] = []
    before_each_run(engine, lambda _, args: seen.append(len(args[0])))
    return seen


def before_each_run(engine: VllmEngine, hook: Callable[[Any, Any], None]) -> None:
    """Call a hook with the arguments of the first block: positions, hidden states, residual."""
    engine._llm.apply_model(lambda model: model.model.layers[0].register_forward_pre_hook(hook) and None)


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
    monkeypatch.setattr(engine_vllm, "PROMPT_POSITIONS", 100)
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
@pytest.mark.timeout(600)
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
@pytest.mark.timeout(600)
def test_two_processes_share_the_weights_and_give_the_same_answers(start: Any, tmp_path: Path) -> None:
    """Tensor parallelism, on a CPU."""
    path = lively_checkpoint(tmp_path / "model", 0, hidden_size=64, num_attention_heads=2, num_key_value_heads=2)
    videos = groups(RAGGED, 32)
    engine = start(path, vllm=VllmConfig(tensor_parallel_size=2))
    assert engine._llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size == 2
    assert engine.answer(videos) == reference(path, videos)


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
    ours = engine_vllm._generation(path, theirs.model.config)
    assert ours.eos_token_id == theirs.model.generation_config.eos_token_id
    assert (len(theirs.eos) > 1) == named


def test_a_checkpoint_without_its_projector_is_refused(tmp_path: Path) -> None:
    """It would answer about noise."""
    path = Path(lively_checkpoint(tmp_path / "model", 0))
    tensors = load_file(path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "linear_2.bias" not in name}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    config = tiny_model(hidden_size=96).config
    with pytest.raises(ConfigError, match=r"1 tensors of the projector are missing, first linear_2\.bias"):
        Embedder(Checkpoint.open(str(path)), config, "cpu", torch.float32)
