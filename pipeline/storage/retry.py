"""Try storage again when it falters: SlowDown, resets, short bodies, silence. Bounded in tries and in time.

The drivers beneath fsspec retry as well, each in its own way and not everywhere; what gets past them is caught here. Errors
that a further try cannot mend (no such file, no permission, a full disk, wrong credentials) are raised at once.
"""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import PipelineError
from pipeline.redaction import redact

logger = logging.getLogger(__name__)

TRIES = 6
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0
PATIENCE_S = 120.0
"""No further try begins so long after the first one began; a driver's own time-outs come on top."""

FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
FINAL_NUMBERS = frozenset({errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG})
FINAL_WORDS = ("Credential", "Profile", "Validation")
"""Parts of names of driver errors that only the operator can mend."""

T = TypeVar("T")


def is_of_storage(error: BaseException) -> bool:
    """Tell whether an error comes from storage or its driver. Drivers raise classes of their own besides OSError."""
    if isinstance(error, OSError):
        return True
    return isinstance(error, Exception) and type(error).__module__ != "builtins" and not isinstance(error, PipelineError)


def may_pass(error: BaseException) -> bool:
    """Tell whether another try may succeed."""
    if not is_of_storage(error) or isinstance(error, FINAL):
        return False
    if isinstance(error, OSError) and error.errno in FINAL_NUMBERS:
        return False
    return not any(word in type(error).__name__ for word in FINAL_WORDS)


def patiently(what: str, call: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Return what `call` returns, after several tries if need be. Raises OSError, whatever the driver raised.

    `call` must be safe to repeat. Waits double and are drawn at random, so that many actors do not come back at once.
    """
    began = time.monotonic()
    for number in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:  # drivers have no common root; what is not theirs is raised again below
            if not may_pass(error) or number == TRIES or time.monotonic() - began > PATIENCE_S:
                if is_of_storage(error) and not isinstance(error, OSError):
                    raise OSError(f"{type(error).__name__}: {error}") from error
                raise
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (number - 1)) * random.uniform(0.5, 1.5)
            said = redact(f"{what}: {type(error).__name__}: {error}")
            logger.warning("%s; try %d of %d in %.1f s", said, number + 1, TRIES, wait)
        sleep(wait)
    raise AssertionError("unreachable")
