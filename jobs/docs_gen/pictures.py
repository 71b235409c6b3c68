"""One picture per reducer of which tokens of a clip survive: the bundled tower on a generated clip.

A patch that is a token of its own keeps its colours; one that took others in is tinted orange; one that was taken in is
faded and orange, one that was dropped faded and grey.
"""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

if TYPE_CHECKING:  # the tower loads when pictures are drawn, not when a flag is parsed
    from torch import Tensor

    from pipeline.models.tower import Tower
    from reducers.base import ReducedTokens, Reducer

MODEL = Path(__file__).parents[2] / "pipeline" / "synthetic" / "checkpoint"
SEED = 20
"""Of the clip: below 1,000,000, so the model has not been trained on it."""
WORDS = "a green square"
"""What is asked for where a method reads the question."""
GAP_PX = 2
SCALE = 2
DROPPED, TAKEN_IN, KEPT, TOOK_IN = range(4)
ORANGE = np.array([255, 140, 0])

PICTURED = {
    "none": "none",
    "sequential": "sequential(k=16)",
    "spatial": "spatial(k=16)",
    "prumerge": "prumerge",
    "prumerge+": "prumerge+(ratio=0.125, residual=false)",
    "visionzip": "visionzip(dominant=13, contextual=3)",
    "hired": "hired(rate=0.25)",
    "trim": "trim(ratio=0.25, score=cosine, aggregate=false)",
    "tome": "tome(keep=16)",
    "evs": "evs",
    "dycoke_ttm": "dycoke_ttm",
    "fastvid": "fastvid",
    "holitom": "holitom",
    "flashvid": "flashvid",
    "unicomp": "unicomp",
    "vcast": "vcast",
    "nest": "nest(keep=128)",
    "alloc": "alloc(novelty)|prumerge+",
    "evs as a first part": "evs|visionzip",
    "static": "static|visionzip",
    "tree": "tree|visionzip",
}
"""What is drawn for each section of docs/reducers.md, a quarter of the tokens where a budget is asked for."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A clip as the tower sees it."""

    frames: npt.NDArray[np.uint8]
    """(F, S, S, 3)."""
    grid: tuple[int, int]


def states(reduced: "ReducedTokens", frames: int, patches: int) -> npt.NDArray[np.uint8]:
    """Return what became of each patch of one clip (F, N): DROPPED, TAKEN_IN, KEPT or TOOK_IN."""
    found = np.full(frames * patches, DROPPED, dtype=np.uint8)
    if reduced.owner is not None:
        found[reduced.owner.numpy() >= 0] = TAKEN_IN
    own = reduced.anchor.numpy() >= 0
    changed = (reduced.kind.numpy() != 0) | (reduced.size.numpy() > 1)
    found[reduced.anchor.numpy()[own]] = np.where(changed[own], TOOK_IN, KEPT)
    return found.reshape(frames, patches)


def picture(shown: Shown, state_FN: npt.NDArray[np.uint8]) -> bytes:
    """Return a PNG of all frames side by side, each patch painted by its state."""
    frames, side = shown.frames.shape[:2]
    patch_px = side // shown.grid[0]
    state = state_FN.reshape(frames, *shown.grid).repeat(patch_px, axis=1).repeat(patch_px, axis=2)[..., None]
    colour = shown.frames.astype(np.float32)
    grey = np.broadcast_to(colour.mean(axis=-1, keepdims=True), colour.shape)
    faded = 208 + grey // 64 * 16
    painted = np.select(
        [state == KEPT, state == TOOK_IN, state == TAKEN_IN],
        [colour, 0.55 * colour + 0.45 * ORANGE, 0.7 * faded + 0.3 * ORANGE],
        faded,
    )
    levels = (painted.clip(0, 255) // 32 * 32 + 16).astype(np.uint8)
    wide = np.full((side, frames * (side + GAP_PX) - GAP_PX, 3), 255, dtype=np.uint8)
    for at, frame in enumerate(levels):
        wide[:, at * (side + GAP_PX) : at * (side + GAP_PX) + side] = frame
    return png(wide.repeat(SCALE, axis=0).repeat(SCALE, axis=1))


def png(pixels_HW3: npt.NDArray[np.uint8]) -> bytes:
    """Return a PNG with a palette of RGB pixels of at most 256 colours."""
    from PIL import Image

    colours, index = np.unique(pixels_HW3.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(index.reshape(pixels_HW3.shape[:2]).astype(np.uint8)).convert("P")
    image.putpalette(colours.tobytes())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def file_name(spec: str) -> str:
    """Return the file name of a spec's picture: its names, joined by dashes."""
    from reducers.registry import parse

    return parse(spec).name.replace("prumerge+", "prumerge-plus").replace("|", "-") + ".png"


def draw(specs: list[str]) -> dict[str, bytes]:
    """Return the pictures of some specs by file name; a method that reads the question is asked for `WORDS`."""
    import torch

    from pipeline.models.checkpoint import Checkpoint
    from pipeline.models.tower import Tower
    from pipeline.synthetic.pool import TIMES
    from pipeline.synthetic.world import draw_scene, render
    from reducers.registry import parse

    frames = render(draw_scene(SEED), TIMES)
    tower = Tower(Checkpoint.open(str(MODEL)), device="cpu", dtype="float32")
    found = {}
    for spec in specs:
        reduced = _reduced(tower, torch.from_numpy(frames), parse(spec))
        shown = Shown(frames=frames, grid=tower.grid)
        found[file_name(spec)] = picture(shown, states(reduced, len(frames), tower.grid[0] * tower.grid[1]))
    return found


def _reduced(tower: "Tower", frames_FSSC: "Tensor", reducer: "Reducer") -> "ReducedTokens":
    import torch

    from pipeline.synthetic.joint import patches_in_joint_space, words_in_joint_space
    from reducers.base import TextQuery

    ends = torch.tensor([0, len(frames_FSSC)])
    if reducer.modifies_tower:
        return tower.merged(frames_FSSC, reducer, ends)
    seen = tower(frames_FSSC, reducer.needs, ends)
    if not reducer.needs_text:
        return reducer.reduce(seen)
    seen = replace(seen, clip_space=patches_in_joint_space(tower.model, seen.features, MODEL))
    return reducer.reduce(seen, TextQuery(embedding=words_in_joint_space(WORDS, MODEL)))


def write(folder: str) -> list[str]:
    """Write all pictures into a folder and return their names. Raises ConfigError where it cannot."""
    drawn = draw(list(PICTURED.values()))
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, body in drawn.items():
            (Path(folder) / name).write_bytes(body)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error}") from error
    return sorted(drawn)
