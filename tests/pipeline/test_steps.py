"""Steps of fixed shape answer as steps that grow do, token for token, also when they are replayed without Python."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.answer.stage import AnswerConfig, load_engine
from pipeline.engines.generation import FixedShape, GrowingSteps, StaticSteps, _rounded, steps_for
from pipeline.engines.transformers_engine import VideoQuestions
from pipeline.errors import ConfigError
from tests.models import tiny_checkpoint
from tests.pipeline.engines import RAGGED, engine, groups, memory_for, plainly, width_of

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def static(seed: int = 0, **options: Any) -> Any:
    return engine(seed, steps="static", **options)


@pytest.mark.parametrize("seed", range(6))
def test_static_steps_answer_as_one_full_generate_per_question(seed: int) -> None:
    """Ragged prefixes and suffixes, rows and columns that are padding, answers that end at different steps."""
    asked = static(seed)
    videos = groups(RAGGED, width_of(asked), seed)
    assert asked.answer(videos) == plainly(asked, videos)
    assert asked.steps.held, "no fixed shape was used"


@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        ((1, 1), (8, 64)),
        ((8, 64), (8, 64)),
        ((9, 65), (16, 128)),
        ((64, 128), (64, 128)),
        ((65, 129), (96, 192)),
        ((97, 1000), (128, 1024)),
    ],
)
def test_shapes_are_rounded_up_so_that_batches_share_them(batch: tuple[int, int], shape: tuple[int, int]) -> None:
    """Few rows to the next eight, many to the next thirty-two, columns to the next sixty-four."""
    assert _rounded(*batch) == shape


@pytest.mark.parametrize("budget", [1, 150, 400, 100_000])
def test_static_steps_answer_alike_in_every_batch_size(budget: int) -> None:
    """One row at a time, or all in one shape."""
    asked = static(max_batch_tokens=budget)
    videos = groups(RAGGED, width_of(asked))
    assert asked.answer(videos) == plainly(asked, videos)


def test_what_an_earlier_batch_left_in_a_shape_changes_nothing() -> None:
    """A long batch of many rows, then short ones in the same buffers, then the long one again."""
    asked = static()
    many = groups([(64, [text for _, texts in RAGGED for text in texts])], width_of(asked), 1)
    few = groups([(60, ["what is it"]), (3, ["a", "yes or no"])], width_of(asked), 2)
    before = asked.answer(many)
    assert asked.answer(few) == plainly(asked, few)
    assert asked.answer(many) == before == plainly(asked, many)


def test_not_even_what_is_no_number_is_left_in_a_shape() -> None:
    """A masked column is multiplied by zero; infinity times zero would be no number."""
    asked = static()
    videos = groups(RAGGED, width_of(asked))
    expected = asked.answer(videos)
    with torch.inference_mode():
        for buffer in (states for shape in asked.steps.held for pair in shape.room for states in pair):
            buffer.fill_(torch.inf)
    assert asked.answer(videos) == expected


def test_a_shape_serves_all_batches_that_fit_and_keeps_its_addresses() -> None:
    """A recording holds addresses: later batches must be written to where the first one was."""
    asked = static()
    asked.answer(groups([(50, ["what is it", "who is there"])], width_of(asked)))
    (shape,) = asked.steps.held
    states = [*(one for pair in shape.room for one in pair), shape.at, shape.ids_B1, shape.position_B1, shape.mask_BC]
    before = [one.data_ptr() for one in states]
    asked.answer(groups([(41, ["what is it"]), (40, ["a", "b", "yes or no"])], width_of(asked), 1))
    assert asked.steps.held == [shape]
    layers = zip(shape.cache.layers, shape.room, strict=True)
    assert all(layer.all_keys is keys and layer.all_values is values for layer, (keys, values) in layers)
    after = [*(one for pair in shape.room for one in pair), shape.at, shape.ids_B1, shape.position_B1, shape.mask_BC]
    assert [one.data_ptr() for one in after] == before


def test_a_step_replayed_without_python_answers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph does, on any device: the operators of one step, recorded on these very tensors, run again."""
    asked, recorded = static(), []

    def replayed(shape: FixedShape, *given: Any) -> None:
        plain(shape, *given)

        def step(_: Tensor) -> Tensor:
            shape._step()
            return shape.ids_B1

        program = make_fx(step)(torch.zeros(1))
        shape.at.zero_()
        shape._advance = lambda: program(torch.zeros(1))
        recorded.append(shape)

    plain = FixedShape.__init__
    monkeypatch.setattr(FixedShape, "__init__", replayed)
    for seed in range(3):
        videos = groups(RAGGED, width_of(asked), seed)
        assert asked.answer(videos) == plainly(asked, videos)
    assert 1 <= len(recorded) < 12, "the recordings are meant to be used again"


def test_shapes_that_do_not_fit_together_are_given_back() -> None:
    """At most `max_batch_tokens` positions stay allocated between batches, the latest shape among them."""
    asked = static(max_batch_tokens=700)
    for tokens in (30, 100, 150, 10, 200):
        asked.answer(groups([(tokens, ["what is it"])], width_of(asked)))
        held = [shape.positions for shape in asked.steps.held]
        assert sum(held) <= 700 or len(held) == 1


def test_the_smallest_shape_that_fits_is_used_and_the_one_used_least_lately_goes() -> None:
    """Two are held, the smaller one is used again: it stays when a third one needs the room of the other, to the position."""
    asked = static(max_batch_tokens=8 * 64 + 8 * 192)
    for tokens in (5, 100, 5):
        asked.answer(groups([(tokens, ["what is it"])], width_of(asked)))
    assert [(shape.rows, shape.columns) for shape in asked.steps.held] == [(8, 128), (8, 64)]
    asked.answer(groups([(150, ["what is it"])], width_of(asked)))
    assert [(shape.rows, shape.columns) for shape in asked.steps.held] == [(8, 64), (8, 192)]


def test_more_rows_than_a_shape_has_get_another() -> None:
    """Though their columns would fit."""
    asked = static()
    for questions in (1, 9):
        videos = groups([(5, ["what is it"] * questions)], width_of(asked))
        assert asked.answer(videos) == plainly(asked, videos)
    assert [(shape.rows, shape.columns) for shape in asked.steps.held] == [(8, 64), (16, 64)]


def test_a_shape_has_room_for_the_whole_answer() -> None:
    """Also where the prompt ends just before columns are rounded up."""
    asked, growing = static(), engine(steps="eager")
    asked.eos = growing.eos = [-1]
    for tokens in range(10, 74, 4):
        videos = groups([(tokens, ["what is it"])], width_of(asked))
        replies = asked.answer(videos)
        assert replies == growing.answer(videos)
        assert replies[0][0].tokens == asked.max_new_tokens


def test_a_batch_far_smaller_than_a_shape_gets_one_of_its_own() -> None:
    """Half of the work at most is padding."""
    asked = static()
    asked.answer(groups([(150, ["what is it"] * 30)], width_of(asked)))
    asked.answer(groups([(5, ["what is it"])], width_of(asked)))
    assert len(asked.steps.held) == 2
    small = asked.steps.held[-1]
    assert (small.rows, small.columns % 64) == (8, 0)


def test_shapes_are_given_back_when_memory_runs_out() -> None:
    """The second try has all the memory there is; its answers are those of an undisturbed run."""
    asked = static()
    videos = groups(RAGGED, width_of(asked))
    expected = asked.answer(videos)
    kept = list(asked.steps.held)
    with memory_for(asked, lambda embeds: len(embeds) <= 3):
        assert asked.answer(videos) == expected
    assert kept
    assert not set(map(id, kept)) & set(map(id, asked.steps.held))


@torch.inference_mode()
def test_in_bfloat16_the_logits_of_static_steps_stay_within_the_stated_tolerance() -> None:
    """As long as both ways said the same so far: within 5 % of the spread of a row's logits."""
    heard: dict[str, list[Tensor]] = {"eager": [], "static": []}
    for kind, logits in heard.items():
        asked = engine(steps=kind, max_new_tokens=24)
        asked.model.to(torch.bfloat16)
        asked.eos = [-1]
        asked.model.lm_head.register_forward_hook(lambda _, __, given, out=logits: out.append(given.float()))
        asked.answer(groups([(40, ["what is it", "who runs over there in the green field"])], width_of(asked)))
    same = torch.ones(2, dtype=torch.bool)
    compared = 0
    for one, other in zip(heard["eager"], heard["static"], strict=False):
        other = other[:2]
        compared += int(same.sum())
        off = ((one - other).abs() / one.std(dim=1, keepdim=True)).amax(1)
        assert bool((off[same] <= 0.05).all())
        same &= one.argmax(1) == other.argmax(1)
    assert compared > 6


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_answer_as_one_full_generate_per_question() -> None:
    """The step goes through torch.compile as a whole, one program for each fixed shape."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    asked = engine(steps="compile")
    videos = groups(RAGGED, width_of(asked))
    assert asked.answer(videos) == plainly(asked, videos)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(asked.steps.held) > 0


def test_the_cpu_grows_by_itself_and_does_what_it_is_told() -> None:
    """Fixed shapes save launches, of which a CPU has none."""

    def kind(steps: Any, device: str) -> Any:
        return steps_for(steps, lambda *_: torch.zeros(1), torch.device(device), lambda: 1)

    assert [type(kind(steps, "cpu")) for steps in ("auto", "eager", "static")] == [GrowingSteps, GrowingSteps, StaticSteps]
    on_gpu = kind("auto", "cuda")
    assert isinstance(on_gpu, StaticSteps)
    assert on_gpu.only_if_faster


@pytest.mark.parametrize("gain", [0.9, 1.0])
def test_recording_that_does_not_pay_is_left_out_for_good(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """`auto` goes on with growing shapes, and asks once for each shape; `static` records what it is told to."""
    asked, tries = static(), []
    videos: list[VideoQuestions] = groups(RAGGED, width_of(asked))
    monkeypatch.setattr(StaticSteps, "_records", lambda *_: True)
    monkeypatch.setattr(FixedShape, "record", lambda shape: tries.append(shape) or gain)
    asked.steps.only_if_faster = True
    assert asked.answer(videos) == asked.answer(videos) == plainly(asked, videos)
    assert len(tries) == len(asked.steps.slow) > 0
    assert not asked.steps.held
    told = static()
    assert told.answer(videos) == plainly(told, videos)
    assert told.steps.held


def test_a_model_that_cannot_be_recorded_is_said_so_or_run_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to record, one sentence; by itself, a warning and answers."""
    asked = static()
    videos = groups(RAGGED, width_of(asked))

    tries = []

    def fails(shape: FixedShape) -> float:
        tries.append(shape)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(StaticSteps, "_records", lambda *_: True)
    monkeypatch.setattr(FixedShape, "record", fails)
    with pytest.raises(ConfigError, match=r"cannot be recorded, answer with steps=eager: operation not permitted"):
        asked.answer(videos)
    asked.steps.only_if_faster = True
    tries.clear()
    assert asked.answer(videos) == plainly(asked, videos)
    longer = groups([(150, ["what is it"])], width_of(asked))
    assert asked.answer(longer) == plainly(asked, longer)
    assert len(tries) == 1, "another shape of the same model was tried in vain"
    assert not asked.steps.held


def test_memory_that_runs_out_while_recording_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is halved, as anywhere else, and that shape is not tried again."""
    asked, tries = static(), []
    videos = groups(RAGGED, width_of(asked))

    def bursts_once(shape: FixedShape) -> float:
        tries.append((shape.rows, shape.columns))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2.0

    monkeypatch.setattr(StaticSteps, "_records", lambda *_: True)
    monkeypatch.setattr(FixedShape, "record", bursts_once)
    assert asked.answer(videos) == asked.answer(videos) == plainly(asked, videos)
    assert tries.count(tries[0]) == 1
    assert len(tries) > 1


def test_unknown_steps_are_refused_before_anything_is_loaded() -> None:
    """One sentence with the names there are."""
    with pytest.raises(ConfigError, match=r"unknown steps 'fast', expected one of auto, eager, static, compile"):
        AnswerConfig(model="nowhere", steps="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--steps static is not supported by --engine vllm"):
        AnswerConfig(model="nowhere", engine="vllm", steps="static")


def test_the_choice_reaches_the_engine(tmp_path: Path) -> None:
    """From the flags to the model that is loaded."""
    config = AnswerConfig(model=tiny_checkpoint(tmp_path / "model"), steps="static", device="cpu", dtype="float32")
    assert isinstance(load_engine(config).steps, StaticSteps)


@ON_GPU
@pytest.mark.parametrize("kind", ["auto", "static", "compile"])
def test_recorded_steps_answer_as_one_full_generate_per_question_on_a_gpu(kind: str) -> None:
    """The recording itself, with shapes used again."""
    asked = engine(steps=kind)
    asked.model.to("cuda")
    on_gpu = type(asked)(asked.model, asked.tokenizer, asked.prompt, max_new_tokens=asked.max_new_tokens, steps=kind)
    for seed in range(3):
        videos = groups(RAGGED, width_of(asked), seed)
        eager = type(asked)(asked.model, asked.tokenizer, asked.prompt, max_new_tokens=asked.max_new_tokens, steps="eager")
        assert on_gpu.answer(videos) == eager.answer(videos)
