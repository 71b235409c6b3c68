"""A wrong setting gives `--dry-run` the message and the exit code of the run, and neither writes anything."""

import json
import shutil
from pathlib import Path

import pytest

from jobs.cli import main
from tests.jobs.test_dry_run import VIDEOS, files, write_questions
from tests.models import tiny_checkpoint

CLIP = str(VIDEOS / "testsrc2.mp4")
CPU = ["--device", "cpu", "--runner", "local"]
ENCODE = ["encode", CLIP, "--store", "{new}", "--model", "{model}", "--reducer", "nest(superset=20)", *CPU]
ANSWER = ["answer", "{q}", "--store", "{store}", "--out", "{new}", "--model", "{model}", *CPU]
CAPTION = ["caption", CLIP, "--store", "{new}/s", "--out", "{new}/c", "--model", "{model}", "--reducer", "nest", *CPU]
ON_RAY = ["--runner", "ray", "--address", "127.0.0.1:9", "--device", "auto"]

WRONG = {
    "encode: unknown policy": [*ENCODE, "--policy", "x"],
    "encode: unknown flag": [*ENCODE, "--polic", "x"],
    "encode: missing flag": ["encode", CLIP, "--model", "{model}"],
    "encode: unknown class": [*ENCODE, "--retry", "TIMEOUT,OOPS"],
    "encode: unknown reducer": [*ENCODE, "--reducer", "pruemerge"],
    "encode: reducer reads the question": [*ENCODE, "--reducer", "trim"],
    "encode: reducer larger than the grid": [*ENCODE, "--reducer", "spatial(rows=9,cols=9)"],
    "encode: no such corpus": ["encode", "{none}", *ENCODE[2:]],
    "encode: empty corpus": ["encode", "{empty}", *ENCODE[2:]],
    "encode: manifest without columns": ["encode", "{q}", *ENCODE[2:]],
    "encode: store below a file": [*ENCODE, "--store", "{q}/store"],
    "encode: store is a file": [*ENCODE, "--store", "{q}"],
    "encode: store has no name": [*ENCODE, "--store", ""],
    "encode: store has too long a name": [*ENCODE, "--store", "{new}" + "x" * 300],
    "encode: store on unknown storage": [*ENCODE, "--store", "nosuch://x/y"],
    "encode: store at an address without a server": [
        *(*ENCODE, "--store", "s3://b/x", "--storage-options", '{{"endpoint_url": "http://127.0.0.1:9"}}')
    ],
    "encode: no such model": [*ENCODE, "--model", "{none}/x/y"],
    "encode: another kind of model": [*ENCODE, "--model", "{empty}"],
    "encode: tower weights do not fit": [*ENCODE, "--model", "{misfit}"],
    "encode: no such hidden state": [*ENCODE, "--model", "{deep}"],
    "encode: last hidden state": [*ENCODE, "--model", "{last}", "--reducer", "prumerge"],
    "encode: no text tower": [*ENCODE, "--clip-space", "True"],
    "encode: segments by content": [*ENCODE, "--segments", "4", "--identity", "content"],
    "encode: segments too short": [*ENCODE, "--segments", "0.1"],
    "encode: options are not JSON": [*ENCODE, "--storage-options", "{{"],
    "encode: metrics file in no folder": [*ENCODE, "--metrics-file", "{none}/x.prom"],
    "encode: metrics file is a folder": [*ENCODE, "--metrics-file", "{empty}"],
    "encode: metrics file below a file": [*ENCODE, "--metrics-file", "{q}/x.prom"],
    "encode: no cluster there": [*ENCODE, *ON_RAY],
    "encode: GPU flag and device contradict": [*ENCODE, "--runner", "ray", "--gpus-per-encoder", "1"],
    "answer: no such store": [*ANSWER, "--store", "{none}"],
    "answer: unknown fingerprint": [*ANSWER, "--fingerprint", "zzz"],
    "answer: no such questions": ["answer", "{none}", *ANSWER[2:]],
    "answer: questions without columns": ["answer", "{columns}", *ANSWER[2:]],
    "answer: two questions of one turn": ["answer", "{turns}", *ANSWER[2:]],
    "answer: no such aliases": [*ANSWER, "--aliases", "{none}"],
    "answer: answers into the store": [*ANSWER, "--out", "{store}"],
    "answer: answers below a file": [*ANSWER, "--out", "{q}/out"],
    "answer: another tower": [*ANSWER, "--model", "{other}"],
    "answer: no tokeniser": [*ANSWER, "--model", "{mute}"],
    "answer: budget of other entries": [*ANSWER, "--store", "{grid}", "--budget", "5"],
    "answer: corpus budget too small": [*ANSWER, "--corpus-budget", "1"],
    "answer: choice without a budget": [*ANSWER, "--by-question", "like"],
    "answer: no vectors stored": [*ANSWER, "--text-reducer", "trim"],
    "answer: unknown text reducer": [*ANSWER, "--text-reducer", "tri"],
    "answer: settings of another engine": [*ANSWER, "--max-model-len", "9"],
    "answer: unknown style": [*ANSWER, "--style", "x"],
    "answer: no cluster there": [*ANSWER, *ON_RAY],
    "answer: metrics file in no folder": [*ANSWER, "--metrics-file", "{none}/x.prom"],
    "answer: negative count": [*ANSWER, "--max-unanswered", "-1"],
    "caption: captions into the store": [*CAPTION, "--out", "{new}/s"],
    "caption: captions into the store by another name": [*CAPTION, "--out", "{new}/./s"],
    "caption: captions are a file": [*CAPTION, "--out", "{q}"],
    "caption: store below a file": [*CAPTION, "--store", "{q}/s"],
    "caption: budget of other entries": [*CAPTION, "--reducer", "spatial(k=4)", "--budget", "5"],
    "caption: empty prompt": [*CAPTION, "--prompt", " "],
    "caption: tower weights do not fit": [*CAPTION, "--model", "{misfit}"],
    "caption: no tokeniser": [*CAPTION, "--model", "{mute}"],
    "caption: no cluster there": [*CAPTION, *ON_RAY],
    "caption: metrics file in no folder": [*CAPTION, "--metrics-file", "{none}/x.prom"],
    "caption: no such corpus": ["caption", "{none}", *CAPTION[2:]],
}


def configured(source: str, target: Path, **changes: object) -> str:
    """A copy of a checkpoint with other settings in config.json; a mapping changes the settings of a part."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (target / "config.json").write_text(json.dumps(config))
    return str(target)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints, stores and question files, right and wrong ones."""
    root = tmp_path_factory.mktemp("refused")
    model = tiny_checkpoint(root / "tiny")
    (root / "empty").mkdir()
    found = {name: str(root / name) for name in ("none", "empty", "store", "grid", "q", "columns", "turns")} | {"model": model}
    found["other"] = tiny_checkpoint(root / "other", seed=1)
    found["misfit"] = configured(model, root / "misfit", vision_config={"intermediate_size": 65})
    found["deep"] = configured(model, root / "deep", vision_feature_layer=99)
    found["last"] = configured(model, root / "last", vision_feature_layer=-1)
    found["mute"] = configured(model, root / "mute")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (root / "mute" / file).unlink()
    for name, reducer in (("store", "nest(superset=20)"), ("grid", "spatial(k=4)")):
        assert main(["encode", CLIP, "--store", found[name], "--model", model, "--reducer", reducer, *CPU]) == 0
    for name in ("q", "columns", "turns"):
        found[name] += ".jsonl"
    write_questions(Path(found["q"]), ("testsrc2", "what is it"))
    Path(found["columns"]).write_text('{"video": 3}\n')
    Path(found["turns"]).write_text('{"video_id": "testsrc2", "question": "what", "turn": 1}\n' * 2)
    return found


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that ends with 2 and prints nothing on stdout; returns its one line on stderr."""
    code = main(args)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    (line,) = [line for line in err.splitlines() if line.startswith("framefold: ")]
    return line


@pytest.mark.parametrize("case", WRONG)
def test_a_dry_run_refuses_a_wrong_setting_as_the_run_does(
    case: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    args = [arg.format(**places, new=tmp_path / "new") for arg in WRONG[case]]
    before = files(Path(places["none"]).parent), files(tmp_path)
    planned = refused([*args, "--dry-run"], capsys)
    assert (files(Path(places["none"]).parent), files(tmp_path)) == before
    assert refused(args, capsys) == planned
    assert (files(Path(places["none"]).parent), files(tmp_path)) == before


@pytest.mark.ray
@pytest.mark.parametrize("command", ["encode", "answer"])
def test_a_dry_run_on_ray_counts_gpus_as_the_run_does(
    command: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {
        "encode": [*ENCODE, "--runner", "ray", "--device", "auto", "--gpus-per-encoder", "64"],
        "answer": [*ANSWER, "--runner", "ray", "--device", "auto", "--gpus-per-engine", "64"],
    }[command]
    args = [arg.format(**places, new=tmp_path / "new") for arg in args]
    capsys.readouterr()
    planned = refused([*args, "--dry-run"], capsys)
    assert "64 GPUs" in planned
    assert not files(tmp_path)
    assert refused(args, capsys) == planned
