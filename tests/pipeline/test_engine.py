"""One prefix for many questions must answer exactly as one full `generate` per question does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration

from pipeline.engines.transformers_engine import STATUSES, TransformersEngine, VideoQuestions
from pipeline.errors import ConfigError
from pipeline.models.prompts import split_prompt
from tests.models import tiny_checkpoint
from tests.pipeline.engines import NEW, RAGGED, TEMPLATE, engine, groups, plainly, width_of

SHAPES = Path(__file__).parents[2] / "pipeline" / "synthetic" / "checkpoint"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", range(6))
def test_answers_equal_one_full_generate_per_question_token_for_token(seed: int) -> None:
    """Ragged questions, ragged videos, a question longer than its prefix, a video of one token, one question alone."""
    asked = engine(seed)
    videos = groups(RAGGED, width_of(asked), seed)
    assert asked.answer(videos) == plainly(asked, videos)


def test_the_test_models_give_answers_that_can_differ() -> None:
    """Guards the comparison above: answers vary in text and in length, and some end before their room does."""
    engines = [engine(seed) for seed in range(6)]
    replies = [reply for one in engines for video in one.answer(groups(RAGGED, width_of(one))) for reply in video]
    assert len({reply.text for reply in replies}) > len(replies) / 3
    assert len({reply.tokens for reply in replies}) > 2


@pytest.mark.parametrize("budget", [1, 150, 400, 100_000])
def test_the_batch_size_changes_no_answer(budget: int) -> None:
    """From one row at a time to everything at once: the same replies."""
    asked = engine(max_batch_tokens=budget)
    videos = groups(RAGGED, width_of(asked))
    assert asked.answer(videos) == plainly(asked, videos)


def test_a_video_is_read_once_for_all_its_questions() -> None:
    """Positions run through the language model: the prefix once, then each suffix; never the prefix per question."""
    asked = engine(max_new_tokens=1)
    video = groups([(50, ["what is it"] * 7)], width_of(asked))[0]
    seen: list[int] = []
    hook = asked.model.model.language_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    asked.answer([video])
    hook.remove()
    split = split_prompt(asked.tokenizer, TEMPLATE, "what is it", asked.video_id)
    assert seen == [len(split.prefix) + 50, 7 * len(split.suffix)]


def test_sampling_settings_of_the_checkpoint_are_not_followed() -> None:
    """Greedy by construction: a checkpoint that asks for beams and temperature gets neither."""
    asked, plain = engine(2), engine(2)
    config = asked.model.generation_config
    config.do_sample, config.temperature, config.num_beams, config.repetition_penalty = True, 9.0, 4, 5.0
    videos = groups(RAGGED, width_of(asked))
    assert asked.answer(videos) == plain.answer(videos)


def test_reserved_and_padding_tokens_are_never_said() -> None:
    """Output rows of `<video>` and of the padded vocabulary hold noise; they cannot win however large they are."""
    asked = engine()
    never = asked._never.tolist()
    assert asked.video_id in never
    assert set(range(len(asked.tokenizer), asked.model.config.text_config.vocab_size)) <= {*never}
    said: list[int] = []
    hook = asked.model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, asked._never, 1e4))
    decode = asked.tokenizer.decode
    asked.tokenizer.decode = lambda ids, **options: said.extend(ids) or decode(ids, **options)
    asked.answer(groups(RAGGED, width_of(asked)))
    hook.remove()
    assert said
    assert set(said).isdisjoint(never)


def test_questions_that_cannot_be_asked_get_a_status_and_spare_the_others() -> None:
    """Empty, with a reserved token, too long: each is named; its neighbours are answered as if it were not there."""
    asked = engine()
    context = asked.context
    features = groups([(20, [])], width_of(asked))[0].features
    good = ["what is it", "how many"]
    mixed = ["what is it", " \n", "what is <video> here", "how many", "word " * context]
    replies = asked.answer([VideoQuestions(features=features, questions=mixed)])[0]
    assert [reply.status for reply in replies] == ["ok", "empty_question", "reserved_token", "ok", "too_long"]
    assert [reply.text for reply in replies][1:3] == [None, None]
    assert [replies[0], replies[3]] == asked.answer([VideoQuestions(features=features, questions=good)])[0]
    assert {reply.status for reply in replies} < set(STATUSES)


def test_an_answer_ends_where_the_context_does() -> None:
    """With room for three tokens three are said at most; with room for none the question is too long."""
    asked = engine()
    asked.eos = (-1,)  # no answer ends by itself
    width = width_of(asked)
    split = split_prompt(asked.tokenizer, TEMPLATE, "what is it", asked.video_id)
    full = asked.context - len(split.prefix) - len(split.suffix)
    asked.max_batch_tokens = 10 * asked.context
    videos = groups([(n, ["what is it"]) for n in (full - 3, full, full + 9, 5)], width)
    replies = [video[0] for video in asked.answer(videos)]
    assert [reply.status for reply in replies] == ["ok", "too_long", "too_long", "ok"]
    assert replies[0].tokens == 3
    assert replies[3].tokens == NEW


def test_nothing_asked_is_nothing_answered() -> None:
    """No videos, and videos without questions, are no special case."""
    asked = engine()
    assert asked.answer([]) == []
    assert asked.answer(groups([(4, []), (5, [])], width_of(asked))) == [[], []]


def test_tokens_of_another_model_are_refused() -> None:
    """A store encoded with a wider tower cannot be asked with this model, and the message says both shapes."""
    asked = engine()
    with pytest.raises(ConfigError, match="was encoded with another model"):
        asked.answer(groups([(4, ["what is it"])], width_of(asked) + 1))


def test_stored_half_precision_is_read_in_the_compute_type() -> None:
    """fp16 features are projected in float32 when the model computes in float32."""
    asked = engine()
    video = groups([(20, ["what is it", "how many"])], width_of(asked))[0]
    stored = VideoQuestions(features=video.features.half(), questions=video.questions)
    widened = VideoQuestions(features=video.features.half().float(), questions=video.questions)
    assert asked.answer([stored]) == plainly(asked, [widened])


def test_bfloat16_logits_stay_close_to_those_of_a_full_run() -> None:
    """In half precision padding may change a token; the scores of the first one agree within rounding."""
    asked = engine()
    asked.model.to(torch.bfloat16)
    asked.max_new_tokens = 1
    video = groups([(40, ["what is it", "who runs over there in the green field"])], width_of(asked))[0]
    heard: list[Tensor] = []
    hook = asked.model.lm_head.register_forward_hook(lambda _, __, logits: heard.append(logits.float()))
    asked.answer([video])
    plainly(asked, [video])
    hook.remove()
    together, alone = heard[0], torch.cat([logits[:, -1] for logits in heard[1:]])
    assert (together - alone).abs().max() < 0.05 * alone.abs().max()


def test_a_checkpoint_directory_answers_without_its_towers(tmp_path: Path) -> None:
    """Loading drops both vision towers, and answers stay those of the whole model."""
    path = tiny_checkpoint(tmp_path / "model")
    loaded = TransformersEngine.load(path, TEMPLATE, device="cpu", dtype="float32", max_new_tokens=NEW)
    assert loaded.model.model.video_tower is None
    assert not any("tower" in name for name, _ in loaded.model.named_parameters())
    whole = VideoLlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    videos = groups(RAGGED, width_of(loaded))
    plain = TransformersEngine(whole, loaded.tokenizer, TEMPLATE, max_new_tokens=NEW)
    assert loaded.answer(videos) == plainly(plain, videos)


def test_a_checkpoint_without_all_its_language_weights_is_refused(tmp_path: Path) -> None:
    """transformers would fill in random numbers and warn; answers of noise are worse than none."""
    path = Path(tiny_checkpoint(tmp_path / "model"))
    weights = load_file(path / "model.safetensors")
    lost = next(name for name in sorted(weights) if name.endswith("layers.0.mlp.down_proj.weight"))
    save_file({name: t for name, t in weights.items() if name != lost}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 tensors of projector or language model are missing"):
        TransformersEngine.load(path, TEMPLATE, device="cpu", dtype="float32")


@pytest.mark.skipif(not (SHAPES / "config.json").exists(), reason="the trained shapes checkpoint is not built yet")
def test_the_shapes_model_answers_as_one_generate_per_question() -> None:
    """The same equality on trained weights, with the questions it was trained on."""
    asked = TransformersEngine.load(SHAPES, TEMPLATE, device="cpu", dtype="float32", max_new_tokens=NEW)
    questions = ["what color is the circle ?", "how many objects are there ?", "which way does the square move ?"]
    videos = groups([(64, questions), (9, questions[:1])], width_of(asked))
    assert asked.answer(videos) == plainly(asked, videos)


@torch.inference_mode()
def first_token(asked: TransformersEngine, features: Tensor, places: Tensor, span: int, question: str) -> int:
    """The likeliest first id when every token is given its position by hand."""
    model, split = asked.model, split_prompt(asked.tokenizer, TEMPLATE, question, asked.video_id)
    embed = model.get_input_embeddings()
    shown = model.model.multi_modal_projector(features.to(model.dtype))
    rows = torch.cat([embed(torch.tensor(split.prefix)), shown, embed(torch.tensor(split.suffix))])
    before = len(split.prefix)
    after = before + span + torch.arange(len(split.suffix))
    position = torch.cat([torch.arange(before), before + places, after])
    seen = torch.ones(1, len(rows), dtype=torch.long)  # without it gaps between positions would part sequences
    run = {"inputs_embeds": rows[None], "position_ids": position[None], "attention_mask": seen, "use_cache": False}
    hidden = model.model.language_model(**run)
    logits = model.lm_head(hidden.last_hidden_state[0, -1])
    return int(logits.index_fill(0, asked._never, -torch.inf).argmax())


def test_original_positions_reach_the_model() -> None:
    """Tokens with gaps between them, in a batch with others: the first id is that of a run with those positions."""
    asked, draw = engine(max_new_tokens=1), torch.Generator().manual_seed(3)
    questions = RAGGED[0][1]
    made, wanted = [], []
    for count, span in ((9, 40), (3, 8), (20, 60)):
        features = 3 * torch.randn(count, width_of(asked), generator=draw)
        places = torch.randperm(span, generator=draw)[:count].sort().values
        made.append(VideoQuestions(features=features, questions=questions, positions=places, span=span))
        wanted.append([first_token(asked, features, places, span, text) for text in questions])
    said = asked.answer(made)
    assert [[reply.text for reply in one] for one in said] == [
        [asked.tokenizer.decode([first], skip_special_tokens=True).strip() for first in firsts] for firsts in wanted
    ]
    compact = [VideoQuestions(features=one.features, questions=questions) for one in made]
    assert asked.answer(compact) != said


def test_a_span_longer_than_the_context_is_too_long() -> None:
    """Positions count, not tokens: one token at the end of a long span leaves no room."""
    asked = engine()
    features = torch.zeros(1, width_of(asked))
    group = VideoQuestions(features=features, questions=["a"], positions=torch.tensor([0]), span=asked.context)
    assert asked.answer([group])[0][0].status == "too_long"


BF16_LOGITS = 0.05
"""Most that a logit of the shared-prefix path may be off in bfloat16, as a share of the spread of a row's logits."""


@torch.inference_mode()
def test_in_bfloat16_logits_stay_within_the_stated_tolerance() -> None:
    """Against one full forward per question in the same type, and no worse than that forward is against float32."""
    prompt = {"max_new_tokens": 1}
    exact, rough = (TransformersEngine.load(SHAPES, TEMPLATE, device="cpu", dtype=d, **prompt) for d in ("float32", "bfloat16"))
    questions = ["what color is the ring", "how many objects are in the video", "which way does it move"]
    made = groups([(100, questions[:2]), (37, questions[2:])], 128)
    shared: list[Tensor] = []
    alone: list[Tensor] = []
    true: list[Tensor] = []
    hook = rough.model.lm_head.register_forward_hook(lambda _, __, logits: shared.extend(logits.float()))
    rough.answer(made)
    hook.remove()
    order = sorted(((g, q) for g in made for q in g.questions), key=lambda pair: len(rough.split(pair[1]).suffix))
    for group, question in order:
        for asked, logits in ((rough, alone), (exact, true)):
            split = asked.split(question)
            visual = asked.model.model.multi_modal_projector(group.features.to(asked.model.dtype))
            rows = torch.cat([asked._embed(torch.tensor(split.prefix)), visual, asked._embed(torch.tensor(split.suffix))])
            hidden = asked.model.model.language_model(inputs_embeds=rows[None]).last_hidden_state
            logits.append(asked.model.lm_head(hidden[0, -1]).float())
    one, two, three = torch.stack(shared), torch.stack(alone), torch.stack(true)
    spread = three.std(dim=1, keepdim=True)
    assert ((one - two).abs() / spread).max() <= BF16_LOGITS
    assert ((one - three).abs() / spread).max() <= 2 * BF16_LOGITS
