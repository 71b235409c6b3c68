"""What the documents say is what the code does: commands parse, links exist, tables name what is there."""

import re
import shlex
from pathlib import Path

import pytest

from jobs.cli import COMMANDS, main
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
"""README and the pages that its chapters moved to."""
DOCUMENTS = sorted({*PAGES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "infra" / "README.md"})
OTHER_CAPITALS = {"AV_FRAME_FLAG_CORRUPT", "GOP", "MODEL", "QUESTIONS", "VIDEOS", "WARNING"}
VARIABLES = ("AWS_", "FRAMEFOLD_", "FSSPEC_")
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


def test_the_documents_name_every_class_of_failure_and_no_other() -> None:
    """Each word of capitals in back quotes is a class, a variable of the environment, or one of a few other words."""
    quoted = {path: set(re.findall(r"`([A-Z][A-Z_]{2,})`", path.read_text())) for path in DOCUMENTS}
    assert set().union(*quoted.values()) >= VIDEO_CODES
    for path, words in quoted.items():
        unknown = {word for word in words - VIDEO_CODES - OTHER_CAPITALS if not word.startswith(VARIABLES)}
        assert not unknown, f"{path.name}: {sorted(unknown)} are no classes of failure"


def test_the_table_of_reducers_in_the_readme_names_reducers_only() -> None:
    """A method that was renamed or made up does not parse."""
    table = README.split("| spec |")[1].split("\n\n")[0]
    specs = [spec for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for spec in re.findall(r"`([^`]+)`", cell)]
    assert len(specs) > 10
    assert {parse(spec).name for spec in specs} == set(names())


def test_the_readme_names_every_command_reducer_and_status() -> None:
    """And nothing that is not there."""
    assert set(re.findall(r"`framefold (\w+)", README)) | {"demo"} == set(COMMANDS)
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


MARGIN = 0.05
"""How far an accuracy may be from the one that is shown: other processors round otherwise, and some answers tip."""


def results(text: str) -> dict[str, tuple[str, str, float]]:
    """Tokens and bytes per video and the accuracy of each row of the demo's table, by the text of its first column."""
    rows = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    scored = [row for row in rows if len(row) > 4 and re.fullmatch(r"0\.\d{3}|1\.000", row[3])]
    return {row[0]: (row[1], row[2], float(row[3])) for row in scored}


@pytest.mark.slow
def test_the_readme_shows_the_output_of_the_demo_of_today(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same reducers, tokens and bytes as a run with the default settings, and accuracies near it; seconds may differ."""
    shown = README.split("<!-- demo output: begin -->")[1].split("<!-- demo output: end -->")[0]
    assert main(["demo", "--runner", "local", "--out", str(tmp_path / "out")]) == 0
    ran = capsys.readouterr()
    wanted, printed = results(shown), results(ran.out)
    assert len(wanted) >= 6
    assert {name: row[:2] for name, row in wanted.items()} == {name: row[:2] for name, row in printed.items()}
    assert all(abs(row[2] - printed[name][2]) <= MARGIN for name, row in wanted.items())
    questions = {re.split(r"  +", line.strip())[1] for line in shown.splitlines() if line.startswith("    shapes0")}
    assert len(questions) > 4
    assert all(question in ran.out for question in questions)
    second = next(line for line in ran.err.splitlines() if line.startswith("second run: "))
    assert second.removeprefix("second run: ") in shown
