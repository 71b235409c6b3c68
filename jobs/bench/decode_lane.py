"""One way to decode in a process of its own, asked for one clip at a time.

Some files hang or crash a decoder, and only another process can end that; and no method finds the memory warm that another
one left behind.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.decode_methods import METHODS, Frames, MissingLibraryError

ERROR_CHARS = 160


class MethodFailedError(Exception):
    """A method gives no clip of a file."""


class MethodMissingError(MethodFailedError):
    """The library of a method cannot be loaded."""


@dataclass(frozen=True)
class Cost:
    """What one clip cost."""

    cpu_s: float
    """Processor time, user and system, of all threads."""
    wall_s: float


class Lane:
    """A process that decodes with one method, started when first asked and again after it was ended."""

    def __init__(self, method: str, frames: int, deadline_s: float) -> None:
        self.method, self.frames, self.deadline_s = method, frames, deadline_s
        self.connection: Connection | None = None
        self.process: Any = None

    def frames_of(self, path: Path) -> Frames:
        """Return the clip of a file. Raises MethodFailedError."""
        told = self._asked({"path": str(path), "send": True})
        if self.connection is None:
            raise MethodFailedError("the process ended")
        return np.frombuffer(self.connection.recv_bytes(), dtype=np.uint8).reshape(told["shape"])

    def cost(self, path: Path) -> Cost:
        """Return what a clip costs. Raises MethodFailedError."""
        told = self._asked({"path": str(path), "send": False})
        return Cost(told["cpu_s"], told["wall_s"])

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        if self.connection is not None:
            self.connection.close()
        self.process = self.connection = None

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        connection = self.connection or self._start()
        try:
            connection.send_bytes(json.dumps(request).encode())
            if not connection.poll(self.deadline_s):
                self.close()
                raise MethodFailedError(f"no clip within {self.deadline_s:g} s")
            told: dict[str, Any] = json.loads(connection.recv_bytes())
        except (EOFError, OSError) as error:
            self.close()
            raise MethodFailedError("the decoder crashed") from error
        if "error" in told:
            raise (MethodMissingError if told["missing"] else MethodFailedError)(told["error"])
        return told

    def _start(self) -> Connection:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.method, self.frames), daemon=True)
        self.process.start()
        theirs.close()
        return self.connection


def _serve(connection: Connection, method: str, frames: int) -> None:
    """In the process of a lane: answer until the other end is closed."""
    decode = METHODS[method]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # native libraries print there, and stdout is for the table
        os.dup2(nowhere, stream)
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        _answer(connection, request, lambda path: decode(path, frames))


def _answer(connection: Connection, request: dict[str, Any], decode: Callable[[Path], Frames]) -> None:
    began = time.perf_counter(), time.process_time()
    try:
        clip = decode(Path(request["path"]))
    except Exception as error:  # each library raises its own, and torchcodec RuntimeError where it finds no FFmpeg
        missing = isinstance(error, MissingLibraryError)
        said = (str(error) if missing else f"{type(error).__name__}: {error}").splitlines()[0]
        connection.send_bytes(json.dumps({"error": said[:ERROR_CHARS], "missing": missing}).encode())
        return
    wall_s, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
    connection.send_bytes(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "shape": clip.shape}).encode())
    if request["send"]:
        connection.send_bytes(clip.tobytes())
