"""Questions and answers as ActivityNet-QA releases them, and files of them."""

import json
from pathlib import Path
from typing import Any

QUESTIONS = [
    {"video_name": "1QIUV7WYKXg", "question": "is the athlete wearing trousers", "question_id": "v_1QIUV7WYKXg_3"},
    {"video_name": "-9niCub7u60", "question": " what is behind  the girl ", "question_id": "v_-9niCub7u60_4"},
    {"video_name": "1QIUV7WYKXg", "question": "how many people run", "question_id": "v_1QIUV7WYKXg_7"},
]
ANSWERS = [
    {"answer": "no", "type": 3, "question_id": "v_1QIUV7WYKXg_3"},
    {"answer": "tree", "type": 1, "question_id": "v_-9niCub7u60_4"},
    {"answer": "2", "type": 7, "question_id": "v_1QIUV7WYKXg_7"},
]


def written(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)
