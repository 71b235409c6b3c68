"""SHA-256 of the weights of a model, independent of how they are spread over files."""

import hashlib
import logging
import time
from collections.abc import Iterable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
SAY_S = 5.0
"""Seconds between two log lines about weights that are read."""


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return SHA-256 over names, dtypes, shapes and bytes of tensors; logs its progress every few seconds."""
    total, size, said = hashlib.sha256(), 0, time.monotonic()
    for name, tensor in tensors:
        size += tensor.nbytes
        if time.monotonic() - said > SAY_S:
            said = time.monotonic()
            logger.info("%.1f GB of weights read for their digest so far", size / 1e9)
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
