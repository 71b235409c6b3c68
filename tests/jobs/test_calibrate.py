"""`framefold calibrate`: real videos, the bundled tower, thresholds that hold on the tokens it would encode."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from jobs.commands.calibrate import CalibrateJob, main, run
from jobs.commands.demo import MODEL
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.encode.calibration import draw
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.tower import Tower
from pipeline.schema import CORPUS
from pipeline.synthetic.corpus import write_corpus
from reducers.ops.ranking import adjacent_likeness
from reducers.registry import parse

VIDEOS = Path(__file__).parents[1] / "videos"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generated videos, and two files that cannot be used."""
    folder = tmp_path_factory.mktemp("calibrate")
    write_corpus(folder, range(3), 64)
    shutil.copy(VIDEOS / "sine_mono_s16.wav", folder / "videos" / "sound.mp4")
    (folder / "videos" / "nothing.mp4").write_bytes(b"")
    return folder / "videos"


@pytest.fixture(scope="module")
def report(corpus: Path) -> dict[str, Any]:
    return run(CalibrateJob(corpus=str(corpus), model=str(MODEL), reducer=("holitom", "tree|hired"), retention=(0.25, 0.1)))


def test_videos_that_cannot_be_used_are_counted_by_class(report: dict[str, Any]) -> None:
    """The others are measured; five videos are said to be too few."""
    assert (report["videos"], report["used"], report["failed"]) == (5, 3, 2)
    assert report["failed_by_class"] == {"EMPTY": 1, "NO_VIDEO_STREAM": 1}
    assert report["enough"] is False
    assert report["exit_code"] == 0


def test_there_is_a_spec_for_each_reducer_and_retention(report: dict[str, Any]) -> None:
    """All of them parse, and say their budget."""
    assert [(row["reducer"], row["retention"]) for row in report["specs"]] == [
        ("holitom", 0.25), ("holitom", 0.1), ("tree|hired", 0.25), ("tree|hired", 0.1)
    ]  # fmt: skip
    for row in report["specs"]:
        config = parse(row["spec"]).config
        assert (config.first.params if "|" in row["spec"] else config).ratio == row["retention"]


def test_half_of_the_pairs_of_the_corpus_lie_above_tau(report: dict[str, Any], corpus: Path) -> None:
    """Measured once more on the tower's own output."""
    tower = Tower(Checkpoint.open(str(MODEL)), device="cpu", dtype="float32")
    pairs = []
    with Decode(DecodeConfig(), tower.side_px) as decode:
        uris = sorted(str(path) for path in corpus.glob("v_*.mp4"))
        rows = [{"video_id": uri, "uri": uri, "source_hint": "{}"} for uri in uris]
        for frames in decode(pa.Table.from_pylist(rows, schema=CORPUS))["frames"].to_pylist():
            clip = torch.frombuffer(bytearray(frames), dtype=torch.uint8).view(8, 64, 64, 3)
            seen = tower(clip, frozenset(), torch.tensor([0, 8]))
            pairs.append(adjacent_likeness(seen.features).flatten())
    tau = report["specs"][0]["thresholds"]["tau"]
    assert float((torch.cat(pairs) > tau).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert report["quantiles"]["same_place"]["0.5"] == pytest.approx(tau, abs=1e-3)


def test_a_sample_is_drawn_by_hash_whatever_the_order() -> None:
    """The same videos on every machine; a new video displaces at most one; another seed is another sample."""
    names = [f"v{number}" for number in range(200)]
    table = pa.Table.from_pylist([{"video_id": name, "uri": name, "source_hint": "{}"} for name in names], schema=CORPUS)
    first = draw(table, 20)["video_id"].to_pylist()
    assert draw(table.take(list(range(199, -1, -1))), 20)["video_id"].to_pylist() == first
    assert len(set(first) - set(draw(table.slice(1), 20)["video_id"].to_pylist())) <= 1
    assert set(draw(table, 20, seed=1)["video_id"].to_pylist()) != set(first)
    assert len(draw(table, 500)) == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reducer": ("prumerge",)}, "no threshold to calibrate"),
        ({"reducer": ("evs|trim",)}, "reads the question"),
        ({"static_share": 1.0}, "shares in"),
        ({"retention": (0.0,)}, "retentions in"),
        ({"decode": DecodeConfig(frames=1)}, "frames >= 2"),
        ({"videos": 0}, "videos >= 1"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_a_video_is_read(changes: dict[str, Any], said: str) -> None:
    """The corpus does not exist."""
    with pytest.raises(ConfigError, match=said):
        run(CalibrateJob(**{"corpus": "/no/such/folder", "model": str(MODEL), **changes}))


def test_a_corpus_without_one_good_video_fails_and_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit 1, the classes in the report, no threshold."""
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert main([str(tmp_path), "--model", str(MODEL)]) == 1
    said = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (said["used"], said["failed"]) == (0, 1)
    assert "specs" not in said


def test_the_command_prints_specs_to_paste(corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Quoted for a shell; the last line is the report."""
    words = [str(corpus), "--model", str(MODEL), "--reducer", "holitom", "--retention", "0.25", "--videos", "64"]
    assert main(words) == 0
    lines = capfd.readouterr().out.splitlines()
    (spec,) = json.loads(lines[-1])["specs"]
    assert f'--reducer "{spec["spec"]}"' in lines
    assert any(line.startswith("same_place") for line in lines)
