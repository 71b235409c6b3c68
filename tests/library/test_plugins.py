"""Reducers of other distributions: usable by name, part of the fingerprint, and refused before a video is read."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import framefold
from framefold import PluginError, ReducedTokens, ReducerBase, ReducerSpecError, TextQuery, VisualTokens, register_reducer
from reducers import plugins
from reducers.base import describe
from tests.command import ROOT, afresh, report
from tests.library.distributions import broken, command, good, install
from tests.models import tiny_checkpoint

VIDEOS = ROOT / "tests" / "videos"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("plugins") / "tiny")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is searched for modules and distributions; what was imported from it is forgotten."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """The table of registered classes, as it was before, after the test."""
    table: dict[str, type] = {}
    monkeypatch.setattr(plugins, "_registered", table)
    return table


def encode(site: Path, store: Path, model: str, reducer: str) -> Any:
    """Run `framefold encode` over one video with the distributions of a folder."""
    flags = ["--store", str(store), "--model", model, "--device", "cpu", "--runner", "local", "--reducer", reducer]
    return command(site, "encode", str(VIDEOS / "unordered.mov"), *flags)


def refused(ran: Any, store: Path) -> str:
    """Return the sentence of a command that refused its settings."""
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    lines = ran.stderr.splitlines()
    assert len(lines) == 1, ran.stderr
    assert not store.exists()
    return str(lines[0])


def test_reducer_of_another_distribution_encodes_and_answers(model: str, tmp_path: Path) -> None:
    """By name and with parameters, on the command line; the store says which distribution made its entries."""
    site, store = install(tmp_path / "site", good()), tmp_path / "store"
    told = report(encode(site, store, model, "first(keep=2)"))
    assert (told["committed"], told["tokens_per_video"]) == (1, 16.0)
    opened = framefold.TokenStore.open(str(store))
    assert opened.spec["reducer"] == {
        "name": "first",
        "version": 1,
        "params": {"keep": 2},
        "distribution": {"name": "tiny-reducers", "version": "1.2"},
    }
    assert opened["unordered"].anchor.tolist() == [frame * 16 + patch for frame in range(8) for patch in range(2)]
    asked = tmp_path / "q.jsonl"
    asked.write_text('{"video_id": "unordered", "question": "what is it", "question_id": "1"}\n')
    flags = ["--store", str(store), "--out", str(tmp_path / "out"), "--model", model, "--device", "cpu", "--runner", "local"]
    assert report(command(tmp_path / "empty", "answer", str(asked), *flags, "--max-new-tokens", "2"))["statuses"] == {"ok": 1}


def test_new_interpreter_finds_the_distribution_or_refuses_it(model: str, tmp_path: Path) -> None:
    """As a user's shell runs it, with nothing imported before."""
    flags = ["--model", model, "--device", "cpu", "--runner", "local", "--reducer", "first"]
    site, store = install(tmp_path / "good", good()), tmp_path / "store"
    video = str(VIDEOS / "unordered.mov")
    assert report(afresh("encode", video, "--store", str(store), *flags, PYTHONPATH=f"{ROOT}:{site}"))["committed"] == 1
    site = install(tmp_path / "bad", broken("ptr=kept.ptr.flip(0)"))
    ran = afresh("encode", video, "--store", str(tmp_path / "none"), *flags, PYTHONPATH=f"{ROOT}:{site}")
    assert "reducer 'first' of distribution tiny-reducers 1.2 breaks the interface: ptr" in refused(ran, tmp_path / "none")


def test_another_version_of_the_distribution_is_another_fingerprint(model: str, tmp_path: Path) -> None:
    store, found = tmp_path / "store", []
    for version in ("1.2", "1.3"):
        site = install(tmp_path / version, good(), version=version)
        found.append(report(encode(site, store, model, "first"))["fingerprint"])
    assert found[0] != found[1]


def test_list_of_reducers_names_distribution_or_reason(tmp_path: Path) -> None:
    site = install(tmp_path / "site", good())
    install(site, "import nothing_of_that_name", dist="torn", points="torn = torn_reducers:Torn")
    listed = report(command(site, "reducers", "--json"))["plugins"]
    assert listed["first"] == "reducer 'first' of distribution tiny-reducers 1.2: Keeps the first patches of each frame."
    assert listed["torn"].startswith("reducer 'torn' of distribution torn 1.2 cannot be imported from torn_reducers:Torn: ")
    assert "plugins" not in report(command(tmp_path / "empty", "reducers", "--json"))


BROKEN = {
    "features of another width": ("features=kept.features[:, :3]", r"features must be a tensor \(64, 32\) of float32"),
    "features of another type": ("features=kept.features.half()", r"got \(64, 32\) of float16"),
    "ptr that decreases": ("ptr=torch.tensor([0, 70, 64])", r"ptr must not decrease, got \[0, 70, 64\]"),
    "ptr that ends early": ("ptr=torch.tensor([0, 32, 60])", r"ptr must begin with 0 and end with the 64 tokens"),
    "ptr of one clip": ("ptr=torch.tensor([0, 64])", r"ptr must be a tensor \(3,\) of int64, got \(2,\)"),
    "ptr of another type": ("ptr=kept.ptr.int()", r"ptr must be a tensor \(3,\) of int64, got \(3,\) of int32"),
    "frames of another type": ("frame=kept.frame.long()", r"frame must be a tensor \(64,\) of int16"),
    "fewer frames": ("frame=kept.frame[1:]", r"frame must be a tensor \(64,\) of int16, got \(63,\)"),
    "a frame that there is none": ("frame=kept.frame + 1", r"frame must be from -1 to 7, got 1 to 8"),
    "a patch that there is none": ("anchor=kept.anchor + 200", r"anchor must be from -1 to 127"),
    "a kind that there is none": ("kind=kept.kind + 9", r"kind must be from 0 to 5, got 9 to 9"),
    "negative sizes": ("size=kept.size - 2", r"size must be finite and not negative"),
    "positions of two axes": ("position=kept.position[:, :2]", r"position must be a tensor \(64, 3\) of float32"),
    "no positions": ("position=None", r"position must be a tensor .* got NoneType"),
    "an owner of other patches": ("owner=kept.owner[1:]", r"owner must be a tensor \(256,\) of int32"),
    "an owner that there is none": ("owner=kept.owner + 64", r"owner must be from -1 to 63"),
    "an order that is none": ("order=5", "order must be an Order"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_result_that_breaks_the_interface_is_refused(case: str, site: Path, registered: dict[str, type]) -> None:
    columns, said = BROKEN[case]
    install(site, broken(columns))
    with pytest.raises(framefold.InterfaceError, match=said) as caught:
        framefold.check_reducer(framefold.reducer("first"), frames=8, grid=(4, 4), width=32, heads=2)
    assert "distribution tiny-reducers 1.2 breaks the interface" in str(caught.value)
    assert "\n" not in str(caught.value)


REFUSED = {
    "import": ("import nothing_of_that_name", "cannot be imported from tiny_reducers:First: ModuleNotFoundError"),
    "ptr": (broken("ptr=kept.ptr.flip(0)"), "breaks the interface: ptr must begin with 0"),
    "type": (broken("size=kept.size.double()"), "breaks the interface: size must be a tensor"),
    "result": (good("return 5"), "breaks the interface: reduce must return ReducedTokens, got int"),
    "error": (good("raise ZeroDivisionError('one\\ntwo')"), "raised ZeroDivisionError: one two"),
    "exit": (good("raise SystemExit(0)"), "raised SystemExit: 0"),
    "nothing": (good("mask_FN[:] = False"), "at least one token of each clip must be left, got none of clip 0"),
    "budget": (good("raise framefold.BudgetError('too few')"), "cannot work on 8 frames of 16 patches"),
    "version": (good().replace("version = 1", "version = '1'"), "version must be a class attribute, an int of at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_command_refuses_a_broken_plugin_before_a_video_is_read(case: str, model: str, tmp_path: Path) -> None:
    """One sentence with the distribution, exit 2, no store."""
    source, said = REFUSED[case]
    sentence = refused(encode(install(tmp_path / "site", source), tmp_path / "store", model, "first"), tmp_path / "store")
    assert said in sentence
    assert "distribution tiny-reducers 1.2" in sentence


def test_plugin_that_fails_on_one_video_costs_that_video(model: str, tmp_path: Path) -> None:
    """Zeros pass; the failure is a row that names the distribution, and the other video of the batch is encoded."""
    change = "import pathlib\nif len(tokens.clip_ptr) > 2 and bool(tokens.features.any()):\n    raise ValueError('several')\n"
    change += "flag = pathlib.Path(__file__).with_name('failed')\n"
    change += "if bool(tokens.features.any()) and not flag.exists():\n    flag.touch()\n    raise ValueError('first')"
    site, store = install(tmp_path / "site", good(change)), tmp_path / "store"
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("unordered.mov", "testsrc2.mp4"):
        (corpus / name).write_bytes((VIDEOS / name).read_bytes())
    flags = ["--store", str(store), "--model", model, "--device", "cpu", "--runner", "local", "--reducer", "first"]
    ran = command(site, "encode", str(corpus), *flags)
    told = json.loads(ran.stdout.splitlines()[-1])
    assert (ran.returncode, told["committed"], told["failed_by_class"]) == (1, 1, {"ENCODE_FAILED": 1})
    assert told["first_failed"][0]["error"] == "reducer 'first' of distribution tiny-reducers 1.2 raised ValueError: first"


CLASSES = {
    "no class": (good().replace("class First(", "class Other("), "has no attribute 'First'"),
    "a function": ("def First(): pass", "expected a class, got <function First"),
    "another name": (
        good().replace('name = "first"', 'name = "second"'),
        "its name is 'second', its entry point is named 'first'",
    ),
    "no config": (
        good().replace("config: FirstConfig", "config: int"),
        "config must be annotated with a dataclass, got <class 'int'>",
    ),
    "a config that is unknown": (
        good().replace("config: FirstConfig", "config: 'Nowhere'"),
        "config cannot be resolved: NameError",
    ),
    "a config without defaults": (
        good().replace("keep: int = 4", "keep: int"),
        "cannot be built from the defaults of its config",
    ),
    "needs of text": (
        good().replace("needs = frozenset()", "needs = {'keys'}"),
        "needs must be a frozenset of framefold.Capture",
    ),
    "no base": (good().replace("(framefold.ReducerBase)", ""), "fingerprint is missing (derive from framefold.ReducerBase)"),
    "no text": (good().replace("tokens, text=None", "tokens"), "reduce must take (tokens, text=None)"),
    "work in the tower": (good().replace("version = 1", "version = 1\n    modifies_tower = True"), "inside the tower"),
    "an exit": ("raise SystemExit(3)", "cannot be imported from tiny_reducers:First: SystemExit: 3"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_class_without_the_interface_is_refused(case: str, site: Path, registered: dict[str, type]) -> None:
    source, said = CLASSES[case]
    install(site, source)
    with pytest.raises(PluginError) as caught:
        framefold.reducer("first")
    assert said in str(caught.value)
    assert "reducer 'first' of distribution tiny-reducers 1.2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_distributions_of_one_name_are_refused(site: Path) -> None:
    install(site, good())
    install(site, good(), dist="other", version="0.1")
    with pytest.raises(PluginError, match=r"offered by distributions other 0\.1 and tiny-reducers 1\.2: uninstall"):
        framefold.reducer("first")


def test_name_of_ours_stays_ours(site: Path) -> None:
    """A part of a composition too, which is no reducer by itself."""
    install(site, good().replace('"first"', '"tree"'), points="tree = tiny_reducers:First")
    with pytest.raises(PluginError, match="the name 'tree' is taken by a reducer of framefold"):
        framefold.reducer("tree")
    assert "tree" not in plugins.names()


def test_plugin_is_no_part_of_a_composition(site: Path) -> None:
    install(site, good())
    with pytest.raises(ReducerSpecError, match="unknown part 'first' of a composition"):
        framefold.reducer("first|visionzip")


def test_unknown_name_lists_plugins(site: Path) -> None:
    install(site, good())
    with pytest.raises(ReducerSpecError, match=r"unknown reducer 'frist', expected one of none, .*, nest, first$"):
        framefold.reducer("frist")


@dataclass(frozen=True, kw_only=True)
class EveryConfig:
    step: int = 2


def every(**changes: Any) -> type:
    """A new class of a reducer that keeps every so many-th patch."""

    def reduce(self: Any, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        mask_FN = torch.zeros(tokens.features.shape[:2], dtype=torch.bool)
        mask_FN[:, :: self.config.step] = True
        return framefold.keep_patches(tokens, mask_FN)

    names = {"name": "every", "version": 1, "needs": frozenset(), "reduce": reduce, "__module__": __name__}
    annotations: dict[str, Any] = {"config": EveryConfig, "name": ClassVar[str], "version": ClassVar[int]}
    return dataclass(frozen=True)(type("Every", (ReducerBase,), {**names, "__annotations__": annotations, **changes}))


def test_registered_class_is_used_by_name(registered: dict[str, type]) -> None:
    kind = every()
    assert register_reducer(kind) is kind
    found = framefold.reducer("every(step=4)")
    assert found.reduce(VisualTokens.from_features(torch.ones(2, 16, 8))).anchor.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert describe(found) == {"name": "every", "version": 1, "params": {"step": 4}}
    framefold.check_reducer(found)


def test_registered_class_encodes_in_process(registered: dict[str, type], model: str, tmp_path: Path) -> None:
    register_reducer(every())
    told = framefold.encode(VIDEOS / "unordered.mov", tmp_path / "store", model=model, reducer="every(step=8)", device="cpu")
    assert (told["committed"], told["tokens_per_video"]) == (1, 16.0)


def test_class_of_a_cell_that_runs_again_is_replaced_and_another_is_refused(registered: dict[str, type]) -> None:
    register_reducer(every())
    second = register_reducer(every())
    assert type(framefold.reducer("every")) is second
    with pytest.raises(PluginError, match=r"Other: reducer 'every' is registered by .*Every: rename it"):
        register_reducer(every(__qualname__="Other"))
    with pytest.raises(PluginError, match="the name 'nest' is taken by a reducer of framefold"):
        register_reducer(every(name="nest"))


def test_entry_point_counts_where_its_module_registers_the_class_too(site: Path, registered: dict[str, type]) -> None:
    """So that a fingerprint does not depend on what was imported before."""
    install(
        site,
        good().replace(
            "@dataclass(frozen=True)\nclass First", "@framefold.register_reducer\n@dataclass(frozen=True)\nclass First"
        ),
    )
    __import__("tiny_reducers")
    assert "first" in registered
    assert describe(framefold.reducer("first"))["distribution"] == {"name": "tiny-reducers", "version": "1.2"}


def test_reducer_that_reads_the_question_is_tried_before_questions_are_answered(
    site: Path, registered: dict[str, type]
) -> None:
    from pipeline.answer.text_reducer import check_text_reducer

    text = good("assert text.embedding.shape[1] == tokens.clip_space.shape[2]").replace(
        "version = 1", "version = 1\n    needs_text = True"
    )
    install(site, text)
    check_text_reducer("first")
    install(site, text.replace("return framefold.keep_patches(tokens, mask_FN)", "return None"))
    del sys.modules["tiny_reducers"]
    with pytest.raises(
        framefold.ConfigError, match="first cannot work on stored patches: reducer 'first' of distribution tiny"
    ):
        check_text_reducer("first")
