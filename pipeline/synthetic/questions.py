"""Questions about a scene, in the types of ActivityNet-QA. Every one has exactly one right answer."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.world import COLOURS, SHAPES, Scene, Thing

MOTION, SPATIAL, TEMPORAL, YES_NO, COLOUR, OBJECT, LOCATION, NUMBER = 0, 1, 2, 3, 4, 5, 6, 7
TYPES = {0: "Motion", 1: "Spatial", 2: "Temporal", 3: "Yes/No", 4: "Color", 5: "Object", 6: "Location", 7: "Number"}
"""Type numbers as ActivityNet-QA counts them; its 8, Other, has no counterpart here."""

CLEARLY_PX = 12
"""Two places further apart than this, of 64, are told apart by a question."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its answer, lower case and without a question mark, as ActivityNet-QA writes them."""

    text: str
    answer: str
    type: int


def questions(scene: Scene) -> list[Question]:
    """Return all questions of a scene, in a fixed order, no text twice."""
    random = np.random.default_rng(scene.seed + 3)
    found = [*_about_each(scene), *_about_pairs(scene), *_about_time(scene), *_yes_no(scene, random)]
    found.append(Question(text="how many objects are in the video", answer=str(len(scene.things)), type=NUMBER))
    return found


def _about_each(scene: Scene) -> Iterator[Question]:
    for thing in scene.things:
        answer = "it stays" if thing.motion == "still" else thing.motion
        yield Question(text=f"which way does the {thing.name} move", answer=answer, type=MOTION)
        if sum(other.shape == thing.shape for other in scene.things) == 1:
            yield Question(text=f"what color is the {thing.shape}", answer=thing.colour, type=COLOUR)
        if sum(other.colour == thing.colour for other in scene.things) == 1:
            yield Question(text=f"what is the shape of the {thing.colour} object", answer=thing.shape, type=OBJECT)
        yield from _where(thing)


def _where(thing: Thing) -> Iterator[Question]:
    """Ask for the half of the frame in which a thing stands that never leaves it."""
    if thing.motion == "still":
        x, y = thing.start
        for value, names, axis in ((x, ("left", "right"), "left or right"), (y, ("top", "bottom"), "top or bottom")):
            if abs(value - 32) > CLEARLY_PX / 2:
                text = f"is the {thing.name} in the {axis} half"
                yield Question(text=text, answer=names[value > 32], type=LOCATION)


def _about_pairs(scene: Scene) -> Iterator[Question]:
    for one in scene.things:
        for other in scene.things:
            gaps = [other.centre(t)[0] - one.centre(t)[0] for t in (0.0, 1.0)]
            if one is not other and min(np.abs(gaps)) > CLEARLY_PX and gaps[0] * gaps[1] > 0:
                answer = "left" if gaps[0] > 0 else "right"
                text = f"is the {one.name} on the left or right of the {other.name}"
                yield Question(text=text, answer=answer, type=SPATIAL)


def _about_time(scene: Scene) -> Iterator[Question]:
    for thing in scene.things:
        if thing.appears > 0:
            yield Question(text="what appears in the video", answer=thing.name, type=TEMPORAL)
        if thing.disappears < 1:
            yield Question(text="what disappears from the video", answer=thing.name, type=TEMPORAL)


def _yes_no(scene: Scene, random: np.random.Generator) -> Iterator[Question]:
    """Ask for as many absent things as present ones; where possible an absent one mixes colour and shape of two."""
    present = [thing.name for thing in scene.things]
    mixed = [f"{a.colour} {b.shape}" for a in scene.things for b in scene.things]
    mixed = sorted(set(mixed) - set(present))
    random.shuffle(mixed)
    absent = mixed[: len(present)]
    while len(absent) < len(present):
        name = f"{random.choice(list(COLOURS))} {random.choice(SHAPES)}"
        if name not in present and name not in absent:
            absent.append(name)
    for names, answer in ((present, "yes"), (absent, "no")):
        for name in names:
            yield Question(text=f"is there a {name} in the video", answer=answer, type=YES_NO)
