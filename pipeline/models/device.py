"""Where a model runs and in which type it computes, decided in one place for encoding, answering, training and benchmarks."""

import re
from typing import Literal, Protocol, Self, TypeVar

from pipeline.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Compute types that a flag may name."""


StepKind = Literal["auto", "eager", "static", "compile"]
"""How generation steps may run, see `pipeline.engines.generation`; named here, where no torch is loaded."""


class OnDevice(Protocol):
    """A config that says where a model runs: `EncodeConfig`, `AnswerConfig`."""

    @property
    def device(self) -> str:
        """What the flag says."""
        ...

    def on(self, device: str) -> Self:
        """Return the config for a device, dtype decided."""
        ...

    def here(self) -> Self:
        """Return the config for this machine, device and dtype decided."""
        ...


C = TypeVar("C", bound=OnDevice)


def check_device(device: str) -> None:
    """Raise ConfigError unless a flag names a device in a way that every job understands."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")


def check_dtype(name: str, dtype: str) -> None:
    """Raise ConfigError unless the flag `name` holds a compute type."""
    if dtype not in DTYPES:
        raise ConfigError(f"{name} must be one of {', '.join(DTYPES)}, got {dtype!r}")


def check_present(device: str) -> None:
    """Raise ConfigError if this machine has no such GPU. Ask it where the model will run, not on a driver elsewhere."""
    if not device.startswith("cuda"):
        return
    import torch

    number, found = int(device.partition(":")[2] or 0), torch.cuda.device_count()
    if number >= found:
        raise ConfigError(
            f"expected the GPU {device}, torch finds {found} GPUs here: pass --device cpu, or install torch for CUDA"
        )


def device_here(device: str) -> str:
    """Return the device that `auto` means on this machine: the first GPU, or the CPU where there is none."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_on(device: str, dtype: str, *, gpu: str) -> str:
    """Return the compute type that `auto` means on a device: `gpu` on a GPU, float32 elsewhere."""
    if dtype != "auto":
        return dtype
    return gpu if device.startswith("cuda") else "float32"


def here(config: C) -> C:
    """Return a config for this machine, device and dtype decided. Raises ConfigError if it is to have a GPU that it has not."""
    found = config.here()
    check_present(found.device)
    return found
