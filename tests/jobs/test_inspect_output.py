"""The output of `framefold inspect`: text that is safe to print, pictures, and facts that a decoder process cannot forge."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.commands.inspect_strip import FRAMES_PER_ROW, GAP_PX, LINE_PX, stacked, strip
from jobs.commands.inspect_text import visible
from jobs.runtime.launch import parse, with_values
from pipeline.decode.config import DecodeConfig
from pipeline.decode.facts import ClipFacts, StreamFacts, from_json
from pipeline.decode.inspection import Inspection, Inspector
from pipeline.decode.sampling import frame_indices
from tests.command import ROOT, framefold, report
from tests.frames.numbered import number_of
from tests.http_server import http_server
from tests.jobs.inspecting import BOX_PX, HEIGHT, VIDEOS, WIDTH, facts, inspected, x264


def test_video_behind_a_url_is_inspected_and_its_secrets_are_not_shown() -> None:
    content = (VIDEOS / "unordered.mov").read_bytes()
    with http_server({"/a.mov": content}) as (url, _):
        signed = f"{url}/a.mov?X-Amz-Signature=hunter2secret"
        ran = framefold("inspect", signed, f"{url}/gone.mov", "--json")
        text = framefold("inspect", signed)
    found, gone = (json.loads(line) for line in ran.stdout.splitlines()[:-1])
    assert (found["stream"]["packets"], found["bytes"]) == (4, len(content))
    assert gone["error_class"] == "NOT_FOUND"
    assert "hunter2secret" not in ran.stdout + ran.stderr + text.stdout + text.stderr


def test_server_that_does_not_answer_costs_its_video_alone() -> None:
    from tests.ports import free_ports

    ran = framefold("inspect", f"http://127.0.0.1:{free_ports(1)[0]}/a.mp4", str(VIDEOS / "unordered.mov"))
    assert (ran.returncode, report(ran)["failed_by_class"], report(ran)["usable"]) == (1, {"UNREADABLE": 1}, 1)


def test_names_cannot_command_a_terminal(tmp_path: Path) -> None:
    """Line breaks, escapes, direction marks and undecodable bytes are escaped; letters and spaces of any script stay."""
    odd = tmp_path / "a\nb\x1b[31m\u202e\u202f\u3000é\U0001f468\u200d\U0001f469.mov"
    odd.write_bytes((VIDEOS / "unordered.mov").read_bytes())
    undecodable = str(tmp_path / "c\udcff.mov")
    Path(undecodable).write_bytes((VIDEOS / "unordered.mov").read_bytes())
    ran = framefold("inspect", str(odd), undecodable, "--png", str(tmp_path / "strip.png"))
    assert ran.returncode == 0, ran.stderr
    assert "a\\nb\\x1b[31m\\u202e\u202f\u3000é\U0001f468\u200d\U0001f469.mov\n" in ran.stdout
    assert "c\\udcff.mov\n" in ran.stdout
    assert [found["video"] for found in facts(odd, undecodable)] == [str(odd), undecodable]


@given(st.text())
def test_visible_text_has_no_character_that_a_terminal_obeys(text: str) -> None:
    shown = visible(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in shown)
    assert visible(shown) == shown


def test_png_holds_the_sampled_frames_one_strip_below_the_other(tmp_path: Path) -> None:
    """The numbers that are drawn in the frames are read off the picture."""
    paths = [x264(tmp_path / "a.mp4", 50, "bframes=2"), x264(tmp_path / "b.mkv", 33, "bframes=0")]
    target = tmp_path / "new" / "strip.png"
    ran = framefold("inspect", *map(str, paths), str(tmp_path / "gone.mp4"), "--frames", "10", "--png", str(target))
    assert ran.returncode == 1
    picture = np.asarray(Image.open(target).convert("RGB"))
    top = 0
    for count in (50, 33):
        shown = []
        for number in range(10):
            row, column = divmod(number, FRAMES_PER_ROW)
            y = top + LINE_PX + GAP_PX + row * (HEIGHT + LINE_PX + GAP_PX)
            x = GAP_PX + column * (WIDTH + GAP_PX)
            shown.append(number_of(picture[y : y + HEIGHT, x : x + WIDTH]))
            caption = picture[y + HEIGHT : y + HEIGHT + LINE_PX, x : x + WIDTH]
            assert (caption < 100).any(), "nothing is written below the frame"
        assert shown == frame_indices(count, 10)
        top += LINE_PX + GAP_PX + 2 * (HEIGHT + LINE_PX + GAP_PX) + GAP_PX
    assert picture.shape[0] == top + 2 * LINE_PX + 2 * GAP_PX  # the one that is gone: its name and its class


def test_strip_of_a_long_name_stays_within_its_width() -> None:
    found = Inspection(video="x" * 5000, segment=None, error_class="CORRUPT", error="y" * 5000)
    picture = strip(found, BOX_PX)
    assert picture.width < 2000
    right = np.asarray(picture)[:, -GAP_PX:]
    assert (right == right[0, 0]).all()
    assert stacked([picture]).startswith(b"\x89PNG")


def test_unproven_frames_are_marked_in_the_picture() -> None:
    """Red where they stand, and only there."""
    found = inspected(VIDEOS / "corrupted.mp4")
    assert found.clip is not None
    assert found.thumbnails is not None
    pixels = np.asarray(strip(found, BOX_PX)).astype(int)
    high, wide = found.thumbnails.shape[1:3]
    top = 2 * LINE_PX + GAP_PX + high
    for number, proven in enumerate(found.clip.proven):
        left = GAP_PX + number * (wide + GAP_PX)
        caption = pixels[top : top + LINE_PX, left : left + wide]
        is_red = (caption[..., 0] - caption[..., 1]).max() > 100
        assert is_red != proven


def test_large_frames_are_sent_small_and_never_enlarged() -> None:
    with Inspector(DecodeConfig(), 100) as inspector:
        large, small = (inspector.inspect(str(VIDEOS / name)).thumbnails for name in ("testsrc2.mp4", "unordered.mov"))
    assert large is not None
    assert small is not None
    assert (large.shape, small.shape) == ((8, 56, 100, 3), (8, 50, 50, 3))


def test_decoding_that_takes_too_much_memory_costs_the_clip_and_not_the_command() -> None:
    """What the packets say is still told, and the next video is inspected."""
    with Inspector(DecodeConfig(memory_mb=16), BOX_PX) as inspector:
        found = inspector.inspect(str(VIDEOS / "testsrc2.mp4"))
        assert found.error_class in ("OUT_OF_MEMORY", "CRASHED")
        assert found.stream is not None
        assert found.stream.packets == 60
        assert inspector.inspect(str(VIDEOS / "unordered.mov")).error_class == ""


def test_decoding_that_takes_too_long_is_ended() -> None:
    with Inspector(DecodeConfig(deadline_s=0.001), BOX_PX) as inspector:
        found = inspector.inspect(str(VIDEOS / "nasa_13013.mp4"))
        process = inspector.child.process
    assert found.error_class == "TIMEOUT"
    assert found.fetched is not None
    assert process is None


def test_frames_of_another_size_than_asked_for_are_not_believed() -> None:
    """What has read a hostile file may answer anything."""
    with Inspector(DecodeConfig(), BOX_PX) as inspector:
        assert inspector.inspect(str(VIDEOS / "unordered.mov")).error_class == ""
        inspector.child.side_px = 16
        assert inspector.inspect(str(VIDEOS / "unordered.mov")).error_class == "CRASHED"


@pytest.fixture(scope="module")
def told() -> tuple[dict[str, Any], dict[str, Any]]:
    found = inspected(VIDEOS / "discard_first_keyframe.mp4")
    assert found.stream is not None
    assert found.clip is not None
    return asdict(found.stream), asdict(found.clip)


def test_facts_survive_their_way_as_json(told: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for kind, data in zip((StreamFacts, ClipFacts), told, strict=True):
        assert asdict(from_json(kind, json.loads(json.dumps(data)))) == data  # type: ignore[type-var]


@given(data=st.data())
def test_facts_of_a_wrong_type_are_refused(told: tuple[dict[str, Any], dict[str, Any]], data: st.DataObject) -> None:
    """A value of another type, wherever it is, a field too many or too few: ValueError and nothing else."""
    number = data.draw(st.integers(0, 1))
    changed = json.loads(json.dumps(told[number]))
    places = [(changed, name) for name in changed]
    places += [(inner, name) for inner in changed.values() if isinstance(inner, dict) for name in inner]
    places += [(inner, 0) for inner in changed.values() if isinstance(inner, list) and inner]
    where, name = data.draw(st.sampled_from(places))
    if data.draw(st.booleans()) and isinstance(where, dict):
        where.pop(name)
        where |= {f"{name}x": 1} if data.draw(st.booleans()) else {}
    else:
        where[name] = data.draw(st.sampled_from([{}, {"a": 1}, [[]], b"".decode, float("nan")]))  # type: ignore[index]
    with pytest.raises(ValueError, match="expected"):
        from_json((StreamFacts, ClipFacts)[number], changed)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("given_words", "expected"),
    [
        (["--json", "a.mp4"], ["--json=True", "a.mp4"]),
        (["a.mp4", "--json"], ["a.mp4", "--json=True"]),
        (["--json", "False", "a"], ["--json", "False", "a"]),
        (["--json=True", "a"], ["--json=True", "a"]),
        ([], []),
    ],
)
def test_bare_flag_does_not_take_the_next_video_for_its_value(given_words: list[str], expected: list[str]) -> None:
    assert with_values(given_words, "--json") == expected


def test_every_command_in_its_document_parses() -> None:
    from jobs.bench.decode import DecodeBench
    from jobs.commands.inspect import InspectJob

    text = (ROOT / "docs" / "inspect.md").read_text()
    jobs = {"inspect ": InspectJob, "bench decode": DecodeBench}
    commands = [line.removeprefix("    framefold ") for line in text.splitlines() if line.startswith("    framefold ")]
    assert len(commands) >= 3
    for command in commands:
        name = next(name for name in jobs if command.startswith(name))
        words = [word for word in shlex.split(command.removeprefix(name)) if word != "a.mp4" and word != "b.avi"]
        assert parse(jobs[name], "framefold", words)


def test_document_describes_every_line_that_is_printed() -> None:
    """Labels of real output, of good and damaged files, are rows of its table."""
    text = (ROOT / "docs" / "inspect.md").read_text()
    ran = framefold("inspect", *[str(VIDEOS / name) for name in ("corrupted.mp4", "discard_first_keyframe.mp4", "gone.mp4")])
    labels = {line[2:16].strip() for line in ran.stdout.splitlines() if line.startswith("  ")} - {""}
    assert len(labels) > 10
    assert all(f"`{label}`" in text for label in labels), labels
