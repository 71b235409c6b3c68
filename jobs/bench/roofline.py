"""What work costs on paper: FLOPs and bytes of tower and language model, and the time below which a machine cannot be.

Shapes: T rows of the tower, L layers, D width, P positions of a prompt, B bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A roofline: what can be computed and moved in a second."""

    flops: float
    """Dense matrix FLOPs per second in 16 bits."""
    bytes_s: float
    """Bytes per second from main memory."""


MACHINES = {
    "v100": Machine(flops=112e12, bytes_s=0.9e12),
    "a100": Machine(flops=312e12, bytes_s=2.0e12),
    "h200": Machine(flops=989e12, bytes_s=4.8e12),
}
"""Data sheets of NVIDIA: V100 PCIe, A100 80 GB SXM, H200 SXM; dense."""


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """What reading a prompt costs."""

    flops: float
    seconds: float
    memory_bytes: float
    """Weights, key-value cache and activations together."""
    activation_bytes: float
    """Key-value cache and the activations of one block."""


def tower_flops(config: Mapping[str, int], frames: int, layers: int) -> float:
    """Return FLOPs of a ViT over some frames, two for each multiplication with addition."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    patches = (config["image_size"] // config["patch_size"]) ** 2
    rows = patches + 1
    block = 2 * rows * (4 * width * width + 2 * width * inner) + 4 * rows * rows * width
    return frames * (layers * block + 2 * patches * 3 * config["patch_size"] ** 2 * width)


def weights(config: Mapping[str, int]) -> int:
    """Return the parameters of a Llama that a token meets, without the embedding table."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    block = 2 * width * width + 2 * width * keys + 3 * width * inner
    return config["num_hidden_layers"] * block + width * config["vocab_size"]


def read_flops(config: Mapping[str, int], positions: int, before: int = 0) -> float:
    """Return FLOPs of reading some positions behind others: every weight once each, and causal attention."""
    attended = positions * before + positions * (positions + 1) / 2
    attention = 4 * attended * config["hidden_size"] * config["num_hidden_layers"]
    head = config["hidden_size"] * config["vocab_size"]
    return 2 * positions * (weights(config) - head) + 2 * head + attention


def prefill(config: Mapping[str, int], positions: int, machine: Machine, weight_bits: int = 16) -> Prefill:
    """Return the roofline of reading a prompt in 16-bit arithmetic, weights stored in 16 or 4 bits.

    Time is the larger of computing and moving. The source's table counts likewise (LLM-Viewer).
    """
    flops = read_flops(config, positions)
    stored = weights(config) * weight_bits / 8
    keys = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    cache = 2 * 2 * config["num_hidden_layers"] * keys * positions
    passing = 2 * positions * (2 * config["hidden_size"] + 2 * config["intermediate_size"])
    return Prefill(
        flops=flops,
        seconds=max(flops / machine.flops, (stored + cache + passing) / machine.bytes_s),
        memory_bytes=stored + cache + passing,
        activation_bytes=cache + passing,
    )
