"""The jobs on a real Ray: submitted to a head, killed in the middle, run twice at once; videos on disk and on S3."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from jobs.runtime.cluster import JOBS
from pipeline.storage.filesystem import open_root
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify
from tests.gate import gate
from tests.jobs.crowd import POOLS
from tests.models import tiny_checkpoint
from tests.ray_head import end_group, environment, ray_head, submit

ROOT = Path(__file__).parents[2]
VIDEOS = ROOT / "tests" / "videos"
Start = Callable[..., subprocess.Popen[str]]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("ray") / "tiny")


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[str]:
    """A short path: Ray's sockets live below it, and their names are limited to 107 bytes."""
    folder = Path("/tmp") / f"ff{os.getpid()}"
    folder.mkdir(exist_ok=True)
    yield str(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(ray_folder: str) -> Iterator[Start]:
    """Starts jobs in process groups of their own; what is left of a group is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        command, pipes = [sys.executable, "-m", "jobs.cli", *args], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        job = subprocess.Popen(command, cwd=ROOT, env=environment(ray_folder), text=True, start_new_session=True, **pipes)
        started.append(job)
        return job

    yield start
    for job in started:
        end_group(job)


def finished(job: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = job.communicate()
    assert out, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def wait_for_a_unit(store: Path, job: subprocess.Popen[str]) -> None:
    while not list(store.rglob("index/*/*.parquet")):
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)


def clips(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"v{number:02}.mp4").write_bytes((VIDEOS / "testsrc2.mp4").read_bytes())
    return folder


def test_bad_and_good_videos_on_s3_go_through_ray_to_a_store_on_s3(
    bucket: tuple[str, dict[str, Any]], model: str, start: Start
) -> None:
    """Bytes come and go through fsspec; answers land on S3 as well; the second run encodes nothing."""
    url, options = bucket
    fs = fsspec.filesystem("s3", **options)
    for name in ("unordered.mov", "av1_video.mkv", "testsrc2_mpeg4.mp4"):
        fs.put(str(VIDEOS / name), f"{url}/videos/{name}")
    fs.pipe(f"{url}/videos/broken.mp4", b"#EXTM3U\nhttp://127.0.0.1:1/\n")
    fs.pipe(f"{url}/q.jsonl", b'{"video_id": "unordered", "question": "what is it"}\n{"video_id": "x", "question": "who"}\n')
    shared = ["--store", f"{url}/store", "--model", model, "--storage-options", json.dumps(options)]
    encode = ["encode", f"{url}/videos", *shared, "--reducer", "spatial(k=4)", "--max-failed", "1", "--videos-per-unit", "2"]
    told = finished(start(*encode))
    assert (told["exit_code"], told["committed"], told["left"]) == (0, 3, 0)
    assert told["failed_by_class"] == {"FORBIDDEN_PROTOCOL": 1}
    assert verify(*open_root(f"{url}/store", options)).as_dict()["ok"]
    told = finished(start("answer", f"{url}/q.jsonl", *shared, "--out", f"{url}/out"))
    assert told["statuses"] == {"missing_video": 1, "ok": 1}
    assert len(fs.cat_file(f"{url}/out/answers.jsonl").splitlines()) == 2
    assert finished(start(*encode))["this_run"].keys() == {"seconds"}


def test_a_private_ray_needs_no_home_folder(model: str, ray_folder: str, tmp_path: Path) -> None:
    """Left to itself, Ray keeps a token in the home folder, which containers may not have, and other clusters would find it."""
    (tmp_path / "file").write_text("nothing can lie below a file")
    env = {**environment(ray_folder), "HOME": str(tmp_path / "file" / "home")}
    del env["RAY_AUTH_MODE"]  # a user's environment says nothing
    flags = ["--store", str(tmp_path / "store"), "--model", model, "--reducer", "spatial(k=4)"]
    command = [sys.executable, "-m", "jobs.cli", "encode", str(VIDEOS / "unordered.mov"), *flags]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert TokenStore.open(str(tmp_path / "store")).ids() == ["unordered"]


def test_a_driver_killed_in_the_middle_loses_nothing_and_doubles_nothing(tmp_path: Path, model: str, start: Start) -> None:
    """kill -9 of the driver and all its workers after the first commit; the same command again completes the store."""
    store = tmp_path / "store"
    with gate(clips(tmp_path / "clips", 24)) as videos:
        args = ["encode", videos.manifest(tmp_path / "m.jsonl"), "--store", str(store), "--model", model]
        args += ["--reducer", "spatial(k=4)", "--videos-per-unit", "2", "--batch-clips", "1"]
        videos.let(12)
        job = start(*args)
        wait_for_a_unit(store, job)
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        killed = TokenStore.open(str(store))
        assert 0 < len(killed.ids()) <= 12
        assert not verify(*open_root(str(store))).problems
        videos.let()
        told = finished(start(*args))
    assert (told["committed"], told["left"], told["exit_code"]) == (24, 0, 0)
    assert 0 < told["this_run"]["committed"] <= 24 - len(killed.ids())
    report = verify(*open_root(str(store)))
    assert (report.problems, report.entries) == ([], 24)


def test_a_terminated_driver_says_so_and_leaves_the_rest_to_the_next_run(tmp_path: Path, model: str, start: Start) -> None:
    """SIGTERM while Ray runs: whole units, exit 3 and a report, though Ray would have the process end at once."""
    store = tmp_path / "store"
    with gate(clips(tmp_path / "clips", 30)) as videos:
        args = ["encode", videos.manifest(tmp_path / "m.jsonl"), "--store", str(store), "--model", model]
        args += ["--reducer", "spatial(k=4)", "--videos-per-unit", "2", "--batch-clips", "1"]
        videos.let(8)
        job = start(*args)
        wait_for_a_unit(store, job)
        job.terminate()
        assert job.stderr is not None
        heard = next(line for line in job.stderr if "SIGTERM" in line)
        assert heard.startswith("framefold: "), "a handler of Ray's, which aborts the process three seconds later"
        videos.let(12)  # for a unit to finish, of which it hears if it heard of all before the signal
        told = finished(job)
    assert job.returncode == told["exit_code"] == 3
    assert 0 < told["committed"] <= 12
    assert told["left"] == 30 - told["committed"]
    assert not verify(*open_root(str(store))).problems


def test_a_driver_terminated_while_ray_starts_says_so(tmp_path: Path, model: str, start: Start, ray_folder: str) -> None:
    """SIGTERM within `ray.init`, which would have the process end at once, or forget the signal and hang: exit 3, a report."""
    before = sessions(ray_folder)
    with gate(clips(tmp_path / "clips", 2)) as videos:
        args = ["encode", videos.manifest(tmp_path / "m.jsonl"), "--store", str(tmp_path / "store"), "--model", model]
        job = start(*args, "--reducer", "spatial(k=4)", "--videos-per-unit", "1")
        while not sessions(ray_folder) - before:
            assert job.poll() is None, job.communicate()
            time.sleep(0.01)
        job.terminate()
        assert job.stderr is not None
        assert any("framefold: SIGTERM" in line for line in job.stderr)
        videos.let(1)  # should the signal have come late, the driver waits for a unit
        told = finished(job)
    assert job.returncode == told["exit_code"] == 3
    assert told["left"] >= 1


def sessions(ray_folder: str) -> set[Path]:
    return set(Path(ray_folder).glob("ray/session_2*"))


def test_two_runs_of_the_same_job_at_once_commit_each_video_once(tmp_path: Path, model: str, start: Start) -> None:
    """A double submit costs time, never an entry."""
    folder, store = clips(tmp_path / "clips", 8), str(tmp_path / "store")
    args = ["encode", str(folder), "--store", store, "--model", model, "--reducer", "spatial(k=4)", "--videos-per-unit", "2"]
    told = [finished(job) for job in [start(*args), start(*args)]]
    assert [one["committed"] for one in told] == [8, 8]
    assert TokenStore.open(store).ids() == [f"v{number:02}" for number in range(8)]
    report = verify(*open_root(store))
    assert (report.problems, report.entries) == ([], 8)
    committed = sum(one["this_run"].get("committed", 0) for one in told)
    assert committed >= 8


def test_as_many_jobs_as_may_run_fit_on_two_cpus_and_one_more_waits_its_turn(tmp_path: Path, ray_folder: str) -> None:
    """All pools of all of them are up at the same time, so none waits for what another keeps; then the last one runs too."""
    command = [sys.executable, "-m", "tests.jobs.crowd", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env=environment(ray_folder), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("{")))
    assert (told["up"], told["late"]) == (JOBS * POOLS, []), ran.stderr
    assert told["told"] == {**{f"job{at}": [False, 4] for at in range(JOBS)}, f"job{JOBS}": [True, 4]}
    assert f"{JOBS} jobs run on this cluster already" in ran.stderr


@pytest.fixture(scope="module")
def head(ray_folder: str) -> Iterator[str]:
    """A Ray head with its job server; yields the address for `ray job submit`."""
    with ray_head(ray_folder) as found:
        yield found.jobs


def test_a_submitted_job_encodes_and_a_second_submit_is_refused(head: str, tmp_path: Path, model: str, ray_folder: str) -> None:
    """`ray job submit -- python -m jobs.encode` to a head with two CPUs, then jobs.answer, and the report comes back."""
    store, out = tmp_path / "store", tmp_path / "out"
    encode = ["jobs.encode", f"{VIDEOS}/*.mov", "--store", str(store), "--model", model, "--reducer", "none"]
    ran = submit(head, ray_folder, "encode-1", *encode)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '"committed": 2' in ran.stdout
    again = submit(head, ray_folder, "encode-1", *encode)
    assert again.returncode != 0
    assert TokenStore.open(str(store)).ids() == ["unordered", "video_90"]
    questions = tmp_path / "q.csv"
    questions.write_text("video_id,question\nvideo_90,what is it\nunordered,what is it\n")
    answer = ["jobs.answer", str(questions), "--store", str(store), "--out", str(out), "--model", model]
    ran = submit(head, ray_folder, "answer-1", *answer)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '"statuses": {"ok": 2}' in ran.stdout
    assert len((out / "answers.jsonl").read_text().splitlines()) == 2
