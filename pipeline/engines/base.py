"""What engines are asked and what they reply. No engine is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

STATUSES = ("ok", "empty_question", "reserved_token", "too_long", "missing_video", "damaged", "out_of_memory")
"""What can become of a question. `missing_video` and `damaged` are given by the stage, the others by an engine."""


@dataclass(frozen=True, kw_only=True)
class VideoQuestions:
    """One video and all that is asked about it."""

    features: "Tensor"
    """(S, D), any float dtype: tower features before the projector, as stored."""
    questions: Sequence[str]
    positions: "Tensor | None" = None
    """(S,) int64, place of each token in the span; None numbers them."""
    span: int | None = None
    """Positions that the video takes in the prompt; S if None."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one question. `text` is None unless the status is `ok`."""

    text: str | None
    status: str
    tokens: int = 0
    """Generated tokens, EOS among them."""


class Engine(Protocol):
    """Runs a language model. `name` and `version` are part of the answer fingerprint."""

    name: str
    version: int

    def answer(self, groups: Sequence[VideoQuestions]) -> list[list[Reply]]:
        """Return one reply per question, in order. A question that cannot be answered gets a status, never an error."""
        ...

    def converse(self, group: VideoQuestions) -> list[Reply]:
        """Return one reply per question, each asked as a turn that sees those before. Raises ConfigError if it cannot."""
        ...
