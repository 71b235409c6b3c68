"""The parent's side of decoding in a child: start it, ask it, kill it when its time is up.

Native decoders crash, leak and hang, some with the GIL held, so only another process can stop them. The child is asked by a
line of JSON and answers with a line of JSON followed by the clip's bytes; see `decode_worker`.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.decode import DecodeConfig
from pipeline.errors import PipelineError, VideoError

START_S = 120.0
"""A child that is not ready by then will never be: the machine is at fault, not a video."""
REPLY_BYTES = 1 << 20
MAX_CLIP_BYTES = 8 << 30


class DecodeChild:
    """One decoding process at a time, started when first needed and replaced after a kill, a crash or many videos."""

    def __init__(self, config: DecodeConfig, side_px: int) -> None:
        self.config = config
        self.side_px = side_px
        self.process: subprocess.Popen[bytes] | None = None
        self.served = 0

    def read(self, path: Path, demuxer: str) -> dict[str, Any]:
        """Return the decoded columns of one video. Raises VideoError; TIMEOUT and CRASHED cost the child its life."""
        if self.process is None or self.process.poll() is not None or self.served >= self.config.recycle:
            self._restart()
        self.served += 1
        deadline = time.monotonic() + self.config.deadline_s
        try:
            self._send({"path": str(path), "demuxer": demuxer})
            reply = self._line(deadline)
            if "error_class" in reply:
                raise VideoError(reply["error_class"], reply["error"])
            frames = self._bytes(reply.pop("bytes"), deadline)
        except TimeoutError as error:
            self.close()
            raise VideoError("TIMEOUT", f"not decoded within {self.config.deadline_s:g} s") from error
        except (EOFError, BrokenPipeError) as error:
            raise self._crashed() from error
        return {"frames": frames, **reply}

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
        self.close()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.decode_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
        )
        self.served = 0
        try:
            self._send({"config": asdict(self.config), "side_px": self.side_px})
            self._line(time.monotonic() + START_S)
        except (TimeoutError, EOFError, BrokenPipeError) as error:
            code = self.process.poll()
            self.close()
            raise PipelineError(f"the decoding process did not start (exit code {code})") from error

    def _crashed(self) -> VideoError:
        """Return why the child died. The kernel kills with SIGKILL when memory runs out; nobody else does."""
        process = self.process
        code = process.wait(10) if process is not None else 0
        self.close()
        if code == -signal.SIGKILL:
            return VideoError("OUT_OF_MEMORY", "the decoding process was killed by the system")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return VideoError("CRASHED", f"the decoding process died: {name}")

    def _send(self, message: dict[str, Any]) -> None:
        pipe = self.process.stdin if self.process else None
        if pipe is None:
            raise BrokenPipeError("no child")
        pipe.write(json.dumps(message).encode() + b"\n")

    def _line(self, deadline: float) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            if len(line) > REPLY_BYTES:
                raise EOFError("not a reply")
            line += self._some(1, deadline)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _bytes(self, count: int, deadline: float) -> bytes:
        if not 0 <= count <= MAX_CLIP_BYTES:
            raise EOFError("not a clip")
        parts = bytearray()
        while len(parts) < count:
            parts += self._some(min(count - len(parts), 1 << 20), deadline)
        return bytes(parts)

    def _some(self, count: int, deadline: float) -> bytes:
        """Return some bytes from the child. Raises TimeoutError, EOFError."""
        pipe = self.process.stdout if self.process else None
        if pipe is None:
            raise EOFError
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        read = os.read(pipe.fileno(), count)
        if not read:
            raise EOFError
        return read
