"""Encode jobs of one small video and of files made of it, counted."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from jobs.commands.encode import EncodeJob, run
from jobs.runtime.cluster import ClusterConfig
from pipeline.decode.config import DecodeConfig
from pipeline.encode.stage import EncodeConfig, encode_spec
from pipeline.models.checkpoint import Checkpoint
from pipeline.storage.filesystem import open_root

ROOT = Path(__file__).parents[2]
VIDEOS = ROOT / "tests" / "videos"
CLIP = VIDEOS / "unordered.mov"
REDUCER = "spatial(rows=2,cols=2)"


def joint_space(folder: Path, seed: int = 0) -> None:
    """A visual projection beside the checkpoint, as much of a text tower as encoding needs."""
    (folder / "text_tower").mkdir(exist_ok=True)
    vocabulary = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    (folder / "text_tower" / "config.json").write_text(json.dumps({"vocab_size": vocabulary}))
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))
    save_file({"weight": weight}, folder / "text_tower" / "visual_projection.safetensors")


def job(corpus: object, store: object, model: object, **flags: Any) -> EncodeJob:
    decode = {name: value for name, value in flags.items() if name in DecodeConfig.__dataclass_fields__}
    encode = {name: value for name, value in flags.items() if name in EncodeConfig.__dataclass_fields__}
    rest = {name: value for name, value in flags.items() if name not in {**decode, **encode}}
    config = EncodeConfig(**{"model": str(model), "reducer": REDUCER, "device": "cpu", **encode})
    where = {"corpus": str(corpus), "store": str(store), "cluster": ClusterConfig(runner="local")}
    return EncodeJob(**where, encode=config, decode=DecodeConfig(**decode), **rest)


def encoded_by(one: EncodeJob) -> list[int]:
    """Run a job; how many videos it encoded, listed by content, and failed to."""
    told = run(one)
    return [told["this_run"].get("committed", 0), told["same_content"], told["this_run"].get("failed", 0)]


def spec_of(one: EncodeJob) -> dict[str, Any]:
    return encode_spec(one.encode, one.decode, Checkpoint.open(one.encode.model, one.encode.revision))


def padded(video: str, size: int) -> bytes:
    """The bytes of a video, filled up with a box that no decoder reads."""
    content = (VIDEOS / video).read_bytes()
    return content + (size - len(content)).to_bytes(4, "big") + b"free" + bytes(size - len(content) - 8)


def put(folder: str, name: str, content: bytes, options: dict[str, Any]) -> None:
    fs, root = open_root(folder, options)
    fs.makedirs(f"{root}/{name}".rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(f"{root}/{name}", content)
