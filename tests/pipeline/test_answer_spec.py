"""The fingerprint of answers: each setting that an answer depends on is in it by itself, and nothing else is."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.answer.stage import ENGINES, AnswerConfig, answer_spec, check_turns, tokenizer_digest
from pipeline.answer.token_selection import SelectConfig
from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.prompts import PromptTemplate
from tests.models import tiny_checkpoint

SHAPES = Path(__file__).parents[2] / "pipeline" / "synthetic" / "checkpoint"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_checkpoint(tmp_path_factory.mktemp("spec") / "tiny"))


def spec_of(model: Path, encode: str = "e1", cut: float | None = None, **options: Any) -> dict[str, Any]:
    config = AnswerConfig(**{"model": str(model), "device": "cpu", **options})
    return answer_spec(config, Checkpoint.open(str(model)), encode, cut)


SETTINGS: dict[str, Mapping[str, Any]] = {
    "as it is": {},
    "the entries": {"encode": "e2"},
    "prompt style": {"prompt": PromptTemplate(style="original")},
    "instruction": {"prompt": PromptTemplate(instruction="one word")},
    "length": {"max_new_tokens": 7},
    "compute dtype": {"dtype": "bfloat16"},
    "engine": {"engine": "vllm"},
    "budget": {"select": SelectConfig(budget=8)},
    "another budget": {"select": SelectConfig(budget=9)},
    "corpus budget": {"select": SelectConfig(corpus_budget=8), "cut": 0.5},
    "the cut of a corpus budget": {"select": SelectConfig(corpus_budget=8), "cut": 0.25},
    "coverage": {"select": SelectConfig(coverage=0.5)},
    "all of the video": {"select": SelectConfig(coverage=1.0)},
    "positions": {"select": SelectConfig(budget=8, positions="original")},
}


def test_each_setting_has_answers_of_its_own(model: Path) -> None:
    """One number changed anywhere is another fingerprint."""
    found = {name: fingerprint(spec_of(model, **changes)) for name, changes in SETTINGS.items()}
    assert len(set(found.values())) == len(found), found


def test_nothing_else_is_in_it(model: Path) -> None:
    """Whoever adds a field says here that it is one, and above or below what changes it."""
    spec = spec_of(model)
    names = {"kind", "encode", "llm_digest", "llm_config", "tokenizer_digest", "prompt", "generation"}
    names |= {"compute_dtype", "engine"}
    assert set(spec) == names
    assert spec["kind"] == "answer"
    assert set(spec_of(model, select=SelectConfig(budget=8))) == {*names, "selection"}


def test_where_and_how_fast_it_runs_is_no_part_of_an_answer(model: Path, tmp_path: Path) -> None:
    """Path, device and batch size; a text tower that no method reads."""
    shutil.copytree(model, tmp_path / "copy")
    plain = spec_of(model, dtype="float32")
    moved = spec_of(tmp_path / "copy", dtype="float32", device="cuda:1", max_batch_tokens=99)
    assert moved == plain
    assert spec_of(model, dtype="float32", select=SelectConfig(text_tower="/somewhere")) == plain


def test_auto_is_written_as_what_it_comes_to(model: Path) -> None:
    """bfloat16 on a GPU and float32 without one, so that two machines do not share answers that differ."""
    assert spec_of(model)["compute_dtype"] == "float32"
    assert spec_of(model, device="cuda:0")["compute_dtype"] == "bfloat16"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_is_in_it_with_its_version(model: Path, engine: str) -> None:
    """An engine that computes otherwise counts up."""
    assert spec_of(model, engine=engine)["engine"] == {"name": engine, "version": ENGINES[engine]}


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"max_batch_tokens": -1}, {"dtype": "int8"}, {"engine": "magic"}], ids=str
)
def test_a_setting_that_cannot_be_is_refused_by_its_value(wrong: dict[str, Any]) -> None:
    """Before a model is looked for."""
    with pytest.raises(ConfigError, match=str(*wrong.values())):
        AnswerConfig(model="m", **wrong)
    assert AnswerConfig(model="m", max_new_tokens=1, max_batch_tokens=0).max_new_tokens == 1


def test_turns_are_for_engines_that_hold_conversations() -> None:
    """And for tokens that stay the same all along."""
    check_turns(AnswerConfig(model="m", select=SelectConfig(budget=8)))
    with pytest.raises(ConfigError, match="not supported by --engine vllm"):
        check_turns(AnswerConfig(model="m", engine="vllm"))
    for select in (SelectConfig(budget=8, by_question="unlike"), SelectConfig(text_reducer="trim")):
        with pytest.raises(ConfigError, match=r"conversations .* cannot be combined with --by-question"):
            check_turns(AnswerConfig(model="m", select=select))


def outer(**changes: Any) -> Callable[[Path], None]:
    """Change config.json; the names of its language model's part begin with `text_`."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            inner = name.startswith("text_")
            (config["text_config"] if inner else config)[name.removeprefix("text_")] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def file(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def weight(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in sorted(weights) if part in name)
        weights[name].view(-1)[0] += 1
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


COUNTS: dict[str, Callable[[Path], None]] = {
    "weights of the language model": weight("lm_head"),
    "weights of the projector": weight("multi_modal_projector"),
    "a setting of the language model": outer(text_rms_norm_eps=0.1),
    "what ends an answer": outer(eos_token_id=9),
    "activation of the projector": outer(projector_hidden_act="relu"),
    "bias of the projector": outer(multimodal_projector_bias="maybe"),
    "id of the video": outer(video_token_id=77),
    "id of the video, older name": outer(video_token_index=77),
    "id of an image": outer(image_token_id=77),
    "id of an image, older name": outer(image_token_index=77),
    "generation": file("generation_config.json", "{}"),
    "tokeniser's settings": file("tokenizer_config.json", "{}"),
    "added tokens": file("added_tokens.json", "{}"),
    "special tokens": file("special_tokens_map.json", "{}"),
    "a vocabulary": file("vocab.json", "{}"),
    "merges": file("merges.txt", "a b"),
}
NOISE: dict[str, Callable[[Path], None]] = {
    "dtype of the file": outer(text_torch_dtype="float16", text_dtype="float16"),
    "version of the library": outer(text_transformers_version="1.0", transformers_version="1.0"),
    "where it was": outer(text__name_or_path="/somewhere", _name_or_path="/somewhere"),
    "a cache": outer(text_use_cache=False),
    "weights of the video tower": weight("video_tower"),
    "a readme": file("README.md", "hello"),
}


@pytest.mark.parametrize("name", [*COUNTS, *NOISE])
def test_what_of_a_checkpoint_an_answer_depends_on(model: Path, tmp_path: Path, name: str) -> None:
    """Language model, projector, tokeniser and what ends an answer; the video tower is in the fingerprint of the entries."""
    shutil.copytree(model, tmp_path / "model")
    (COUNTS | NOISE)[name](tmp_path / "model")
    assert (spec_of(tmp_path / "model") != spec_of(model)) == (name in COUNTS)


def test_the_content_of_a_tokeniser_counts_and_not_only_its_name(tmp_path: Path) -> None:
    """The same files with other words."""
    digests = []
    for content in ("{}", '{"a": 1}'):
        (tmp_path / "tokenizer.json").write_text(content)
        digests.append(tokenizer_digest(tmp_path))
    assert digests[0] != digests[1]


def test_what_reads_the_question_brings_its_text_tower_along(tmp_path: Path) -> None:
    """By content, wherever it lies; method, sign and parameters count as well."""
    shutil.copytree(SHAPES / "text_tower", tmp_path / "tower")
    for path in SHAPES.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "tower")
    like = SelectConfig(budget=8, by_question="like")
    unlike = SelectConfig(budget=8, by_question="unlike")
    trims = [SelectConfig(text_reducer=spec) for spec in ("trim(ratio=0.25)", "trim(ratio=0.5)")]
    found = [spec_of(SHAPES, select=select) for select in (SelectConfig(budget=8), like, unlike, *trims)]
    assert len({fingerprint(one) for one in found}) == 5
    moved = SelectConfig(budget=8, by_question="like", text_tower=str(tmp_path / "tower"))
    assert spec_of(SHAPES, select=moved) == spec_of(SHAPES, select=like)
    weights = next((tmp_path / "tower").glob("*.safetensors"))
    tensors = load_file(weights)
    name = next(name for name in sorted(tensors) if name != "visual_projection.weight")
    tensors[name].view(-1)[0] += 1
    save_file(tensors, weights, {"format": "pt"})
    assert spec_of(SHAPES, select=moved) != spec_of(SHAPES, select=like)
    shutil.copytree(SHAPES / "text_tower", tmp_path / "tower", dirs_exist_ok=True)
    assert spec_of(SHAPES, select=moved) == spec_of(SHAPES, select=like)
    config = json.loads((tmp_path / "tower" / "config.json").read_text())
    (tmp_path / "tower" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.1}))
    assert spec_of(SHAPES, select=moved) != spec_of(SHAPES, select=like)


def test_two_spellings_of_one_text_reducer_are_one() -> None:
    """Blanks and defaults that are written out change nothing."""
    short, long = (SelectConfig(text_reducer=spec) for spec in ("trim(ratio=0.25)", "trim( ratio = 1/4 )"))
    assert spec_of(SHAPES, select=short) == spec_of(SHAPES, select=long)
