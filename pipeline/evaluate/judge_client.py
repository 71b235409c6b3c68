"""Asks an OpenAI-compatible endpoint for one chat completion, again and again where that may help.

Asked again, after a growing pause: 429, 408, 5xx, timeouts, broken connections, bodies that are no chat completion, replies the
caller cannot use. A 401, 403, 404 or redirect stops the run. Any other status is the fault of this one request.
"""

import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError

PASSING = frozenset({408, 425, 429})
"""Statuses below 500 that go away by themselves."""

FATAL = frozenset({301, 302, 303, 307, 308, 401, 402, 403, 404, 405})
"""Statuses that every request would get. A redirect is not followed: the key must not go to another host."""

LONGEST_PAUSE_S = 60.0
LONGEST_BODY_BYTES = 1 << 20

NO_VERDICT = "no verdict"
"""The reason where the last reply was a chat completion that the caller could not use."""

Accept = Callable[[str], bool]
"""Tells of the body of a chat completion whether it can be used."""


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Where the endpoint is, and how patient we are with it."""

    url: str
    """Base such as http://host:8000/v1; `/chat/completions` is added."""
    key: str | None = None
    """API key, sent as a bearer token."""
    tries: int = 5
    """Requests for one question at most."""
    timeout_s: float = 60.0
    """Longest wait for one request, in seconds."""
    pause_s: float = 1.0
    """Pause after the first failed try, in seconds, varied by half; it doubles each time, up to a minute."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"the judge's URL must begin with http:// or https://, got {self.url!r}")
        if "@" in self.url.split("/", 3)[2]:
            raise ConfigError("the judge's URL must not hold a user or a key; name the key's variable with --judge-key-env")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise ConfigError("the judge's API key must be printable ASCII without blanks")
        if self.tries < 1 or not 0 < self.timeout_s < float("inf") or not self.pause_s >= 0:
            raise ConfigError(
                f"tries and timeout must be positive and pause not negative, got {self.tries}, {self.timeout_s}, {self.pause_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came of one question: the bodies that were chat completions, the last one last, and why there is no better one."""

    bodies: tuple[str, ...]
    """Raw, as the server sent them. Only the last may be usable."""
    reason: str | None
    """None where the last body is usable; else the last fault, in a few words."""
    requests: int

    @property
    def kept(self) -> bool:
        """Tell whether the server gave its answer, usable or not: asking again would not change it."""
        return self.reason in (None, NO_VERDICT)


class _TryAgainError(Exception):
    """A fault that may pass; carries the pause the server asked for, in seconds, or None."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _RefusedError(Exception):
    """The server will not answer this one request."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return None: the redirect is reported as the status it is."""


class Endpoint:
    """One endpoint. Threads may share it. Setting `stop` ends pauses and further tries."""

    def __init__(self, config: EndpointConfig, stop: threading.Event | None = None) -> None:
        self.config = config
        self.stop = stop or threading.Event()
        base = config.url.rstrip("/")
        self.address = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self._opener = urllib.request.build_opener(_Stay)

    def ask(self, request: Mapping[str, Any], usable: Accept) -> Asked:
        """Send a request until its reply is usable or the tries are used up. Raises ConfigError where none could succeed."""
        bodies: list[str] = []
        reason: str | None = "stopped"
        sent = 0
        while sent < self.config.tries and not self.stop.is_set():
            sent += 1
            pause_s = None
            try:
                body = self._send(request)
            except _RefusedError as error:
                return Asked(bodies=tuple(bodies), reason=str(error), requests=sent)
            except _TryAgainError as error:
                reason, pause_s = str(error), error.pause_s
            else:
                text = reply_text(body)
                bodies += [body] if text is not None else []
                reason = "no chat completion" if text is None else None if usable(body) else NO_VERDICT
                if reason is None:
                    break
            if sent < self.config.tries:
                self.stop.wait(self._pause(sent) if pause_s is None else min(pause_s, LONGEST_PAUSE_S))
        return Asked(bodies=tuple(bodies), reason=reason, requests=sent)

    def _pause(self, sent: int) -> float:
        return float(min(LONGEST_PAUSE_S, self.config.pause_s * 2 ** (sent - 1)) * random.uniform(0.5, 1.5))

    def _send(self, request: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "framefold"}
        if self.config.key is not None:
            headers["Authorization"] = f"Bearer {self.config.key}"
        message = urllib.request.Request(self.address, json.dumps(request).encode(), headers, method="POST")  # noqa: S310  # http(s) only, see the config
        deadline = time.monotonic() + self.config.timeout_s
        try:
            with self._opener.open(message, timeout=self.config.timeout_s) as response:
                return self._hidden(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                raise self._fault(error, deadline) from None
        except TimeoutError:
            raise _TryAgainError("timeout") from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            inner = getattr(error, "reason", error)
            name = "timeout" if isinstance(inner, TimeoutError) else type(inner).__name__
            raise _TryAgainError(name) from None

    def _fault(self, error: urllib.error.HTTPError, deadline: float) -> Exception:
        """Return what a status of 300 or more means for the run."""
        if error.code >= 500 or error.code in PASSING:
            return _TryAgainError(f"HTTP {error.code}", retry_after_s(error.headers.get("Retry-After")))
        if error.code not in FATAL:
            return _RefusedError(f"HTTP {error.code}")
        if error.code in (401, 403):  # these repeat parts of a key
            return ConfigError(f"the judge at {self.address} answered HTTP {error.code}: check the API key")
        try:
            said = " ".join(self._hidden(_read(error, deadline)).split())[:200]
        except (OSError, http.client.HTTPException, _TryAgainError):
            said = ""
        return ConfigError(f"the judge at {self.address} answered HTTP {error.code}: {said or error.reason}")

    def _hidden(self, text: str) -> str:
        """Return a text of the server's without our key: some repeat it in their errors."""
        return text.replace(self.config.key, "***") if self.config.key else text


def reply_text(body: str) -> str | None:
    """Return the text of the first choice of a chat completion, of its parts of type `text` where it comes in parts.

    None where the body is not a chat completion.
    """
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
        if isinstance(text, list):
            text = "\n".join(part["text"] for part in text if part["type"] == "text")
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return text if isinstance(text, str) else None


def is_cut_short(body: str) -> bool:
    """Tell whether a chat completion says that it ended at the limit of tokens."""
    return bool(json.loads(body)["choices"][0].get("finish_reason") == "length")


def reply_model(body: str) -> str | None:
    """Return the model that a chat completion says it is from."""
    found = json.loads(body).get("model")
    return found if isinstance(found, str) else None


def retry_after_s(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or as a date; None where it is neither."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _read(response: Any, deadline: float) -> str:
    """Read a body that may come in drops; the socket's own timeout only bounds each drop. Any: urllib's responses."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(65536):
        size += len(part)
        parts.append(part)
        if size > LONGEST_BODY_BYTES:
            raise _TryAgainError("body too long")
        if time.monotonic() > deadline:
            raise _TryAgainError("timeout")
    if response.length:  # urllib takes an early end of a body for its end when read piece by piece
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts).decode("utf-8", errors="replace")
