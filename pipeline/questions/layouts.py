"""Layouts of question files, told apart by their columns, and data sets, told apart by their video names."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from pipeline.errors import ConfigError
from pipeline.questions.video_names import without_suffix
from pipeline.tables.json_layouts import VIDEO_COLUMNS
from pipeline.tables.values import Record


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a kind of file keeps what we need; the data set it proves, if its columns alone prove one."""

    video: str
    ids: tuple[str, ...]
    dataset: str | None = None


PACKAGE = Layout(video="video_name", ids=("question_id", "id"))
MSVD = Layout(video="video_id", ids=("id",), dataset="msvd-qa")
MSRVTT = Layout(video="video_id", ids=("id",), dataset="msrvtt-qa")
TGIF = Layout(video="gif_name", ids=("vid_id", "question_id"), dataset="tgif-qa")
PLAIN = Layout(video="video_id", ids=("question_id", "id"), dataset="plain")


def detect_layout(records: list[Record], path: str) -> Layout:
    """Tell the layout of a question file by its columns. Raises ConfigError with what was found."""
    columns: set[str] = set().union(*records)
    if "a1" in columns:
        raise ConfigError(f"{path} is a multiple-choice file (column a1); only open-ended questions can be answered")
    if {"video_name", "question"} <= columns and ("question_id" in columns or "video_id" not in columns):
        return PACKAGE
    if {"gif_name", "question"} <= columns:
        return TGIF
    if {"id", "video_id", "question"} <= columns and _numbered(records):
        return MSRVTT if "category_id" in columns else MSVD
    video = next((name for name in VIDEO_COLUMNS if name in columns), None)
    if video is not None and "question" in columns:
        return replace(PLAIN, video=video)
    raise ConfigError(
        f"{path}: cannot tell the layout from columns {sorted(columns)}; expected video_name, gif_name or video_id, "
        "with question"
    )


def _numbered(records: list[Record]) -> bool:
    """Tell whether videos are numbers, as MSVD-QA and MSRVTT-QA have them: integers, or floats as pandas makes of them."""
    first = next((record["video_id"] for record in records if record.get("video_id") is not None), None)
    return isinstance(first, (int, float)) and not isinstance(first, bool)


def guess_dataset(names: Collection[str], path: str) -> str:
    """Tell the data set of a Zero_Shot_QA style file by its video names. Raises ConfigError when they fit none."""
    patterns = {
        "msrvtt-qa": r"video\d+",
        "msvd-qa": r"vid\d+|.{11}_\d+_\d+",  # {youtube id}_{start}_{end}; the id may hold _ and - itself
        "tgif-qa": r"tumblr_\w+",
        "activitynet-qa": r"(?:v_)?[\w-]{11}",
    }
    for dataset, pattern in patterns.items():
        if all(re.fullmatch(pattern, without_suffix(name.strip())) for name in names):
            return dataset
    raise ConfigError(f"{path}: video names such as {next(iter(names))!r} fit no known data set; name it with --dataset")
