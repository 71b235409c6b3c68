"""The child that decodes: `python -m pipeline.decode.worker`, spoken to by `worker_client` and nobody else.

It ends when its parent closes the pipe and, by a timer of the kernel that no native loop can hold up, soon after the deadline
of a video whatever became of the parent. It keeps its answers on a private descriptor where no native library can print,
and limits its own memory to what it holds after its imports plus the configured amount.
"""

import json
import os
import resource
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

SPARE_BYTES = 32 << 20
"""What must still be free for a file to be called damaged."""
GRACE_S = 10.0
"""How much later than the parent's deadline the kernel ends the child: only a child without a parent lives to see it."""


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    answers = _private_stdout()
    settings = json.loads(sys.stdin.buffer.readline())
    from pipeline.decode.config import DecodeConfig

    config = DecodeConfig(**settings["config"])
    _warm_up(config.decoder == "decord")
    _leave_nothing_behind()
    _say(answers, {"ready": True})
    file: Any = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        file = _same_file(file, request, config)
        _limit_memory(config.memory_mb)
        signal.setitimer(signal.ITIMER_REAL, config.deadline_s + GRACE_S)
        _answer(answers, request, file, settings["side_px"])
        file = file if request["span"] else None
        signal.setitimer(signal.ITIMER_REAL, 0)


def _same_file(file: Any, request: dict[str, Any], config: Any) -> Any:
    """Return the file that a request is about: the one at hand, if another part of it is asked for. Any: imported late."""
    from pipeline.decode.video_file import VideoFile

    path = Path(request["path"])
    if file is not None and request["span"] and file.path == path:
        return file
    return VideoFile(path, request["demuxer"], replace(config, decoder=request["decoder"]))


def _answer(answers: BinaryIO, request: dict[str, Any], file: Any, side_px: int) -> None:
    """Decode one video, or a part of it, and say how it went. Any: a `VideoFile`, whose module is imported late."""
    from av.error import FFmpegError

    from pipeline.decode.transforms import fit_square
    from pipeline.errors import VideoError

    try:
        if request["measure"]:
            return _say(answers, {"duration_s": file.duration_s})
        if request["inspect"]:
            return _tell(answers, request, file, side_px)
        clip = file.clip(request["span"])
        frames = fit_square(clip.frames, side_px)
    except VideoError as error:
        if error.code == "CORRUPT" and _memory_is_short():
            return _say_out_of_memory(answers, file)
        return _say(answers, {"error_class": error.code, "error": error.detail})
    except (MemoryError, BlockingIOError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _say_out_of_memory(answers, file)
    except (FFmpegError, OSError, ValueError, ArithmeticError, LookupError) as error:  # numbers of a file led astray
        return _say(answers, {"error_class": "CORRUPT", "error": f"{type(error).__name__}: {error}"[:200]})
    _say(
        answers,
        {
            "bytes": frames.nbytes,
            "timestamps_s": clip.timestamps_s,
            "decoder": clip.decoder,
            "substituted_frames": clip.substituted,
            "displaced_s": clip.displaced_s,
        },
    )
    answers.write(frames.tobytes())
    answers.flush()
    return None


def _tell(answers: BinaryIO, request: dict[str, Any], file: Any, box_px: int) -> None:
    """Say what is known of a video, with small pictures of its frames. Any: a `VideoFile`, whose module is imported late."""
    from pipeline.decode.description import describe

    facts, frames = describe(file, request["inspect"], request["span"], box_px)
    told = json.dumps(asdict(facts)).encode()
    _say(answers, {"facts_bytes": len(told), "thumbnails": frames.shape[:3]})
    answers.write(told + frames.tobytes())
    answers.flush()


def _say_out_of_memory(answers: BinaryIO, file: Any) -> None:
    """Say so, and that this process is worn: native libraries seldom survive that whole. Any: see `_answer`."""
    said = f"more than {file.config.memory_mb} MB were needed"
    _say(answers, {"error_class": "OUT_OF_MEMORY", "error": said, "worn": True})


def _memory_is_short() -> bool:
    """Tell whether little memory is left: FFmpeg calls some refused allocations invalid data."""
    try:
        return len(bytearray(SPARE_BYTES)) < SPARE_BYTES
    except MemoryError:
        return True


def _private_stdout() -> BinaryIO:
    """Return the pipe to the parent; whatever libraries print goes nowhere."""
    private = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return os.fdopen(private, "wb")


def _warm_up(with_decord: bool) -> None:
    """Load the native libraries before memory is limited, so that the limit counts videos only."""
    import numpy as np

    from pipeline.decode import decord_reader, video_file  # noqa: F401
    from pipeline.decode.transforms import fit_square

    if with_decord:
        decord_reader.load()
    fit_square(np.zeros((1, 48, 64, 3), dtype=np.uint8), 32)


def _limit_memory(memory_mb: int) -> None:
    """Limit private writable memory to what is in use plus the given amount: what leaked before is not charged to a video."""
    if memory_mb:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + memory_mb * (1 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _leave_nothing_behind() -> None:
    """Take from this process the right to write files: a decoder needs none, and a crash leaves no core file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(answers: BinaryIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
