"""No answer is stale: each field of the answer spec is walked, and an answer given under another one is asked for again."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

import pipeline.answer.stage
import pipeline.answer.token_selection
import pipeline.models.prompts
from pipeline.answer.answer_store import ANSWERS, QUESTIONS_ASKED, AnswerStore
from pipeline.answer.stage import AnswerConfig, answer_spec
from pipeline.answer.token_selection import SelectConfig
from pipeline.fingerprint import fingerprint
from pipeline.models import clip_space
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.prompts import PromptTemplate
from reducers.methods.trim import Trim
from reducers.nest import cut as nest_cut
from tests.staleness.test_spec import leaves, patched, with_config

SHAPES = Path(__file__).parents[2] / "pipeline" / "synthetic" / "checkpoint"
STORE = "5" * 64
"""Fingerprint of the entries that are asked about."""

CUT = {"budget": 64, "positions": "original"}
ASK = {"budget": 64, "by_question": "like"}
TRIM = {"text_reducer": "trim(ratio=0.25)"}
SETTINGS: dict[str, dict[str, Any]] = {"plain": {}, "cut": CUT, "ask": ASK, "trim": TRIM, "corpus": {"corpus_budget": 64}}
"""Selections that together have every field."""


def spec_of(model: Path = SHAPES, encode: str = STORE, cut: float | None = None, **given: Any) -> dict[str, Any]:
    names = SelectConfig.__dataclass_fields__
    select = SelectConfig(**{name: value for name, value in given.items() if name in names})
    prompt = PromptTemplate(**{name: given[name] for name in ("style", "instruction") if name in given})
    rest = {name: given[name] for name in ("engine", "max_new_tokens", "dtype") if name in given}
    config = AnswerConfig(model=str(model), device="cpu", prompt=prompt, select=select, **rest)
    return answer_spec(config, Checkpoint.open(str(model)), encode, cut)


def with_one_weight_changed(folder: Path) -> None:
    """One number of the language model."""
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if "lm_head" in name)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_text_added(name: str) -> Callable[[Path], None]:
    """A blank more at the end of a JSON file."""
    return lambda folder: bool((folder / name).write_text((folder / name).read_text() + "\n")) or None


def settings_of_the_language_model() -> dict[str, Callable[[Path], None]]:
    """Every setting that the spec takes from config.json, changed there."""
    found = leaves(spec_of()["llm_config"])
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 1, str: lambda v: f"{v}2"}
    return {
        f"llm_config.{name}": with_config(**{name.replace(".", "__"): other[type(value)](value)})
        for name, value in found.items()
    }


BY_FLAG: dict[str, tuple[str, dict[str, Any]]] = {
    "encode": ("plain", {"encode": "6" * 64}),
    "prompt.style": ("plain", {"style": "original"}),
    "prompt.instruction": ("plain", {"instruction": "Be brief."}),
    "generation.max_new_tokens": ("plain", {"max_new_tokens": 33}),
    "compute_dtype": ("plain", {"dtype": "bfloat16"}),
    "engine.name": ("plain", {"engine": "vllm"}),
    "selection.budget": ("cut", {"budget": 65}),
    "selection.by_question": ("ask", {"by_question": "unlike"}),
    "selection.positions": ("cut", {"positions": "compact"}),
    "selection.coverage": ("plain", {"coverage": 0.9}),
    "selection.corpus_budget": ("corpus", {"corpus_budget": 65}),
    "selection.cut": ("corpus", {"cut": 0.5}),
    "selection.text_reducer.params.ratio": ("trim", {"text_reducer": "trim(ratio=0.5)"}),
    "selection.text_reducer.params.score": ("trim", {"text_reducer": "trim(ratio=0.25,score=cosine)"}),
    "selection.text_reducer.params.aggregate": ("trim", {"text_reducer": "trim(ratio=0.25,aggregate=false)"}),
    "selection.text_reducer.params.scope": ("trim", {"text_reducer": "trim(ratio=0.25,scope=clip)"}),
    "selection.text_reducer.params.iqr_factor": ("trim", {"text_reducer": "trim(ratio=0.25,iqr_factor=2)"}),
    "selection.text_reducer.params.compat": ("trim", {"text_reducer": "trim(ratio=0.25,compat=true)"}),
}
"""Fields that a flag changes, in a selection that has them."""

BY_FILE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "llm_digest": ("plain", with_one_weight_changed),
    "tokenizer_digest": ("plain", with_text_added("generation_config.json")),
    "selection.text_sha256": ("ask", with_text_added("text_tower/config.json")),
    **{name: ("plain", change) for name, change in settings_of_the_language_model().items()},
}
"""Fields that a file of the checkpoint changes."""

BY_PROGRAM: dict[str, tuple[str, Callable[[], Any]]] = {
    "prompt.text": ("plain", lambda: patched(pipeline.models.prompts, "OPENINGS", {"docs": "<video> "})),
    "prompt.later_turn": ("plain", lambda: patched(pipeline.models.prompts, "turn_text", lambda _, question: question)),
    "engine.version": ("plain", lambda: patched(pipeline.answer.stage, "ENGINES", {"transformers": 99})),
    "selection.versions.cut": ("cut", lambda: patched(nest_cut, "CUT", 99)),
    "selection.versions.ask": ("ask", lambda: patched(nest_cut, "ASK", 99)),
    "selection.versions.trimmed": ("trim", lambda: patched(pipeline.answer.token_selection, "TRIMMED", 99)),
    "selection.versions.embedding": ("trim", lambda: patched(clip_space, "EMBEDDING", 99)),
    "selection.versions.positions": ("cut", lambda: patched(pipeline.answer.token_selection, "POSITIONS", 99)),
    "selection.text_reducer.version": ("trim", lambda: patched(Trim, "version", 99)),
}
"""Fields that only another version of this program changes."""

FIXED = {"kind", "generation.decoding", "selection.text_reducer.name"}
"""Fields with one value today."""

TOGETHER = {
    "llm_config.text_config.eos_token_id": {"llm_config.eos_token_id"},
    "prompt.style": {"prompt.text"},
    "prompt.instruction": {"prompt.text", "prompt.later_turn"},
    "selection.positions": {"selection.versions.positions"},
    "selection.coverage": {"selection.versions.cut"},
}
"""What a change takes along."""


def test_every_field_of_the_answer_spec_is_walked() -> None:
    """Whoever adds a field says here what changes it, and so proves that it does."""
    fields = {name for select in SETTINGS.values() for name in leaves(spec_of(**select))}
    fields |= set(leaves(spec_of(coverage=0.5))) | set(leaves(spec_of(cut=0.1, **SETTINGS["corpus"])))
    assert fields == {*BY_FLAG, *BY_FILE, *BY_PROGRAM, *FIXED}


@pytest.mark.parametrize("field", [*BY_FLAG, *BY_FILE, *BY_PROGRAM])
def test_an_answer_of_another_spec_is_asked_for_again(field: str, tmp_path: Path) -> None:
    """Change one field, and nothing else: the fingerprint is another, and what was answered before is pending."""
    found = {**BY_FLAG, **BY_FILE, **BY_PROGRAM}[field]
    given, model = SETTINGS[found[0]], SHAPES
    before = spec_of(**given)
    if field in BY_FILE:
        model = Path(shutil.copytree(SHAPES, tmp_path / "model"))
        BY_FILE[field][1](model)
    with BY_PROGRAM[field][1]() if field in BY_PROGRAM else nullcontext():
        after = spec_of(model, **{**given, **(BY_FLAG[field][1] if field in BY_FLAG else {})})
    old, new = leaves(before), leaves(after)
    changes = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    assert changes == {field} | TOGETHER.get(field, set())
    row = {"question_id": "q", "video_id": "v", "question": "what ?", "store_id": "v", "payload_sha256": "p"}
    answered = pa.Table.from_pylist([{**row, "prediction": "it", "status": "ok"}], schema=ANSWERS)
    asked = pa.Table.from_pylist([row], schema=QUESTIONS_ASKED)
    first = AnswerStore.create(str(tmp_path / "out"), before)
    first.commit(answered)
    assert first.pending(asked).num_rows == 0
    assert AnswerStore.create(str(tmp_path / "out"), after).pending(asked).num_rows == 1
    assert AnswerStore.create(str(tmp_path / "out"), json.loads(json.dumps(before))).pending(asked).num_rows == 0


@pytest.mark.parametrize(
    "given",
    [{"device": "cuda", "dtype": "float32"}, {"max_batch_tokens": 100}, {"revision": "abc"}],
    ids=lambda given: next(iter(given)),
)
def test_what_changes_no_answer_is_in_no_fingerprint(given: dict[str, Any]) -> None:
    """Needless misses cost what the cache was to save: device, batch size and the name of a model say nothing."""
    checkpoint = Checkpoint.open(str(SHAPES))
    plain = answer_spec(AnswerConfig(model=str(SHAPES), dtype="float32", device="cpu"), checkpoint, STORE)
    other = answer_spec(AnswerConfig(**{"model": "elsewhere", "dtype": "float32", **given}), checkpoint, STORE)
    assert fingerprint(plain) == fingerprint(other)
