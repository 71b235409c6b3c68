"""Manifests say what is true: versions of the lock file, flags of the command line, GPUs that fit the pools."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.commands.answer import AnswerJob
from jobs.commands.caption import CaptionJob
from jobs.commands.encode import EncodeJob
from jobs.runtime import launch

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
JOBS = {"encode": EncodeJob, "answer": AnswerJob, "caption": CaptionJob}
LOCKED = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))


def commands(text: str) -> list[list[str]]:
    """Every framefold command in a file, as words; shell continuations are joined."""
    joined = text.replace("\\\n", " ")
    command = r"(?:framefold |python -m jobs\.)((?:encode|answer|caption)\s[^#`]+?)(?:\n\s*\n|\n {2,4}\w+:|\Z)"
    found = re.findall(command, joined)
    return [shlex.split(" ".join(command.split())) for command in found]


def parse(words: list[str]) -> Any:
    return launch.parse(JOBS[words[0]], f"framefold {words[0]}", words[1:])


@pytest.mark.parametrize("path", [*MANIFESTS, INFRA / "README.md"], ids=lambda p: p.name)
def test_every_command_in_infra_parses(path: Path) -> None:
    """A flag that was renamed cannot stay behind in a manifest."""
    found = commands(path.read_text())
    assert found
    for words in found:
        assert parse(words).store.startswith("s3://")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifests_are_valid_yaml_and_name_the_image_of_this_version(path: Path) -> None:
    """The tag is the project's version."""
    assert VERSION is not None
    manifest = yaml.safe_load(path.read_text())
    assert manifest["kind"] in ("RayJob", "CronJob")
    images = set(re.findall(r"image: (\S+)", path.read_text()))
    assert images == {f"framefold:{VERSION.group(1)}"}


def test_ray_versions_equal_the_lock_file() -> None:
    """Driver and cluster must match to the patch version, in each file that names one."""
    pattern = re.compile(r'rayproject/ray:([\d.]+)|rayVersion: "([^"]*)"|\bRay (\d+\.\d+\.\d+)')
    texts = {path.name: path.read_text() for path in INFRA.rglob("*") if path.is_file()}
    versions = {name: {one for match in pattern.findall(text) for one in match if one} for name, text in texts.items()}
    expected = ("Dockerfile", "README.md", "encode-rayjob.yaml", "answer-rayjob.yaml")
    assert {name: found for name, found in versions.items() if found} == {name: {LOCKED["ray"]} for name in expected}


@pytest.mark.parametrize("name", ["encode", "answer"])
def test_the_gpus_of_a_manifest_are_those_its_flags_ask_for(name: str) -> None:
    """Replicas times GPUs equals actors times GPUs per actor; CPUs suffice for the decoders."""
    text = (INFRA / "kuberay" / f"{name}-rayjob.yaml").read_text()
    spec = yaml.safe_load(text)["spec"]
    job = parse(shlex.split(spec["entrypoint"])[1:])
    group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    asked = job.encoders * job.gpus_per_encoder if name == "encode" else job.engines * job.gpus_per_engine
    assert group["replicas"] * int(limits["nvidia.com/gpu"]) == asked
    actors = job.decoders + job.encoders + 1 if name == "encode" else job.engines + 1
    assert group["replicas"] * int(limits["cpu"]) >= actors


@pytest.mark.parametrize("name", ["encode", "answer"])
def test_prometheus_is_sent_to_the_port_that_ray_exports_on(name: str) -> None:
    """On the head, where the driver counts. A list of ports there would take those of KubeRay from the head's service."""
    group = yaml.safe_load((INFRA / "kuberay" / f"{name}-rayjob.yaml").read_text())["spec"]["rayClusterSpec"]["headGroupSpec"]
    told = group["template"]["metadata"]["annotations"]
    assert told["prometheus.io/scrape"] == "true"
    assert told["prometheus.io/port"] == group["rayStartParams"]["metrics-export-port"]
    assert "ports" not in group["template"]["spec"]["containers"][0]


def test_every_node_of_the_cluster_exports_on_a_known_port() -> None:
    """Ray takes one by chance otherwise."""
    cluster = yaml.safe_load((INFRA / "cluster.yaml").read_text())
    started = [line for part in ("head", "worker") for line in cluster[f"{part}_start_ray_commands"] if "ray start" in line]
    assert len(started) == 2
    assert all("--metrics-export-port=8080" in line for line in started)


def test_the_image_installs_from_the_lock_file() -> None:
    """And copies every package that the distribution has."""
    text = (INFRA / "Dockerfile").read_text()
    assert "-c requirements.lock" in text
    assert all(f"COPY --chown=ray:users {name} {name}" in text for name in ("reducers", "pipeline", "jobs", "framefold"))
