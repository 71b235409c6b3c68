"""`--dry-run` of encode, answer and caption: what it counts is what the run then does, and it writes nothing."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.prompts import PromptTemplate
from pipeline.store.token_store import TokenStore
from tests.command import framefold
from tests.models import tiny_checkpoint

VIDEOS = Path(__file__).parents[1] / "videos"
QUESTION = "what is it"


@pytest.fixture(autouse=True)
def quick(one_thread: None) -> None:
    """The models here are small."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("dry") / "tiny")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("testsrc2.mp4", "testsrc2_mpeg4.mp4"):
        shutil.copy2(VIDEOS / name, folder / name)
    return folder


def files(folder: Path) -> dict[str, str]:
    """Every folder, and every file with the SHA-256 of its content."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


class Command:
    """One command line, run in this process for real or as a dry run."""

    def __init__(self, capsys: pytest.CaptureFixture[str], watched: Path, *args: str) -> None:
        self.capsys, self.watched, self.args = capsys, watched, args
        self.table = ""

    def run(self, *more: str) -> dict[str, Any]:
        main([*self.args, *more])
        return self._report()

    def dry(self, *more: str) -> dict[str, Any]:
        before = files(self.watched)
        assert main([*self.args, *more, "--dry-run"]) == 0
        assert files(self.watched) == before
        report = self._report()
        assert report["dry_run"] is True
        return report

    def _report(self) -> dict[str, Any]:
        out, self.table = self.capsys.readouterr()
        lines = out.splitlines()
        assert len(lines) == 1, out
        found: dict[str, Any] = json.loads(lines[0])
        return found


@pytest.fixture
def encode(capsys: pytest.CaptureFixture[str], tmp_path: Path, corpus: Path, model: str) -> Command:
    flags = ("--store", str(tmp_path / "store"), "--model", model, "--runner", "local", "--device", "cpu")
    return Command(capsys, tmp_path, "encode", str(corpus), *flags)


@pytest.mark.parametrize("reducer", ["spatial(k=4)", "tome(keep=5)", "visionzip(dominant=3,contextual=2)", "nest(superset=20)"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_encode_expects_the_tokens_and_bytes_that_the_run_writes(encode: Command, reducer: str, dtype: str) -> None:
    flags = ("--reducer", reducer, "--dtype", dtype)
    planned = encode.dry(*flags)
    done = encode.run(*flags)
    expected = planned["expected"]
    assert (planned["new"], planned["to_encode"], planned["committed"]) == (2, 2, 0)
    assert expected["basis"] == "exact"
    assert (expected["tokens_per_video"], expected["bytes_per_video"]) == (done["tokens_per_video"], done["bytes_per_video"])
    assert (expected["tokens"], expected["bytes"]) == (2 * done["tokens_per_video"], 2 * done["bytes_per_video"])
    assert planned["fingerprint"] == done["fingerprint"]
    again = encode.dry(*flags)
    assert (again["to_encode"], again["committed"], again["expected"]["bytes"]) == (0, 2, 0)


def test_encode_states_an_upper_bound_then_an_estimate_where_the_count_depends_on_the_content(
    encode: Command, corpus: Path
) -> None:
    flags = ("--reducer", "prumerge")
    bound = encode.dry(*flags)["expected"]
    done = encode.run(*flags)
    shutil.copy2(VIDEOS / "testsrc2_vp9.webm", corpus / "new.webm")
    estimate = encode.dry(*flags)["expected"]
    assert (bound["basis"], bound["tokens_per_video"]) == ("upper_bound", 8 * 17)
    assert done["tokens_per_video"] <= bound["tokens_per_video"]
    assert estimate["basis"] == "estimate"
    assert estimate["tokens_per_video"] == done["tokens_per_video"]
    assert estimate["tokens"] == round(done["tokens_per_video"])


def test_encode_counts_new_changed_failed_and_same_videos(encode: Command, corpus: Path) -> None:
    (corpus / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and nothing else")
    flags = ("--reducer", "spatial(k=4)", "--identity", "content")
    failed = encode.run(*flags)["failed_by_class"]
    (name,) = failed
    shutil.copy2(VIDEOS / "testsrc2_vp9.webm", corpus / "new.webm")
    shutil.copy2(corpus / "testsrc2.mp4", corpus / "copy.mp4")
    shutil.copy2(VIDEOS / "nasa_13013.mp4", corpus / "testsrc2_mpeg4.mp4")
    planned = encode.dry(*flags)
    assert (planned["new"], planned["changed"], planned["same_content"], planned["to_encode"]) == (2, 1, 1, 2)
    assert (planned["committed"], planned["failed_by_class"], planned["tried_again_by_class"]) == (1, {name: 1}, {})
    assert f"1 ({name} 1); not tried again without --retry CLASS" in encode.table
    retried = encode.dry(*flags, "--retry", name)
    assert (retried["failed_by_class"], retried["tried_again_by_class"], retried["to_encode"]) == ({}, {name: 1}, 3)
    done = encode.run(*flags)
    assert (done["this_run"]["committed"], done["same_content"]) == (planned["to_encode"], planned["same_content"])


def test_encode_measures_nothing_for_segments_and_counts_what_is_not_measured(encode: Command, corpus: Path) -> None:
    flags = ("--reducer", "spatial(k=4)", "--segments", "4")
    first = encode.dry(*flags)
    assert (first["unmeasured"], first["to_encode"], first["videos"]) == (2, 0, 2)
    done = encode.run(*flags)
    known = encode.dry(*flags)
    assert (known["unmeasured"], known["to_encode"], known["committed"]) == (0, 0, done["committed"])
    shutil.copy2(VIDEOS / "nasa_13013.mp4", corpus / "long.mp4")
    assert encode.dry(*flags)["unmeasured"] == 1
    finer = encode.dry(*flags[:2], "--segments", "0.5")
    assert (finer["unmeasured"], finer["withdrawn"]) == (1, 0)
    assert finer["to_encode"] > known["committed"]


def test_encode_says_how_many_entries_of_replaced_videos_are_withdrawn(encode: Command, corpus: Path) -> None:
    """A film of 13 s in segments of 4 s is replaced by a whole one: its three segments go."""
    shutil.copy2(VIDEOS / "nasa_13013.mp4", corpus / "long.mp4")
    encode.run("--reducer", "spatial(k=4)", "--segments", "4")
    shutil.copy2(VIDEOS / "testsrc2.mp4", corpus / "long.mp4")
    planned = encode.dry("--reducer", "spatial(k=4)")
    assert (planned["withdrawn"], planned["new"]) == (3, 3)
    encode.run("--reducer", "spatial(k=4)")
    assert encode.dry("--reducer", "spatial(k=4)")["withdrawn"] == 0


def test_the_log_as_json_has_the_plan_as_one_object(encode: Command) -> None:
    ran = framefold(*encode.args, "--reducer", "spatial(k=4)", "--dry-run", "--log-format", "json")
    (line,) = ran.stderr.splitlines()
    assert json.loads(line).items() >= json.loads(ran.stdout).items()


def test_a_dry_run_writes_no_metrics_file(encode: Command, tmp_path: Path) -> None:
    flags = ("--reducer", "spatial(k=4)", "--metrics-file", str(tmp_path / "x.prom"))
    encode.dry(*flags)
    encode.run(*flags)
    assert (tmp_path / "x.prom").exists()


def test_plan_is_another_name_of_dry_run(
    encode: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    planned = encode.dry("--reducer", "spatial(k=4)")
    assert main(["plan", *encode.args, "--reducer", "spatial(k=4)"]) == 0
    assert json.loads(capsys.readouterr().out) == planned
    assert not (tmp_path / "store").exists()
    assert main(["plan", "chat"]) == 2
    assert capsys.readouterr().err == "framefold: no plan for the command 'chat', expected one of encode, answer, caption\n"
    assert main(["plan"]) == 2
    assert main(["plan", "--help"]) == 0


def write_questions(path: Path, *rows: tuple[str, str]) -> None:
    lines = [json.dumps({"video_id": video, "question": question}) for video, question in rows]
    path.write_text("\n".join(lines))


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str], tmp_path: Path, encode: Command, corpus: Path, model: str) -> Command:
    """Questions about two stored videos, one that failed, and one that nobody has encoded."""
    (corpus / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and nothing else")
    encode.run("--reducer", "nest(superset=64)")
    asked = [(name, QUESTION) for name in ("testsrc2", "testsrc2_mpeg4", "broken", "no")]
    write_questions(tmp_path / "q.jsonl", ("testsrc2", "how many"), *asked)
    places = ("--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--model", model)
    rest = ("--runner", "local", "--device", "cpu", "--max-new-tokens", "2")
    return Command(capsys, tmp_path, "answer", str(tmp_path / "q.jsonl"), *places, *rest)


def test_answer_counts_what_is_answered_to_answer_and_cannot_be_answered(answer: Command, tmp_path: Path) -> None:
    (failed,) = TokenStore.open(str(tmp_path / "store")).failures()["error_class"].to_pylist()
    planned = answer.dry()
    assert (planned["questions"], planned["answered"], planned["to_answer"], planned["videos_to_read"]) == (5, 0, 3, 2)
    assert (planned["not_answerable"], planned["not_in_store"], planned["failed_by_class"]) == (2, 1, {failed: 1})
    assert planned["statuses"] == {"missing_video": 2, "pending": 3}
    done = answer.run()
    assert done["this_run"]["answered"] == planned["to_answer"]
    assert done["answers_fingerprint"] == planned["answers_fingerprint"]
    again = answer.dry()
    assert (again["answered"], again["to_answer"], again["videos_to_read"], again["not_answerable"]) == (3, 0, 0, 2)
    assert again["statuses"] == done["statuses"]


@pytest.mark.parametrize(
    ("flags", "basis"),
    [
        ((), "exact"),
        (("--budget", "5"), "exact"),
        (("--corpus-budget", "45"), "estimate"),
        (("--coverage", "0.5"), "upper_bound"),
    ],
)
def test_answer_expects_the_tokens_of_the_prompts(
    answer: Command, tmp_path: Path, model: str, flags: tuple[str, ...], basis: str
) -> None:
    expected = answer.dry(*flags)["expected"]
    answer.run(*flags)
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    seen = [row for row in rows if row["status"] == "ok"]
    mean = sum(row["visual_tokens"] for row in seen) / len(seen)
    assert expected["basis"] == basis
    least, most = {"exact": (0.999, 1.001), "estimate": (0.7, 1.3), "upper_bound": (0, 1)}[basis]
    assert least * expected["visual_tokens"] <= mean <= most * expected["visual_tokens"]
    tokenizer, _ = Checkpoint.open(model).tokenizer()
    texts = [len(tokenizer(PromptTemplate().text(row["question"]))["input_ids"]) - 1 for row in seen]  # without <video>
    assert expected["text_tokens"] == pytest.approx(sum(texts) / len(texts), abs=0.01)
    assert expected["tokens"] == pytest.approx(3 * expected["tokens_per_prompt"], abs=0.1)


def test_answer_finds_the_class_of_a_failed_video_by_the_names_of_a_data_set(answer: Command, tmp_path: Path) -> None:
    """MSVD-QA numbers its videos: its 7 is our vid7."""
    store = TokenStore.open(str(tmp_path / "store"))
    failure = store.index.with_status("failed").to_pylist()[0]
    store.index.append([{**failure, "video_id": "vid7"}])
    rows = [{"id": 1, "video_id": 7, "question": QUESTION, "answer": "x"}]
    (tmp_path / "q.jsonl").write_text("")
    (tmp_path / "q.json").write_text(json.dumps(rows))
    answer.args = tuple(arg.replace("q.jsonl", "q.json") for arg in answer.args)
    planned = answer.dry("--dataset", "msvd-qa")
    assert (planned["not_in_store"], planned["failed_by_class"]) == (0, {failure["error_class"]: 1})


@pytest.fixture
def caption(capsys: pytest.CaptureFixture[str], tmp_path: Path, corpus: Path, model: str) -> Command:
    places = ("--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--model", model)
    rest = ("--runner", "local", "--device", "cpu", "--max-new-tokens", "2", "--reducer", "nest(superset=20)")
    return Command(capsys, tmp_path, "caption", str(corpus), *places, *rest)


def test_caption_plans_both_stages(caption: Command, corpus: Path, tmp_path: Path) -> None:
    planned = caption.dry("--budget", "5")
    assert not (tmp_path / "store").exists()
    assert (planned["videos"], planned["captioned"]) == (2, 0)
    assert (planned["to_caption"], planned["to_caption_after_encoding"]) == (2, 2)
    assert (planned["encode"]["to_encode"], planned["encode"]["expected"]["tokens_per_video"]) == (2, 20)
    assert (planned["expected"]["visual_tokens"], planned["expected"]["basis"]) == (5, "exact")
    done = caption.run("--budget", "5")
    assert done["answer"]["this_run"]["answered"] == 2
    assert done["answer"]["answers_fingerprint"] == planned["answers_fingerprint"]
    shutil.copy2(VIDEOS / "testsrc2_vp9.webm", corpus / "new.webm")
    shutil.copy2(VIDEOS / "nasa_13013.mp4", corpus / "testsrc2.mp4")
    night = caption.dry("--budget", "5")
    assert (night["captioned"], night["to_caption"], night["to_caption_after_encoding"]) == (1, 2, 2)
    other = caption.dry("--budget", "6")
    assert (other["captioned"], other["to_caption"], other["to_caption_after_encoding"]) == (0, 3, 2)
    done = caption.run("--budget", "6")
    assert done["answer"]["this_run"]["answered"] == other["to_caption"]


def test_caption_counts_failed_videos_and_segments_that_are_not_measured(caption: Command, corpus: Path) -> None:
    (corpus / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and nothing else")
    first = caption.dry("--segments", "4")
    assert (first["videos"], first["segments"], first["encode"]["unmeasured"]) == (3, 0, 3)
    done = caption.run("--segments", "4")
    again = caption.dry("--segments", "4")
    assert (again["captioned"], again["to_caption"]) == (done["captioned"], 0)
    assert (again["without_caption"], again["encode"]["unmeasured"]) == (0, 1)
    caption.run()
    assert caption.dry()["without_caption"] == 1
