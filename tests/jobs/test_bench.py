"""`framefold bench reducers`: one line for every reducer, beside the tower and beside the loops where they are."""

from pathlib import Path

import pytest

from jobs.bench import reducers
from reducers.registry import names

SMALL = ["--geometry", "demo", "--device", "cpu", "--repeat", "1", "--tower-repeat", "1", "--dtype", "float32"]


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    return {words[0]: words[1:] for line in capsys.readouterr().out.splitlines() if (words := line.split())}


def test_every_reducer_has_its_line_with_the_loop_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Milliseconds, share of the tower, the loop's milliseconds and how many times ours they are."""
    assert reducers.main(SMALL) == 0
    found = lines(capsys)
    for name in names():
        ours_ms, share, percent, loop_ms, ratio = found[name]
        assert percent == "%"
        ours, loop = float(ours_ms), float(loop_ms)
        assert min(ours, float(share), loop) >= 0
        low, high = (loop - 0.5) / (ours + 0.005), (loop + 0.5) / max(ours - 0.005, 1e-9)  # printed numbers are rounded
        assert low - 0.05 <= float(ratio) <= high + 0.05
    assert "fast" in found["tower"]


def test_without_a_checkout_there_is_a_dash_and_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And the rest of the table, for two clips at a time."""
    monkeypatch.setattr(reducers, "ROOT", tmp_path)
    assert reducers.main([*SMALL, "--clips", "2"]) == 0
    out = capsys.readouterr().out
    assert reducers.NO_LOOPS in out
    assert all(line.split()[4:] == ["-", "-"] for line in out.splitlines() if line.split()[:1] == ["nest"])


def test_no_clip_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one sentence."""
    assert reducers.main([*SMALL, "--clips", "0"]) == 2
    assert "at least one clip" in capsys.readouterr().err
