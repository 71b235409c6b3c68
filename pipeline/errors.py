"""Errors, by who can fix them.

`PipelineError` is the root. `ConfigError`: the operator can fix it, nothing was written, exit 2. `StoreError`: stored
bytes cannot be trusted; where one entry is asked about, only its own questions wait. `StorageError`, one of them: storage
itself fails, stop. `VideoError`: this one video only; its code becomes a row and the run goes on.
"""

from collections.abc import Iterable

from pipeline.redaction import redact

VIDEO_CODES = frozenset(
    {
        "NOT_FOUND",
        "UNREADABLE",
        "UNSUPPORTED_CODEC",
        "CORRUPT",
        "TIMEOUT",
        "NO_VIDEO_STREAM",
        "TOO_LARGE",
        "OUT_OF_MEMORY",
        "CRASHED",
        "KILLED",
        "FORBIDDEN_PROTOCOL",
        "EMPTY",
        "SUPERSEDED",
        "ENCODE_FAILED",
        "DAMAGED",
    }
)
"""Every class a failed video can carry; `--retry` selects by these names."""


class PipelineError(Exception):
    """Root of every error that this project raises on purpose. Users, passwords and signatures of URLs are taken out."""

    def __init__(self, message: str = "") -> None:
        self.said = redact(message)
        """The message as it was raised: Ray adds sentences of its own to what an exception carries."""
        super().__init__(self.said)


class ConfigError(PipelineError):
    """A setting, path or file is wrong. The operator can fix it; the job stops before it writes anything."""


def check_at_least_one(config: object, *names: str) -> None:
    """Raise ConfigError where a field of these names is set, and below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def video_codes(names: Iterable[str]) -> frozenset[str]:
    """Return classes of failure as users name them: in any case, one by one or with commas. Raises ConfigError for others."""
    found = {code.strip().upper() for name in names for code in name.split(",") if code.strip()}
    if unknown := found - VIDEO_CODES:
        raise ConfigError(f"unknown class of failure {min(unknown)!r}, expected some of {', '.join(sorted(VIDEO_CODES))}")
    return frozenset(found)


class StoreError(PipelineError):
    """Bytes in a token store are not what the index says. Nothing read from there can be trusted."""


class StorageError(StoreError):
    """Storage failed or cannot be reached: what is stored may be as it should."""


class VideoError(PipelineError):
    """One video cannot be used. It becomes a row with this code; other videos are not touched."""

    def __init__(self, code: str, detail: str) -> None:
        if code not in VIDEO_CODES:
            raise ValueError(f"unknown video error code {code!r}, expected one of {sorted(VIDEO_CODES)}")
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = redact(detail)

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        """Rebuild from code and detail, so that the error survives the way back from a child process."""
        return type(self), (self.code, self.detail)
