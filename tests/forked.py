"""Commands without the seconds that importing torch and transformers takes: forked from one process that has them already.

Each is a process of its own, with its own variables, directory, streams and exit code, and starts from the same state as any
other. What a new interpreter would show, that everything is imported when it is needed, `command.afresh` shows.
"""

import atexit
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path

LOADED = [
    *("jobs.answer", "jobs.caption", "jobs.encode", "jobs.commands.evaluate", "jobs.commands.store"),
    *("pipeline.engines.transformers_engine", "pipeline.models.clip_space", "pipeline.models.tower"),
    *("reducers.registry", "s3fs"),
]


def run(
    main: Callable[[Sequence[str]], int], args: Sequence[str], cwd: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Call a function of a module with some arguments; return its exit code and all that was written."""
    _ready(env)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        streams = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)]
        process = get_context("forkserver").Process(target=_go, args=(main, [*args], str(cwd), dict(env), streams))
        process.start()
        try:
            process.join()
        finally:
            process.kill()
        said = [_content(file.fileno()) for file in (out, err)]
    assert process.exitcode is not None
    return subprocess.CompletedProcess([*args], process.exitcode, *said)


def _ready(env: Mapping[str, str]) -> None:
    """Start the process that others are forked from; libraries read some variables, of threads above all, as they load."""
    get_context("forkserver").set_forkserver_preload(LOADED)
    before = dict(os.environ)
    try:
        os.environ.update(env)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _go(main: Callable[[Sequence[str]], int], args: list[str], cwd: str, env: dict[str, str], streams: list[str]) -> None:
    """In the fork: become the command."""
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["framefold", *args]
    code = main(args)
    atexit._run_exitfuncs()
    sys.exit(code)


def _content(file: int) -> str:
    os.lseek(file, 0, os.SEEK_SET)
    with os.fdopen(os.dup(file), encoding="utf-8") as text:
        return text.read()
