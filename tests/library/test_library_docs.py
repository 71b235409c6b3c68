"""docs/library.md: its examples run as they stand, print what they say, and use every public name."""

import re
from pathlib import Path

import pytest

import framefold
from pipeline.synthetic.corpus import write_corpus
from reducers import plugins

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "library.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SAID = re.compile(r"^ *print\(.*\) +# -> (.+)$", re.MULTILINE)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A working directory, the names that the page tells a reader to fill in, and no registered reducer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_registered", {})
    write_corpus(tmp_path / "corpus", [0, 11], side_px=64)
    return {
        "MODEL": str(ROOT / "pipeline" / "synthetic" / "checkpoint"),
        "VIDEOS": str(tmp_path / "corpus" / "videos"),
        "QUESTIONS": str(tmp_path / "corpus" / "test_q.json"),
    }


def test_examples_run_and_print_what_they_say(
    world: dict[str, str], capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    """Each begins with its imports; a comment after an arrow is a line that it prints."""
    for number, block in enumerate(BLOCKS, start=1):
        exec(compile(block, f"docs/library.md, example {number}", "exec"), {"__name__": f"example_{number}", **world})
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in SAID.findall(block) if line not in printed] == [], printed
    assert len(BLOCKS) == 7
    assert sum(len(SAID.findall(block)) for block in BLOCKS) == 4


def test_every_public_name_is_in_an_example() -> None:
    code = "\n".join(BLOCKS)
    assert [name for name in framefold.__all__ if f"framefold.{name}" not in code] == []


def test_examples_use_only_public_names() -> None:
    used = set(re.findall(r"framefold\.(\w+)", re.sub(r"#.*", "", "\n".join(BLOCKS))))
    assert used <= set(framefold.__all__)
