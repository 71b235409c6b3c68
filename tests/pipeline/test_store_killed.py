"""The token store under kill -9: a real writer, ended between and inside its commits."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.storage.filesystem import open_root
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify
from tests.tables import corpus, encoded, row

ROOT = Path(__file__).parents[2]

KILLED = """
import sys, time
sys.path.insert(0, {root!r})
from pipeline.store.token_store import TokenStore
from tests.tables import SPEC, encoded, row
store = TokenStore.create({url!r}, SPEC)
for unit in range(200):
    store.commit(encoded([row(f"v{{unit:03}}-{{i}}", tokens=64, width=256) for i in range(3)]))
    print(unit, flush=True)
"""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_writer_killed_at_any_moment_leaves_whole_units(tmp_path: Path, after: int) -> None:
    """kill -9 between and inside commits: what is listed reads back, what is not is missing, a rerun completes it."""
    code = KILLED.format(root=str(ROOT), url=str(tmp_path))
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(after):
        writer.stdout.readline()
    time.sleep(0.003 * after)  # not a wait: a different instant of the next commit in each case
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    report = verify(*open_root(str(tmp_path)))
    assert not report.problems
    store = TokenStore.open(str(tmp_path))
    assert len(store.ids()) >= 3 * after
    assert len(store.ids()) % 3 == 0
    for name in store.ids():
        store.read(name)
    ids = [f"v{unit:03}-{i}" for unit in range(12) for i in range(3)]
    todo = store.missing(corpus(*ids))["video_id"].to_pylist()
    store.commit(encoded([row(name, tokens=64, width=256) for name in todo] or [row("v000-0", tokens=64, width=256)]))
    store.refresh()
    assert set(ids) <= set(store.ids())
