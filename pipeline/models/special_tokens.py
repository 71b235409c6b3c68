"""The ids that end an answer, and those that no answer may hold. Any: models and tokenisers of transformers are untyped."""

from collections.abc import Sequence
from typing import Any

from pipeline.errors import ConfigError


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer, from the generation config or else the tokeniser."""
    found = model.generation_config.eos_token_id
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        raise ConfigError("neither generation_config.json nor the tokeniser names an EOS token: no answer would end")
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


def reserved_ids(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids that a question must not contain and an answer never says: image, video and padding."""
    ids = (model.config.image_token_id, model.config.video_token_id, tokenizer.pad_token_id)
    return {int(i) for i in ids if i is not None}


def never_said(model: Any, tokenizer: Any, reserved: set[int], eos: Sequence[int]) -> list[int]:
    """Return the ids to suppress: the reserved ones and all rows of the padded vocabulary that no token has.

    The published -hf conversion fills embedding and output rows from 32000 up with random samples, so they can win.
    """
    known = max(tokenizer.get_vocab().values()) + 1
    padded = model.config.text_config.vocab_size
    return sorted({i for i in reserved if i < padded} | (set(range(known, padded)) - set(eos)))
