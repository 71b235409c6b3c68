"""Files of conversations, as LLaVA, Qwen and their trainers read them, as rows of questions.

LLaVA: `conversations` of `from` (human, gpt) and `value`. Qwen and OpenAI: `messages` of `role` (user, assistant) and
`content`, a text or a list of parts of `type` text, video, video_url. The video stands in a column or in a part. Placeholders
such as `<video>` and `<image>` are taken out of a question, system messages are left out.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import ConfigError
from pipeline.tables.json_layouts import VIDEO_COLUMNS
from pipeline.tables.values import NotTextError, Record, located, shown, text_of, uncontrolled

COLUMNS = ("conversations", "messages", "conversation")
ASKING = frozenset({"human", "user"})
ANSWERING = frozenset({"gpt", "assistant", "model", "bot"})
SETTING = frozenset({"system"})
_PLACEHOLDER = re.compile(
    r"\s*(?:</?(?:video|image|vid|img|imagehere|videohere)>|<\|(?:video_pad|image_pad|vision_start|vision_end)\|>)\s*",
    re.IGNORECASE,
)

Message = dict[str, Any]
"""One message; Any, as it is JSON."""


def conversation_column(records: Sequence[Record]) -> str | None:
    """Return the column that holds conversations, None where there is none, or questions stand in a column of their own."""
    if any("question" in record for record in records):
        return None
    return next((name for name in COLUMNS if any(record.get(name) is not None for record in records)), None)


def question_rows(records: Sequence[Record], column: str, path: str) -> list[Record]:
    """Return one row per question with video_id, question, answer, turn and, where the file has ids, question_id.

    `turn` counts the questions of a conversation of several, and is null where there is one; then the conversation's id is
    the question's, else with `:` and the turn behind it. Raises ConfigError naming the row of what is no conversation, and
    for two conversations of several turns about one video, which would be read as one.
    """
    found: list[Record] = []
    talks: dict[str, int] = {}
    for number, record in enumerate(records, 1):
        rows = located(lambda one: _questions(one, column), record, path, number, column)
        if len(rows) > 1 and (first := talks.setdefault(rows[0]["video_id"], number)) != number:
            raise ConfigError(
                f"{path}: rows {first} and {number} are two conversations of several turns about the video "
                f"{shown(rows[0]['video_id'])}, which would be read as one: write them to two files"
            )
        found += rows
    return found


def video_name(value: object) -> str | None:
    """Return the video that a column names: a text, a list of one, or an object with its path. Raises NotTextError."""
    if isinstance(value, list):
        if len(value) > 1:
            raise NotTextError(f"got {len(value)} videos, {shown(value)}, expected one: questions are about one video each")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = next((value[name] for name in ("path", "url", "video") if value.get(name) is not None), value)
    return text_of(value)


def _questions(record: Record, column: str) -> list[Record]:
    messages = [_spoken(message) for message in _messages(record[column])] if record.get(column) is not None else []
    exchanges = list(_exchanges([(role, text) for role, text, _ in messages if role not in SETTING]))
    if not exchanges:
        raise NotTextError("got a conversation without a question, expected a message of a human or a user")
    video = _video(record, [name for _, _, videos in messages for name in videos])
    name = next((text_of(record[id_]) for id_ in ("question_id", "id") if record.get(id_) is not None), None)
    several = len(exchanges) > 1
    return [
        {
            "video_id": video,
            "question": question,
            "answer": answer,
            "turn": turn if several else None,
            "question_id": f"{name.strip()}:{turn}" if name is not None and several else name,
        }
        for turn, (question, answer) in enumerate(exchanges, 1)
    ]


def _messages(value: object) -> list[Message]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise NotTextError(f"got a text that is no JSON, {error}") from error
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise NotTextError(f"got {shown(value)}, expected a list of messages")
    return value


def _spoken(message: Message) -> tuple[str, str, list[str]]:
    """Return who speaks, what is said, and the videos that are shown."""
    role = text_of(next((message[name] for name in ("from", "role") if message.get(name) is not None), None))
    content = next((message[name] for name in ("value", "content") if message.get(name) is not None), None)
    if role is None or content is None:
        raise NotTextError(f"got the message {shown(message)}, expected from and value, or role and content")
    if role.lower() not in ASKING | ANSWERING | SETTING:
        raise NotTextError(f"got a message of {shown(role)}, expected human and gpt, or user and assistant")
    parts = content if isinstance(content, list) else [content]
    videos = [name for part in parts if isinstance(part, dict) for name in _shown(part)]
    said = [text for part in parts if (text := _said(part)) is not None]
    return role.lower(), "\n".join(said), videos


def _said(part: object) -> str | None:
    value = part.get("text") if isinstance(part, dict) else part
    return uncontrolled(text_of(value))


def _shown(part: Message) -> Iterator[str]:
    if part.get("image") is not None or part.get("image_url") is not None:
        raise NotTextError(f"got an image, {shown(part)}, expected a video")
    for column in ("video", "video_url"):
        if (name := video_name(part.get(column))) is not None:
            yield name


def _exchanges(messages: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str | None]]:
    """Yield each question with its answer, None where it has none."""
    asked: str | None = None
    for role, text in messages:
        if role in ASKING:
            if asked is not None:
                yield asked, None
            asked = _PLACEHOLDER.sub(_gap, text).strip()
        elif asked is None:
            raise NotTextError(f"got the answer {shown(text)} without a question in front of it")
        else:
            yield asked, text
            asked = None
    if asked is not None:
        yield asked, None


def _gap(placeholder: re.Match[str]) -> str:
    return "\n" if "\n" in placeholder[0] else " "


def _video(record: Record, shown_videos: Sequence[str]) -> str:
    columns = (record[name] for name in VIDEO_COLUMNS if record.get(name) is not None)
    named = video_name(next(columns, None) or list(dict.fromkeys(shown_videos)))
    if named is None or not named.strip():
        raise NotTextError(f"got no video, expected one in a column {', '.join(VIDEO_COLUMNS)} or in a message")
    return named
