"""What SECURITY.md promises, tried: data does not run, its numbers are not trusted, the root is not left, secrets stay."""

import ast
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.encode import main
from pipeline.corpus import read_corpus
from pipeline.decode import Decode, DecodeConfig
from pipeline.entries import payload_digest
from pipeline.errors import ConfigError, StoreError, VideoError
from pipeline.filesystem import create_exclusive
from pipeline.index import fragment
from pipeline.redaction import redact, redact_all, secrets_of
from pipeline.schema import ENTRY, INDEX
from pipeline.shards import read_footer, row_group_spans, write_entries
from pipeline.store import TokenStore
from tests.http_server import http_server
from tests.models import tiny_checkpoint
from tests.poison.push import one
from tests.tables import SPEC, encoded, row

ROOT = Path(__file__).parents[1]
VIDEOS = ROOT / "tests" / "videos"
CLIP = VIDEOS / "unordered.mov"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("security") / "tiny")


# No code from data


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
from pipeline.store import TokenStore
from pipeline.verify import verify
from pipeline.filesystem import open_root
from pipeline.parquet import from_parquet
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
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


# No trust in numbers from storage


MOST = 2**31 - 1
ORDERED = {"rank": bytes(12), "parent": bytes(12), "link": bytes(6), "weight": bytes(24), "gain": bytes(24),
           "owner": bytes(2 * 8 * 16 * 16)}  # fmt: skip
ENTRIES: dict[str, dict[str, Any]] = {
    "a shape too large to multiply": {"shape": [MOST, MOST]},
    "a shape too large to hold": {"shape": [MOST, 4]},
    "a negative shape": {"shape": [-1, 4]},
    "two negatives that multiply to the right size": {"shape": [-6, -4]},
    "no tokens of a negative width": {**dict.fromkeys(("features", "frame", "anchor", "kind", "size", "position"), b""),
                                      "shape": [0, -4]},
    "a shape of one number": {"shape": [24]},
    "a shape of three numbers": {"shape": [6, 4, 1]},
    "a shape of none": {"shape": [None, 4]},
    "no shape": {"shape": []},
    "a shape that claims less": {"shape": [5, 4]},
    "a grid larger than anchors reach": {"grid": [MOST, MOST, MOST]},
    "a negative grid": {"grid": [-8, -16, 16]},
    "a grid of none": {"grid": [None, 16, 16]},
    "no grid": {"grid": []},
    "times of none": {"timestamps_s": [None]},
    "an object dtype": {"dtype": "object"},
    "a wider dtype": {"dtype": "float64"},
    "int8 without scales": {"dtype": "int8", "features": bytes(24)},
    "int8 with too few scales": {"dtype": "int8", "features": bytes(24), "scale": bytes(20)},
    "short features": {"features": bytes(46)},
    "odd features": {"features": bytes(47)},
    "long features": {"features": bytes(4800)},
    "short positions": {"position": bytes(71)},
    "another video's name": {"video_id": "b"},
    "half an order": {"rank": bytes(12)},
    "an order without owners": {**ORDERED, "owner": b""},
    "an order with a short column": {**ORDERED, "parent": bytes(10)},
    "an order without gains": {name: value for name, value in ORDERED.items() if name != "gain"},
    "half a joint space": {"clip_space": bytes(7), "clip_scale": bytes(24)},
    "a joint space without scales": {"clip_space": bytes(12)},
    "a joint space with too few scales": {"clip_space": bytes(12), "clip_scale": bytes(20)},
    "300 MB of zeros, packed": {"kind": bytes(300 << 20)},
}  # fmt: skip


def hostile(root: str, **changes: Any) -> TokenStore:
    """Write a store by hand whose digests all agree and whose one entry lies."""
    store = TokenStore.create(root, SPEC)
    entry = {name: row("a").get(name) for name in ENTRY.names} | changes
    try:
        entry["payload_sha256"] = payload_digest(entry)
    except Exception:  # numbers that are none have no digest of ours
        entry["payload_sha256"] = "0" * 64
    (place,) = write_entries(store.fs, store.tokens, pa.Table.from_pylist([entry], schema=ENTRY))
    return listed(store, **place, payload_sha256=entry["payload_sha256"])


def listed(store: TokenStore, **changes: Any) -> TokenStore:
    """Commit a row of the index by hand."""
    base = {name: row("a").get(name) for name in INDEX.names}
    base |= {"status": "committed", "tokens": 6, "payload_bytes": 48, "generation": 1, "stored_id": None}
    content = fragment([{name: {**base, **changes}.get(name) for name in INDEX.names}])
    create_exclusive(store.fs, f"{store.index.folder}/{hashlib.sha256(content).hexdigest()}.parquet", content)
    return store


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more than 256 MB above what this process holds: a giant allocation fails and is seen."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (pages * os.sysconf("SC_PAGE_SIZE") + (256 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_that_lies_is_refused(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every digest is right, for who can write a store can compute them; the numbers are checked all the same."""
    hostile(str(tmp_path), **ENTRIES[name])
    request.getfixturevalue("little_memory")
    with pytest.raises(StoreError):
        TokenStore.open(str(tmp_path)).read("a")


TRUTHS: dict[str, dict[str, Any]] = {
    "plain": {}, "int8": {"dtype": "int8", "features": bytes(24), "scale": bytes(24)}, "order": ORDERED,
    "joint space": {"clip_space": bytes(12), "clip_scale": bytes(24)},
}  # fmt: skip


@pytest.mark.parametrize("name", TRUTHS)
def test_the_same_store_without_a_lie_is_read(name: str, tmp_path: Path) -> None:
    """So it is the lie that is refused."""
    hostile(str(tmp_path), **TRUTHS[name])
    assert TokenStore.open(str(tmp_path)).read("a").features.shape == (6, 4)


ROWS: dict[str, dict[str, Any]] = {
    "a shard outside the root": {"shard": "../../../outside"},
    "an absolute shard": {"shard": "/etc/passwd"},
    "a shard with a newline": {"shard": "0" * 64 + "\n"},
    "no shard": {"shard": None},
    "no place": {"offset": None},
    "a negative offset": {"offset": -4},
    "an offset beyond the file": {"offset": 2**62},
    "a negative length": {"length": -1},
    "a length that nothing has": {"length": 2**62},
    "a length of 20 GB": {"length": 20 << 30},
    "a row group that is not there": {"row_group": MOST},
    "a negative row group": {"row_group": -1},
    "no digest": {"payload_sha256": None},
    "another status": {"status": "trusted"},
    "no generation": {"generation": None},
    "negative tokens": {"tokens": -1},
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("little_memory")
def test_a_row_of_the_index_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    """When the store is opened, or when the entry is read; no file beside the store's is opened for it."""
    (tmp_path / "outside.parquet").write_bytes(b"PAR1 not for you PAR1")
    store = TokenStore.create(str(tmp_path / "a" / "store"), SPEC)
    entry = {name: row("a").get(name) for name in ENTRY.names}
    entry["payload_sha256"] = payload_digest(entry)
    (place,) = write_entries(store.fs, store.tokens, pa.Table.from_pylist([entry], schema=ENTRY))
    listed(store, **{**place, "payload_sha256": entry["payload_sha256"], **ROWS[name]})
    with pytest.raises(StoreError) as caught:
        TokenStore.open(str(tmp_path / "a" / "store")).read("a")
    assert "not for you" not in str(caught.value)


@pytest.mark.parametrize("name", ["a shard outside the root", "an absolute shard", "a shard with a newline"])
def test_a_shard_named_by_anything_but_a_digest_is_never_looked_for(name: str, tmp_path: Path) -> None:
    """The store does not even open: a shard's name becomes part of a path."""
    place = {"row_group": 0, "offset": 4, "length": 9, "payload_sha256": "0" * 64}
    listed(TokenStore.create(str(tmp_path), SPEC), **place, **ROWS[name])
    with pytest.raises(StoreError, match="named by digests"):
        TokenStore.open(str(tmp_path))


def test_a_footer_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    """Spans of a footer are checked against what storage has, and against the index."""
    store = hostile(str(tmp_path))
    (shard,) = (tmp_path / "tokens").rglob("*.parquet")
    ((start, length),) = row_group_spans(read_footer(store.fs, str(shard)))
    content = shard.read_bytes()
    shard.write_bytes(content[: start + length // 2] + content[start + length :])
    with pytest.raises(StoreError):
        TokenStore.open(str(tmp_path)).read("a")


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, "one more than there is"])
def test_a_footer_longer_than_the_file_is_refused(length: int | str, tmp_path: Path) -> None:
    """Nothing before the beginning of the file is asked for."""
    store = hostile(str(tmp_path))
    (shard,) = (tmp_path / "tokens").rglob("*.parquet")
    content = shard.read_bytes()
    claimed = len(content) - 7 if isinstance(length, str) else length
    shard.write_bytes(content[:-8] + claimed.to_bytes(4, "little") + content[-4:])
    with pytest.raises(StoreError, match="not a Parquet file"):
        read_footer(store.fs, str(shard))


# No way out of the root


IDS = {
    "up": "../../../../escaped", "absolute": "/tmp/escaped", "up in the middle": "a/../../../b", "dot": ".", "dots": "..",
    "leading dash": "-rf", "two dashes": "--store=/tmp/x", "percent": "%2e%2e%2f%2e%2e%2fescaped",
    "backslashes": "..\\..\\escaped",
    "look-alike dots": "․․/․․/escaped", "full-width": "．．／escaped", "slash look-alike": "..∕escaped", "cyrillic": "vіdео",
    "latin": "video", "composed": "\u00e9", "decomposed": "e\u0301", "glob": "*", "url": "s3://bucket/x", "chain": "a::b",
    "dollar": "$(touch escaped)", "tilde": "~/escaped", "long": "x" * 1024, "quotes": "'; --\"", "spaces": " a ",
}  # fmt: skip
REFUSED = {
    "nul": "a\0b", "newline": "a\nb", "return": "a\rb", "tab": "a\tb", "escape": "\x1b[31mred", "4 KB": "x" * 4096,
    "override": "\u202egpj.exe", "no width": "a\u200bb", "half a pair": "\ud800",
}  # fmt: skip


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_no_video_id_leaves_the_store(model: str, tmp_path: Path) -> None:
    """A real encode of two dozen hostile names, deep in a folder that is searched afterwards; each is kept as it is."""
    store, home = tmp_path / "a" / "b" / "c" / "d" / "store", tmp_path / "home"
    home.mkdir()
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps({"video_id": name, "uri": str(CLIP)}) + "\n" for name in IDS.values()))
    before = everything(tmp_path)
    ran = encode(str(manifest), str(store), model, cwd=home, HOME=str(home), TMPDIR=str(home))
    assert ran.returncode == 0, ran.stderr
    written = everything(tmp_path) - before
    inside = "a/b/c/d/store"
    kinds = {name.removeprefix(f"{inside}/").split("/")[0] for name in written if name.startswith(f"{inside}/")}
    assert {name for name in written if not name.startswith(f"{inside}/")} == set()
    assert kinds == {"specs", "tokens", "index"}
    assert all(len(Path(name).stem) == 64 and set(Path(name).stem) <= set("0123456789abcdef") for name in written)
    opened = TokenStore.open(str(store))
    assert set(opened.ids()) == set(IDS.values())
    assert all(opened.read(name).video_id == name for name in IDS.values())


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_no_line_can_show_are_refused(name: str, tmp_path: Path) -> None:
    """Before anything is written; the message shows them in a form that does no harm."""
    (tmp_path / "m.jsonl").write_text(json.dumps({"video_id": REFUSED[name], "uri": str(CLIP)}))
    with pytest.raises(ConfigError) as caught:
        read_corpus(str(tmp_path / "m.jsonl"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_uri_with_a_hostile_form_is_a_row(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """NUL, 4 KB, a line break, a device, a folder: each is a class of failure of that video."""
    uris = [f"{CLIP}\0.txt", "/" + "x" * 4096, "/a\nb", "/dev/zero", str(tmp_path), "-", "file://", "reference://x::/y", "~a/x"]
    lines = [{"video_id": f"v{number}", "uri": uri} for number, uri in enumerate(uris)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--store", str(tmp_path / "store"), "--model", model, "--runner", "local", "--reducer", "spatial(k=2)"]
    assert main([str(tmp_path / "m.jsonl"), *flags]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["failed"] == len(uris)
    assert "Traceback" not in err + caplog.text


HURRIED = """
import sys
from pipeline import patience
patience.FIRST_WAIT_S = 0.01
from jobs.encode import main
sys.exit(main())
"""
"""The real command, with short waits between the tries of storage that is not there."""


def encode(corpus: str, store: str, model: str, *more: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "AWS_MAX_ATTEMPTS": "1", **env}
    flags = ["--model", model, "--runner", "local", "--reducer", "spatial(k=2)", *more]
    command = [sys.executable, "-c", HURRIED, corpus, "--store", store, *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


# No secret told


SECRETS = ("hunter2hunter2", "SIGNATURE1234", "tokentoken99")
SIGNED = "X-Amz-Credential=AKIA/x&X-Amz-Signature=SIGNATURE1234&part=1&token=tokentoken99"


def test_secrets_of_urls_appear_nowhere(model: str, tmp_path: Path) -> None:
    """In a real run over HTTP: a video that is there, one that is not, one that breaks; in no output and in no file."""
    content = CLIP.read_bytes()
    with http_server({"/good.mov": content, "/broken.mov": content}, cut={"/broken.mov": 500}) as (url, asked):
        hidden = url.replace("http://", "http://user:hunter2hunter2@")
        names = ("good.mov", "broken.mov", "none.mov")
        rows = [{"video_id": name, "uri": f"{hidden}/{name}?{SIGNED}"} for name in names]
        (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
        store = str(tmp_path / "store")
        first = encode(str(tmp_path / "m.jsonl"), store, model)
        (tmp_path / "m.jsonl").write_text(json.dumps(rows[0]))
        again = encode(str(tmp_path / "m.jsonl"), store, model)
    assert any("SIGNATURE1234" in path for _, path in asked)
    report = json.loads(first.stdout.splitlines()[-1])
    assert (report["committed"], report["failed_by_class"]) == (1, {"NOT_FOUND": 1, "UNREADABLE": 1})
    assert json.loads(again.stdout.splitlines()[-1])["this_run"].get("committed", 0) == 0
    kept = TokenStore.open(store).index.rows
    texts = [first.stdout, first.stderr, again.stdout, again.stderr, str(kept.to_pylist())]
    texts += [path.read_bytes().decode("latin-1") for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [secret for secret in SECRETS for text in texts if secret in text] == []
    assert "part=1" in kept["uri"][0].as_py()


WRONG = {
    "an unknown flag": (["{corpus}", "--bogus", "1"], 2),
    "a store that cannot be reached": (["s3://nowhere/x", "--storage-options", "{options}"], None),
    "options that are not understood": (["{corpus}", "--storage-options", "{strange}"], None),
    "a corpus that cannot be listed": (["nope://u:hunter2hunter2@h/x?token=tokentoken99", "--storage-options", "{options}"], 2),
}


@pytest.mark.parametrize("case", WRONG)
def test_secrets_of_storage_options_are_not_repeated_in_errors(case: str, model: str, tmp_path: Path) -> None:
    """Whatever a driver says about them."""
    options = {"key": "hunter2hunter2", "secret": "SIGNATURE1234", "endpoint_url": "http://a:tokentoken99@127.0.0.1:9"}
    strange = {**options, "client_kwargs": {"aws_secret_access_key": "SIGNATURE1234", "bogus": 1}}
    given = {"corpus": str(CLIP), "options": json.dumps(options), "strange": json.dumps(strange)}
    (corpus, *more), code = WRONG[case]
    more = [given.get(text.strip("{}"), text) for text in more]
    ran = encode(given.get(corpus.strip("{}"), corpus), str(tmp_path / "store"), model, *more)
    assert ran.returncode == code if code is not None else ran.returncode in (0, 2, 4), ran.stderr
    assert [secret for secret in SECRETS if secret in ran.stdout + ran.stderr] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("at https://me:pass@host/x?a=1", "at https://***@host/x?a=1"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("sftp://me@host/x", "sftp://me@host/x"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("https://h/x?sv=1&sig=abc%3D&se=2", "https://h/x?sv=1&sig=***&se=2"),
        ("'https://h/x?X-Amz-Signature=abc', next", "'https://h/x?X-Amz-Signature=***', next"),
        ("https://h/x?X-Goog-Date=7#t=3", "https://h/x?X-Goog-Date=***#t=3"),
        ("s3://bucket/video=1/a@b.mp4", "s3://bucket/video=1/a@b.mp4"),
        ("/videos/token=1/x.mp4", "/videos/token=1/x.mp4"),
    ],
)
def test_what_is_taken_out_of_a_text(text: str, said: str) -> None:
    """Users with passwords, signatures; not names, not paths."""
    assert redact(text) == said
    assert redact(said) == said
    for error in (ConfigError(text), StoreError(text), VideoError("CORRUPT", text)):
        assert said in str(error)
    assert said in VideoError("CORRUPT", text).detail


def test_secrets_are_found_in_options_at_any_depth() -> None:
    """By the names of their fields; short ones and plain settings are none."""
    options = {"key": "AKIA1", "client_kwargs": {"aws_session_token": "abcde", "region_name": "us-east-1"}, "anon": False}
    more = {"config": {"credentials": {"a": ["first-one", {"b": "second-one"}]}}, "password": "abc", "endpoint_url": "http://x"}
    found = secrets_of({**options, **more})
    assert found == {"AKIA1", "abcde", "first-one", "second-one"}
    assert redact_all({"a": ["x AKIA1 y", 1, None]}, found) == {"a": ["x *** y", 1, None]}


def test_the_child_that_decodes_is_told_no_secret() -> None:
    """Storage options stay with the parent: neither the command line of the child nor what it is sent holds them."""
    options = {"secret": "hunter2hunter2"}
    with Decode(DecodeConfig(), 32, options) as stage:
        one(stage, CLIP)
        assert stage.child.process is not None
        shown = Path(f"/proc/{stage.child.process.pid}/cmdline").read_bytes()
        shown += Path(f"/proc/{stage.child.process.pid}/environ").read_bytes()
    assert b"hunter2" not in shown


# No trust in what has read a hostile file


LIAR = """
import sys
sys.stdin.buffer.readline()
sys.stdout.buffer.write(open(sys.argv[1], "rb").read())
sys.stdout.buffer.flush()
sys.stdin.buffer.read()
"""
TRUE: dict[str, Any] = {"bytes": 8 * 32 * 32 * 3, "timestamps_s": [0.5] * 8, "decoder": "pyav", "substituted_frames": 0}
ANSWERS: dict[str, Any] = {
    "more bytes": {"bytes": TRUE["bytes"] + 1},
    "fewer bytes": {"bytes": 3},
    "negative bytes": {"bytes": -1},
    "bytes in words": {"bytes": "24576"},
    "too few times": {"timestamps_s": [0.5] * 7},
    "too many times": {"timestamps_s": [0.5] * 9},
    "times that are none": {"timestamps_s": [None] * 8},
    "times in words": {"timestamps_s": ["0.5"] * 8},
    "times in lists": {"timestamps_s": [[0.5]] * 8},
    "no list of times": {"timestamps_s": {"a": 0.5}},
    "a decoder that is a list": {"decoder": ["pyav"]},
    "no decoder": {"decoder": None},
    "a count in words": {"substituted_frames": "0"},
    "a class that nobody knows": {"error_class": "TRUSTED", "error": "x"},
    "an error that is a number": {"error_class": "CORRUPT", "error": 5},
    "a class without an error": {"error_class": "CORRUPT"},
}


def answering(stage: Decode, answer: bytes, folder: Path) -> dict[str, Any]:
    """Decode a video in a child that says this, whatever it is asked; returns the row."""
    (folder / "answer").write_bytes(answer)
    command = [sys.executable, "-S", "-c", LIAR, str(folder / "answer")]
    stage.child.close()
    stage.child.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    return one(stage, CLIP)[0]


@pytest.fixture(scope="module")
def patient() -> Iterator[Decode]:
    with Decode(DecodeConfig(deadline_s=60), side_px=32) as stage:
        yield stage


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_decoding_process_answers_is_checked(name: str, patient: Decode, tmp_path: Path) -> None:
    """By size, number and type; it is ended for a lie."""
    answer = json.dumps({**TRUE, **ANSWERS[name]}).encode() + b"\n" + bytes(TRUE["bytes"])
    row = answering(patient, answer, tmp_path)
    assert (row["error_class"], row["frames"]) == ("CRASHED", None)
    assert row["error"] == "the decoding process gave an answer that is none"
    assert patient.child.process is None


@pytest.mark.parametrize("answer", [b"no json\n", b"[]\n", b"5\n", b"\xff\xfe\n", b"x" * (3 << 20)], ids=range(5))
def test_an_answer_that_is_none_is_refused(answer: bytes, patient: Decode, tmp_path: Path) -> None:
    """And not waited for when it does not end."""
    row = answering(patient, answer, tmp_path)
    assert (row["error_class"], row["error"]) == ("CRASHED", "the decoding process gave an answer that is none")


def test_the_same_answer_without_a_lie_is_taken(patient: Decode, tmp_path: Path) -> None:
    """So it is the lie that is refused; afterwards a real child decodes."""
    content = os.urandom(TRUE["bytes"])
    row = answering(patient, json.dumps(TRUE).encode() + b"\n" + content, tmp_path)
    assert (row["error_class"], row["frames"], row["timestamps_s"]) == (None, content, TRUE["timestamps_s"])
    patient.child.close()
    assert one(patient, CLIP)[0]["error_class"] is None
