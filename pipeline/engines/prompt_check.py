"""What every engine asks itself before a question runs: which ids stand behind the video, and is there room for an answer."""

from dataclasses import dataclass
from typing import Any

from pipeline.engines.base import Reply
from pipeline.models.prompts import PromptTemplate, SplitPrompt, split_prompt


@dataclass(frozen=True, kw_only=True)
class Askable:
    """A question that will run: the ids after the video, and room for the answer."""

    suffix: tuple[int, ...]
    room: int


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How one model is asked."""

    tokenizer: Any
    """A tokeniser of transformers, whose classes have no common typed base."""
    prompt: PromptTemplate
    video_id: int
    context: int
    """Positions of the model."""
    reserved: frozenset[int]
    """Ids that no question may hold."""
    max_new_tokens: int

    def split(self, question: str) -> SplitPrompt:
        """Return the ids on both sides of the video."""
        return split_prompt(self.tokenizer, self.prompt, question, self.video_id)

    def judge(self, question: str, span: int) -> Askable | Reply:
        """Return what to run for a question about a video of `span` positions, or the reply that says why not."""
        if not question.strip():
            return Reply(text=None, status="empty_question")
        split = self.split(question)
        if not self.reserved.isdisjoint(split.suffix):
            return Reply(text=None, status="reserved_token")
        room = self.context - len(split.prefix) - span - len(split.suffix)
        if room < 1:
            return Reply(text=None, status="too_long")
        return Askable(suffix=split.suffix, room=min(room, self.max_new_tokens))
