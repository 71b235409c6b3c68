"""A corpus of moving shapes on disk: real H.264 MP4 files with questions and answers in ActivityNet-QA's layout."""

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.synthetic.questions import questions
from pipeline.synthetic.world import Scene, draw_scene, render

FRAMES = 24
"""Frames of a clip; `pool.TIMES` are where eight of them are sampled."""
RATE = 8
"""Frames per second."""


def write_corpus(folder: Path, seeds: Iterable[int], side_px: int = 256) -> int:
    """Write `videos/v_<name>.mp4`, `test_q.json` and `test_a.json`; returns the number of questions."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    asked, answers = [], []
    for seed in seeds:
        scene, name = draw_scene(seed), f"shapes{seed:07d}"
        write_video(folder / "videos" / f"v_{name}.mp4", scene, side_px)
        for number, question in enumerate(questions(scene)):
            question_id = f"v_{name}_{number}"
            asked.append({"video_name": name, "question": question.text, "question_id": question_id})
            answers.append({"answer": question.answer, "type": question.type, "question_id": question_id})
    (folder / "test_q.json").write_text(json.dumps(asked))
    (folder / "test_a.json").write_text(json.dumps(answers))
    return len(asked)


def write_video(path: Path, scene: Scene, side_px: int = 256) -> None:
    """Write one clip: H.264, yuv420p, 24 frames at 8 per second; the same bytes for the same scene and codec version."""
    frames = render(scene, np.arange(FRAMES) / (FRAMES - 1), side_px, oversample=1 if side_px > 128 else 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE), options={"crf": "20", "preset": "veryfast"})
        stream.width = stream.height = side_px
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
