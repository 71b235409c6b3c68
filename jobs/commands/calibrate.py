"""Find thresholds for a corpus: `framefold calibrate videos/ --model M --reducer holitom --retention 0.25`."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jobs.runtime.launch import DONE, FAILED, Report, launch, storage_options
from pipeline.corpus.listing import read_corpus
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.encode.calibration import Measured, draw, measure, quantiles
from pipeline.encode.stage import EncodeConfig
from pipeline.errors import ConfigError
from pipeline.models.device import here
from pipeline.storage.preflight import check_reachable

if TYPE_CHECKING:
    from pipeline.models.tower import Tower
    from reducers.thresholds import Sample, Shares

ENOUGH = 200
"""Videos that a threshold should be taken from."""


@dataclass(frozen=True, kw_only=True)
class CalibrateJob:
    """Print thresholds of similarity for a corpus and a tower, and specs with them to paste."""

    corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
    """Directory, glob or manifest (.parquet, .csv, .jsonl with video_id, uri); any fsspec URL."""
    model: str
    """Directory or hub id of a Video-LLaVA checkpoint (safetensors)."""
    revision: str | None = None
    """Hub revision; pin it."""
    reducer: tuple[str, ...] = ("holitom", "flashvid")
    """What to calibrate: holitom, flashvid, fastvid, unicomp, or a composition such as "static|visionzip"."""
    retention: tuple[float, ...] = (0.25, 0.1)
    """Shares of the tokens that shall be kept; a spec is printed for each."""
    videos: int = 256
    """Videos of the sample; published advice is 200 or more."""
    seed: int = 0
    """Which sample: videos are taken by a hash of seed and id."""
    static_share: float = 0.5
    """Share of the pairs of a patch and its own place one frame later that shall count as the same."""
    cut_share: float = 0.25
    """Share of the frames that shall begin a segment."""
    compute_dtype: str = "auto"
    """float32, bfloat16 or float16; auto is float16 on a GPU and float32 without one."""
    device: str = "auto"
    """auto is the first GPU, or the CPU where there is none."""
    batch_clips: int = 8
    """Clips that go through the tower together."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    storage_options: str = "{}"
    """JSON object for fsspec, used for the corpus."""

    def __post_init__(self) -> None:
        if self.videos < 1 or self.decode.frames < 2:
            raise ConfigError(f"expected videos >= 1 and frames >= 2, got {self.videos} and {self.decode.frames}")
        if not self.reducer or not self.retention or not all(0 < share <= 1 for share in self.retention):
            raise ConfigError(f"expected reducers and retentions in (0, 1], got {self.reducer} and {self.retention}")

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)


def run(job: CalibrateJob) -> Report:
    """Sample, decode, look, print. Nothing is written; a video that cannot be used is counted by its class."""
    shares, tower = _checked(job), _tower(job)
    check_reachable([job.corpus], job.options)
    drawn = draw(read_corpus(job.corpus, job.options), job.videos, job.seed)
    measured = measure(drawn, lambda: Decode(job.decode, tower.side_px, job.options), tower, job.batch_clips)
    report: Report = {
        "job": "calibrate",
        "videos": drawn.num_rows,
        "used": measured.videos,
        "failed": len(measured.failures),
        "failed_by_class": dict(sorted(Counter(measured.failures.values()).items())),
        "enough": measured.videos >= ENOUGH,
        "seed": job.seed,
        "exit_code": DONE if measured.sample is not None else FAILED,
    }
    if measured.sample is None:
        return report
    found = {"quantiles": quantiles(measured.sample), "specs": _specs(job, measured.sample, shares)}
    _show(found, measured)
    return report | {"static_share": shares.static, "cut_share": shares.cut, **found}


def _checked(job: CalibrateJob) -> "Shares":
    """Return the shares. Raises ConfigError for a reducer that has nothing to calibrate."""
    from reducers.base import ReducerError
    from reducers.thresholds import Shares, check

    try:
        for spec in job.reducer:
            check(spec)
        return Shares(static=job.static_share, cut=job.cut_share)
    except ReducerError as error:
        raise ConfigError(str(error)) from error


def _tower(job: CalibrateJob) -> "Tower":
    from pipeline.models.checkpoint import Checkpoint
    from pipeline.models.tower import Tower

    names = ("model", "revision", "compute_dtype", "device", "batch_clips")
    config = here(EncodeConfig(**{name: getattr(job, name) for name in names}))
    return Tower(Checkpoint.open(job.model, job.revision), device=config.device, dtype=config.compute_dtype)


def _specs(job: CalibrateJob, sample: "Sample", shares: "Shares") -> list[dict[str, Any]]:
    from reducers.thresholds import calibrated

    rows = []
    for spec in job.reducer:
        for retention in job.retention:
            text, thresholds = calibrated(spec, sample, retention, shares)
            rows.append({"reducer": spec, "retention": retention, "spec": text, "thresholds": thresholds})
    return rows


def _show(found: dict[str, Any], measured: Measured) -> None:
    """Print the quantiles and the specs; the report holds the same as data."""
    shares = list(next(iter(found["quantiles"].values())))
    rows = [f"{'cosine of':<14}" + "".join(f"{f'{100 * float(share):g} %':>9}" for share in shares)]
    for name, values in found["quantiles"].items():
        rows.append(f"{name:<14}" + "".join(f"{value:9.4f}" for value in values.values()))
    few = "" if measured.videos >= ENOUGH else f"; take {ENOUGH} or more before you rely on it"
    rows += ["", f"{measured.videos} videos, {len(measured.failures)} could not be used{few}", ""]
    sys.stdout.write("\n".join([*rows, *(f'--reducer "{row["spec"]}"' for row in found["specs"]), ""]))


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(CalibrateJob, run, "framefold calibrate", args)


if __name__ == "__main__":
    sys.exit(main())
