"""Train the bundled model from nothing: `framefold train --out DIR`. Stop it and start it again, it goes on.

Stage 1: the tower with its text tower, on frames with exact masks. Stage 2: projector and language model, on the tower's rows
with patches dropped at random, so that the model can read reduced clips. Then the accuracy on held-out seeds goes into the
model card. About an hour and a half on two CPU cores, minutes on a GPU.
"""

import logging
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.commands.shapes import TRAINING_SEEDS
from jobs.runtime.launch import Report, launch
from pipeline.errors import ConfigError, check_at_least_one
from pipeline.models.device import check_device, check_present, device_here

if TYPE_CHECKING:  # heavy: torch loads when training starts, not when a flag is parsed
    from pipeline.synthetic.pool import Pool

logger = logging.getLogger(__name__)
REDUCED = 16
"""Patches per frame of the second accuracy in the model card."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train the small Video-LLaVA of moving shapes."""

    out: str
    """Folder for the checkpoint; the state of the run lies in `state` inside it."""
    clips: int = 8000
    """Training clips, drawn from seed 1,000,000 on."""
    tower_steps: int = 1500
    """Steps of stage 1."""
    frames_per_step: int = 128
    """Batch of stage 1."""
    language_steps: int = 2400
    """Steps of stage 2."""
    held_out: int = 200
    """Clips that accuracy is measured on, drawn from seed 0 on."""
    seed: int = 0
    """Of weights and draws."""
    threads: int = 2
    """CPU threads."""
    device: str = "auto"
    """auto is the first GPU, or the CPU."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "clips", "tower_steps", "frames_per_step", "language_steps", "held_out", "threads")
        if self.held_out > TRAINING_SEEDS:
            raise ConfigError(f"held_out must be at most {TRAINING_SEEDS}: seeds from there on are trained on")
        check_device(self.device)


def run(job: TrainJob) -> Report:
    """Train both stages, measure, write the checkpoint and its card."""
    import torch

    from pipeline.synthetic.pool import make_pool

    began = time.monotonic()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    device = device_here(job.device)
    check_present(device)
    try:
        Path(job.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{job.out}: expected a folder to write to: {error}") from error
    pool = make_pool(range(TRAINING_SEEDS, TRAINING_SEEDS + job.clips), job.threads)
    logger.info("%d clips rendered", job.clips)
    accuracy = _train(job, pool, device)
    minutes = round((time.monotonic() - began) / 60, 1)
    (Path(job.out) / "README.md").write_text(card(job, accuracy, minutes, device))
    return {"job": "train", "checkpoint": job.out, "minutes": minutes, "held_out_clips": job.held_out, "accuracy": accuracy}


def _train(job: TrainJob, pool: "Pool", device: str) -> dict[str, dict[str, float]]:
    """Train, save the checkpoint, and return accuracy on held-out clips by patches kept and type."""
    from pipeline.synthetic import model as shapes
    from pipeline.synthetic.pool import make_pool
    from pipeline.synthetic.train_language import ALL, held_out_accuracy, start_projector, tower_rows, train_language
    from pipeline.synthetic.train_tower import TowerHeads, train_tower

    state = Path(job.out) / "state"
    state.mkdir(parents=True, exist_ok=True)
    model, text, heads = shapes.build_model().to(device), shapes.build_text_tower().to(device), TowerHeads().to(device)
    tower = model.model.video_tower
    train_tower(
        tower,
        text,
        heads,
        pool,
        steps=job.tower_steps,
        batch_frames=job.frames_per_step,
        rate=1.5e-3,
        seed=job.seed,
        log=logger.info,
        state=state / "tower.safetensors",
    )
    rows, held_out = tower_rows(tower, pool, seed=1), make_pool(range(job.held_out), job.threads)
    start_projector(model.model.multi_modal_projector, heads, rows, pool.owners)
    kept = state / "language.safetensors"
    train_language(model, rows, pool, steps=job.language_steps, rate=1e-3, seed=job.seed, log=logger.info, state=kept)
    seen = tower_rows(tower, held_out, seed=2)
    accuracy = {str(patches): held_out_accuracy(model, seen, held_out, patches) for patches in (ALL, REDUCED)}
    shapes.save(Path(job.out), model.cpu(), text.cpu(), heads.cpu().visual_projection)
    return accuracy


def card(job: TrainJob, accuracy: dict[str, dict[str, float]], minutes: float, device: str) -> str:
    """Return the model card."""
    from pipeline.synthetic.train_language import ALL

    types = [name for name in accuracy[str(ALL)] if name != "all"]
    lines = [f"| {name} | {accuracy[str(ALL)][name]:.3f} | {accuracy[str(REDUCED)][name]:.3f} |" for name in ["all", *types]]
    table = "\n".join(lines)
    return CARD.format(job=job, minutes=minutes, device=device, python=platform.python_version(), table=table, reduced=REDUCED)


CARD = """# A small Video-LLaVA that answers questions about moving shapes

A `VideoLlavaForConditionalGeneration` of the transformers classes, trained from nothing by this project for its tests and its
demo. It knows seven colours, five shapes and four directions, and nothing else. Apache-2.0, as the project.

- Frames of 64 px in patches of 8 px: 8 x 8 patches and CLS per frame, 8 frames, 520 visual tokens per video. The real model
  has 16 x 16: the same share of tokens kept is a quarter of its number here.
- Tower: 5 blocks, width 128, 1.0 M parameters (the image tower is a copy). Language model: 4 blocks, width 192, 1.8 M.
- `text_tower/`: the text side of the contrastive pair, with `visual_projection.safetensors`, for methods that compare
  patches with a question.
- Half precision, safetensors.

## Training

{job.clips} generated clips from seed 1,000,000 on. Stage 1: {job.tower_steps} steps of {job.frames_per_step} frames, with patch
labels from exact masks and CLIP's loss. Stage 2: {job.language_steps} steps, the questions of a clip packed behind its tokens,
patches dropped at random, 6 to 64 left per frame. Seed {job.seed}. {minutes} minutes on {device}, {job.threads} threads,
Python {python}. The command: `framefold train --out DIR`.

## Accuracy on held-out clips

Exact match, {job.held_out} clips of seeds 0 to {job.held_out}, all their questions, types as ActivityNet-QA names them.

| type | all 64 patches per frame | {reduced} random patches per frame |
|---|---|---|
{table}

Measured on rendered frames with the jitter of training; the demo measures MP4 files.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(TrainJob, run, "framefold train", args)


if __name__ == "__main__":
    sys.exit(main())
