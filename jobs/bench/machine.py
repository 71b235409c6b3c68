"""What a number was measured on."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """One line: date, processor, cores, memory, GPU, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "ray", "pyarrow"))
    return f"{datetime.now(UTC):%Y-%m-%d}, {model}, {cores} cores, {gpu}, Python {platform.python_version()}, {packages}"


def say(line: str) -> None:
    """Print a line of a table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def reset_peak() -> None:
    """Forget the peak of memory: of the GPU where there is one, else of this process, which Linux resets on request."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the peak since `reset_peak`: memory of the GPU, or resident memory of this process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
