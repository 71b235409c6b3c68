"""Question files of the video QA data sets, as released, in one table. Joined by id, never by position.

Layouts are told apart by their columns, data sets by their video names; `dataset=` overrides the second.
Multiple-choice files (TGIF-QA action and transition) are refused: there is nothing open-ended to answer in them.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.names import bounded, escape
from pipeline.records import Record, optional_text, read_records, required_texts

DATASETS = ("activitynet-qa", "msvd-qa", "msrvtt-qa", "tgif-qa", "plain")
ACTIVITYNET_TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")
TGIF_TYPES = ("object", "number", "color", "location")
"""Files of rows that can be read."""
QUESTION_WORDS = ("what", "who", "how", "when", "where")
QUESTIONS = pa.schema(
    [*((name, pa.string()) for name in ("question_id", "video_id", "question", "answer", "type")), ("turn", pa.int32())]
)
"""`turn`: place of the question in a conversation about its video; null where it is asked by itself."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a kind of file keeps what we need; the data set it proves, if its columns alone prove one."""

    video: str
    ids: tuple[str, ...]
    dataset: str | None = None


PACKAGE = Layout(video="video_name", ids=("question_id",))
MSVD = Layout(video="video_id", ids=("id",), dataset="msvd-qa")
MSRVTT = Layout(video="video_id", ids=("id",), dataset="msrvtt-qa")
TGIF = Layout(video="gif_name", ids=("vid_id", "question_id"), dataset="tgif-qa")
PLAIN = Layout(video="video_id", ids=("question_id", "id"), dataset="plain")


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
    layout = detect_layout(records, path)
    names = required_texts(records, layout.video, path, blank=False)
    if dataset == "auto":
        dataset = layout.dataset or guess_dataset(names, path)
    texts = required_texts(records, "question", path)
    ids = question_ids(records, layout, names, texts, path)
    sibling = answers or _sibling_answers(path, storage_options)
    if sibling is not None:
        records = _with_answers(records, ids, sibling, storage_options)
    rows = zip(ids, names, texts, records, _turns(records, path), strict=True)
    columns = [
        (i, n, t, optional_text(r.get("answer")), type_name(dataset, r.get("type"), t), turn) for i, n, t, r, turn in rows
    ]
    table = pa.table(list(map(list, zip(*columns, strict=True))), schema=QUESTIONS)
    return table.replace_schema_metadata({"framefold.dataset": dataset})


def dataset_of(questions: pa.Table) -> str:
    """Return the data set that `read_questions` recognised; `plain` for a table made elsewhere."""
    return str((questions.schema.metadata or {}).get(b"framefold.dataset", b"plain").decode())


def detect_layout(records: list[Record], path: str) -> Layout:
    """Tell the layout of a question file by the columns of its first row. Raises ConfigError with what was found."""
    columns = records[0].keys()
    if "a1" in columns:
        raise ConfigError(f"{path} is a multiple-choice file (column a1); only open-ended questions can be answered")
    if {"video_name", "question", "question_id"} <= columns:
        return PACKAGE
    if {"gif_name", "question"} <= columns:
        return TGIF
    if {"id", "video_id", "question"} <= columns and isinstance(records[0]["video_id"], int):
        return MSRVTT if "category_id" in columns else MSVD
    if {"video_id", "question"} <= columns:
        return PLAIN
    raise ConfigError(
        f"{path}: cannot tell the layout from columns {sorted(columns)}; expected video_name, gif_name or video_id, "
        "with question"
    )


def guess_dataset(names: Collection[str], path: str) -> str:
    """Tell the data set of a Zero_Shot_QA style file by its video names. Raises ConfigError when they fit none."""
    patterns = {
        "msrvtt-qa": r"video\d+",
        "msvd-qa": r"vid\d+|.{11}_\d+_\d+",  # {youtube id}_{start}_{end}; the id may hold _ and - itself
        "tgif-qa": r"tumblr_\w+",
        "activitynet-qa": r"[\w-]{11}",
    }
    for dataset, pattern in patterns.items():
        if all(re.fullmatch(pattern, name.strip()) for name in names):
            return dataset
    raise ConfigError(f"{path}: video names such as {next(iter(names))!r} fit no known data set; name it with --dataset")


def question_ids(records: list[Record], layout: Layout, names: list[str], texts: list[str], path: str) -> list[str]:
    """Return one unique id per row: the file's own, else one made from video and question so that order is free."""
    column = next((name for name in layout.ids if name in records[0]), None)
    if column is not None:
        ids = required_texts(records, column, path, blank=False)
    else:
        ids = list(_numbered(_made_id(name, text) for name, text in zip(names, texts, strict=True)))
    repeated = [question_id for question_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ConfigError(f"{path}: {len(repeated)} question ids are used more than once, such as {repeated[:3]}")
    return ids


def type_name(dataset: str, raw: object, question: str) -> str | None:
    """Return the question's type as the data set names it; None where it has none, the raw one where it is unknown."""
    if dataset in ("msvd-qa", "msrvtt-qa"):
        first = next(iter(question.lower().split()), "")
        return first if first in QUESTION_WORDS else "other"
    names = {"activitynet-qa": ACTIVITYNET_TYPES, "tgif-qa": TGIF_TYPES}.get(dataset)
    if names is None or not str(raw).isdecimal() or int(str(raw)) >= len(names):
        return optional_text(raw)
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


def join_videos(questions: pa.Table, known: Collection[str], aliases: Mapping[str, str] | None = None) -> pa.Table:
    """Add `store_id`, the first candidate name of each video that is in `known`, or null if none is.

    Spaces around a name count only where the store has them too. A name with control characters is looked for as ids have it.
    """
    known, dataset = set(known), dataset_of(questions)
    names = questions["video_id"].to_pylist()
    candidates = {n: candidate_ids(dataset, n, aliases) + candidate_ids(dataset, n.strip(), aliases) for n in set(names)}
    candidates = {name: ones + tuple(bounded(escape(one)) for one in ones) for name, ones in candidates.items()}
    found = {name: next((one for one in ones if one in known), None) for name, ones in candidates.items()}
    return questions.append_column("store_id", pa.array([found[name] for name in names], pa.string()))


def _turns(records: list[Record], path: str) -> list[int | None]:
    """Return the turn of each row, None if it has none. Raises ConfigError for what is no whole number."""
    found: list[int | None] = []
    for number, record in enumerate(records, 1):
        raw = (optional_text(record.get("turn")) or "").strip()
        if raw and not raw.removesuffix(".0").isdecimal():
            raise ConfigError(f"{path}: expected turn to be a whole number, got {raw!r} in row {number}")
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


def _made_id(name: str, text: str) -> str:
    return f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _numbered(ids: Iterable[str]) -> Iterable[str]:
    """Yield each id; its second and later uses get `:2`, `:3`: the same question may be asked twice of one video."""
    seen: Counter[str] = Counter()
    for made in ids:
        seen[made] += 1
        yield made if seen[made] == 1 else f"{made}:{seen[made]}"


def _sibling_answers(path: str, storage_options: Mapping[str, Any] | None) -> str | None:
    if not path.endswith("_q.json"):
        return None
    sibling = path.removesuffix("_q.json") + "_a.json"
    fs, location = fsspec.core.url_to_fs(sibling, **(storage_options or {}))
    return sibling if fs.exists(location) else None


def _with_answers(records: list[Record], ids: list[str], path: str, storage_options: Mapping[str, Any] | None) -> list[Record]:
    found: dict[str, Record] = {}
    rows = read_records(path, storage_options)
    column = "question_id" if "question_id" in rows[0] else "id"
    named, texts = required_texts(rows, column, path, blank=False), required_texts(rows, "answer", path)
    for row, question_id, text in zip(rows, named, texts, strict=True):
        answer = {"answer": text, **({"type": row["type"]} if "type" in row else {})}
        if found.setdefault(question_id, answer) != answer:
            raise ConfigError(f"{path}: question {question_id!r} has two different answers")
    if found.keys().isdisjoint(ids):
        raise ConfigError(f"{path}: none of its {len(found)} answers belongs to one of the {len(ids)} questions")
    return [{**record, **found.get(i, {})} for record, i in zip(records, ids, strict=True)]
