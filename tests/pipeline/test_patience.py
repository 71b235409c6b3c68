"""What is tried again, how often and after how long a wait, and what is raised at once."""

import errno
import logging
from collections.abc import Callable

import pytest

from pipeline.errors import ConfigError
from pipeline.storage import retry
from pipeline.storage.retry import FIRST_WAIT_S, LONGEST_WAIT_S, TRIES, patiently


class SlowDownError(Exception):
    """As a driver raises it, a class of its own."""


class NoCredentialsError(Exception):
    """As a driver raises it where only the operator can help."""


class ProfileNotFound(Exception):  # noqa: N818  # as botocore names it
    """Another one."""


class ParamValidationError(Exception):
    """Another one."""


PASSING = [ConnectionResetError("reset"), TimeoutError(), OSError(errno.EIO, "I/O error"), OSError("odd"), SlowDownError("503")]
FINAL = [
    *(kind("it") for kind in (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)),
    *(OSError(number, "it") for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG)),
    OSError(errno.EINVAL, "it"),
    *(kind("it") for kind in (NoCredentialsError, ProfileNotFound, ParamValidationError)),
    ConfigError("it"),
    *(kind("it") for kind in (ValueError, KeyError, MemoryError, AssertionError)),
]


def failing(error: Exception, times: int) -> tuple[Callable[[], str], list[int]]:
    """Something that fails so many times and then is done, and the list that it grows at each try."""
    tried: list[int] = []

    def call() -> str:
        tried.append(1)
        if len(tried) <= times:
            raise error
        return "done"

    return call, tried


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_until_it_has_passed(error: Exception) -> None:
    """At the last try, too."""
    for times in range(TRIES):
        call, tried = failing(error, times)
        assert patiently("reading x", call, [].append) == "done"
        assert len(tried) == times + 1


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_does_not_pass_is_an_error_of_the_operating_system(error: Exception) -> None:
    """After `TRIES` tries, with a pause between them and none behind; a driver's own class is told by its name."""
    waits: list[float] = []
    call, tried = failing(error, TRIES)
    with pytest.raises(OSError) as caught:  # noqa: PT011  # what it says is looked at below
        patiently("reading x", call, waits.append)
    assert (len(tried), len(waits)) == (TRIES, TRIES - 1)
    if isinstance(error, OSError):
        assert caught.value is error
    else:
        assert str(caught.value) == "SlowDownError: 503"
        assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_cannot_pass_is_raised_at_once(error: Exception) -> None:
    """Faults of the operator and of this program; of a driver's classes, again an OSError."""
    waits: list[float] = []
    call, tried = failing(error, 1)
    drivers = type(error).__name__ in ("NoCredentialsError", "ProfileNotFound", "ParamValidationError")
    with pytest.raises(OSError if drivers else type(error)) as caught:
        patiently("reading x", call, waits.append)
    assert (len(tried), waits) == (1, [])
    assert (caught.value.__cause__ if drivers else caught.value) is error


def test_a_stop_from_outside_is_no_fault_of_storage() -> None:
    """Ctrl-C within a driver ends the job."""
    tried: list[int] = []

    def stopped() -> None:
        tried.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patiently("reading x", stopped, [].append)
    assert len(tried) == 1


def test_waits_double_up_to_the_longest_and_are_never_quite_the_same() -> None:
    """Half of the plain wait to one and a half."""
    drawn = []
    for _ in range(200):
        waits: list[float] = []
        patiently("reading x", failing(TimeoutError(), TRIES - 1)[0], waits.append)
        drawn.append([wait / min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**at) for at, wait in enumerate(waits)])
    for at in range(TRIES - 1):
        shares = [waits[at] for waits in drawn]
        assert 0.5 <= min(shares) < 0.7
        assert 1.3 < max(shares) <= 1.5


def test_no_wait_is_longer_than_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the part that is drawn."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 3 * LONGEST_WAIT_S)
    waits: list[float] = []
    patiently("reading x", failing(TimeoutError(), TRIES - 1)[0], waits.append)
    assert max(waits) <= 1.5 * LONGEST_WAIT_S


def test_once_the_time_is_over_no_further_try_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers have time-outs of their own: few tries may take minutes."""
    monkeypatch.setattr(retry, "PATIENCE_S", -1.0)
    call, tried = failing(SlowDownError("503"), 1)
    with pytest.raises(OSError, match="SlowDownError: 503"):
        patiently("reading x", call, [].append)
    assert len(tried) == 1


def test_each_further_try_is_told_with_its_number_and_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """URLs of storage may hold a password."""
    error = OSError("https://me:secret-word@host/bucket did not answer")
    with caplog.at_level(logging.WARNING, "pipeline.storage.retry"):
        patiently("reading x", failing(error, 2)[0], [].append)
    said = [record.getMessage() for record in caplog.records]
    assert [line.split("; ")[1].split(" in ")[0] for line in said] == [f"try 2 of {TRIES}", f"try 3 of {TRIES}"]
    assert all(line.startswith("reading x: OSError: ") and "secret-word" not in line for line in said)
