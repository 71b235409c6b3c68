"""Talk about one video of a token store: `framefold chat VIDEO`. Nothing is decoded; what was said stays in the cache."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jobs.runtime.launch import Report, launch, storage_options
from pipeline.answer.stage import AnswerConfig, check_tower, check_turns, joint_space, load_engine
from pipeline.errors import ConfigError
from pipeline.models.device import here
from pipeline.storage.preflight import check_reachable
from pipeline.store.resolve import find_video
from pipeline.store.token_store import TokenStore

if TYPE_CHECKING:
    from pipeline.engines.base import Reply


@dataclass(frozen=True, kw_only=True)
class ChatJob:
    """Ask about one stored video, turn by turn: each line of the input is a turn, an empty line or its end stops."""

    video: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VIDEO")]
    """Id of a video, as `framefold store ls` shows it, its path or URL, or the name of its file where only one has it."""
    store: str
    """Root of the token store; any fsspec URL."""
    answer: AnswerConfig
    fingerprint: str | None = None
    """Which entries of the store, by the beginning of their fingerprint; needed where it holds several."""
    reducer: str | None = None
    """Instead of the fingerprint: the reducer of the entries, e.g. "nest(keep=256)", or its name alone."""
    ask: tuple[str, ...] = ()
    """Turns to ask instead of those from the input."""
    storage_options: str = "{}"
    """JSON object for fsspec."""

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)


def run(job: ChatJob) -> Report:
    """Answer turn by turn; the report holds what was said."""
    from pipeline.answer.token_selection import Selection
    from pipeline.engines.base import VideoQuestions
    from pipeline.engines.chat import Conversation
    from pipeline.engines.transformers_engine import TransformersEngine
    from pipeline.models.checkpoint import Checkpoint

    check_reachable([job.store], job.options)
    store = TokenStore.open(job.store, job.fingerprint, job.options, job.reducer)
    config = here(job.answer)
    checkpoint = Checkpoint.open(job.answer.model, job.answer.revision)
    check_tower(store.spec, checkpoint)
    if job.answer.select.reads_question or job.answer.select.corpus_budget is not None:
        raise ConfigError("framefold chat takes --budget or --coverage, not --corpus-budget, --by-question or --text-reducer")
    check_turns(job.answer)
    entry = store.read(_video(job, store))
    shown = Selection(job.answer.select, store.spec, joint_space(job.answer, checkpoint)).show(entry)
    engine = load_engine(config)
    if not isinstance(engine, TransformersEngine):
        raise ConfigError("framefold chat requires --engine transformers")
    video = VideoQuestions(features=shown.features, questions=(), positions=shown.positions, span=shown.span)
    conversation = Conversation(engine, video)
    said = []
    for question in job.ask or _typed():
        reply = conversation.ask(question)
        sys.stdout.write(f"{_shown(reply)}\n")
        sys.stdout.flush()
        said.append({"question": question, "answer": reply.text, "status": reply.status})
    return {"job": "chat", "video": entry.video_id, "visual_tokens": len(shown.features), "turns": said}


def _video(job: ChatJob, store: TokenStore) -> str:
    """Return the id of a committed video. Raises ConfigError if none is meant, or one that failed."""
    row = find_video(job.video, store.index)
    if row["status"] == "failed":
        raise ConfigError(f"{row['video_id']} has no tokens, it failed with {row['error_class']}: {row['error']}")
    return str(row["video_id"])


def _typed() -> Iterator[str]:
    """Yield lines of the input until an empty one, with a prompt where a person types them."""
    while True:
        if sys.stdin.isatty():
            sys.stdout.write("> ")
            sys.stdout.flush()
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()


def _shown(reply: "Reply") -> str:
    return reply.text if reply.text is not None else f"({reply.status})"


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(ChatJob, run, "framefold chat", args)


if __name__ == "__main__":
    sys.exit(main())
