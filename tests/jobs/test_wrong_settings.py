"""A wrong setting of any command ends it at once: exit 2, one line that says what was expected, nothing written or printed."""

import re
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.store.token_store import TokenStore
from tests.tables import SPEC

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "pipeline" / "synthetic" / "checkpoint")
CLIP = str(ROOT / "tests" / "videos" / "unordered.mov")
ENCODE = ["encode", CLIP, "--store", "{out}", "--model", MODEL]
CAPTION = ["caption", CLIP, "--store", "{out}", "--out", "{out}-captions", "--model", MODEL]
ANSWER = ["answer", "{questions}", "--store", "{store}", "--out", "{out}", "--model", MODEL]
EVALUATE = [
    "evaluate",
    "{questions}",
    "--questions",
    "{questions}",
    "--judge-url",
    "http://127.0.0.1:9/v1",
    "--judge-model",
    "m",
]
TRAIN = ["train", "--clips", "100000", "--out"]

WRONG = {
    "a choice that there is none": (
        [*ENCODE, "--policy", "x"],
        r"invalid choice 'x' for argument '--policy'\. Expected one of",
    ),
    "a flag that there is none": ([*ENCODE, "--polic", "x"], r"Unrecognized options: --polic, x Perhaps you meant: --policy"),
    "a word for a number": (
        [*ENCODE, "--frames", "a"],
        r"Error parsing --frames: invalid literal for int\(\) with base 10: 'a'",
    ),
    "a flag that is missing": (["encode", CLIP, "--model", MODEL], r"Missing from framefold encode: --store STR Root"),
    "a class that there is none": ([*ENCODE, "--retry", "TIMEOUT,OOPS"], r"unknown class of failure 'OOPS', expected some of"),
    "a class to try again that there is none": (["store", "retry", "{store}", "--class", "x"], r"unknown class of failure 'X'"),
    "captions of what is shown twice": ([*CAPTION, "--prompt", "<video> ?"], r"the prompt must not contain <video>"),
    "fewer captions missing than none": ([*CAPTION, "--max-failed", "-1"], r"max_failed must not be negative, got -1"),
    "GPUs that are no number": ([*ENCODE, "--gpus-per-encoder", "nan"], r"gpus_per_encoder must be from 0 to 1, or a whole"),
    "one and a half GPUs": (
        [*ANSWER, "--gpus-per-engine", "1.5"],
        r"gpus_per_engine must be from 0 to 1, or a whole number, got 1\.5",
    ),
    "GPUs without end": ([*ANSWER, "--gpus-per-engine", "inf"], r"gpus_per_engine must be from 0 to 1"),
    "fewer failures than none": ([*ENCODE, "--max-failed", "-1"], r"max_failed must not be negative, got -1"),
    "fewer unanswered than none": ([*ANSWER, "--max-unanswered", "-1"], r"max_unanswered must not be negative, got -1"),
    "names that are none": (
        [*ANSWER, "--aliases", "{questions}"],
        r"q\.jsonl: expected columns name and video_id, got",
    ),
    "no names": ([*ANSWER, "--aliases", "/none.txt"], r"cannot read /none\.txt: no such file"),
    "a judge without patience": ([*EVALUATE, "--judge-timeout-s", "nan"], r"tries and timeout must be positive"),
    "a judge that waits for ever": ([*EVALUATE, "--judge-timeout-s", "inf"], r"tries and timeout must be positive"),
    "a store that is none to mend": (["store", "repair", "{nothing}"], r"no token store there"),
    "a store that is none to clean": (["store", "gc", "{nothing}"], r"no token store there"),
    "files younger than nothing": (["store", "gc", "{store}", "--grace-s", "-1"], r"grace_s must not be negative, got -1\.0"),
    "an age that is none": (["store", "gc", "{store}", "--grace-s", "nan"], r"grace_s must not be negative, got nan"),
    "files of no video": (
        ["store", "export", "{store}", "--out", "{out}", "--videos-per-file", "0"],
        r"videos_per_file must be",
    ),
    "a place no file can be": ([*TRAIN, "{questions}"], r"q\.jsonl: expected a folder to write to"),
    "a place below a file": ([*TRAIN, "{questions}/x"], r"q\.jsonl/x: expected a folder to write to"),
    "a bench of no entry": (["bench", "store", "--entries", "0"], r"entries must be at least 1, got 0"),
    "a bench of no video": (["bench", "store", "--videos", "-1"], r"videos must be at least 1, got -1"),
    "a bench of no clip": (["bench", "tome", "--clips", "0"], r"clips must be at least 1, got 0"),
    "a bench of no share": (["bench", "tome", "--share", "0"], r"expected shares above 0 and at most 1, got \(0\.0,\)"),
    "a bench of nothing": (["bench", "encode", "--videos", "0"], r"videos must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_one_line_at_once(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line is ours, without frames or rules around it; what lies there before lies there after."""
    TokenStore.create(str(tmp_path / "store"), SPEC)
    (tmp_path / "q.jsonl").write_text('{"video_id": "a", "question": "what", "answer": "x", "question_id": "1"}\n')
    names = {
        "store": tmp_path / "store",
        "questions": tmp_path / "q.jsonl",
        "out": tmp_path / "out",
        "nothing": tmp_path / "no",
    }
    before = sorted(tmp_path.rglob("*"))
    args, said = WRONG[case]
    assert main([arg.format(**names) for arg in args]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("framefold: ")]
    assert len(lines) == 1
    assert re.search(said, lines[0]), lines[0]
    assert not re.search(r"[─│╭╮]|---|helptext|Traceback", err), err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before
