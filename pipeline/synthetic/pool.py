"""Training data in memory: rendered clips, what their patches show, and their questions as token ids.

Shapes: C clips, F = 8 frames, S = 64 px, N = 64 patches, O = 3 things at most.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.synthetic.model import EOS, build_tokenizer
from pipeline.synthetic.questions import Question, questions
from pipeline.synthetic.world import COLOURS, SHAPES, SIDE_PX, Scene, draw_scene, patch_owners, render

FRAMES = 8
CAPTION_TOKENS = 18
PROMPT = "USER: <video>\n{question} ASSISTANT:"
"""The prompt of the transformers documentation; `pipeline.models.prompts` has the same as its default."""

TIMES = np.linspace(0, 23, FRAMES).astype(int) / 23
"""Where the `linspace` policy samples a clip of 24 frames, as shares of the clip."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Rendered clips and all that is known about them."""

    frames: Tensor
    """(C, F, S, S, 3) uint8."""
    owners: Tensor
    """(C, F, N) int8: the thing each patch shows, see `patch_owners`."""
    kinds: Tensor
    """(C, O + 1, 2) int64: colour and shape of each thing, from 1; row 0 is the background."""
    centres: Tensor
    """(C, F, O + 1, 2) float32: x and y of each thing, in shares of the frame, minus one half."""
    captions: Tensor
    """(C, F, L) int64: what a frame shows, as ids for the text tower."""
    asked: list[list[tuple[list[int], list[int], int]]]
    """Per clip its questions: ids of the prompt after the video, ids of the answer with EOS, type."""


def make_pool(seeds: Sequence[int], workers: int = 2) -> Pool:
    """Render the scenes of some seeds."""
    parts = [list(part) for part in np.array_split(np.asarray(seeds), max(1, len(seeds) // 250))]
    with ProcessPoolExecutor(workers) as processes:
        made = [row for rows in processes.map(_rows, parts) for row in rows]
    return Pool(
        frames=torch.from_numpy(np.stack([row["frames"] for row in made])),
        owners=torch.from_numpy(np.stack([row["owners"] for row in made])),
        kinds=torch.from_numpy(np.stack([row["kinds"] for row in made])),
        centres=torch.from_numpy(np.stack([row["centres"] for row in made])),
        captions=torch.from_numpy(np.stack([row["captions"] for row in made])),
        asked=[row["asked"] for row in made],
    )


def _rows(seeds: Sequence[int]) -> list[dict[str, Any]]:
    tokenizer = build_tokenizer()
    return [_row(draw_scene(int(seed)), tokenizer) for seed in seeds]


def _row(scene: Scene, tokenizer: Any) -> dict[str, Any]:
    """Return one clip of the pool. Any: the tokeniser's class is untyped."""
    kinds = np.zeros((4, 2), dtype=np.int64)
    centres = np.zeros((FRAMES, 4, 2), dtype=np.float32)
    for number, thing in enumerate(scene.things, start=1):
        kinds[number] = 1 + list(COLOURS).index(thing.colour), 1 + SHAPES.index(thing.shape)
        centres[:, number] = np.array([thing.centre(float(t)) for t in TIMES]) / SIDE_PX - 0.5
    return {
        "frames": render(scene, TIMES),
        "owners": patch_owners(scene, TIMES),
        "kinds": kinds,
        "centres": centres,
        "captions": np.array([_caption_ids(scene, float(t), tokenizer) for t in TIMES]),
        "asked": [encode_question(question, tokenizer) for question in questions(scene)],
    }


def _caption_ids(scene: Scene, time: float, tokenizer: Any) -> list[int]:
    """Return the ids of "a red ring and a blue cross", in random order, padded to a fixed length with EOS first."""
    names = [thing.name for thing in scene.things if thing.shown(time)]
    np.random.default_rng(scene.seed + int(time * 97)).shuffle(names)
    ids = [*tokenizer("and".join(f" a {name} " for name in names).strip()).input_ids, EOS]
    return ids + [0] * (CAPTION_TOKENS - len(ids))


def encode_question(question: Question, tokenizer: Any) -> tuple[list[int], list[int], int]:
    """Return the ids after the video, the ids of the answer, and the type."""
    prompt = tokenizer(PROMPT.format(question=question.text)).input_ids
    after = prompt[prompt.index(tokenizer.convert_tokens_to_ids("<video>")) + 1 :]
    return after, [*tokenizer(question.answer, add_special_tokens=False).input_ids, EOS], question.type
