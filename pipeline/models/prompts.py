"""The text around a question, and the token ids on either side of the video.

A prompt is always tokenised as a whole and split at the video token afterwards: a tokeniser may treat the first
characters of a separate piece differently, and no id may depend on where we chose to cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from pipeline.errors import ConfigError

VIDEO = "<video>"
"""Stands for the video in every template; the model replaces it by the visual tokens."""

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
"""System text of the original Video-LLaVA evaluation (PKU-YuanGroup/Video-LLaVA 984e65b)."""

ONE_WORD = "Answer the question using a single word or phrase."
"""The usual instruction for short-answer data sets; pass it as `instruction`."""

OPENINGS = {"docs": f"USER: {VIDEO}\n", "original": f"{SYSTEM} USER: {VIDEO}\n"}


class Tokenizer(Protocol):
    """The little that prompts ask of a tokeniser of transformers."""

    def __call__(self, text: str) -> Mapping[str, Any]:
        """Return `input_ids` with the special tokens of the model, BOS among them."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """Return the id of one token; an unknown one is None or the id of the unknown token."""
        ...


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """Text around the question; part of the answer fingerprint."""

    style: Literal["docs", "original"] = "docs"
    """`docs`: `USER: <video>`, the question on the next line, `ASSISTANT:`. `original`: the system text before it."""
    instruction: str = ""
    """Added on a line of its own after the question, e.g. "Answer the question using a single word or phrase."."""

    def __post_init__(self) -> None:
        if self.style not in OPENINGS:
            raise ConfigError(f"unknown prompt style {self.style!r}, expected one of {sorted(OPENINGS)}")
        if VIDEO in self.instruction:
            raise ConfigError(f"the instruction must not contain {VIDEO}: each prompt shows exactly one video")

    def text(self, question: str) -> str:
        """Return the whole prompt. Runs of white space in the question become one space, as outer ones are noise."""
        asked = " ".join(question.split())
        instruction = f"\n{self.instruction}" if self.instruction else ""
        return f"{OPENINGS[self.style]}{asked}{instruction} ASSISTANT:"


def turn_text(template: PromptTemplate, question: str) -> str:
    """Return what is written for a later turn, behind the end of the answer before."""
    instruction = f"\n{template.instruction}" if template.instruction else ""
    return f"USER: {' '.join(question.split())}{instruction} ASSISTANT:"


def prompt_spec(template: PromptTemplate) -> dict[str, str]:
    """Return what a template adds to the answer fingerprint: its settings, and the texts that this version makes of them."""
    asked = "{question}"
    return {**asdict(template), "text": template.text(asked), "later_turn": turn_text(template, asked)}


@dataclass(frozen=True, kw_only=True)
class SplitPrompt:
    """Token ids before and after the video span. `prefix` is the same for every question of a template."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def video_token_id(tokenizer: Tokenizer, expected: int) -> int:
    """Return the id of `<video>`. Raises ConfigError unless the tokeniser and the model's config agree on it."""
    found = tokenizer.convert_tokens_to_ids(VIDEO)
    if found != expected:
        raise ConfigError(
            f"the tokeniser gives {VIDEO} the id {found}, the model expects {expected}: "
            "the checkpoint's tokeniser files do not belong to this model"
        )
    return expected


def split_at_video(ids: Sequence[int], video_id: int) -> SplitPrompt:
    """Split a tokenised prompt around its first video token. Raises ConfigError when there is none."""
    if video_id not in ids:
        raise ConfigError(f"the tokenised prompt holds no video token (id {video_id}); got {len(ids)} other ids")
    at = ids.index(video_id)
    return SplitPrompt(prefix=tuple(ids[:at]), suffix=tuple(ids[at + 1 :]))


def split_prompt(tokenizer: Tokenizer, template: PromptTemplate, question: str, video_id: int) -> SplitPrompt:
    """Tokenise the whole prompt of a question and return the ids on both sides of the video."""
    return split_at_video(list(tokenizer(template.text(question))["input_ids"]), video_id)
