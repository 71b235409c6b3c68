"""The command line: wrong input is one line and exit 2 with nothing written; reports are JSON on the last line."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from jobs.cli import COMMANDS
from pipeline.store.token_store import TokenStore
from tests.command import ROOT, afresh, framefold, report, running
from tests.gate import gate
from tests.models import tiny_checkpoint
from tests.tables import SPEC

VIDEOS = ROOT / "tests" / "videos"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("cli") / "tiny")


def one_line(ran: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 2, nothing on stdout, and one line of ours that says these words."""
    ours = [line for line in ran.stderr.splitlines() if line.startswith("framefold: ")]
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    assert len(ours) == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    for word in words:
        assert word in ours[0], ours[0]


def test_help_lists_every_command_at_once() -> None:
    """Within a second on two busy cores, since nothing heavy is imported."""
    ran = afresh("--help")
    assert ran.returncode == 0
    assert all(name in ran.stdout for name in COMMANDS)
    assert afresh().returncode == 2
    assert afresh("--version").stdout.startswith("framefold ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_flags(name: str) -> None:
    """And none of them starts Ray for it."""
    ran = afresh(name, "--help")
    assert ran.returncode == 0, ran.stderr
    assert f"framefold {name}" in ran.stdout


def test_what_help_and_errors_call_a_positional_is_its_name() -> None:
    """`STR` would tell nobody that a corpus is missing."""
    assert "[OPTIONS] CORPUS\n" in afresh("encode", "--help").stdout
    assert "CORPUS" in afresh("encode", "--store", "x", "--model", "y").stderr
    assert "[OPTIONS] QUESTIONS\n" in afresh("answer", "--help").stdout


def test_help_behind_a_verb_of_the_store_shows_the_verb_in_its_usage() -> None:
    """What is shown can be typed."""
    ran = afresh("store", "gc", "--help")
    assert ran.returncode == 0
    usage = " ".join(ran.stdout.split("\n\n")[0].split())
    assert usage.endswith("{ls,stats,show,verify,repair,compact,gc,retry,export} STORE [VIDEO]")


WRONG = {
    "an unknown command": (["encoed"], ["unknown command", "encode"]),
    "an unknown flag": (["encode", "{videos}", "--store", "{out}", "--model", "{model}", "--bogus", "1"], ["bogus"]),
    "a missing flag": (["encode", "{videos}", "--store", "{out}"], ["model"]),
    "an unknown reducer": (
        ["encode", "{videos}", "--store", "{out}", "--model", "{model}", "--reducer", "x"], ["unknown reducer"]),
    "a wrong parameter": (
        ["encode", "{videos}", "--store", "{out}", "--model", "{model}", "--reducer", "spatial(q=1)"], ["unknown parameter"]),
    "a wrong value": (
        ["encode", "{videos}", "--store", "{out}", "--model", "{model}", "--reducer", "prumerge+(ratio=0)"], ["ratio"]),
    "a budget above the grid": (
        ["encode", "{videos}", "--store", "{out}", "--model", "{model}", "--reducer", "spatial(rows=9,cols=9)"], ["crossings"]),
    "no such model": (["encode", "{videos}", "--store", "{out}", "--model", "./none"], ["./none"]),
    "another model": (["encode", "{videos}", "--store", "{out}", "--model", "{llama}"], ["video_llava", "llama"]),
    "no such corpus": (["encode", "/no/such/folder", "--store", "{out}", "--model", "{model}"], ["/no/such/folder"]),
    "an empty corpus": (["encode", "{empty}", "--store", "{out}", "--model", "{model}"], ["at least one video"]),
    "an unreadable URL": (["encode", "nope://x/y", "--store", "{out}", "--model", "{model}"], ["nope"]),
    "wrong frames": (["encode", "{videos}", "--store", "{out}", "--model", "{model}", "--frames", "0"], ["frames"]),
    "an unknown class": (["encode", "{videos}", "--store", "{out}", "--model", "{model}", "--retry", "OOPS"], ["OOPS"]),
    "wrong options": (["encode", "{videos}", "--store", "{out}", "--model", "{model}", "--storage-options", "x"], ["JSON"]),
    "a store that is a file": (["encode", "{videos}", "--store", "{file}", "--model", "{model}"], ["{file}"]),
    "no store": (["answer", "{questions}", "--store", "{empty}", "--out", "{out}", "--model", "{model}"], ["no token store"]),
    "a newer store": (["answer", "{questions}", "--store", "{newer}", "--out", "{out}", "--model", "{model}"], ["upgrade"]),
    "another fingerprint": (["store", "ls", "{old}", "--fingerprint", "beef"], ["beef", "fingerprint"]),
    "another tower": (["answer", "{questions}", "--store", "{old}", "--out", "{out}", "--model", "{model}"], ["tower"]),
    "no questions": (["answer", "/none.json", "--store", "{old}", "--out", "{out}", "--model", "{model}"], ["/none.json"]),
    "no video to show": (["store", "show", "{old}", "nobody"], ["nobody"]),
    "no predictions": (["evaluate", "/none.json", "--questions", "{questions}"], ["/none.json"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_nothing_is_written(case: str, model: str, tmp_path: Path) -> None:
    """What was expected and what came, exit 2."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "q.jsonl").write_text('{"video_id": "a", "question": "what", "answer": "x"}\n')
    TokenStore.create(str(tmp_path / "newer"), {**SPEC, "schema_version": 99})
    TokenStore.create(str(tmp_path / "old"), SPEC)
    names = {name: str(tmp_path / name) for name in ("empty", "file", "llama", "out", "newer", "old")}
    names |= {"videos": str(VIDEOS), "model": model, "questions": str(tmp_path / "q.jsonl")}
    args, words = WRONG[case]
    one_line(framefold(*[arg.format(**names) for arg in args]), *[word.format(**names) for word in words])
    assert not (tmp_path / "out").exists()


def test_encode_then_answer_then_evaluate_in_this_process(model: str, tmp_path: Path) -> None:
    """Every file of the test folder; failures are rows; a second run does nothing; each question is answered or says why."""
    store, out = str(tmp_path / "store"), str(tmp_path / "out")
    encode = ["encode", f"{VIDEOS}/*.[mwa]*", "--store", store, "--model", model, "--reducer", "spatial(k=4)"]
    encode += ["--runner", "local"]
    first = afresh(*encode)
    told = report(first)
    assert first.returncode == 1, first.stderr
    assert (told["videos"], told["committed"], told["left"]) == (16, 13, 0)
    assert told["failed_by_class"] == {"CORRUPT": 2, "NO_VIDEO_STREAM": 1}
    assert "encode 16/16" in first.stderr
    second = afresh(*encode, "--max-failed", "3")
    assert second.returncode == 0
    assert report(second)["this_run"].keys() == {"seconds"}
    asked = [{"video_id": v, "question": "what is it", "question_id": q} for v, q in (("testsrc2", "1"), ("gone", "2"))]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, asked)))
    answer = ["answer", str(tmp_path / "q.jsonl"), "--store", store, "--out", out, "--model", model, "--runner", "local"]
    told = report(afresh(*answer))
    assert told["statuses"] == {"missing_video": 1, "ok": 1}
    assert told["missing_videos"] == 1
    again = report(framefold(*answer, "--max-unanswered", "0"))
    assert again["exit_code"] == 1
    assert again["this_run"].get("answered", 0) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == ["1", "2"]


def test_store_commands_tell_what_is_there(model: str, tmp_path: Path) -> None:
    """ls, stats, show, verify, and verify's exit code after a flipped byte."""
    store = str(tmp_path / "store")
    clip = str(VIDEOS / "unordered.mov")
    framefold("encode", clip, "--store", store, "--model", model, "--runner", "local", "--reducer", "none")
    listed = framefold("store", "ls", store)
    assert "committed\tunordered\t136 tokens" in listed.stdout
    assert report(framefold("store", "stats", store))["specs"][0]["videos"] == 1
    assert report(framefold("store", "show", store))["spec"]["reducer"]["name"] == "none"
    assert report(framefold("store", "show", store, "unordered"))["shape"] == [136, 32]
    good = framefold("store", "verify", store)
    assert (good.returncode, report(good)["ok"]) == (0, True)
    shard = next((tmp_path / "store" / "tokens").rglob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    bad = framefold("store", "verify", store)
    assert (bad.returncode, report(bad)["damaged"]) == (1, ["unordered"])


def test_a_terminated_run_says_so_and_the_next_one_completes_it(model: str, tmp_path: Path) -> None:
    """SIGTERM: what is encoded is committed, exit 3; run again: the rest, nothing twice. Most videos come after the signal."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(40):
        (clips / f"v{number:02}.mp4").write_bytes((VIDEOS / "testsrc2.mp4").read_bytes())
    store = str(tmp_path / "store")
    with gate(clips) as videos:
        args = ["encode", videos.manifest(tmp_path / "m.jsonl"), "--store", store, "--model", model, "--runner", "local"]
        args += ["--reducer", "spatial(k=4)", "--videos-per-unit", "4", "--batch-clips", "2"]
        videos.let(16)
        with running(*args, cwd=tmp_path) as job:
            while not list((tmp_path / "store" / "index").rglob("*.parquet")):  # until the first unit is committed
                assert job.poll() is None
                time.sleep(0.02)
            job.terminate()
            assert job.stderr is not None
            assert any("SIGTERM" in line for line in job.stderr)  # it has taken notice
            videos.let()
            out, _ = job.communicate()
        told = json.loads(out.splitlines()[-1])
        assert job.returncode == told["exit_code"] == 3
        assert 0 < told["committed"] < 40
        assert told["left"] == 40 - told["committed"]
        rest = report(framefold(*args))
    assert (rest["committed"], rest["left"], rest["exit_code"]) == (40, 0, 0)
    assert rest["this_run"]["committed"] == told["left"]


def test_secrets_of_storage_appear_nowhere(model: str, tmp_path: Path) -> None:
    """Neither in reports nor in logs nor in specs."""
    secret = "hunter2-hunter2"
    options = json.dumps({"auto_mkdir": True, "token": secret})
    clip, store = str(VIDEOS / "unordered.mov"), str(tmp_path / "store")
    ran = framefold("encode", clip, "--store", store, "--model", model, "--runner", "local", "--storage-options", options)
    assert secret not in ran.stdout + ran.stderr
    assert not any(secret.encode() in path.read_bytes() for path in (tmp_path).rglob("*") if path.is_file())


def test_the_list_of_commands_names_what_each_can_do() -> None:
    """Every verb of `store` and every bench: what is not named is not found."""
    from typing import get_args, get_type_hints

    from jobs.bench import BENCHES
    from jobs.commands.store import StoreJob

    for name, verbs in (("store", get_args(get_type_hints(StoreJob)["what"])), ("bench", tuple(BENCHES))):
        assert set(COMMANDS[name].split(": ")[1].split(", ")) == set(verbs)
