"""Several turns about one video: the keys and values of all that was said are kept, a turn reads its own words only.

Shapes: P prefix positions, L ids of a turn.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pipeline.engines.base import Reply, VideoQuestions
from pipeline.models.prompts import turn_text

if TYPE_CHECKING:
    from pipeline.engines.transformers_engine import TransformersEngine


class Conversation:
    """A conversation about one video. The first turn is asked as a question by itself is; each later one sees those before.

    A later turn is tokenised by itself, behind the answer as it was generated: `</s>USER: ... ASSISTANT:`. What was said is
    never tokenised again, so the cache always is what the model has seen.
    """

    def __init__(self, engine: "TransformersEngine", video: VideoQuestions) -> None:
        self.engine = engine
        self._seen = engine.begin(video)
        self._unread: list[int] = []

    @torch.inference_mode()
    def ask(self, question: str) -> Reply:
        """Return the answer to a turn. One that cannot be asked gets a status and leaves no trace."""
        if not question.strip():
            return Reply(text=None, status="empty_question")
        ids = self._ids(question)
        if not self.engine.reserved.isdisjoint(ids):
            return Reply(text=None, status="reserved_token")
        ids = [*self._unread, *ids]
        room = min(self.engine.context - self._seen.end - len(ids), self.engine.max_new_tokens)
        if room < 1:
            return Reply(text=None, status="too_long")
        said = self._generate(ids, room)
        ended = said[-1] in self.engine.eos
        self._unread = [said[-1]] if ended else [said[-1], self.engine.eos[0]]
        return self.engine.reply(said)

    def _ids(self, question: str) -> Sequence[int]:
        if self._seen.spoken:
            text = turn_text(self.engine.prompt, question)
            found: list[int] = self.engine.tokenizer(text, add_special_tokens=False)["input_ids"]
            return found
        return self.engine.split(question).suffix

    def _generate(self, ids: list[int], room: int) -> list[int]:
        """Return the ids of an answer, the last of which is not read yet."""
        said: list[int] = []
        while True:
            following = self.engine.advance(self._seen, ids)
            said.append(following)
            if following in self.engine.eos or len(said) == room:
                return said
            ids = [following]
