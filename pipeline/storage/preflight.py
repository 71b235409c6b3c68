"""The first contact with storage: an address at which nothing answers is told of in seconds.

A driver beneath fsspec tries for minutes, and rightly so in the middle of a job. Before its beginning, an address that does
not even accept a connection is most likely a wrong one.
"""

import contextlib
import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.errors import ConfigError
from pipeline.redaction import redact
from pipeline.storage.filesystem import UNUSABLE, is_local, open_root

logger = logging.getLogger(__name__)
REACH_S = 10.0
"""How long an address may take to accept a connection, all tries together."""
ONE_TRY_S = 5.0
WAITS_S = (0.5, 1.0, 2.0, 4.0)
PORTS = {"http": 80, "https": 443}
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")
VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def check_reachable(
    urls: list[str | None], storage_options: Mapping[str, Any], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Raise ConfigError where nothing accepts a connection at the endpoint of one of some URLs; once for each endpoint.

    Only the process that begins a job asks, and only where an address is known: S3 with an endpoint, and HTTP, without a proxy.
    """
    for endpoint in dict.fromkeys(endpoint_of(url, storage_options) for url in urls if url and "://" in url):
        if endpoint is not None:
            _connect(endpoint, sleep)


def check_can_create(fs: Any, path: str) -> None:
    """Raise ConfigError where a file cannot be created at a path, as far as this shows without writing.

    On local disk: a file in the place of a folder, no permission, a read-only file system, a name that is too long; with the
    messages of `filesystem.create_exclusive`. On S3 a bucket that does not exist is a warning: some servers create it on the
    first write. Any: an fsspec file system.
    """
    if not is_local(fs):
        _warn_of_bucket(fs, path.split("/")[0])
        return
    try:
        _check_folder(_nearest_existing(Path(path).parent))
    except PermissionError as error:
        raise ConfigError(f"{path}: no permission to write: {error}") from error
    except NotADirectoryError as error:
        raise ConfigError(f"{path}: a file stands where a folder is needed") from error
    except OSError as error:
        if error.errno in UNUSABLE:
            raise ConfigError(f"{path}: cannot be written: {type(error).__name__}: {error}") from error


def _warn_of_bucket(fs: Any, name: str) -> None:
    """Log a warning where an S3 bucket does not exist. Other errors are left to the first write. Any: an fsspec file system."""
    with contextlib.suppress(OSError):
        if "s3" in fs.protocol and not fs.exists(name):
            logger.warning("the bucket %s does not exist: writing to it fails unless the storage creates it", name)


def _nearest_existing(folder: Path) -> Path:
    """Return a folder, or the first of its parents that exists. Raises OSError where the system cannot look one up."""
    for candidate in (folder, *folder.parents):
        try:
            candidate.lstat()
        except FileNotFoundError:
            continue
        return candidate
    return Path("/")


def _check_folder(folder: Path) -> None:
    """Raise OSError, with the errno of the system, unless files can be created in a folder."""
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def endpoint_of(url: str, storage_options: Mapping[str, Any]) -> str | None:
    """Return the HTTP address of the server that a URL is asked from, None where it is not known or a proxy stands between."""
    scheme = url.split("://")[0].lower()
    found = url if scheme in PORTS else None
    if scheme in ("s3", "s3a"):
        fs = _opened(url, storage_options)
        told = (getattr(fs, "client_kwargs", None) or {}).get("endpoint_url") or getattr(fs, "endpoint_url", None)
        found = told or next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
        if (getattr(fs, "config_kwargs", None) or {}).get("proxies"):
            return None
    if found is not None and not str(found).startswith(("http://", "https://")):
        raise ConfigError(f"expected an endpoint such as http://host:9000, got {found}")
    parts = urlsplit(found) if found else None
    return None if parts is None or not parts.hostname or _has_proxy(parts) else f"{parts.scheme}://{parts.netloc}"


def _opened(url: str, storage_options: Mapping[str, Any]) -> Any:
    """Return the S3 file system of a URL, its client built and nothing asked yet. Any: s3fs is untyped."""
    try:
        fs, _ = open_root(url, storage_options)
        fs.connect()
    except Exception as error:  # s3fs hands them on to classes of three libraries
        raise ConfigError(f"{url}: these storage options cannot be used: {type(error).__name__}: {error}") from error
    return fs


def _has_proxy(parts: SplitResult) -> bool:
    return parts.scheme in getproxies() and not proxy_bypass(parts.netloc)


def _connect(endpoint: str, sleep: Callable[[float], None]) -> None:
    parts = urlsplit(endpoint)
    try:
        address = str(parts.hostname), parts.port or PORTS.get(parts.scheme, 80)
    except ValueError as error:
        raise ConfigError(f"{endpoint}: not a usable address: {error}") from error
    began = time.monotonic()
    for wait in (*WAITS_S, None):
        try:
            left = REACH_S - (time.monotonic() - began)
            with socket.create_connection(address, min(ONE_TRY_S, max(left, 0.1))) as connection:
                _check_protocol(endpoint, connection)
        except (OSError, OverflowError, UnicodeError) as error:
            if wait is None or time.monotonic() - began + wait > REACH_S:
                raise ConfigError(f"no storage answers at {endpoint}: {error}") from error
            logger.warning("no storage answers at %s yet (%s): asked again in %.1f s", redact(endpoint), error, wait)
            sleep(wait)
        else:
            return


def _check_protocol(endpoint: str, connection: socket.socket) -> None:
    """Raise ConfigError where TLS is expected and something else is spoken; certificates are the driver's business."""
    if not endpoint.startswith("https://"):
        return
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.wrap_socket(connection, server_hostname=urlsplit(endpoint).hostname).close()
    except ssl.SSLError as error:
        if error.reason in NO_TLS:
            raise ConfigError(f"{endpoint} does not speak TLS: pass it as http://") from error
    except OSError:
        return  # it may come to terms with the driver
