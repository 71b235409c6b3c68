"""Captions every night: what is new or changed and nothing else; long videos in segments with subtitles."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.commands import caption, chat, encode
from jobs.commands.caption import CaptionJob
from jobs.commands.chat import ChatJob
from jobs.commands.encode import EncodeJob
from jobs.runtime.cluster import ClusterConfig
from pipeline.answer.captions import CAPTIONS, Cue, file_name, srt, vtt, write
from pipeline.answer.stage import AnswerConfig
from pipeline.answer.token_selection import SelectConfig
from pipeline.corpus.segments import segment_rows, span_of, spans
from pipeline.encode.stage import EncodeConfig
from pipeline.errors import ConfigError
from pipeline.store.token_store import TokenStore
from tests.models import tiny_checkpoint

ROOT = Path(__file__).parents[2]
VIDEOS = ROOT / "tests" / "videos"
LOCAL = ClusterConfig(runner="local")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("caption") / "tiny")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("nasa_13013.mp4", "testsrc2.mp4"):
        shutil.copy2(VIDEOS / name, folder / name)
    return folder


def job(model: str, corpus: Path, tmp_path: Path, **options: Any) -> CaptionJob:
    config = EncodeConfig(model=model, reducer="nest(keep=16,superset=16)", device="cpu")
    place = {"corpus": str(corpus), "store": str(tmp_path / "store"), "out": str(tmp_path / "out")}
    return CaptionJob(**{**place, "encode": config, "cluster": LOCAL, "max_new_tokens": 4, **options})


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    lines = (tmp_path / "out" / "captions.jsonl").read_text().splitlines()
    table = pq.read_table(tmp_path / "out" / "captions.parquet").to_pylist()
    assert [json.loads(line) for line in lines] == table
    return table


def test_a_night_does_what_is_new_or_changed(model: str, corpus: Path, tmp_path: Path) -> None:
    """Two videos, then nothing, then one changed and one new and one gone, then another prompt."""
    first = caption.run(job(model, corpus, tmp_path))
    assert (first["videos"], first["captioned"], first["exit_code"]) == (2, 2, 0)
    said = {row["video_id"]: row["caption"] for row in rows(tmp_path)}
    assert set(said) == {"nasa_13013", "testsrc2"}
    again = caption.run(job(model, corpus, tmp_path))
    assert "committed" not in again["encode"]["this_run"]
    assert "answered" not in again["answer"]["this_run"]
    assert {row["video_id"]: row["caption"] for row in rows(tmp_path)} == said

    shutil.copy2(VIDEOS / "testsrc2_mpeg4.mp4", corpus / "testsrc2.mp4")
    shutil.copy2(VIDEOS / "testsrc2_vp9.webm", corpus / "new.webm")
    (corpus / "nasa_13013.mp4").unlink()
    night = caption.run(job(model, corpus, tmp_path))
    assert night["encode"]["this_run"]["committed"] == 2
    assert night["answer"]["this_run"]["answered"] == 2
    assert [row["video_id"] for row in rows(tmp_path)] == ["new", "testsrc2"]

    other = caption.run(job(model, corpus, tmp_path, prompt="what is it"))
    assert "committed" not in other["encode"]["this_run"]
    assert other["answer"]["this_run"]["answered"] == 2
    assert {row["prompt"] for row in rows(tmp_path)} == {"what is it"}


def test_a_video_that_fails_is_a_row_and_an_exit_code(model: str, corpus: Path, tmp_path: Path) -> None:
    """The others have their captions."""
    (corpus / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and nothing else")
    done = caption.run(job(model, corpus, tmp_path))
    assert (done["captioned"], done["without_caption"], done["exit_code"]) == (2, 1, 1)
    assert {row["video_id"]: row["status"] for row in rows(tmp_path)}["broken"] == "missing_video"
    assert caption.run(job(model, corpus, tmp_path, max_failed=1))["exit_code"] == 0


def test_segments_have_captions_times_and_subtitles(model: str, corpus: Path, tmp_path: Path) -> None:
    """13 seconds in pieces of 4 are 3 entries, the short rest belongs to the last; ids are the same every night."""
    done = caption.run(job(model, corpus, tmp_path, segments=4.0))
    assert (done["videos"], done["segments"], done["captioned"], done["exit_code"]) == (2, 4, 4, 0)
    long = [row for row in rows(tmp_path) if row["video_id"] == "nasa_13013"]
    assert [row["start_s"] for row in long] == [0.0, 4.0, 8.0]
    assert 13.0 <= long[-1]["end_s"] <= 13.1
    store = TokenStore.open(str(tmp_path / "store"))
    for row in long:
        entry = store.read(row["store_id"])
        assert span_of(entry.video_id) == ("nasa_13013", (row["start_s"], row["end_s"]))
        assert all(row["start_s"] <= time_s < row["end_s"] for time_s in entry.timestamps_s)
        assert len(entry.timestamps_s) == 8
    assert len({entry.payload_sha256 for entry in map(store.read, store.ids())}) == len(store.ids())
    subtitles = (tmp_path / "out" / "srt" / "nasa_13013.srt").read_text()
    assert subtitles.startswith("1\n00:00:00,000 --> 00:00:04,000\n")
    assert (tmp_path / "out" / "vtt" / "nasa_13013.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> 00:00:04.000\n")
    again = caption.run(job(model, corpus, tmp_path, segments=4.0))
    assert "committed" not in again["encode"]["this_run"]
    assert again["segments"] == done["segments"]


def test_lengths_are_measured_once(model: str, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second night opens no video; a changed one is measured again."""
    caplog.set_level("INFO")
    caption.run(job(model, corpus, tmp_path, segments=4.0))
    assert "2 videos to measure" in caplog.text
    caplog.clear()
    caption.run(job(model, corpus, tmp_path, segments=4.0))
    assert "to measure" not in caplog.text
    shutil.copy2(VIDEOS / "testsrc2_mpeg4.mp4", corpus / "testsrc2.mp4")
    caption.run(job(model, corpus, tmp_path, segments=4.0))
    assert "1 videos to measure" in caplog.text


def test_two_nights_at_once_and_one_killed(model: str, corpus: Path, tmp_path: Path) -> None:
    """A run is killed with SIGKILL, two more overlap: each video is committed once and has one caption."""
    for name in ("testsrc2_vp9.webm", "h265_video.mp4", "testsrc2_mpeg4.avi"):
        shutil.copy2(VIDEOS / name, corpus / name)
    command = [
        sys.executable, "-m", "jobs.caption", str(corpus), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"),
        "--model", model, "--reducer", "nest(keep=16,superset=16)", "--runner", "local", "--max-new-tokens", "4",
        "--videos-per-unit", "1", "--batch-clips", "1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, **start)
    while not list((tmp_path / "store").glob("index/*/*.parquet")) and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    both = [subprocess.Popen(command, **start) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    found = rows(tmp_path)
    assert sorted(row["video_id"] for row in found) == sorted({row["video_id"] for row in found})
    assert {row["status"] for row in found} == {"ok"}
    assert len(found) == 5
    committed = pq.read_table(next(iter((tmp_path / "store" / "index").iterdir())))
    truth = [(row["video_id"], row["payload_sha256"]) for row in committed.to_pylist() if row["status"] == "committed"]
    assert len(set(truth)) == 5


def test_segments_are_cut_by_length_alone() -> None:
    """A rest of half a segment or more is one of its own."""
    assert spans(10.0, 4.0) == [(0.0, 4.0), (4.0, 8.0), (8.0, 10.0)]
    assert spans(9.9, 4.0) == [(0.0, 4.0), (4.0, 9.9)]
    assert spans(1.0, 4.0) == [(0.0, 1.0)]
    made = segment_rows({"video_id": "a#b", "uri": "s3://x/a#b.mp4", "source_hint": "{}"}, 8.0, 4.0)
    assert [span_of(row["video_id"]) for row in made] == [("a#b", (0.0, 4.0)), ("a#b", (4.0, 8.0))]
    assert span_of("plain#t=oops") == ("plain#t=oops", None)
    with pytest.raises(ConfigError, match="at least 0\\.5 seconds"):
        spans(1.0, 0.0)


@pytest.mark.parametrize("wrong", ["0", "-4", "0.001", "0.499", "nan", "inf"])
def test_segments_of_no_length_are_refused_in_a_sentence(
    model: str, corpus: Path, tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By captions and by encoding alone, before anything is written."""
    flags = [str(corpus), "--store", str(tmp_path / "store"), "--model", model, "--segments", wrong]
    assert caption.main([*flags, "--out", str(tmp_path / "out")]) == 2
    assert encode.main(flags) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"framefold: segments must be at least 0.5 seconds long, got {float(wrong):g}"] * 2
    assert not (tmp_path / "store").exists()


def test_subtitles_follow_their_grammars() -> None:
    """One line a cue, arrows and markup defused; hours count on; names that stay inside their folder."""
    cues = [Cue(start_s=0.0, end_s=1.5, text="a <b> & c\n\nd --> e"), Cue(start_s=3661.25, end_s=360000.0, text="f")]
    assert srt(cues) == (
        "1\n00:00:00,000 --> 00:00:01,500\na <b> & c d -> e\n\n2\n01:01:01,250 --> 100:00:00,000\nf\n"
    )
    assert vtt(cues).split("\n\n")[1] == "00:00:00.000 --> 00:00:01.500\na &lt;b&gt; &amp; c d -&gt; e"
    assert file_name("../a/ü.b") == "%2E%2E%2Fa%2F%C3%BC%2Eb"


def test_names_of_any_length_are_files(model: str, corpus: Path, tmp_path: Path) -> None:
    """A title in another script needs up to twelve bytes a character; what two long ones share does not make them one."""
    title = "長い題名の動画" * 10
    for name in (f"{title}一", f"{title}二"):
        shutil.copy2(VIDEOS / "testsrc2.mp4", corpus / f"{name}.mp4")
    assert caption.run(job(model, corpus, tmp_path, segments=4.0))["exit_code"] == 0
    assert len({path.name for path in (tmp_path / "out" / "srt").iterdir()}) == 4
    assert file_name("a" * 200) == "a" * 200


def test_files_of_captions_are_whole_or_old(tmp_path: Path) -> None:
    """Who reads on in the file of last night reads it to its end; a segment without words leaves a gap."""
    one = {"video_id": "v", "start_s": 0.0, "end_s": 1.0, "caption": "something", "status": "ok", "prompt": "p"}
    two = {**one, "start_s": 1.0, "end_s": 2.0, "caption": " "}
    write(str(tmp_path), pa.Table.from_pylist([one], schema=CAPTIONS))
    with (tmp_path / "captions.jsonl").open() as reader:
        write(str(tmp_path), pa.Table.from_pylist([one, two], schema=CAPTIONS))
        assert len(reader.readlines()) == 1
    assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "srt" / "v.srt").read_text() == "1\n00:00:00,000 --> 00:00:01,000\nsomething\n"


@pytest.mark.parametrize("wrong", [{"budget": 8}, {"max_new_tokens": 0}, {"answer_dtype": "int3"}, {"engines": 0}])
def test_a_wrong_setting_is_found_before_anything_is_encoded(
    model: str, corpus: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    """Not after a night of encoding: a budget for a store that cannot be cut, say."""
    config = EncodeConfig(model=model, reducer="prumerge+", device="cpu")
    with pytest.raises(ConfigError):
        caption.run(job(model, corpus, tmp_path, encode=config, **wrong))
    with pytest.raises(ConfigError, match="--out must differ from --store"):
        job(model, corpus, tmp_path, out=f"{tmp_path}/store/")
    assert not (tmp_path / "store").exists()


def test_a_video_without_a_length_is_looked_at_once(
    model: str, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is captioned is what was encoded: the corpus is listed and measured once in a run."""
    caplog.set_level("INFO")
    (corpus / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and nothing else")
    caption.run(job(model, corpus, tmp_path, segments=4.0))
    assert [line for line in caplog.messages if "to measure" in line] == ["3 videos to measure"]


def test_segments_and_identity_by_content_are_refused_together(model: str, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="identity name"):
        EncodeJob(
            corpus=str(corpus), store=str(tmp_path), encode=EncodeConfig(model=model), segments=2.0, identity="content"
        )


def test_chat_keeps_to_one_video(model: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By id or path; an unknown one names some that are there; settings that change tokens by question are refused."""
    config = EncodeConfig(model=model, reducer="nest(keep=16,superset=16)", device="cpu")
    encode.run(EncodeJob(corpus=str(corpus), store=str(tmp_path / "store"), encode=config, cluster=LOCAL))
    asking = AnswerConfig(model=model, max_new_tokens=4, select=SelectConfig(budget=8))
    told = {"store": str(tmp_path / "store"), "answer": asking, "ask": ("what is it", "how many are there")}
    by_id = chat.run(ChatJob(video="testsrc2", **told))
    by_path = chat.run(ChatJob(video=str(corpus / "testsrc2.mp4"), **told))
    assert by_id == by_path
    assert by_id["visual_tokens"] == 8
    assert [turn["status"] for turn in by_id["turns"]] == ["ok", "ok"]
    assert capsys.readouterr().out.splitlines()[:2] == [turn["answer"] for turn in by_id["turns"]]
    with pytest.raises(ConfigError, match="such as nasa_13013, testsrc2: encode it first"):
        chat.run(ChatJob(video="nobody", **told))


@pytest.mark.ray
def test_captions_on_ray_are_those_of_one_process(model: str, corpus: Path, tmp_path: Path) -> None:
    """Segments too: measured, encoded and captioned by actors."""
    here = caption.run(job(model, corpus, tmp_path, segments=4.0))
    local = rows(tmp_path)
    there = tmp_path / "ray"
    there.mkdir()
    made = caption.run(job(model, corpus, there, segments=4.0, cluster=ClusterConfig(runner="ray")))
    assert (made["captioned"], made["exit_code"]) == (here["captioned"], 0)
    assert rows(there) == local


def test_a_store_shows_how_much_of_a_video_a_budget_explains(model: str, corpus: Path, tmp_path: Path) -> None:
    """The curve rises to what the whole order explains."""
    from jobs.commands.store import StoreJob
    from jobs.commands.store import run as look

    config = EncodeConfig(model=model, reducer="nest(keep=64,superset=64)", device="cpu")
    encode.run(EncodeJob(corpus=str(corpus), store=str(tmp_path / "store"), encode=config, cluster=LOCAL))
    shown = look(StoreJob(what="show", store=str(tmp_path / "store"), video="testsrc2"))
    assert list(shown["coverage"]) == ["32"]
    order = TokenStore.open(str(tmp_path / "store")).read("testsrc2").order
    assert order is not None
    assert 0 < shown["coverage"]["32"] < order.gain.sum() <= 1.001
