"""Pictures of which tokens survive: they show what the reducers do today, and every reducer has one."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from jobs.commands.reducers import ReducersJob, run
from jobs.docs_gen.catalogue_text import ABOUT
from jobs.docs_gen.pictures import (
    DROPPED,
    GAP_PX,
    KEPT,
    PICTURED,
    SCALE,
    TAKEN_IN,
    TOOK_IN,
    Shown,
    draw,
    file_name,
    picture,
    png,
    states,
)
from reducers.compose.selectors import FIRST
from reducers.registry import METHODS, parse
from tests.reducers.test_invariants import tokens

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
LARGEST_BYTES = 15 * 1024


def pixels(body: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    return draw(list(PICTURED.values()))


def test_every_reducer_is_told_about_and_pictured() -> None:
    """A new one cannot stay out of the page, nor a first part of a composition."""
    assert ABOUT.keys() == METHODS.keys()
    sections = [*METHODS, *(name if name not in METHODS else f"{name} as a first part" for name in FIRST)]
    assert list(PICTURED) == sections
    for section, spec in PICTURED.items():
        assert parse(spec).name.split("|")[0] == section.split(" ")[0]


def test_the_pictures_show_what_the_reducers_do_today(drawn: dict[str, bytes]) -> None:
    """Refresh them with `framefold reducers --pictures docs/pictures`. Another processor may turn a patch or two."""
    assert {path.name for path in PICTURES.iterdir()} == drawn.keys()
    for name, body in drawn.items():
        stored, now = pixels((PICTURES / name).read_bytes()), pixels(body)
        assert stored.shape == now.shape, name
        wrong = (stored != now).any(-1)
        patch = 8 * SCALE
        frames = [wrong[:, at * SCALE * (64 + GAP_PX) :][:, : 64 * SCALE] for at in range(8)]
        turned = sum(int(frame.reshape(8, patch, 8, patch).any((1, 3)).sum()) for frame in frames)
        assert turned <= 4, f"{name}: {turned} of 512 patches differ"


def test_pictures_are_small(drawn: dict[str, bytes]) -> None:
    """Below 15 KB each."""
    assert max(map(len, drawn.values())) <= LARGEST_BYTES


def test_a_patch_is_painted_by_what_became_of_it() -> None:
    """Four patches of one frame: full colour, orange over it, pale orange, pale grey."""
    frame = np.full((1, 4, 4, 3), (32, 64, 96), dtype=np.uint8)
    state = np.array([[KEPT, TOOK_IN, TAKEN_IN, DROPPED]], dtype=np.uint8)
    seen = pixels(picture(Shown(frames=frame, grid=(2, 2)), state))
    kept, took_in, taken_in, dropped = (seen[row, column].astype(int) for row in (0, 4) for column in (0, 4))
    assert seen.shape == (4 * SCALE, 4 * SCALE, 3)
    assert np.abs(kept - (32, 64, 96)).max() <= 16
    assert took_in[0] > kept[0] + 64
    assert took_in[2] < kept[2]
    assert dropped.min() >= 200
    assert np.ptp(dropped) == 0
    assert taken_in[0] > taken_in[2] + 48
    assert taken_in[0] > 200


@pytest.mark.parametrize("spec", ["visionzip(dominant=3, contextual=1)", "evs(keep=12)", "tree(keep=9, tau=0.2)|visionzip"])
def test_states_follow_owners_and_anchors(spec: str) -> None:
    """Against a loop over tokens and patches."""
    reduced = parse(spec).reduce(tokens(5, (3,)))
    found = states(reduced, 3, 16).flatten()
    assert reduced.owner is not None
    anchors = {int(anchor): token for token, anchor in enumerate(reduced.anchor) if anchor >= 0}
    for patch in range(48):
        token = anchors.get(patch)
        if token is None:
            expected = TAKEN_IN if int(reduced.owner[patch]) >= 0 else DROPPED
        else:
            plain = int(reduced.kind[token]) == 0 and float(reduced.size[token]) <= 1
            expected = KEPT if plain else TOOK_IN
        assert found[patch] == expected


def test_a_png_holds_the_pixels_that_it_was_given() -> None:
    """Read back by another program."""
    draws = torch.randint(0, 6, (9, 13, 3), generator=torch.Generator().manual_seed(1)).numpy().astype(np.uint8) * 40
    np.testing.assert_array_equal(pixels(png(draws)), draws)


def test_the_command_writes_a_file_for_each(tmp_path: Path, drawn: dict[str, bytes]) -> None:
    """The same bytes on the same machine."""
    report = run(ReducersJob(pictures=str(tmp_path / "new")))
    assert report["pictures"] == sorted(drawn) == sorted(file_name(spec) for spec in PICTURED.values())
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == drawn


def test_the_list_names_what_can_be_composed(capsys: pytest.CaptureFixture[str]) -> None:
    """All of it parses."""
    run(ReducersJob())
    rows = [line.split()[0] for line in capsys.readouterr().out.partition("compositions: FIRST|SECOND")[2].splitlines() if line]
    report = run(ReducersJob(json=True))
    for first in report["compositions"]["first"]:
        assert first in rows
        for second in report["compositions"]["second"]:
            assert parse(f"{first}|{second}").name == f"{first}|{second}"
