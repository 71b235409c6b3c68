"""`encode`, `answer` and `evaluate` in-process: the reports and files of the commands, without Ray."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import framefold
from framefold import ConfigError, TokenStore
from tests.command import framefold as command
from tests.command import report
from tests.models import tiny_checkpoint

VIDEOS = Path(__file__).parents[1] / "videos"
SPEC = "spatial(k=4)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("library") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("unordered.mov", "testsrc2.mp4"):
        (folder / name).write_bytes((VIDEOS / name).read_bytes())
    return folder


def questions(folder: Path) -> Path:
    rows = [{"video_id": name, "question": "what is it", "answer": "a"} for name in ("unordered", "testsrc2")]
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(row | {"question_id": row["video_id"]}) + "\n" for row in rows))
    return path


@pytest.fixture
def encoded(model: str, corpus: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    store = tmp_path / "store"
    return store, framefold.encode(corpus, store, model=model, reducer=SPEC, device="cpu", storage_options={})


def test_encode_fills_the_store_that_the_command_would(
    encoded: tuple[Path, dict[str, Any]], model: str, corpus: Path, tmp_path: Path
) -> None:
    """The same fingerprint and the same bytes; the command finds nothing left to do."""
    store, told = encoded
    assert (told["committed"], told["failed"], told["exit_code"]) == (2, 0, 0)
    flags = [str(corpus), "--store", str(store), "--model", model, "--reducer", SPEC, "--device", "cpu", "--runner", "local"]
    again = report(command("encode", *flags))
    assert again["fingerprint"] == told["fingerprint"]
    assert again["this_run"].keys() == {"seconds"}
    opened = TokenStore.open(str(store))
    assert list(opened) == ["testsrc2", "unordered"]
    assert opened["unordered"].features.shape == (32, 32)


def test_encode_answer_evaluate_give_one_another_what_they_need(
    encoded: tuple[Path, dict[str, Any]], model: str, tmp_path: Path
) -> None:
    asked = questions(tmp_path)
    told = framefold.answer(asked, encoded[0], tmp_path / "out", model=model, device="cpu", max_new_tokens=3)
    assert told["statuses"] == {"ok": 2}
    rows = [json.loads(line) for line in Path(told["answers"]).read_text().splitlines()]
    assert [row["visual_tokens"] for row in rows] == [32, 32]
    scored = framefold.evaluate(told["answers"], questions=asked)
    assert (scored["questions"], scored["coverage"]) == (2, 1.0)


def test_commands_run_in_a_thread(model: str, corpus: Path, tmp_path: Path) -> None:
    """Where no handler of signals can be set."""
    found: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"model": model, "reducer": SPEC, "device": "cpu"}
    thread = threading.Thread(target=lambda: found.append(framefold.encode(corpus, tmp_path / "store", **settings)))
    thread.start()
    thread.join()
    assert found[0]["committed"] == 2


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a setting that is misspelt": ({"frame": 8}, r"framefold\.encode: unknown setting 'frame', did you mean frames\?"),
    "a setting that nothing is like": ({"zzz": 8}, r"unknown setting 'zzz', expected some of batch_clips, "),
    "a setting of Ray": ({"encoders": 2}, "encoders is a setting of Ray: use the command framefold encode"),
    "a runner": ({"runner": "ray"}, "runner is a setting of Ray"),
    "text for a number": ({"frames": "8"}, r"framefold\.encode: frames must be int, got '8'"),
    "a choice that there is none": ({"dtype": "float8"}, r"dtype must be 'float16' or 'int8', got 'float8'"),
    "a number for a switch": ({"clip_space": 1}, "clip_space must be bool, got 1"),
    "a value out of range": ({"frames": 0}, "frames"),
    "a reducer that there is none": ({"reducer": "magic"}, "unknown reducer 'magic', expected one of none"),
    "no video": ({"corpus": "/none"}, "/none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_setting_is_one_line_and_nothing_is_written(case: str, model: str, corpus: Path, tmp_path: Path) -> None:
    settings, said = WRONG[case]
    with pytest.raises(ConfigError, match=said) as caught:
        framefold.encode(**{"corpus": corpus, "store": tmp_path / "store", "model": model, "device": "cpu", **settings})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_settings_are_taken_as_the_command_line_takes_them(model: str, corpus: Path, tmp_path: Path) -> None:
    """A whole number for seconds, a list for several classes, None for a default."""
    settings: dict[str, Any] = {"deadline_s": 60, "retry": ["TIMEOUT"], "segments": None, "reducer": SPEC, "device": "cpu"}
    assert framefold.encode(corpus, tmp_path / "store", model=model, **settings)["committed"] == 2


def test_missing_setting_is_named() -> None:
    from framefold.settings import job_of
    from jobs.commands.encode import EncodeJob

    with pytest.raises(ConfigError, match="what: the setting corpus is missing"):
        job_of(EncodeJob, {}, "what")
