"""A split in the layout of ActivityNet-QA, with questions and answers of our own whose counts are easily worked out by hand."""

import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
VIDEOS = 40
ALWAYS = (3, 0, 4, 1, 2, 3, 7, 8)
"""Types of the first eight questions of each video, as the release numbers them: 0 motion, 1 spatial, 2 temporal, 3 yes/no,
4 color, 5 object, 6 location, 7 number, 8 other."""
ASKED = (
    "what is the dancer doing", "what is left of the tree", "what happens after the jump", "is the floor  wet",
    "what color is the kite", "what lies on the table", "where do they row", " how many dogs are there", "why do they laugh",
)  # fmt: skip
SAID = ("spinning", "bench", "they sit down", "no", "orange", "a rope", "lake", "3", "of the hat")


def kinds(video: int) -> list[int]:
    """Types of the ten questions: half of the videos ask about an object, half about a place, a quarter have a third yes/no."""
    return [*ALWAYS, 6 if video % 2 else 5, 8 if video % 4 else 3]


def answer(video: int, place: int, kind: int) -> str:
    """`yes` to the first question of every second video, the sixth of every fourth, and one spatial question by accident."""
    yes = (place == 0 and video % 2 == 0) or (place == 5 and video % 4 == 0) or (place == 3 and video == 7)
    return "yes" if yes else SAID[kind]


def made_up_split() -> tuple[Rows, Rows]:
    """Questions and answers: 400 questions about 40 videos, 31 of which have the answer `yes`."""
    questions: Rows = []
    answers: Rows = []
    for video in range(VIDEOS):
        for place, kind in enumerate(kinds(video)):
            name = f"{video:02}-madeup_{'abcd'[video % 4]}"
            key = f"v_{name}_{place + 1}"
            questions.append({"video_name": name, "question": ASKED[kind], "question_id": key})
            answers.append({"answer": answer(video, place, kind), "type": kind, "question_id": key})
    return questions, answers


def write_split(folder: Path) -> Path:
    """Write test_q.json and test_a.json as the release has them; returns the folder."""
    for name, rows in zip(("test_q.json", "test_a.json"), made_up_split(), strict=True):
        (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    return folder
