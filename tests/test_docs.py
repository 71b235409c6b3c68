"""What the documents say is what the code does: commands parse, links exist, tables name what is there."""

import re
import shlex
from pathlib import Path

import pytest

from jobs.cli import COMMANDS
from jobs.commands.answer import AnswerJob
from jobs.commands.caption import CaptionJob
from jobs.commands.encode import EncodeJob
from jobs.commands.evaluate import EvaluateJob
from jobs.commands.train import TrainJob
from jobs.docs_gen.catalogue import markdown
from jobs.runtime import launch
from pipeline.engines.transformers_engine import STATUSES
from pipeline.errors import VIDEO_CODES
from reducers.registry import names, parse

ROOT = Path(__file__).parents[1]
GUIDE = ("corpus", "questions", "choosing-a-reducer", "store", "captions", "cluster", "operations")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in GUIDE)]
README = "\n".join(page.read_text() for page in PAGES)
NAMES = ("README.md", "CHANGELOG.md", "docs/architecture.md", "docs/reducers.md", "docs/tables.md", "infra/README.md")
DOCUMENTS = [ROOT / name for name in NAMES]
JOBS = {
    "encode": EncodeJob,
    "answer": AnswerJob,
    "caption": CaptionJob,
    "evaluate": EvaluateJob,
    "train": TrainJob,
}


def commands() -> list[list[str]]:
    """Every command of an indented block, as words."""
    lines = README.replace("\\\n", " ").splitlines()
    pattern = re.compile(r"^    .*?(?:framefold|python -m jobs\.)\s*((?:encode|answer|caption|evaluate|train)\s.+)$")
    found = map(pattern.search, lines)
    return [shlex.split(match.group(1)) for match in found if match]


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_every_command_in_the_readme_parses(words: list[str]) -> None:
    """Flags cannot be renamed behind its back."""
    assert launch.parse(JOBS[words[0]], f"framefold {words[0]}", words[1:])


def test_the_readme_names_every_command_reducer_class_and_status() -> None:
    """And nothing that is not there."""
    assert set(re.findall(r"`framefold (\w+)", README)) | {"demo"} == set(COMMANDS)
    assert set(re.findall(r"`([A-Z_]{5,})`", README)) & VIDEO_CODES == VIDEO_CODES
    quoted = re.findall(r"`([a-z_]+\+?(?:\([^)]*\))?)`", README)
    specs = [spec for spec in quoted if spec.split("(")[0] in names()]
    assert {parse(spec).name for spec in specs} == set(names())
    assert all(f"`{status}`" in README for status in STATUSES)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    """Every relative link, and every path of this repository in back quotes."""
    text = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:reducers|pipeline|jobs|tests|docs|benchmarks|infra)/[\w./]*)`", text)
    for link in links:
        assert (path.parent / link).exists(), link
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_page_of_reducers_is_what_the_code_says() -> None:
    """Refresh it with `framefold reducers --markdown True > docs/reducers.md`."""
    assert (ROOT / "docs" / "reducers.md").read_text() == markdown()


def test_token_counts_in_the_readme_are_what_the_reducers_give() -> None:
    """The table of reducers, on eight frames of 256 patches."""
    from tests.reducers.test_invariants import tokens

    batch = tokens(0, (8,), grid=(16, 16))
    for spec, count in re.findall(r"^\| `([^`]+)`[^|]*\| (\d+)", README, re.MULTILINE):
        assert len(parse(spec).reduce(batch).features) == int(count), spec


def test_the_readme_shows_the_output_of_a_real_demo() -> None:
    """Its table has the columns that the demo prints, and accuracies."""
    shown = README.split("<!-- demo output: begin -->")[1].split("<!-- demo output: end -->")[0]
    assert re.search(r"reducer +tokens per video +bytes per video +accuracy", shown)
    assert len(re.findall(r"0\.\d{3} to \d\.\d{3}", shown)) >= 3
