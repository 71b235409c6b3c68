"""A version stands for what its code gives: other tokens under the same version would be served as if nothing had changed.

`versions.json` holds, for each fingerprint of a method on fixed clips, which tokens came out and a sum over them. Change a
method and a test fails until its version is raised; `python -m tests.test_versions` then records what the new one gives, and
never writes over what is recorded.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from pipeline.answer import token_selection
from pipeline.answer.token_selection import original_positions, trimmed
from pipeline.models import clip_space
from pipeline.models.checkpoint import Checkpoint
from pipeline.store.entries import Entry, StoredOrder
from reducers.base import ReducedTokens, VisualTokens
from reducers.nest import cut as nest_cut
from reducers.nest.cut import StoredNest
from reducers.nest.order import NestConfig
from reducers.registry import parse
from tests.reducers.test_invariants import SPECS, reduce, tokens

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).with_name("versions.json")
GRID = (6, 6)
FRAMES = 8
QUESTION_VECTOR = {1: [-3.074, 0.585, -1.296, -1.489, 16.522, 15.032]}
"""By version: first numbers of the vector of a question, its length, and that of a question too long to be read whole."""
Found = dict[str, Any]


def clip() -> VisualTokens:
    return tokens(7, (FRAMES,), grid=GRID)


def told(found: ReducedTokens) -> Found:
    """Anchors, kinds and frames as a digest; features as one sum that knows their places."""
    whole = torch.stack([found.anchor.long(), found.kind.long(), found.frame.long(), found.size.round().long()])
    place = torch.arange(1, found.features.numel() + 1).view_as(found.features).double()
    weighed = float((found.features.double() * (place * 0.618).sin()).sum())
    return {"tokens": hashlib.sha256(whole.numpy().tobytes()).hexdigest()[:16], "sum": round(weighed, 4)}


def entry_of(reduced: ReducedTokens) -> Entry:
    order = reduced.order
    held = None
    if order is not None:
        assert reduced.owner is not None
        names = ("rank", "parent", "link", "weight", "gain")
        held = StoredOrder(**{name: getattr(order, name).numpy() for name in names}, owner=reduced.owner.short().numpy())
    vectors = torch.randn(len(reduced.features), 6, generator=torch.Generator().manual_seed(1))
    names = ("features", "frame", "anchor", "kind", "size", "position")
    return Entry(
        video_id="v",
        **{name: getattr(reduced, name).numpy() for name in names},
        grid=(FRAMES, *GRID),
        timestamps_s=(),
        source_sha256="",
        payload_sha256="",
        order=held,
        clip_space=vectors.half().numpy(),
    )


def stored() -> StoredNest:
    entry = entry_of(parse("nest(keep=100)").reduce(clip()))
    vectors = torch.from_numpy(entry.clip_space).float()
    return StoredNest.of(token_selection.stored_tokens(entry), entry.grid, NestConfig(keep=100), vectors)


def question() -> torch.Tensor:
    return torch.randn(6, generator=torch.Generator().manual_seed(2))


def asked(prefer: Literal["like", "unlike"]) -> Found:
    return told(stored().ask(question(), 40, prefer))


def seen(spec: str) -> Found:
    return told(trimmed(entry_of(parse(spec).reduce(clip())), parse("trim(ratio=0.25)"), question()))


def budgets() -> Found:
    one = stored()
    counts = [one.least_for(share / 10) for share in range(1, 10)] + [one.cut_at(gain, 8) for gain in (1e-3, 3e-3, 1e-2)]
    return {"tokens": counts, "sum": 0.0}


def placed() -> Found:
    reduced = parse("visionzip(dominant=5,contextual=3)").reduce(clip())
    return {"tokens": original_positions(reduced, (FRAMES, *GRID)).tolist(), "sum": 0.0}


def made() -> dict[str, Callable[[], Found]]:
    """Everything that has a version, by name and version."""
    found: dict[str, Callable[[], Found]] = {}
    for spec in SPECS:
        reducer = parse(spec)
        found[reducer.fingerprint()] = lambda reducer=reducer: told(reduce(reducer, clip()))
    found[f"cut {nest_cut.CUT}"] = lambda: told(stored().cut(40))
    found[f"cut {nest_cut.CUT}, budgets"] = budgets
    for prefer in ("like", "unlike"):
        found[f"ask {nest_cut.ASK}, {prefer}"] = partial(asked, prefer)
    for spec in ("none", "nest(keep=100)"):
        found[f"trimmed {token_selection.TRIMMED}, {spec}, {parse('trim').version}"] = partial(seen, spec)
    found[f"positions {token_selection.POSITIONS}"] = placed
    return found


def recorded() -> Mapping[str, Found]:
    return dict(json.loads(RECORDED.read_text())) if RECORDED.exists() else {}


@pytest.mark.parametrize("name", made())
def test_what_a_version_gives_never_changes(name: str) -> None:
    """Raise the version of what you changed, then record it: `python -m tests.test_versions`."""
    want, found = recorded()[name], made()[name]()
    assert found["tokens"] == want["tokens"], "other tokens under the same version"
    assert found["sum"] == pytest.approx(want["sum"], abs=5e-3), "other features under the same version"


def test_nothing_is_recorded_that_no_code_gives_any_more() -> None:
    """So that the file says which versions there are."""
    assert set(recorded()) == set(made())


def test_a_question_of_the_bundled_model_is_the_vector_that_its_version_stands_for() -> None:
    """Blanks are noise, the end of a long question is cut, and the length of a vector is the tower's."""
    space = clip_space.JointSpace.open(Checkpoint.open(str(ROOT / "pipeline" / "synthetic" / "checkpoint")))
    one, same, long = space.embed(["where is the red ring", "  where is  the red ring ", "red " * 200])
    assert torch.equal(one, same)
    found = [*one[:4].tolist(), float(one.norm()), float(long.norm())]
    assert found == pytest.approx(QUESTION_VECTOR[clip_space.EMBEDDING], abs=0.01)


def record() -> None:
    """Add what is not recorded yet; drop what no code gives any more."""
    held = recorded()
    RECORDED.write_text(json.dumps({name: held.get(name) or give() for name, give in made().items()}, indent=1) + "\n")


if __name__ == "__main__":
    record()
