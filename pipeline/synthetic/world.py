"""The world of moving shapes: what a clip shows, and its pixels.

A scene is one to three flat shapes over a textured, noisy background. Each stands still or moves in one of four
directions; in a quarter of the scenes one of them appears or disappears half-way. Lengths are given in px of a 64 px frame
and scale with the side that is asked for. Everything follows from a seed.

Shapes: F frames, O objects, S side in px, G = 8 patches per side, N = G*G.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

SIDE_PX = 64
"""Side of the frame that all lengths refer to."""
PATCHES = 8
"""G: patches per side of the bundled model's tower."""

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 168, 72),
    "blue": (48, 84, 216),
    "yellow": (232, 212, 48),
    "purple": (144, 56, 176),
    "orange": (240, 136, 32),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross")
MOTIONS = {"still": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Direction as (x, y), y downwards."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape of a scene. Centres and radius in px of a 64 px frame, times as shares of the clip."""

    colour: str
    shape: str
    radius: float
    start: tuple[float, float]
    """Centre (x, y) at time 0."""
    motion: str
    travel: float
    """Distance covered from time 0 to time 1."""
    appears: float = 0.0
    """Not shown before this time."""
    disappears: float = 1.01
    """Not shown from this time on."""

    @property
    def name(self) -> str:
        """Return colour and shape, which no other thing of the scene shares."""
        return f"{self.colour} {self.shape}"

    def centre(self, time: float) -> tuple[float, float]:
        """Return (x, y) at a time in [0, 1]."""
        across, down = MOTIONS[self.motion]
        return self.start[0] + across * self.travel * time, self.start[1] + down * self.travel * time

    def shown(self, time: float) -> bool:
        """Tell whether the thing is there at a time."""
        return self.appears <= time < self.disappears


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one clip shows; `seed` also draws its background."""

    seed: int
    things: tuple[Thing, ...]


def draw_scene(seed: int) -> Scene:
    """Return the scene of a seed. Names are unique, and no two things touch at the start or at the end."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 4))
    things: list[Thing] = []
    while len(things) < count:
        thing = _draw_thing(random)
        if all(thing.name != other.name and _apart(thing, other) for other in things):
            things.append(thing)
    if random.random() < 0.25:
        things[0] = _come_or_go(things[0], random)
    return Scene(seed=seed, things=tuple(things))


def _draw_thing(random: np.random.Generator) -> Thing:
    """Draw a thing whose whole way lies inside the frame."""
    radius = float(random.uniform(5, 9))
    motion = "still" if random.random() < 0.25 else str(random.choice(["left", "right", "up", "down"]))
    travel = 0.0 if motion == "still" else float(random.uniform(18, 30))
    low, high = np.full(2, radius), np.full(2, SIDE_PX - radius)
    step = travel * np.array(MOTIONS[motion])
    start = random.uniform(low - step.clip(max=0), high - step.clip(min=0))
    colour = str(random.choice(list(COLOURS)))
    shape = str(random.choice(SHAPES))
    place = (float(start[0]), float(start[1]))
    return Thing(colour=colour, shape=shape, radius=radius, start=place, motion=motion, travel=travel)


def _apart(one: Thing, other: Thing) -> bool:
    gap = one.radius + other.radius + 2
    return all(float(np.hypot(*np.subtract(one.centre(t), other.centre(t)))) >= gap for t in (0.0, 0.5, 1.0))


def _come_or_go(thing: Thing, random: np.random.Generator) -> Thing:
    time = float(random.uniform(0.35, 0.65))
    times = {"appears": time} if random.random() < 0.5 else {"disappears": time}
    return Thing(
        colour=thing.colour,
        shape=thing.shape,
        radius=thing.radius,
        start=thing.start,
        motion=thing.motion,
        travel=thing.travel,
        **times,
    )


def render(scene: Scene, times: npt.NDArray[np.float64], side_px: int = SIDE_PX, oversample: int = 2) -> npt.NDArray[np.uint8]:
    """Return frames (F, S, S, 3), RGB, at times in [0, 1]; `oversample` squared samples per px are averaged."""
    side = side_px * oversample
    frames = np.repeat(_background(scene.seed, side_px)[None], len(times), axis=0)
    for thing in scene.things:
        cover = _cover(thing, times, side).reshape(len(times), side_px, oversample, side_px, oversample)
        alpha = cover.mean(axis=(2, 4), dtype=np.float32)[..., None]
        frames += alpha * (np.array(COLOURS[thing.colour], dtype=np.float32) - frames)
    noise = np.random.default_rng(scene.seed + 1).normal(0, 4, frames.shape).astype(np.float32)
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


def patch_owners(scene: Scene, times: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """Return (F, N): which thing of the scene each patch shows, from 1; 0 background, -1 where it is neither.

    A patch shows the last drawn thing that covers a fifth of it; with less than a twentieth covered it is background.
    """
    owners = np.zeros((len(times), PATCHES * PATCHES), dtype=np.int8)
    for number, thing in enumerate(scene.things, start=1):
        cell = SIDE_PX // PATCHES
        cover = _cover(thing, times, SIDE_PX).reshape(len(times), PATCHES, cell, PATCHES, cell)
        share = cover.mean(axis=(2, 4)).reshape(len(times), -1)
        owners[(share >= 0.05) & (share < 0.2)] = -1
        owners[share >= 0.2] = number
    return owners


def _cover(thing: Thing, times: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.bool_]:
    """Return which samples (F, side, side) a thing covers."""
    centre_F2 = np.array([thing.centre(float(t)) for t in times], dtype=np.float32)
    shown_F = np.array([thing.shown(float(t)) for t in times])
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (SIDE_PX / side)
    x = ((axis[None] - centre_F2[:, :1]) / thing.radius)[:, None, :]
    y = ((axis[None] - centre_F2[:, 1:]) / thing.radius)[:, :, None]
    return _inside(thing.shape, x, y) & shown_F[:, None, None]


def _inside(shape: str, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Tell which points, in radii from the centre, lie inside a shape."""
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) < 0.85
    if shape == "triangle":
        return (y < 0.75) & (y > 1.75 * np.abs(x) - 1)
    if shape == "cross":
        return (np.minimum(np.abs(x), np.abs(y)) < 0.3) & (np.maximum(np.abs(x), np.abs(y)) < 1)
    squared = x**2 + y**2
    return (squared < 1) if shape == "circle" else (squared < 1) & (squared > 0.25)


def _background(seed: int, side_px: int) -> npt.NDArray[np.float32]:
    """Return a dark texture (S, S, 3): a random 4 x 4 grid of tints, interpolated."""
    random = np.random.default_rng(seed + 2)
    coarse = random.uniform(20, 110, 3) + random.normal(0, 14, (5, 5, 3))
    mix = _interpolation(side_px)
    return np.einsum("si,ijc,tj->stc", mix, coarse, mix).clip(0, 150).astype(np.float32)


@lru_cache(maxsize=4)
def _interpolation(side_px: int) -> npt.NDArray[np.float64]:
    """Return linear weights (S, 5) from five grid lines to pixels."""
    place = np.linspace(0, 4, side_px)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(5)))
