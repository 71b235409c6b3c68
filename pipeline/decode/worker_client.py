"""The parent's side of decoding in a child: start it, ask it, kill it when its time is up.

Native decoders crash, leak and hang, some with the GIL held, so only another process can stop them. The child is asked by a
line of JSON and answers with a line of JSON followed by the clip's bytes; see `worker`.
"""

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.corpus.span import Span
from pipeline.decode.config import DecodeConfig
from pipeline.decode.facts import Part
from pipeline.errors import PipelineError, VideoError

START_S = 120.0
"""A child that is not ready by then will never be: the machine is at fault, not a video."""
STARTS, START_WAIT_S = 3, 0.5
"""How often a child is started before the job gives up, and how long it waits in between: one may be killed as it starts."""
TRIES = 2
"""How often a video is decoded whose child was killed from outside: the next one may have been the cause, or nobody's video."""
DECORD_FAULTS = frozenset({"TIMEOUT", "CRASHED", "OUT_OF_MEMORY"})
"""Classes that cost a child its life. decord loops for ever on some good videos; PyAV has the second try."""
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that no decoder raises. The kernel sends SIGKILL when the machine's memory runs out, whoever used it up; Ctrl-C and
service managers signal the whole process group."""
REPLY_BYTES = 1 << 18
"""More than the times of the longest clip take."""
FACTS_BYTES = 4 << 20
"""More than the facts about the longest clip take."""
ANSWER = {"timestamps_s": list, "decoder": str, "substituted_frames": int, "displaced_s": float}
"""Columns that a child answers beside the frames."""
TOLD = {"PATH", "HOME", "TMPDIR", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "VIRTUAL_ENV"}
"""Variables that a child gets, with those that begin as `TOLD_IF_BEGUN`: what a program needs to start, and no credentials."""
TOLD_IF_BEGUN = ("LC_", "FRAMEFOLD_")
LAST_BREATH_S = 10.0
"""How long a child that closed its pipe may take to die before it is killed."""


class DecodeChild:
    """One decoding process at a time, started when first needed and replaced after a kill, a crash or many videos."""

    def __init__(self, config: DecodeConfig, side_px: int) -> None:
        self.config = config
        self.side_px = side_px
        self.process: subprocess.Popen[bytes] | None = None
        self.served = 0
        self.fresh_bytes = 0
        self.ended: Counter[str] = Counter()
        """How children ended: by the class that cost them their life, or replaced after `videos` or for `memory`."""

    def measure(self, path: Path, demuxer: str) -> float:
        """Return how long a video is, in seconds. Raises VideoError as `read` does."""
        return float(self._patiently(path, demuxer, None, measure=True)["duration_s"])

    def read(self, path: Path, demuxer: str, span: Span | None = None) -> dict[str, Any]:
        """Return the decoded columns of one video, or of the part between two times in seconds.

        Raises VideoError; TIMEOUT, CRASHED and OUT_OF_MEMORY cost the child its life. A video whose child is killed from
        outside is tried again in another child before it is KILLED.
        """
        return self._patiently(path, demuxer, span, measure=False)

    def inspect(self, path: Path, demuxer: str, span: Span | None, part: Part) -> dict[str, Any]:
        """Return what a child tells of a video, as JSON in `facts`, and `thumbnails` with their shape (F, H, W).

        `stream`: what its packets say. `clip`: what decoding gave, and its frames within a box of `side_px`, none where that
        is 0. Raises VideoError as `read` does.
        """
        return self._patiently(path, demuxer, span, measure=False, inspect=part)

    def _patiently(
        self, path: Path, demuxer: str, span: Span | None, *, measure: bool, inspect: str = ""
    ) -> dict[str, Any]:
        request = {"path": str(path), "demuxer": demuxer, "span": span, "measure": measure, "decoder": self.config.decoder}
        request["inspect"] = inspect
        for _ in range(TRIES - 1):
            try:
                return self._read(request)
            except VideoError as error:
                if error.code in DECORD_FAULTS and request["decoder"] == "decord":
                    request["decoder"] = "pyav"
                elif error.code != "KILLED":
                    raise
        return self._read(request)

    def _read(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None or self._is_worn():
            self._restart()
        self.served += 1
        deadline = time.monotonic() + self.config.deadline_s
        try:
            self._send(request)
            reply = self._line(deadline)
            if "error_class" in reply:
                error = VideoError(reply["error_class"], reply["error"])
                raise self._end(error) if reply.get("worn") else error
            if request["measure"]:
                return {"duration_s": float(reply["duration_s"])}
            if request["inspect"]:
                return self._facts(reply, deadline)
            frames = self._bytes(self._clip_bytes(reply), deadline)
        except TimeoutError as error:
            raise self._end(VideoError("TIMEOUT", f"not decoded within {self.config.deadline_s:g} s")) from error
        except (EOFError, OSError) as error:
            raise self._crashed() from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._end(VideoError("CRASHED", "the decoder process returned an invalid response")) from error
        return {"frames": frames, **{name: reply[name] for name in ANSWER}}

    def _is_worn(self) -> bool:
        """Tell whether the child is to be replaced: after so many videos, or because it keeps more and more memory."""
        if self.config.recycle and self.served >= self.config.recycle:
            self.ended["videos"] += 1
        elif self.config.recycle_mb and self.resident_bytes() - self.fresh_bytes > self.config.recycle_mb << 20:
            self.ended["memory"] += 1
        else:
            return False
        return True

    def resident_bytes(self) -> int:
        """Return the resident memory of the child; 0 where there is none, or no /proc."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1] if self.process else 0
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """Kill the child, if there is one, and wait for its end."""
        if self.process is not None:
            self.process.kill()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process.wait()
            self.process = None

    def _restart(self) -> None:
        """Start a new child. Raises PipelineError when several do not get ready: the machine is at fault, not a video."""
        for number in range(STARTS):
            self.close()
            if number:
                time.sleep(START_WAIT_S * number)
            try:
                return self._start()
            except (EOFError, OSError, ValueError) as error:
                code = self.process.wait() if self.process and not isinstance(error, TimeoutError) else None
                cause = error
        self.close()
        raise PipelineError(f"the decoding process did not start {STARTS} times (exit code {code})") from cause

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.decode.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=_environment(),
        )
        self.served = 0
        self._send({"config": asdict(self.config), "side_px": self.side_px})
        self._line(time.monotonic() + START_S)
        self.fresh_bytes = self.resident_bytes()

    def _crashed(self) -> VideoError:
        """Return why the child died: killed from outside, or by what it decoded."""
        process = self.process
        try:
            code = process.wait(LAST_BREATH_S) if process is not None else 0
        except subprocess.TimeoutExpired:
            return self._end(VideoError("CRASHED", "the decoding process closed its pipe"))
        if -code in OUTSIDE:
            return self._end(VideoError("KILLED", f"killed from outside by {signal.Signals(-code).name}, {TRIES} times"))
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return self._end(VideoError("CRASHED", f"the decoding process died: {name}"))

    def _end(self, error: VideoError) -> VideoError:
        """End the child for an error, and return the error."""
        self.close()
        self.ended[error.code] += 1
        return error

    def _send(self, message: dict[str, Any]) -> None:
        pipe = self.process.stdin if self.process else None
        if pipe is None:
            raise BrokenPipeError("no child")
        pipe.write(json.dumps(message).encode() + b"\n")

    def _line(self, deadline: float) -> dict[str, Any]:
        line = bytearray()
        while not line.endswith(b"\n"):
            if len(line) > REPLY_BYTES:
                raise ValueError("not a reply")
            line += self._some(1, deadline)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _clip_bytes(self, reply: dict[str, Any]) -> int:
        """Return the bytes of the clip that follows a reply. Raises ValueError: what read a hostile file is not trusted."""
        count = self.config.frames * self.side_px**2 * 3
        kinds = all(isinstance(reply[name], kind) for name, kind in ANSWER.items())
        times = reply["timestamps_s"]
        if not kinds or reply["bytes"] != count or [type(time) for time in times] != [float] * self.config.frames:
            raise ValueError(f"expected {count} bytes and {self.config.frames} times")
        return count

    def _facts(self, reply: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Return what follows the reply to an inspection. Raises ValueError: what read a hostile file is not trusted."""
        count, shape = reply["facts_bytes"], tuple(reply["thumbnails"])
        whole = len(shape) == 3 and all(type(number) is int for number in (count, *shape))
        if not whole or not 0 < count <= FACTS_BYTES or not self._is_thumbnails(shape):
            raise ValueError("expected facts, and thumbnails within their box")
        facts = self._bytes(count, deadline)
        return {"facts": facts, "shape": shape, "thumbnails": self._bytes(math.prod(shape) * 3, deadline)}

    def _is_thumbnails(self, shape: tuple[int, ...]) -> bool:
        within = shape[0] == self.config.frames and all(0 < side <= self.side_px for side in shape[1:])
        return within or shape == (0, 0, 0)

    def _bytes(self, count: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            parts += self._some(min(count - len(parts), 1 << 20), deadline)
        return bytes(parts)

    def _some(self, count: int, deadline: float) -> bytes:
        """Return some bytes from the child. Raises TimeoutError, EOFError."""
        pipe = self.process.stdout if self.process else None
        if pipe is None:
            raise EOFError
        ready = select.poll()  # not select, which cannot wait for descriptors above 1023
        ready.register(pipe, select.POLLIN)
        if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        read = os.read(pipe.fileno(), count)
        if not read:
            raise EOFError
        return read


def _environment() -> dict[str, str]:
    """Return the variables of a child: code that a hostile video manages to run should find no credentials there.

    Modules come from this installation first. The working directory is not searched: `-P` leaves it out, and so are empty
    entries of PYTHONPATH, which stand for it.
    """
    told = {name: value for name, value in os.environ.items() if name in TOLD or name.startswith(TOLD_IF_BEGUN)}
    paths = [str(Path(__file__).resolve().parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**told, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
