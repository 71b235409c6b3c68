"""The sampled frames of inspected videos as one picture, with index and time under each frame."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from jobs.commands.inspect_text import visible
from pipeline.decode.inspection import Inspection
from pipeline.redaction import redact

GAP_PX = 6
FRAMES_PER_ROW = 8
TEXT_PX = 13
LINE_PX = 18
LEAST_CELL_PX = 96
"""Narrower frames get so much room for the text below."""
LEAST_WIDTH_PX = 640
PAPER, BLACK, RED = (232, 232, 232), (0, 0, 0), (180, 0, 0)


def strip(found: Inspection, box_px: int) -> Image.Image:
    """Return the frames of one video in rows of eight, under its name; or the class of its failure in their place."""
    frames = found.thumbnails if found.thumbnails is not None else np.empty((0, 0, 0, 3), dtype=np.uint8)
    high, wide = frames.shape[1:3]
    columns = min(len(frames), FRAMES_PER_ROW)
    cell_px, row_px = max(wide, min(LEAST_CELL_PX, box_px)) + GAP_PX, high + LINE_PX + GAP_PX
    head_px = LINE_PX * (2 if found.error_class else 1) + GAP_PX
    rows = -(-len(frames) // FRAMES_PER_ROW)
    size = max(LEAST_WIDTH_PX, columns * cell_px + GAP_PX), head_px + rows * row_px + GAP_PX
    picture = Image.new("RGB", size, PAPER)
    _write(picture, GAP_PX, GAP_PX // 2, redact(visible(found.video)), BLACK)
    if found.error_class:
        _write(picture, GAP_PX, GAP_PX // 2 + LINE_PX, visible(f"{found.error_class}: {found.error}"), RED)
    for number, frame in enumerate(frames):
        row, column = divmod(number, FRAMES_PER_ROW)
        _paste(picture, (GAP_PX + column * cell_px, head_px + row * row_px), frame, *_caption(found, number))
    return picture


def _caption(found: Inspection, number: int) -> tuple[str, bool]:
    """Return what stands under a frame, and whether the frame is proven."""
    clip = found.clip
    if clip is None or not number < min(len(clip.shown), len(clip.times_s), len(clip.proven)):
        return "", True
    proven = clip.proven[number]
    return f"{clip.shown[number]}  {clip.times_s[number]:.3f} s{'' if proven else ' ?'}", proven


def _paste(
    picture: Image.Image, corner: tuple[int, int], frame: npt.NDArray[np.uint8], caption: str, is_proven: bool
) -> None:
    picture.paste(Image.fromarray(frame), corner)
    _write(picture, corner[0], corner[1] + frame.shape[0] + 1, caption, BLACK if is_proven else RED)


def _write(picture: Image.Image, left: int, top: int, text: str, colour: tuple[int, int, int]) -> None:
    """Write a line of text, with its middle left out where it is too long."""
    font = ImageFont.load_default(TEXT_PX)
    draw = ImageDraw.Draw(picture)
    kept = len(text)
    room = picture.width - left - GAP_PX
    shown = text
    while kept > 8 and draw.textlength(shown, font=font) > room:
        kept -= max(1, kept // 16)
        shown = f"{text[: kept // 2]}...{text[-(kept - kept // 2) :]}"
    draw.text((left, top), shown, fill=colour, font=font)


def stacked(strips: Sequence[Image.Image]) -> bytes:
    """Return a PNG of strips, one below the other."""
    whole = Image.new("RGB", (max(one.width for one in strips), sum(one.height for one in strips)), PAPER)
    top = 0
    for one in strips:
        whole.paste(one, (0, top))
        top += one.height
    content = io.BytesIO()
    whole.save(content, "PNG")
    return content.getvalue()
