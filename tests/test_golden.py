"""Our reducers against outputs of the published code, and the runner against directories it has never seen."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.__main__ import judge, main
from tests.golden.cases import Case, read_cases

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "golden" / "data"
SHARED = [path for name in ("goldens", "goldens_video") if (path := ROOT.parent / "shared" / name).is_dir()]


@pytest.mark.parametrize("case", read_cases(DATA), ids=lambda case: case.id)
def test_golden_case(case: Case) -> None:
    """Every output of the case, to its tolerance."""
    assert judge(case) is None


@pytest.mark.parametrize("folder", SHARED, ids=lambda path: path.name)
def test_no_case_of_the_whole_collection_fails(folder: Path) -> None:
    """Cases of methods that are not built yet are skipped, never wrong."""
    failing = {case.id: verdict for case in read_cases(folder) if (verdict := judge(case)) not in (None, "skipped")}
    assert failing == {}


def run(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.golden", *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def one_case(folder: Path, **changes: object) -> Path:
    """A directory with one case, some of it changed."""
    folder.mkdir()
    document = json.loads((DATA / "cases.json").read_text())
    case = next(case for case in document["cases"] if case["method"] == "prumerge")
    shutil.copy(DATA / case["file"], folder / case["file"])
    (folder / "cases.json").write_text(json.dumps({**document, "cases": [{**case, **changes}]}))
    return folder


def test_the_runner_counts_what_passes_fails_and_is_skipped(tmp_path: Path) -> None:
    """The last line is what scripts read, the exit code what they trust: from a process of its own."""
    good, unknown = one_case(tmp_path / "good"), one_case(tmp_path / "unknown", method="not_built_yet")
    ran = run(good, unknown)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "1 passed, 0 failed, 1 skipped"


def test_a_wrong_output_is_a_named_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One value off by more than the tolerance: exit 1, and the line names case and output."""
    folder = one_case(tmp_path / "bad")
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    tensors["out.tokens"] = tensors["out.tokens"].clone()
    tensors["out.tokens"].view(-1)[3] += 0.5
    save_file(tensors, path)
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "tokens" in said
    assert said.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"


def test_a_directory_without_cases_is_an_error(tmp_path: Path) -> None:
    """Neither passed nor skipped."""
    assert main([str(tmp_path)]) == 2
    assert main([]) == 2


def test_half_of_the_cases_have_ties_or_odd_shapes() -> None:
    """Guards the collection: it must hold more than one easy shape."""
    shapes = {tuple(case.inputs["hidden"].shape) for case in read_cases(DATA) if "hidden" in case.inputs}
    assert len(shapes) >= 3
    assert torch.is_tensor(next(iter(read_cases(DATA)[0].outputs.values())))
