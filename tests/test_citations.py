"""Citations resolve: sections of `docs/methods/`, anchors of links, and paths in documents and docstrings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "docs" / "methods"
OTHERS = [ROOT / "infra" / "README.md", ROOT / "benchmarks" / "RESULTS.md"]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *OTHERS])
MODULES = sorted(path for name in ("reducers", "pipeline", "jobs", "tests") for path in (ROOT / name).rglob("*.py"))
NUMBER = r"\d+(?:\.\d+)?"
PATH = re.compile(r"(?<![\w/.])((?:reducers|pipeline|jobs|tests|docs|benchmarks|infra)/[\w./]*\w/?)")
CITED = re.compile(rf"\b(frames|video)\.md,?\s+sections?\s+({NUMBER}(?:(?:,\s+|\s+and\s+|\s+to\s+){NUMBER})*)")
POINT = re.compile(rf"\b(frames|video)\.md,?\s+section\s+({NUMBER})(?:\s+rules?|,\s+rules?|,\s+points?|,)\s+(\d+)\b(?!\.\d)")


def sections(name: str) -> dict[str, str]:
    """Text of each numbered section of a specification, its subsections included."""
    text = (METHODS / f"{name}.md").read_text()
    heads = list(re.finditer(rf"^(#+) ({NUMBER})\.? .*$", text, re.MULTILINE))
    return {head[2]: text[head.end() : end_of(head, heads, len(text))] for head in heads}


def end_of(head: re.Match[str], heads: list[re.Match[str]], end: int) -> int:
    """Where the next heading of the same level or a higher one begins."""
    return next((later.start() for later in heads if later.start() > head.start() and len(later[1]) <= len(head[1])), end)


def cited(text: str) -> Iterator[tuple[str, str]]:
    """Specification and section of every citation in a text."""
    for name, numbers in CITED.findall(text):
        yield from ((name, number) for number in re.findall(NUMBER, numbers))


def unresolved(text: str) -> list[tuple[str, ...]]:
    """Citations in a text that no heading, or no item of its list, answers to."""
    wrong: list[tuple[str, ...]] = [(name, number) for name, number in cited(text) if number not in sections(name)]
    for name, number, item in POINT.findall(text):
        if not re.search(rf"^{item}\. ", sections(name).get(number, ""), re.MULTILINE):
            wrong.append((name, number, item))
    return wrong


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub names them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def docstrings(path: Path) -> str:
    """All docstrings of a module, those of fields and constants included."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return "\n".join(
        node.value.value
        for node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


def definitions(path: Path) -> set[str]:
    """Functions of a module, and methods as `Class.method`."""
    body = ast.parse(path.read_text()).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    methods = {f"{one.name}.{inner.name}" for one in classes for inner in one.body if isinstance(inner, ast.FunctionDef)}
    return methods | {node.name for node in body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", ["frames", "video"])
def test_the_specifications_number_their_sections(name: str) -> None:
    """Otherwise the test of citations would compare with nothing."""
    assert {"1", "2", "5.1", "5.7", "6"} <= sections(name).keys()


def test_a_citation_without_a_section_is_noticed() -> None:
    """Section, list of sections, item."""
    assert unresolved("docs/methods/video.md section 5.1 and frames.md sections 5.7 and 6; video.md section 4, rule 6") == []
    assert unresolved("docs/methods/video.md section 5.9") == [("video", "5.9")]
    assert unresolved("docs/methods/frames.md sections 5.3 to\n 5.99") == [("frames", "5.99")]
    assert unresolved("docs/methods/video.md section 4 rules 17 to 18") == [("video", "4", "17")]


def test_every_citation_of_a_specification_resolves() -> None:
    """In code, tests and documents; every file is named by its path."""
    files = [path for path in [*MODULES, *PAGES] if path != Path(__file__)]
    wrong = {str(path.relative_to(ROOT)): found for path in files if (found := unresolved(path.read_text()))}
    assert wrong == {}
    assert sum(len(list(cited(path.read_text()))) for path in files) > 50


def test_every_mention_of_a_specification_in_code_has_a_section() -> None:
    """A path alone would leave the reader to search."""
    for path in MODULES:
        text = re.sub(r"\s+", " ", path.read_text())
        bare = re.findall(r"docs/methods/\w+\.md(?! sections? \d).{0,30}", text) if path != Path(__file__) else []
        assert bare == [], path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_quoted_paths_exist(page: Path) -> None:
    """Relative links, and paths of this repository in back quotes."""
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:reducers|pipeline|jobs|tests|docs|benchmarks|infra)/[\w./]*)`", text):
        assert (ROOT / name).exists(), name


def test_the_map_of_the_tree_has_every_package() -> None:
    """Folders of `pipeline/`, `reducers/` and `jobs/` with modules."""
    modules = [path for name in ("pipeline", "reducers", "jobs") for path in (ROOT / name).glob("*/*.py")]
    folders = {path.parent.relative_to(ROOT) for path in modules}
    text = (ROOT / "docs" / "architecture.md").read_text().split("## Map of the tree")[1].split("### One video on its way")[0]
    assert len(folders) > 15
    assert [str(folder) for folder in sorted(folders) if f"\n| `{folder.as_posix()}/` |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_of_links_are_headings(page: Path) -> None:
    """A heading that was renamed takes its anchor with it."""
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / link if link else page), (link, anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_named_without_their_folder_exist(page: Path) -> None:
    """`order.py` and `decode/scan.py` are the end of some path."""
    known = {path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.py"), *ROOT.glob("*/**/*.py"))}
    for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
        assert any(path == name or path.endswith(f"/{name}") for path in known), name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_docstrings_exist(path: Path) -> None:
    """Those of this repository, in back quotes or not."""
    for name in PATH.findall(docstrings(path)):
        assert (ROOT / name).exists(), name


def test_steps_in_the_architecture_name_functions_of_their_files() -> None:
    """Each row of the two tables of steps: a function or a method, and the file that defines it."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\|[^|]+\| `([\w.]+)` \| `([\w/]+\.py)` \|$", text, re.MULTILINE)
    assert len(rows) > 20
    for name, path in rows:
        assert name in definitions(ROOT / path), (name, path)
