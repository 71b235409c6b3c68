"""What SECURITY.md promises of the decoding process, tried: it has read a hostile file, so its answers are checked."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from tests.poison.push import one
from tests.security.command import CLIP

LIAR = """
import sys
sys.stdin.buffer.readline()
sys.stdout.buffer.write(open(sys.argv[1], "rb").read())
sys.stdout.buffer.flush()
sys.stdin.buffer.read()
"""
TRUE: dict[str, Any] = {
    "bytes": 8 * 32 * 32 * 3,
    "timestamps_s": [0.5] * 8, "decoder": "pyav", "substituted_frames": 0, "displaced_s": 0.0,
}
ANSWERS: dict[str, Any] = {
    "more bytes": {"bytes": TRUE["bytes"] + 1},
    "fewer bytes": {"bytes": 3},
    "negative bytes": {"bytes": -1},
    "bytes in words": {"bytes": "24576"},
    "too few times": {"timestamps_s": [0.5] * 7},
    "too many times": {"timestamps_s": [0.5] * 9},
    "times that are none": {"timestamps_s": [None] * 8},
    "times in words": {"timestamps_s": ["0.5"] * 8},
    "times in lists": {"timestamps_s": [[0.5]] * 8},
    "no list of times": {"timestamps_s": {"a": 0.5}},
    "a decoder that is a list": {"decoder": ["pyav"]},
    "no decoder": {"decoder": None},
    "a count in words": {"substituted_frames": "0"},
    "a class that nobody knows": {"error_class": "TRUSTED", "error": "x"},
    "an error that is a number": {"error_class": "CORRUPT", "error": 5},
    "a class without an error": {"error_class": "CORRUPT"},
}


def answering(stage: Decode, answer: bytes, folder: Path) -> dict[str, Any]:
    """Decode a video in a child that says this, whatever it is asked; returns the row."""
    (folder / "answer").write_bytes(answer)
    command = [sys.executable, "-S", "-c", LIAR, str(folder / "answer")]
    stage.child.close()
    stage.child.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    return one(stage, CLIP)[0]


@pytest.fixture(scope="module")
def patient() -> Iterator[Decode]:
    with Decode(DecodeConfig(deadline_s=60), side_px=32) as stage:
        yield stage


def test_the_child_is_told_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the cloud, of Ray and of whatever else the operator has set stay with the parent."""
    secret = {"AWS_SECRET_ACCESS_KEY": "wJalr-1", "RAY_AUTH_TOKEN": "ray-2", "MY_JUDGE_KEY": "sk-3"}
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    with Decode(DecodeConfig(), side_px=32) as stage:
        assert one(stage, CLIP)[0]["error_class"] is None
        assert stage.child.process is not None
        told = Path(f"/proc/{stage.child.process.pid}/environ").read_bytes().decode()
    assert "PATH=" in told
    assert not [value for value in (*secret, *secret.values()) if value in told]


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_decoding_process_answers_is_checked(name: str, patient: Decode, tmp_path: Path) -> None:
    """By size, number and type; it is ended for a lie."""
    answer = json.dumps({**TRUE, **ANSWERS[name]}).encode() + b"\n" + bytes(TRUE["bytes"])
    row = answering(patient, answer, tmp_path)
    assert (row["error_class"], row["frames"]) == ("CRASHED", None)
    assert row["error"] == "the decoder process returned an invalid response"
    assert patient.child.process is None


@pytest.mark.parametrize("answer", [b"no json\n", b"[]\n", b"5\n", b"\xff\xfe\n", b"x" * (3 << 20)], ids=range(5))
def test_an_answer_that_is_none_is_refused(answer: bytes, patient: Decode, tmp_path: Path) -> None:
    """And not waited for when it does not end."""
    row = answering(patient, answer, tmp_path)
    assert (row["error_class"], row["error"]) == ("CRASHED", "the decoder process returned an invalid response")


def test_the_same_answer_without_a_lie_is_taken(patient: Decode, tmp_path: Path) -> None:
    """So it is the lie that is refused; afterwards a real child decodes."""
    content = os.urandom(TRUE["bytes"])
    row = answering(patient, json.dumps(TRUE).encode() + b"\n" + content, tmp_path)
    assert (row["error_class"], row["frames"], row["timestamps_s"]) == (None, content, TRUE["timestamps_s"])
    patient.child.close()
    assert one(patient, CLIP)[0]["error_class"] is None
