"""Packages of extras that are not installed: one sentence names the extra, exit 2, nothing is written."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.extras import EXTRA_OF, missing_extra

ROOT = Path(__file__).parents[2]
WITHOUT = "import sys\nsys.modules[sys.argv[1]] = None\nfrom jobs.cli import main\nsys.exit(main(sys.argv[2:]))"
DISTRIBUTIONS = {"PIL": "pillow"}
"""Names of distributions that differ from what is imported."""


def ran_without(package: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, package, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def encode(store: Path, *more: str) -> tuple[str, ...]:
    model = ROOT / "pipeline" / "synthetic" / "checkpoint"
    words = ("encode", str(ROOT / "tests" / "videos"), "--store", str(store), "--model", str(model), "--reducer", "none")
    return (*words, *more)


@pytest.mark.parametrize(
    ("package", "extra", "more"),
    [("tyro", "encode", ()), ("transformers", "encode", ()), ("ray", "ray", ("--runner", "ray"))],
)
def test_missing_package_of_an_extra_is_one_sentence_and_exit_two(
    package: str, extra: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    ran = ran_without(package, *encode(tmp_path / "store", *more))
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines()[-1].endswith(
        f"the package '{package}' is not installed: run pip install 'framefold[{extra}]'"
    )
    assert "Traceback" not in ran.stderr


def test_url_whose_driver_is_missing_names_the_extra() -> None:
    ran = ran_without("s3fs", "store", "ls", "s3://bucket/tokens")
    assert ran.returncode == 2
    assert "pip install 'framefold[s3]'" in ran.stderr


def test_other_missing_modules_are_no_matter_of_extras() -> None:
    assert missing_extra(ModuleNotFoundError("No module named 'x'", name="x")) is None
    assert missing_extra(ValueError("x")) is None


def test_each_package_is_a_requirement_of_its_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, extra in EXTRA_OF.items():
        name = DISTRIBUTIONS.get(package, package)
        assert any(line.startswith(name) for line in project["optional-dependencies"][extra]), package


def test_reducers_and_stores_need_the_core_alone() -> None:
    """torch, NumPy, pyarrow and fsspec; everything of the extras is blocked."""
    code = f"import sys\nfor name in {sorted(EXTRA_OF)}: sys.modules[name] = None\n"
    code += "import reducers.registry, pipeline.store.token_store\nreducers.registry.parse('nest')"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
