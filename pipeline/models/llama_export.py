"""The Llama part of a Video-LLaVA checkpoint as a directory of its own, for engines that know no Video-LLaVA.

    <cache>/llama/<digest>/config.json, model-00001.safetensors ..., model.safetensors.index.json

The directory is named by what is in it (tensors, settings, format of the export), made once, and moved into place whole: a
reader sees all of it or nothing. Of two exports at once the second waits for the first and takes what it made; what a killed
one left is cleared by the next. No tokeniser is written: prompts are embedded before. The output rows of ids that no answer may
hold are zero, see `vllm_engine`.
"""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint
from pipeline.models.checkpoint import Checkpoint

FORMAT = 1
"""Raise it when an export would be written otherwise."""

SHARD_BYTES = 4 << 30
"""Tensors of a file, at most, unless one is larger: what is held in memory at once."""


def cache_folder() -> Path:
    """Return where exports are kept: FRAMEFOLD_CACHE, or else ~/.cache/framefold."""
    given = os.environ.get("FRAMEFOLD_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "framefold"


def export_llama(checkpoint: Checkpoint, silent: Sequence[int], folder: Path | None = None) -> Path:
    """Return the exported directory of a checkpoint; writes it if it is not there.

    Args:
        silent: ids whose output rows become zero.

    Raises:
        ConfigError: the language model is no Llama, tensors are missing, or the folder cannot be written.
    """
    config = llama_settings(checkpoint)
    name = fingerprint({"format": FORMAT, "llm_digest": checkpoint.llm_digest(), "config": config, "silent": sorted(silent)})
    target = (folder or cache_folder()) / "llama" / name
    if not target.is_dir():
        _make(checkpoint, config, sorted(silent), target)
    return target


def llama_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return config.json of the Llama part, defaults written out. Raises ConfigError for another kind of language model."""
    text = dict(checkpoint.config.get("text_config", {}))
    kind = text.get("model_type", "llama")
    if kind != "llama":
        raise ConfigError(f"{checkpoint.path}: expected a language model of type llama, got {kind!r}")
    settings: dict[str, Any] = LlamaConfig(**text).to_dict()
    settings["tie_word_embeddings"] = bool(checkpoint.config.get("tie_word_embeddings", False))
    noise = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    return {**{name: value for name, value in settings.items() if name not in noise}, "architectures": ["LlamaForCausalLM"]}


def _make(checkpoint: Checkpoint, config: dict[str, Any], silent: list[int], target: Path) -> None:
    """Write beside, make durable, rename into place, while nobody else on this machine does."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if target.is_dir():
                return
            for left in target.parent.glob(f".{target.name}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
            beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
            beside.mkdir()
            try:
                _write(checkpoint, config, silent, beside)
                for path in (*beside.iterdir(), beside):
                    _flush(path)
                beside.rename(target)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{target.parent}: the language model cannot be exported there: {error}") from error


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of a target. The kernel gives it back when its holder dies, however it dies."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _flush(path: Path) -> None:
    """Wait until a file or directory is on disk: a rename that outlives its files would be trusted."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _write(checkpoint: Checkpoint, config: dict[str, Any], silent: list[int], folder: Path) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(_silenced(checkpoint, config, silent)), start=1):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        total += sum(tensor.nbytes for tensor in shard.values())
    _check(checkpoint, config, weight_map)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for name, content in {"model.safetensors.index.json": index, "config.json": config}.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def llama_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield the Llama's tensors by the names of LlamaForCausalLM: old and new checkpoints name them differently."""
    for name, tensor in checkpoint.language_tensors():
        inner = name.removeprefix("language_model.").removeprefix("model.")
        if inner.startswith("lm_head."):
            yield inner, tensor
        elif name.startswith("language_model."):
            yield f"model.{inner}", tensor


def _silenced(checkpoint: Checkpoint, config: dict[str, Any], silent: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the Llama's tensors with zero rows for the silent ids in the layer that makes logits."""
    output = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    for name, tensor in llama_tensors(checkpoint):
        if name == output:
            tensor[list(silent)] = 0
        yield name, tensor


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors:
        if shard and held + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, held = {}, 0
        shard[name] = tensor.contiguous()
        held += tensor.nbytes
    if shard:
        yield shard


def _check(checkpoint: Checkpoint, config: dict[str, Any], weight_map: dict[str, str]) -> None:
    """Raise ConfigError where tensors are missing: an engine would fill them with anything."""
    with torch.device("meta"):
        wanted = set(LlamaForCausalLM(LlamaConfig(**config)).state_dict())
    lost = sorted(wanted - weight_map.keys() - ({"lm_head.weight"} if config["tie_word_embeddings"] else set()))
    if lost:
        raise ConfigError(f"{checkpoint.path}: {len(lost)} tensors of the language model are missing, first {lost[0]}")
