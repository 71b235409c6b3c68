"""A language model that does not fit its settings is refused in one sentence; a large limit of words costs no memory."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engines.transformers_engine import TransformersEngine, VideoQuestions
from pipeline.errors import ConfigError
from pipeline.models.prompts import PromptTemplate
from tests.models import tiny_checkpoint
from tests.pipeline.test_engine import width_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_checkpoint(tmp_path_factory.mktemp("whole") / "tiny"))


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": "wide"}, {"hidden_size": 96}, {"num_attention_heads": 0}, {"vocab_size": 5}, {"model_type": "nope"}],
)
def test_settings_that_do_not_fit_the_weights_are_refused(changes: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    config = json.loads((whole / "config.json").read_text())
    config["text_config"] |= changes
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=str(tmp_path)):
        TransformersEngine.load(str(tmp_path / "model"), PromptTemplate(), device="cpu", dtype="float32")


@pytest.mark.usefixtures("one_thread")
def test_more_words_than_the_model_has_positions_are_as_many_as_it_has(whole: Path) -> None:
    """Room for a hundred million would be 76 GB."""
    asked = TransformersEngine.load(
        str(whole), PromptTemplate(), device="cpu", dtype="float32", max_new_tokens=100_000_000, steps="static"
    )
    (reply,) = asked.answer([VideoQuestions(features=torch.zeros(4, width_of(asked)), questions=("what is it",))])[0]
    assert reply.status == "ok"
