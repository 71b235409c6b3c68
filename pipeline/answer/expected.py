"""How many tokens the prompts of an answer run are going to have: visual tokens that are shown, and tokens of the text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from pipeline.answer.stage import AnswerConfig
from pipeline.answer.token_selection import SelectConfig
from pipeline.encode.expected import Basis
from pipeline.models.prompts import split_prompt

if TYPE_CHECKING:
    from pipeline.models.checkpoint import Checkpoint
    from pipeline.store.token_store import TokenStore

BASES = get_args(Basis)
"""From the surest to the least sure."""

def expected_prompts(
    config: AnswerConfig, checkpoint: "Checkpoint", questions: Sequence[str], stored: Sequence[float], known: Basis = "exact"
) -> dict[str, Any]:
    """Return means per prompt and the total over some questions, for a job's report.

    `visual_tokens` is exact, an estimate, or an upper bound, as `basis` says. `text_tokens` counts what stands around the
    video and the question; in a conversation the turns before are not counted.

    Args:
        config: the prompt, and what of an entry is shown.
        checkpoint: its tokeniser counts the text.
        questions: text of each question.
        stored: tokens of the entry that each question is about.
        known: whether `stored` is exact.
    """
    shown, basis = shown_tokens(config.select, stored)
    text = text_tokens(config, checkpoint, questions)
    prompts = max(len(questions), 1)
    return {
        "basis": max(basis, known, key=BASES.index),
        "visual_tokens": round(sum(shown) / prompts, 2),
        "text_tokens": round(sum(text) / prompts, 2),
        "tokens_per_prompt": round((sum(shown) + sum(text)) / prompts, 2),
        "tokens": round(sum(shown) + sum(text)),
    }


def stored_tokens(store: "TokenStore", names: Sequence[str]) -> list[float]:
    """Return the tokens of some entries by the index, 0 for a video that is not committed."""
    rows = (store.index.get(name) for name in names)
    return [0 if row is None else row["tokens"] or 0 for row in rows]


def shown_tokens(select: SelectConfig, stored: Sequence[float]) -> tuple[list[float], Basis]:
    """Return how many tokens each question sees, given those of its entry, and whether these numbers are exact."""
    if select.budget is not None:
        return [min(select.budget, tokens) for tokens in stored], "exact"
    if select.corpus_budget is not None:
        return [min(select.corpus_budget, tokens) for tokens in stored], "estimate"
    if select.coverage is not None or select.text_reducer is not None:
        return list(stored), "upper_bound"
    return list(stored), "exact"


def text_tokens(config: AnswerConfig, checkpoint: "Checkpoint", questions: Sequence[str]) -> list[int]:
    """Return how many tokens of text the prompt of each question has. Equal questions are tokenised once."""
    tokenizer, video_id = checkpoint.tokenizer()
    splits = {question: split_prompt(tokenizer, config.prompt, question, video_id) for question in set(questions)}
    return [len(splits[question].prefix) + len(splits[question].suffix) for question in questions]
