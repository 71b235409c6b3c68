"""What runs on other machines is what `make` runs here: the workflow, the hooks, the versions of Python."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
JOB: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["check"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
VERSIONS: list[str] = JOB["strategy"]["matrix"]["python"]


def recipe(target: str) -> list[str]:
    """Commands of a target of the Makefile, with the default environment."""
    lines = MAKEFILE.split(f"\n{target}:")[1].split("\n\n")[0].splitlines()[1:]
    return [line.strip().replace("$(VENV)", ".venv") for line in lines]


def test_ci_runs_make_check_and_make_test_with_the_python_of_the_matrix() -> None:
    """And nothing of its own."""
    steps = [step["run"] for step in JOB["steps"] if "run" in step]
    assert steps == ["make check test PYTHON=python${{ matrix.python }}"]


def test_hooks_run_the_commands_of_make_check() -> None:
    """In the environment that `make install` made."""
    assert [hook["entry"] for repo in HOOKS for hook in repo["hooks"]] == recipe("check")
    assert {repo["repo"] for repo in HOOKS} == {"local"}


@pytest.mark.parametrize("version", VERSIONS)
def test_pythons_of_the_matrix_are_accepted_by_project_and_makefile(version: str) -> None:
    """The bounds of `pyproject.toml`, and the check before `make install`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version in SpecifierSet(project["requires-python"])
    check = re.search(r"-c '(import sys; sys\.exit\(.+?\))'\n", MAKEFILE)
    assert check
    assert refusal(check[1], version) is None
    assert refusal(check[1], "3.10")


def refusal(check: str, version: str) -> str | None:
    """What the check of the Makefile says of a version of Python; None where it goes on."""
    major, minor = map(int, version.split("."))
    stand_in = type("Sys", (), {"version_info": (major, minor, 0), "version": version, "exit": staticmethod(sys.exit)})
    try:
        exec(check.removeprefix("import sys; "), {"sys": stand_in})
    except SystemExit as end:
        return str(end.code) if end.code else None
    return None
