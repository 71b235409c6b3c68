"""What SECURITY.md promises of code, tried: nothing that is read is run."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.store.token_store import TokenStore
from tests.command import ROOT, environment
from tests.tables import SPEC, encoded, row

MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "code", "codeop"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
METHODS = {
    ("torch", "load"), ("torch", "save"), ("torch", "hub"), ("os", "system"), ("os", "popen"), ("yaml", "load"),
    ("yaml", "unsafe_load"), ("np", "load"), ("numpy", "load"), ("jit", "load"),
}  # fmt: skip
ARGUMENTS = {"trust_remote_code", "allow_pickle", "shell"}


def sources() -> list[Path]:
    return sorted(path for layer in ("reducers", "pipeline", "jobs") for path in (ROOT / layer).rglob("*.py"))


def wrongs(code: str) -> Iterator[str]:
    """Yield what in a source could run what it reads."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module] if (node.module or "").split(".")[0] in MODULES else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield node.func.id
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            yield from [f"{owner}.{node.attr}"] if (owner, node.attr) in METHODS else []
        elif isinstance(node, ast.keyword) and node.arg in ARGUMENTS:
            forbids = node.arg == "allow_pickle" and isinstance(node.value, ast.Constant) and node.value.value is False
            yield from [] if forbids else [node.arg]  # numpy allows pickles where nobody forbids them


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path: Path) -> None:
    """No pickle, no torch.load, no eval, no shell, no remote code, in any form of import or call."""
    assert list(wrongs(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import dill.source", "torch.load(p)", "x = torch.load", "eval('1')",
        "f(trust_remote_code=False)", "f(allow_pickle=True)", "f(allow_pickle=x)", "subprocess.run(c, shell=True)",
        "np.load(p)", "torch.jit.load(p)", "os.system('x')",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    """Each once."""
    assert list(wrongs(code)) != []


WATCHED = """
import sys
seen = []
BAD = {'pickle.find_class', 'marshal.loads', 'os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'subprocess.Popen'}
BAD |= {'socket.connect', 'ctypes.dlopen'}
sys.addaudithook(lambda event, args: seen.append((event, str(args)[:200])) if event in BAD else None)
"""
READS = """
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify
from pipeline.storage.filesystem import open_root
from pipeline.storage.parquet_io import from_parquet
store = TokenStore.open(sys.argv[1])
store.read('a')
seen.clear()
store = TokenStore.open(sys.argv[1])
for name in store.ids():
    store.read(name)
assert len(store.ids()) == 3 and store.failures().num_rows == 0
assert verify(*open_root(sys.argv[1])).as_dict()['ok']
print(seen)
"""


def test_reading_a_store_runs_nothing_from_it(tmp_path: Path) -> None:
    """In a real process, watched by an audit hook that cannot be taken off: no class is looked up, nothing is started."""
    TokenStore.create(str(tmp_path), SPEC).commit(encoded([row(name) for name in "abc"]))
    ran = python(WATCHED + READS, str(tmp_path))
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


def test_the_audit_hook_sees_a_pickle() -> None:
    """The same hook, before a pickle of a class."""
    code = WATCHED + "import pickle, collections\npickle.loads(pickle.dumps(collections.OrderedDict()))\nprint(seen)"
    assert "pickle.find_class" in python(code).stdout


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
