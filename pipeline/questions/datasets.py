"""Question files of the video QA data sets, as released, in one table. Joined by id, never by position.

Layouts are told apart by their columns, data sets by their video names; `dataset=` overrides the second.
Multiple-choice files (TGIF-QA action and transition) are refused: there is nothing open-ended to answer in them.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.names import bounded, escape
from pipeline.questions.answer_files import read_answers, right_answers, unescaped
from pipeline.questions.conversations import conversation_column, question_rows, video_name
from pipeline.questions.ids import question_ids
from pipeline.questions.layouts import detect_layout, guess_dataset
from pipeline.questions.video_names import known_names
from pipeline.tables.tabular import read_records
from pipeline.tables.values import Answer, Record, check_controls, located, required_texts, text_of, texts

DATASETS = ("activitynet-qa", "msvd-qa", "msrvtt-qa", "tgif-qa", "plain")
ACTIVITYNET_TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")
TGIF_TYPES = ("object", "number", "color", "location")
"""Files of rows that can be read."""
QUESTION_WORDS = ("what", "who", "how", "when", "where")
QUESTIONS = pa.schema(
    [*((name, pa.string()) for name in ("question_id", "video_id", "question", "answer", "type")), ("turn", pa.int32())]
)
"""`turn`: place of the question in a conversation about its video; null where it is asked by itself."""
SEVERAL_ANSWERS = pa.field("answers", pa.list_(pa.string()))
"""A further column of a table in which a question has several right answers; null where it has one or none."""


MAX_TURN = 2**31 - 1


def read_questions(
    path: str,
    dataset: str = "auto",
    answers: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Read a question file, with its answers where there are any, in the order of the file.

    Args:
        path: .json, .jsonl, .csv, .tsv or .parquet on any fsspec URL.
        answers: file of answers by question id. None: the sibling `*_a.json` of a `*_q.json`, if it exists.

    Returns:
        Columns question_id, video_id (the data set's own name), question, answer, type, turn; see `dataset_of`.

    Raises:
        ConfigError: unreadable file, unknown layout, repeated question id, answers that belong to other questions.
    """
    if dataset not in ("auto", *DATASETS):
        raise ConfigError(f"unknown data set {dataset!r}, expected auto or one of {', '.join(DATASETS)}")
    records = read_records(path, storage_options)
    if (talks := conversation_column(records)) is not None:
        records = question_rows(records, talks, path)
    layout = detect_layout(records, path)
    names = _video_names(records, layout.video, path)
    if dataset == "auto":
        dataset = layout.dataset or guess_dataset(names, path)
    asked = unescaped(required_texts(records, "question", path), dataset)
    check_controls(asked, "question", path)
    ids = question_ids(records, layout.ids, names, asked, path)
    right = right_answers(records, path)
    types = texts(records, "type", path)
    sibling = answers or _sibling_answers(path, storage_options)
    if sibling is not None:
        given = read_answers(sibling, ids, storage_options)
        right = [given[i].right if i in given else known for i, known in zip(ids, right, strict=True)]
        types = [given[i].type if i in given and given[i].typed else known for i, known in zip(ids, types, strict=True)]
    return _table(dataset, ids, names, asked, unescaped(right, dataset), types, _turns(records, path))


def _table(
    dataset: str,
    ids: list[str],
    names: list[str],
    asked: list[str],
    right: list[Answer],
    types: list[str | None],
    turns: list[int | None],
) -> pa.Table:
    """Return a table of `QUESTIONS`, with `SEVERAL_ANSWERS` where a question has more than one."""
    first = [answer[0] if isinstance(answer, tuple) else answer for answer in right]
    kinds = [type_name(dataset, raw, text) for raw, text in zip(types, asked, strict=True)]
    table = pa.table([ids, names, asked, first, kinds, turns], schema=QUESTIONS)
    if any(isinstance(answer, tuple) for answer in right):
        several = [answer if isinstance(answer, tuple) else None for answer in right]
        table = table.append_column(SEVERAL_ANSWERS, pa.array(several, SEVERAL_ANSWERS.type))
    return table.replace_schema_metadata({"framefold.dataset": dataset})


def dataset_of(questions: pa.Table) -> str:
    """Return the data set that `read_questions` recognised; `plain` for a table made elsewhere."""
    return str((questions.schema.metadata or {}).get(b"framefold.dataset", b"plain").decode())


def type_name(dataset: str, raw: object, question: str) -> str | None:
    """Return the question's type as the data set names it; None where it has none, the raw one where it is unknown."""
    if dataset in ("msvd-qa", "msrvtt-qa"):
        first = next(iter(question.lower().split()), "")
        return first if first in QUESTION_WORDS else "other"
    names = {"activitynet-qa": ACTIVITYNET_TYPES, "tgif-qa": TGIF_TYPES}.get(dataset)
    if names is None or not str(raw).isdecimal() or int(str(raw)) >= len(names):
        return text_of(raw)
    return names[int(str(raw))]


def candidate_ids(dataset: str, video_name: str, aliases: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the names a video may have in a corpus, likeliest first.

    ActivityNet-QA leaves the `v_` of the file names out, and some YouTube ids begin with `v_` themselves, so it is
    always added and never stripped. MSVD-QA and MSRVTT-QA number their videos `vid1451` and `video7010`.
    """
    named = {
        "activitynet-qa": (f"v_{video_name}", video_name),
        "msvd-qa": (f"vid{video_name}", video_name) if video_name.isdecimal() else (video_name,),
        "msrvtt-qa": (f"video{video_name}", video_name) if video_name.isdecimal() else (video_name,),
    }.get(dataset, (video_name,))
    others = tuple((aliases or {})[name] for name in named if name in (aliases or {}))
    return tuple(dict.fromkeys(named + others))


def _with_escaped(ids: Sequence[str]) -> tuple[str, ...]:
    return (*ids, *(bounded(escape(one)) for one in ids))


def join_videos(questions: pa.Table, known: Collection[str], aliases: Mapping[str, str] | None = None) -> pa.Table:
    """Add `store_id`, the first candidate name of each video that is in `known`, or null if none is.

    Spaces around a name count only where the store has them too. A name with the suffix of a video file is looked for
    without it as well, and then by ever shorter ends of its path, as long as no two names then mean one video. A name with
    control characters is looked for as ids have it.
    """
    dataset, names = dataset_of(questions), questions["video_id"].to_pylist()
    found = known_names(set(names), set(known), lambda name: _with_escaped(candidate_ids(dataset, name, aliases)))
    return questions.append_column("store_id", pa.array([found[name] for name in names], pa.string()))


def _turns(records: list[Record], path: str) -> list[int | None]:
    """Return the turn of each row, None if it has none. Raises ConfigError for what is no whole number."""
    given = texts(records, "turn", path)
    if not any(given):
        return [None] * len(given)
    found: list[int | None] = []
    for number, text in enumerate(given, 1):
        raw = (text or "").strip()
        if raw and not (raw.removesuffix(".0").isdecimal() and float(raw) <= MAX_TURN):
            raise ConfigError(f"{path}: expected turn to be a whole number up to {MAX_TURN}, got {raw!r} in row {number}")
        found.append(int(float(raw)) if raw else None)
    return found


def with_history(questions: pa.Table) -> pa.Table:
    """Add `history`: SHA-256 of the turns before a question, null where it has no turn.

    Raises ConfigError if a video has two questions with the same turn.
    """
    rows = questions.to_pylist()
    spoken: dict[str, Any] = {}
    history: list[str | None] = [None] * len(rows)
    for at in sorted((at for at, row in enumerate(rows) if row["turn"] is not None), key=lambda at: rows[at]["turn"]):
        row = rows[at]
        digest, last = spoken.get(row["video_id"], (hashlib.sha256(), None))
        if row["turn"] == last:
            raise ConfigError(f"video {row['video_id']} has two questions with turn {last}")
        history[at] = digest.hexdigest()
        digest.update(json.dumps(row["question"]).encode())
        spoken[row["video_id"]] = digest, row["turn"]
    return questions.append_column("history", pa.array(history, pa.string()))


def _sibling_answers(path: str, storage_options: Mapping[str, Any] | None) -> str | None:
    if not path.endswith("_q.json"):
        return None
    sibling = path.removesuffix("_q.json") + "_a.json"
    fs, location = fsspec.core.url_to_fs(sibling, **(storage_options or {}))
    return sibling if fs.exists(location) else None


def _video_names(records: list[Record], column: str, path: str) -> list[str]:
    """Return the video of each row; outside `video_id` it may be a list of one, or an object with a path."""
    if column in ("video", "videos"):
        named = [located(video_name, record.get(column), path, number, column) for number, record in enumerate(records, 1)]
        records = [{**record, column: name} for record, name in zip(records, named, strict=True)]
    names = required_texts(records, column, path, blank=False)
    check_controls(names, column, path)
    return names
