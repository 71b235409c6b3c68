"""A GPU that is none: tensors in host memory that behave as if they lay on another device.

Values are computed on the CPU, but an operator that mixes devices raises as on CUDA; so does a read on a stream that did
not wait for the write, and what may not happen while a CUDA graph is recorded. A recording replays its operators on the very
tensors it was made with. What it cannot tell: how fast a GPU is, how it rounds, and what a kernel does to freed memory.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
BESIDE = torch.device("meta", 0)
"""What torch's own code takes the emulated GPU for. Without a number, `meta` is what it always is."""
MAY_MIX = {aten._to_copy, aten.to, aten.copy_, aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Operators that CUDA allows tensors of both devices: copies, and indices in host memory."""
WAITING = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.nonzero, aten.equal, aten.masked_select, aten._unique2}
"""Operators for which the host waits, for their shape or value is what it wants to know."""


class Stream:
    """Operators in their order."""

    def __init__(self, device: Any = None) -> None:
        self.device, self.count = CUDA, 0
        self.waited: dict[Stream, int] = {}

    def record_event(self) -> tuple["Stream", int]:
        return self, self.count

    def wait_event(self, event: tuple["Stream", int]) -> None:
        self.waited[event[0]] = event[1]

    def synchronize(self) -> None:
        GPU.seen_by_host[self] = self.count


class Gpu:
    """What the one emulated GPU is doing."""

    def __init__(self) -> None:
        self.local = threading.local()
        self.main = Stream()
        self.seen_by_host: dict[Stream, int] = {}
        self.operators: Counter[str] = Counter()
        self.to_host = self.replays = 0
        self.recording: list[tuple[Any, Any, Any, Any]] | None = None

    @property
    def stream(self) -> Stream:
        return getattr(self.local, "stream", self.main)

    def read(self, tensor: "OnGpu") -> None:
        """Raise where the current stream did not wait for what it reads."""
        writer, number = tensor.written
        known = max(self.stream.waited.get(writer, 0), self.seen_by_host.get(writer, 0))
        if writer is not self.stream and known < number:
            raise RuntimeError("a stream reads what another one may not have written yet")

    def wrote(self, found: Any) -> Any:
        """Return tensors that lie on the GPU, written by the current stream just now."""
        self.stream.count += 1
        made = tree_map(lambda value: OnGpu(value) if type(value) is Tensor else value, found)
        for tensor in tree_leaves(made):
            if isinstance(tensor, OnGpu):
                tensor.written = (self.stream, self.stream.count)
        return made


GPU = Gpu()


class OnGpu(torch.Tensor):
    """A tensor on the emulated GPU. Our code finds it on `cuda:0`."""

    inner: Tensor
    written: tuple[Stream, int]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnGpu":
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype, "device": BESIDE}
        with torch.inference_mode(False):
            made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), requires_grad=inner.requires_grad, **shape)
        made.inner, made.written = inner, (GPU.stream, GPU.stream.count)
        return made

    device = property(lambda _: CUDA)
    is_cuda = property(lambda _: True)
    is_meta = property(lambda _: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def data_ptr(self) -> int:
        return self.inner.data_ptr()


def operate(func: Any, args: Any, kwargs: Any) -> Any:
    """Run one operator as the emulated GPU would, or as the CPU where nothing lies on the GPU."""
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    target = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.device)), None)
    on_gpu = [value for value in given if isinstance(value, OnGpu)]
    result_on_gpu = bool(on_gpu) if target is None else target in (BESIDE, CUDA)
    if not on_gpu and not result_on_gpu:
        return func(*args, **kwargs)
    for value in on_gpu:
        GPU.read(value)
    operator = getattr(func, "overloadpacket", func)
    crosses = (target is not None and bool(given) and bool(on_gpu) != result_on_gpu) or len(on_gpu) < len(given)
    if operator not in MAY_MIX and any(value.dim() for value in given if not isinstance(value, OnGpu)):
        raise RuntimeError(f"{func}: expected all tensors on one device, found cuda:0 and cpu")
    waits = operator in WAITING or (crosses and operator in MAY_MIX)
    if waits and GPU.recording is not None:
        raise RuntimeError(f"{func}: not permitted while a graph is recorded")
    if operator in WAITING or (on_gpu and not result_on_gpu):
        GPU.to_host += 1
        GPU.stream.synchronize()
    return _run(func, args, kwargs, given, result_on_gpu)


def _run(func: Any, args: Any, kwargs: Any, given: list[Tensor], result_on_gpu: bool) -> Any:
    args, kwargs = tree_map(_inner, args), {name: _inner(value) for name, value in kwargs.items() if name != "pin_memory"}
    found = func(*args, **tree_map(_inner, kwargs))
    GPU.operators[str(func)] += 1
    if GPU.recording is not None:
        GPU.recording.append((func, args, kwargs, found))
    if not result_on_gpu:
        return found.clone() if any(_inner(value) is found for value in given) else found
    for value in given:
        if isinstance(value, OnGpu) and value.inner is found:  # in place
            GPU.stream.count += 1
            value.written = (GPU.stream, GPU.stream.count)
            return value
    return GPU.wrote(found)


def _inner(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    return value.inner if isinstance(value, OnGpu) else value


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Says `BESIDE` to torch's own code wherever ours says `cuda`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(_as_meta, args), {name: _as_meta(value) for name, value in (kwargs or {}).items()}
        kwargs.pop("pin_memory", None)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == BESIDE and not isinstance(args[0], Tensor):
            return GPU.wrote(func(*args, **{**kwargs, "device": CPU}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            return operate(func, args, kwargs)  # which kernel it takes is the device's business
        return func(*args, **kwargs)


def _as_meta(value: Any) -> Any:
    if isinstance(value, torch.device):
        return BESIDE if value.type == "cuda" else value
    return BESIDE if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


@contextmanager
def working() -> Iterator[None]:
    """What this thread does inside may use the emulated GPU."""
    with _Operators(), _Functions():
        yield


@contextmanager
def _on_stream(stream: Stream) -> Iterator[None]:
    before, GPU.local.stream = GPU.stream, stream
    try:
        with working():
            yield
    finally:
        GPU.local.stream = before


class _Graph:
    operators: list[tuple[Any, Any, Any, Any]]

    @torch.inference_mode()
    def replay(self) -> None:
        GPU.replays += 1
        for func, args, kwargs, before in self.operators:
            for old, new in zip(tree_leaves(before), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def _recorded(graph: _Graph, **_: Any) -> Iterator[None]:
    GPU.recording = graph.operators = []
    try:
        yield
    finally:
        GPU.recording = None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """Torch finds one GPU, which is emulated."""
    GPU.__init__()  # type: ignore[misc]
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "synchronize": lambda *_: GPU.stream.synchronize(),
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (8 << 30, 8 << 30),
        "Stream": Stream,
        "current_stream": lambda *_: GPU.stream,
        "stream": _on_stream,
        "CUDAGraph": _Graph,
        "graph": _recorded,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with working():
        yield GPU
