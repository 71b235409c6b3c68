"""Questions with their answers, and files of them."""

import json
from pathlib import Path
from typing import Any

QUESTIONS = [
    {"question_id": "q1", "video_id": "a", "question": "is it red?", "answer": "yes", "type": "yes/no"},
    {"question_id": "q2", "video_id": "a", "question": "how many?", "answer": "2", "type": "number"},
    {"question_id": "q3", "video_id": "b", "question": "what is it?", "answer": "dog", "type": "object"},
    {"question_id": "q4", "video_id": "c", "question": "what else?", "answer": None, "type": None},
]


def written(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)
