"""What cannot work is refused by `framefold encode` with one line and exit 2, before a video is looked for."""

from pathlib import Path

import pytest

from jobs.commands.encode import EncodeJob, main, run
from pipeline.encode.stage import EncodeConfig, parse_reducer
from pipeline.errors import ConfigError
from reducers.registry import METHODS, parse
from tests.models import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("refused") / "tiny")


TEXT_AWARE = [name for name, (_, build) in METHODS.items() if getattr(build, "needs_text", False)]


@pytest.mark.parametrize("name", TEXT_AWARE)
def test_a_reducer_that_reads_the_question_is_told_where_it_runs(name: str) -> None:
    """Encoding comes before any question: the sentence names what to encode with, and the command that asks."""
    assert parse(name).needs_text
    with pytest.raises(ConfigError) as caught:
        parse_reducer(name)
    said = str(caught.value)
    assert "not known while encoding" in said
    assert "encode with none or nest" in said
    assert f"give {name} to framefold answer" in said


def test_there_is_a_reducer_that_reads_the_question() -> None:
    """So that the test above is about something."""
    assert "trim" in TEXT_AWARE


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("magic", "unknown reducer 'magic'"),
        ("trim(ratio=0.25)", "framefold answer"),
        ("evs(keep=64)|trim", "reads the question"),
        ("prumerge+(ratio=0)", "ratio in (0, 1]"),
        ("evs(ratio=0)", "ratio in (0, 1]"),
        ("holitom(tau_mode=quantile)", "calibrated_tau"),
        ("nest(keep=600)", "keep <= superset"),
        ("flashvid(segment_tau=nan)", "segment_tau to be float"),
        ("spatial(q=1)", "expected some of k"),
        ("spatial(rows=5, cols=2)", "at most 4 x 4 crossings"),
        ("visionzip(score=received)", "towers without a CLS token"),
        ("alloc|visionzip(score=received)", "towers without a CLS token"),
        ("tome(keep=8, r=2)", "not both"),
        ("alloc(ratio=0)+prumerge", "ratio in (0, 1]"),
        ("alloc(keep=64)+prumerge(ratio=0.5)", "in the first part"),
        ("evs(keep=8, widen=0.5)|visionzip", "widen >= 1"),
        ("visionzip|evs(keep=64)", "got visionzip|evs"),
        ("alloc+tome", "inside the tower"),
        ("alloc(q=1)|visionzip", "expected some of keep"),
        ("tree+prumerge(merge=add)", "merge=mean"),
    ],
)
def test_nothing_is_read_or_written_for_a_reducer_that_cannot_work(model: str, tmp_path: Path, spec: str, said: str) -> None:
    """The corpus does not exist, and yet it is the reducer that is complained about."""
    job = EncodeJob(
        corpus=str(tmp_path / "no such folder"),
        store=str(tmp_path / "store"),
        encode=EncodeConfig(model=model, reducer=spec, device="cpu"),
    )
    with pytest.raises(ConfigError) as caught:
        run(job)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_the_command_ends_with_two(model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, nothing on stdout."""
    words = [str(tmp_path), "--store", str(tmp_path / "store"), "--model", model, "--reducer", "evs(keep=64)|trim"]
    assert main(words) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    (line,) = [line for line in shown.err.splitlines() if line.startswith("framefold: ")]
    assert "trim reads the question" in line
