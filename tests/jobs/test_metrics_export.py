"""What Prometheus can read of a run: the file of a local one, and Ray's own endpoint, scraped from a real head over HTTP."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.runtime.telemetry import BUCKETS, Meter
from jobs.runtime.timing import SPENT, spent, timed
from pipeline.errors import ConfigError
from tests.command import ROOT, framefold, report
from tests.models import tiny_checkpoint
from tests.ray_head import Head, environment, ray_head, submit

VIDEOS = ROOT / "tests" / "videos"
Labels = tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("metrics") / "tiny")


def samples(text: str, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The values of a series by some of its labels; what differs in others alone is added up."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name == name:
                key = tuple(one.labels[label] for label in labels)
                found[key] = found.get(key, 0.0) + one.value
    return found


def corpus(folder: Path) -> Path:
    folder.mkdir()
    for name in ("secretname1.mov", "secretname2.mov"):
        (folder / name).write_bytes((VIDEOS / "unordered.mov").read_bytes())
    (folder / "secretname3.mp4").write_bytes(b"#EXTM3U\nhttp://127.0.0.1:1/\n")
    return folder


def encoding(folder: Path, model: str, *more: str) -> list[str]:
    flags = ["--store", str(folder / "store"), "--model", model, "--reducer", "spatial(k=4)", "--max-failed", "1"]
    return ["encode", str(folder / "videos"), *flags, "--batch-clips", "1", *more]


OUTCOMES = {("committed", ""): 2.0, ("failed", "FORBIDDEN_PROTOCOL"): 1.0}
STAGES = {("decode",), ("tower",), ("reduce",), ("commit",)}


def test_a_local_run_writes_what_it_did_and_the_next_one_what_it_found_done(tmp_path: Path, model: str) -> None:
    """Counts, bytes and seconds agree with the report; a video's name is nowhere; nothing else is left in the folder."""
    corpus(tmp_path / "videos")
    (tmp_path / "prom").mkdir()
    file = tmp_path / "prom" / "encode.prom"
    more = ["--runner", "local", "--metrics-file", str(file), "--videos-per-unit", "2"]
    told = report(framefold(*encoding(tmp_path, model, *more)))
    text, mark = file.read_text(), told["fingerprint"][:12]
    assert samples(text, "framefold_videos_total", "status", "error_class") == OUTCOMES
    assert samples(text, "framefold_videos_total", "command", "fingerprint") == {("encode", mark): 3.0}
    assert samples(text, "framefold_written_bytes_total") == {(): 2.0 * told["bytes_per_video"]}
    counts = samples(text, "framefold_stage_seconds_count", "stage")
    assert counts == {("decode",): 3, ("tower",): 2, ("reduce",): 2, ("commit",): 2}
    assert all(0 < seconds < 300 for seconds in samples(text, "framefold_stage_seconds_sum", "stage").values())
    assert samples(text, "framefold_pending") == {(): 0.0}
    assert samples(text, "framefold_run_exit_code", "command") == {("encode",): 0.0}
    began, ended = (samples(text, f"framefold_run_{name}_timestamp_seconds")[()] for name in ("start", "end"))
    assert 0 < ended - began < 600
    assert "secretname" not in text
    told = report(framefold(*encoding(tmp_path, model, *more, "--max-failed", "0")))
    assert samples(file.read_text(), "framefold_videos_total", "status") == {("skipped",): 3.0}
    assert samples(file.read_text(), "framefold_run_exit_code") == {(): 1.0}
    assert [path.name for path in file.parent.iterdir()] == ["encode.prom"]


def test_a_caption_run_counts_both_halves_in_one_file(tmp_path: Path, model: str) -> None:
    """Videos and questions by the fingerprint of each half, with the seconds of every stage."""
    corpus(tmp_path / "videos")
    shared = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--model", model, "--runner", "local"]
    flags = ["--reducer", "nest", "--max-new-tokens", "2", "--metrics-file", str(tmp_path / "caption.prom")]
    told = report(framefold("caption", str(tmp_path / "videos"), *shared, *flags))
    text = (tmp_path / "caption.prom").read_text()
    assert samples(text, "framefold_videos_total", "status", "error_class") == OUTCOMES
    print_of_answers = told["answer"]["fingerprint"], told["answer"]["answers_fingerprint"][:12]
    wanted = {(status, print_of_answers[1]): float(count) for status, count in told["answer"]["statuses"].items()}
    assert samples(text, "framefold_questions_total", "status", "fingerprint") == wanted
    assert set(samples(text, "framefold_stage_seconds_count", "stage")) == {*STAGES, ("answer",)}
    assert samples(text, "framefold_run_exit_code", "command") == {("caption",): float(told["exit_code"])}


def test_a_run_that_is_refused_says_so_in_the_file_and_a_file_that_cannot_be_is_refused(tmp_path: Path, model: str) -> None:
    """Exit 2 both times; whoever watches the file alone learns of the first."""
    file = tmp_path / "encode.prom"
    ran = framefold(*encoding(tmp_path, model, "--runner", "local", "--metrics-file", str(file)))  # there is no such corpus
    assert ran.returncode == 2
    assert samples(file.read_text(), "framefold_run_exit_code") == {(): 2.0}
    ran = framefold(*encoding(tmp_path, model, "--runner", "local", "--metrics-file", str(tmp_path / "none" / "x.prom")))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "framefold: --metrics-file" in ran.stderr
    assert not (tmp_path / "store").exists()


def test_the_file_of_a_run_at_work_has_counts_and_no_exit_code(tmp_path: Path) -> None:
    """As is the file of one that was killed: the next reader sees a start without an end."""
    file = tmp_path / "x.prom"
    meter = Meter("encode", str(file))
    meter.begin()
    meter.found("f" * 64, "videos", {"skipped": 3, "same_content": 0}, 7)
    assert samples(file.read_text(), "framefold_videos_total") == {}  # not written that often
    meter.renew(every_s=0)
    assert samples(file.read_text(), "framefold_videos_total", "status", "fingerprint") == {("skipped", "f" * 12): 3.0}
    assert samples(file.read_text(), "framefold_pending") == {(): 7.0}
    assert samples(file.read_text(), "framefold_run_start_timestamp_seconds")
    assert not samples(file.read_text(), "framefold_run_exit_code")


def test_a_file_that_can_no_longer_be_written_ends_no_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is a warning: a night's work is worth more than its count."""
    (tmp_path / "folder").mkdir()
    meter = Meter("encode", str(tmp_path / "folder" / "x.prom"))
    meter.begin()
    (tmp_path / "folder" / "x.prom").unlink()
    (tmp_path / "folder").rmdir()
    meter.end(0)
    assert "cannot be written" in caplog.text


def test_buckets_double() -> None:
    """What Ray makes of a sum is then off by half at most."""
    assert all(after == 2 * before for before, after in pairwise(BUCKETS))


class Doubling:
    """A stage: every row twice."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        if "bad" in batch["id"].to_pylist():
            raise ConfigError("bad")
        return pa.concat_tables([batch, batch])


def test_seconds_travel_with_rows_however_these_are_cut_and_joined() -> None:
    """Each table of each stage is told once; the stage itself never sees the column."""
    first, second = timed(Doubling, "first")(), timed(Doubling, "second")()
    assert type(first).__name__ == "Doubling"
    tables = [first(pa.table({"id": [str(at)]})) for at in range(3)]
    joined = pa.concat_tables(tables)
    cut = [joined.slice(0, 1), joined.slice(1, 4), joined.slice(5)]
    done = pa.concat_tables([second(one) for one in cut])
    assert sorted(name for name, seconds in spent(done) if seconds >= 0) == ["first"] * 3 + ["second"] * 3
    assert done.drop_columns(SPENT).num_rows == 12
    assert first(pa.table({"id": pa.array([], pa.string())})).column_names == ["id", SPENT]
    with pytest.raises(ConfigError, match="bad"):
        first(pa.table({"id": ["bad"]}))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path("/tmp") / f"fm{os.getpid()}"
    folder.mkdir(exist_ok=True)
    with ray_head(str(folder)) as found:
        yield found
    shutil.rmtree(folder, ignore_errors=True)


def on_ray(folder: Path, *args: str) -> dict[str, Any]:
    """The report of a job, whose log is JSON from the first line to the last."""
    env = {**environment(str(folder)), "FRAMEFOLD_RUN_ID": "nightly-7"}
    command = [sys.executable, "-m", "jobs.cli", *args, "--log-format", "json"]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert {json.loads(line)["run"] for line in ran.stderr.splitlines()} == {"nightly-7"}
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def submitted(jobs: str, folder: Path, name: str, *args: str) -> dict[str, Any]:
    """The report of a job submitted under a name, which stands in each line of its log."""
    ran = submit(jobs, str(folder), name, *args, "--log-format", "json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert {line["run"] for line in told if "logger" in line} == {name}
    found: dict[str, Any] = next(line for line in told if "statuses" in line)
    return found


def scraped(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as reply:
        return reply.read().decode()


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_scrape_of_ray_sees_the_series_of_jobs_that_have_ended(head: Head, tmp_path: Path, model: str) -> None:
    """Counters and histograms of a driver that joins and of one submitted, as in the file; never the name of a video."""
    corpus(tmp_path / "videos")
    (tmp_path / "q.csv").write_text("video_id,question\nsecretname1,what is it\nsecretname2,what is it\nelse,who\n")
    file, url = tmp_path / "encode.prom", head.metrics
    told = on_ray(tmp_path, *encoding(tmp_path, model, "--address", head.address, "--metrics-file", str(file)))
    assert told["committed"] == 2
    for text, prefix in ((scraped(url), "ray_framefold"), (file.read_text(), "framefold")):
        assert samples(text, f"{prefix}_videos_total", "status", "error_class") == OUTCOMES
        assert samples(text, f"{prefix}_written_bytes_total") == {(): 2.0 * told["bytes_per_video"]}
        counts = samples(text, f"{prefix}_stage_seconds_count", "stage", "command")
        assert counts == {("decode", "encode"): 3, ("tower", "encode"): 2, ("reduce", "encode"): 2, ("commit", "encode"): 1}
        assert "secretname" not in text
    shared = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--model", model, "--max-new-tokens", "2"]
    told = submitted(head.jobs, tmp_path, "nightly-8", "jobs.answer", str(tmp_path / "q.csv"), *shared)
    wanted = {(status, "answer"): float(count) for status, count in told["statuses"].items()}
    text = scraped(url)
    assert samples(text, "ray_framefold_questions_total", "status", "command") == wanted
    assert samples(text, "ray_framefold_videos_total", "status", "error_class") == OUTCOMES  # of the job before, still there
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    kinds = {"ray_framefold_videos": "counter", "ray_framefold_stage_seconds": "histogram"}
    assert {name: families[name] for name in kinds} == kinds
