"""Distributions of other people: a package and its metadata in a folder, as installers write them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.cli import main
from tests import forked
from tests.command import ROOT, environment

GOOD = '''
"""Reducers for the tests."""

from dataclasses import dataclass

import framefold
import torch


@dataclass(frozen=True, kw_only=True)
class FirstConfig:
    """Parameters of `first`."""

    keep: int = 4
    """Patches kept of each frame."""


@dataclass(frozen=True)
class First(framefold.ReducerBase):
    """Keeps the first patches of each frame."""

    config: FirstConfig
    name = "first"
    version = 1
    needs = frozenset()

    def reduce(self, tokens, text=None):
        """Return the first patches of each frame."""
        mask_FN = torch.zeros(tokens.features.shape[:2], dtype=torch.bool)
        mask_FN[:, : self.config.keep] = True
        {change}
        return framefold.keep_patches(tokens, mask_FN)
'''
NOTHING = "pass"


def install(
    folder: Path, source: str, *, dist: str = "tiny-reducers", version: str = "1.2", points: str = "first = tiny_reducers:First"
) -> Path:
    """Write a distribution with entry points into a folder, which belongs on PYTHONPATH."""
    module = points.partition("=")[2].partition(":")[0].strip()
    package = folder / module
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(source)
    info = folder / f"{dist.replace('-', '_')}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[framefold.reducers]\n{points}\n")
    return folder


def good(change: str = NOTHING) -> str:
    """Source of a reducer; `change` stands in its `reduce`, between the mask and the result."""
    return GOOD.replace("{change}", change.replace("\n", "\n        "))


def broken(columns: str) -> str:
    """Source of a reducer that replaces columns of a right result."""
    return good(
        f"from dataclasses import replace\nkept = framefold.keep_patches(tokens, mask_FN)\nreturn replace(kept, {columns})"
    )


def with_site(args: Sequence[str]) -> int:
    """The command line in a fork, which searches PYTHONPATH as a new interpreter would."""
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    return main(args)


def command(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the distributions of a folder."""
    return forked.run(with_site, args, ROOT, environment(PYTHONPATH=f"{ROOT}{os.pathsep}{site}"))
