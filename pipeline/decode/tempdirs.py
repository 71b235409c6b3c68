"""Private folders for videos at work. What a killed process leaves behind is removed by the next that starts.

Each folder is locked by its owner (`flock` on the folder itself), and the kernel opens the lock when the owner ends, however
it ends. No process id is compared: containers that share a disk have ids of their own.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "framefold-decode-"


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder that goes with its block, or with `sweep` after a kill."""
    folder, lock = _locked()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep() -> int:
    """Remove folders whose owner is gone; returns how many. Those of other users are let be."""
    return sum(_removed(path) for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))


def _locked() -> tuple[Path, int]:
    """Return a new folder and the descriptor that locks it; another one where a sweep came in between."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(OSError):
            lock = _lock(folder)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int:
    """Return a descriptor that locks a folder of this user. Raises OSError where it is locked, gone or somebody else's."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{folder}: of another user")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _removed(folder: Path) -> bool:
    try:
        lock = _lock(folder)
    except OSError:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return True
