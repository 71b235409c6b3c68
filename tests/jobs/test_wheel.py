"""The wheel in an environment of its own, used from a folder without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("pyproject.toml", "README.md", "LICENSE", "framefold_main.py")
PACKAGES = ("pipeline", "reducers", "jobs", "framefold")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside of the checkout; returns its stdout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ran = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel; the dependencies are those that the tests run with."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    for name in PACKAGES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    venv.create(folder / "env", symlinks=True)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", folder / "env", "install", "--quiet", "--no-deps", wheel, cwd=folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "env" / "lib" / version / "site-packages" / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env"


def test_wheel_runs_from_a_folder_without_the_checkout(environment: Path, tmp_path: Path) -> None:
    """Every module comes from the wheel, checkpoint included."""
    code = "import pipeline, reducers, jobs, json; print(json.dumps([m.__file__ for m in (pipeline, reducers, jobs)]))"
    found = json.loads(run(environment / "bin" / "python", "-c", code, cwd=tmp_path))
    assert all(Path(path).is_relative_to(environment) for path in found)
    command = (environment / "bin" / "framefold", "demo", "--videos", "4", "--runner", "local", "--out", tmp_path / "demo")
    said = run(*command, "--reducers", "none", "nest(keep=64)", "--budgets", "16", cwd=tmp_path)
    assert "accuracy" in said
    assert (tmp_path / "demo").is_dir()


def test_every_module_of_the_checkout_is_in_the_wheel(environment: Path) -> None:
    site = next((environment / "lib").glob("python3*")) / "site-packages"
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*.py"):
            assert (site / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path
