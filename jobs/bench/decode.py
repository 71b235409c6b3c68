"""Seconds per clip: ours beside raw decord, PyAV and torchcodec, file by file in one run, and whether frames are the same."""

import resource
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

from jobs.bench.decode_lane import Cost, Lane, MethodFailedError, MethodMissingError
from jobs.bench.decode_methods import DECORD, EXACT, METHODS, Frames, differing
from jobs.bench.decode_set import QUICK, SETS, written
from jobs.bench.machine import describe, say
from jobs.runtime.launch import Report, launch, with_values
from pipeline.decode.config import DecodeConfig
from pipeline.decode.worker_client import DecodeChild
from pipeline.errors import ConfigError, VideoError, check_at_least_one

STARTS = 3
"""Decoder processes that are started at least for the cost of one."""


@dataclass(frozen=True, kw_only=True)
class DecodeBench:
    """Measure what a clip costs: processor and wall seconds, best of several, of each method in a process of its own.

    Files and methods take turns, so that a busy machine is as busy for all of them.
    """

    videos: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[VIDEO...]")] = ()
    """Local files; without any, a set of H.264 files is written first, which takes some minutes."""
    frames: int = 8
    """Frames per clip."""
    repeat: int = 3
    """The best of so many."""
    deadline_s: float = 120.0
    """A method that takes longer for a clip is ended, and the file counts as failed."""
    keep: str | None = None
    """Folder in which the written set is kept, and looked for."""
    quick: bool = False
    """Write a set of tiny files instead: for a look at the table, not for numbers."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "frames", "repeat")
        if not self.deadline_s > 0:
            raise ConfigError(f"deadline_s must be above 0, got {self.deadline_s}")
        if missing := [name for name in self.videos if not Path(name).is_file()]:
            raise ConfigError(f"{missing[0]}: no such file")


@dataclass
class Result:
    """What one method gave on the files of a set."""

    best: dict[Path, Cost] = field(default_factory=dict)
    """Least processor time and least wall time, by file."""
    differing: int = 0
    """Frames that differ from ours exact."""
    levels: float = 0.0
    """By how many levels, on average over its bytes, the frame that differs most."""
    failed: dict[Path, str] = field(default_factory=dict)
    missing: str = ""
    """Why the method's library cannot be loaded."""


def run(job: DecodeBench) -> Report:
    """Print a table per set."""
    say(describe())
    say(f"PyAV {version('av')}, decord {version('decord')}, {job.frames} frames per clip, best of {job.repeat}, one thread")
    sets = {}
    with ExitStack() as stack:
        folder = Path(job.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        for name, files in _sets(job, folder):
            results = measured(job, files)
            _print(results, files)
            sets[name] = _as_json(results, files, job.frames)
    start_s = child_start_s(job.repeat)
    say(f"\nstart of a decoder process: {start_s:.3f} CPU-s")
    return {"bench": "decode", "sets": sets, "child_start_cpu_s": _rounded(start_s)}


def _sets(job: DecodeBench, folder: Path) -> Iterator[tuple[str, list[Path]]]:
    if job.videos:
        say(f"\n{len(job.videos)} given files")
        yield "given", [Path(name) for name in job.videos]
        return
    folder.mkdir(parents=True, exist_ok=True)
    for files in QUICK if job.quick else SETS:
        say(f"\n{files.told}")
        yield files.name, written(files, folder)


def measured(job: DecodeBench, files: Sequence[Path]) -> dict[str, Result]:
    """Return what each method gives, all of them in turn on each file, round by round."""
    results = {name: Result() for name in METHODS}
    with ExitStack() as stack:
        lanes = {name: stack.enter_context(closing(Lane(name, job.frames, job.deadline_s))) for name in METHODS}
        for path in files:
            _compare(lanes, results, path)
        for number in range(job.repeat):
            for path in files:
                for name in _rotated(list(METHODS), number):
                    _time(lanes[name], results[name], path)
    return results


def _rotated(names: Sequence[str], by: int) -> list[str]:
    """Return the names in another order each round: who comes behind whom matters to caches."""
    by %= len(names)
    return [*names[by:], *names[:by]]


def _compare(lanes: Mapping[str, Lane], results: Mapping[str, Result], path: Path) -> None:
    """Get the frames of each method once, which warms it up too, and count those that are not ours."""
    ours: Frames | None = None
    for name, lane in lanes.items():
        try:
            frames = lane.frames_of(path)
        except MethodMissingError as error:
            results[name].missing = str(error)
        except MethodFailedError as error:
            results[name].failed[path] = str(error)
        else:
            ours = frames if name == EXACT else ours
            _count(results[name], ours, frames)


def _count(result: Result, ours: Frames | None, frames: Frames) -> None:
    if ours is not None:
        count, levels = differing(ours, frames)
        result.differing += count
        result.levels = max(result.levels, levels)


def _time(lane: Lane, result: Result, path: Path) -> None:
    if path in result.failed or result.missing:
        return
    try:
        cost = lane.cost(path)
    except MethodFailedError as error:
        result.failed[path] = str(error)
        result.best.pop(path, None)
        return
    before = result.best.get(path, cost)
    result.best[path] = Cost(min(before.cpu_s, cost.cpu_s), min(before.wall_s, cost.wall_s))


def _print(results: Mapping[str, Result], files: Sequence[Path]) -> None:
    say(f"{'':<20} {'CPU-s':>8} {'wall s':>8} {'to decord':>10}  frames that differ from ours exact")
    for name, result in results.items():
        if result.missing:
            say(f"{name:<20} cannot be loaded: {result.missing}")
            continue
        cpu_s, wall_s, ratio = mean(result, "cpu_s"), mean(result, "wall_s"), ratio_to(result, results[DECORD])
        numbers = [_shown(cpu_s, ">8.4f"), _shown(wall_s, ">8.4f"), _shown(ratio, ">10.2f")]
        say(f"{name:<20} {' '.join(numbers)}  {_differences(result)}")
        for path, why in result.failed.items():
            say(f"{'':<20} failed on {path.name}: {why}")
    if any(result.failed for result in results.values()):
        say(f"seconds are means over those of {len(files)} files that a method can read, ratios over those that decord can too")


def _differences(result: Result) -> str:
    return f"{result.differing}, by {result.levels:.2f} levels on average at most" if result.differing else "0"


def _shown(value: float | None, form: str) -> str:
    """Return a number in a form, or a dash in its place."""
    return format("-", form.split(".")[0]) if value is None else format(value, form)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def mean(result: Result, what: str) -> float | None:
    """Return seconds per clip over the files that a method can read; None where there is none."""
    return statistics.fmean(getattr(cost, what) for cost in result.best.values()) if result.best else None


def ratio_to(result: Result, other: Result) -> float | None:
    """Return how many times as much processor time a method takes as another, over the files that both can read."""
    both = result.best.keys() & other.best.keys()
    theirs = sum(other.best[path].cpu_s for path in both)
    return sum(result.best[path].cpu_s for path in both) / theirs if theirs else None


def _as_json(results: Mapping[str, Result], files: Sequence[Path], frames: int) -> dict[str, Any]:
    """Return the table as plain data."""
    return {
        name: {
            "cpu_s": _rounded(mean(result, "cpu_s")),
            "wall_s": _rounded(mean(result, "wall_s")),
            "to_decord": _rounded(ratio_to(result, results[DECORD])),
            "frames": frames * (len(files) - len(result.failed)),
            "differing": result.differing,
            "levels": round(result.levels, 3),
            "failed": {path.name: why for path, why in result.failed.items()},
        }
        for name, result in results.items()
        if not result.missing
    }


def child_start_s(repeat: int) -> float:
    """Return the processor time that a decoder process takes until it is ready, the least of some."""
    return min(_one_start_s() for _ in range(max(STARTS, repeat)))


def _one_start_s() -> float:
    """Return the processor time of a child that is asked for a file that is not there, and ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = DecodeChild(DecodeConfig(), 224)
    with tempfile.TemporaryDirectory() as folder, suppress(VideoError), closing(child):
        child.measure(Path(folder) / "none", "mov")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(DecodeBench, run, "framefold bench decode", with_values(args, "--quick"))


if __name__ == "__main__":
    sys.exit(main())
