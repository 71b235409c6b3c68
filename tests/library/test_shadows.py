"""A user's own `pipeline.py`, `reducers.py` or `jobs/` in the working directory: found, named, and never run."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from tests.pipeline.decoding import VIDEOS, corpus

ROOT = Path(__file__).parents[2]
MARKER = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


def foreign(folder: Path, file: str) -> Path:
    """Write a module of another project that leaves a file behind when it runs."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MARKER)
    return path


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code as `python -c` does, with the working directory first on the path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False)


FILES = ["pipeline.py", "reducers.py", "jobs/__init__.py", "pipeline/__init__.py"]


@pytest.mark.parametrize("file", FILES)
def test_import_names_the_foreign_file(file: str, tmp_path: Path) -> None:
    path = foreign(tmp_path, file)
    ran = run("import framefold", tmp_path)
    assert ran.returncode == 1
    name = file.split("/")[0].removesuffix(".py")
    sentence = ran.stderr.splitlines()[-1]
    assert sentence.startswith(f"ImportError: {path} shadows the package {name!r} of framefold: rename it")
    assert not path.with_name("ran").exists()


def test_import_names_a_foreign_module_that_is_loaded_already(tmp_path: Path) -> None:
    path = foreign(tmp_path, "reducers.py")
    ran = run("import sys, reducers\nsys.path.pop(0)\nimport framefold", tmp_path)
    assert f"ImportError: {path} shadows the package 'reducers'" in ran.stderr


@pytest.mark.parametrize("file", FILES)
def test_console_script_says_one_sentence_and_exits_2(file: str, tmp_path: Path) -> None:
    path = foreign(tmp_path, file)
    ran = run("import sys\nfrom framefold_main import main\nsys.argv = ['framefold', '--help']\nsys.exit(main())", tmp_path)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith(f"framefold: {path} shadows the package")
    assert len(ran.stderr.splitlines()) == 1
    assert not path.with_name("ran").exists()


def test_console_script_runs_a_command_where_nothing_is_shadowed(tmp_path: Path) -> None:
    (tmp_path / "pipelines.py").write_text("")
    ran = run("import sys\nfrom framefold_main import main\nsys.argv = ['framefold', '--help']\nsys.exit(main())", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("usage: framefold COMMAND")


def test_console_script_of_the_wheel_is_the_one_that_checks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"framefold": "framefold_main:main"}
    assert project["tool"]["setuptools"]["py-modules"] == ["framefold_main"]


@pytest.mark.parametrize("search", ["", ".", os.pathsep])
def test_decoder_never_runs_a_module_of_the_working_directory(
    search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever PYTHONPATH says: an empty entry stands for the working directory."""
    for file in ("pipeline.py", "reducers.py", "jobs/__init__.py"):
        foreign(tmp_path, file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", search)
    with Decode(DecodeConfig(), side_px=32) as stage:
        row = stage(corpus(str(VIDEOS / "unordered.mov"))).to_pylist()[0]
    assert row["error_class"] is None, row["error"]
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("search", ["", os.pathsep])
def test_decoder_does_not_search_the_working_directory_for_any_module(
    search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(tmp_path, "resource.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", search)
    with Decode(DecodeConfig(), side_px=32) as stage:
        row = stage(corpus(str(VIDEOS / "unordered.mov"))).to_pylist()[0]
    assert row["error_class"] is None, row["error"]
    assert not (tmp_path / "ran").exists()
