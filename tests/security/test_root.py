"""What SECURITY.md promises of names, tried: no id and no URI leads out of the store's root."""

import json
from pathlib import Path

import pytest

from jobs.commands.encode import main
from pipeline.corpus.listing import read_corpus
from pipeline.store.token_store import TokenStore
from tests.security.command import CLIP, encode

IDS = {
    "up": "../../../../escaped", "absolute": "/tmp/escaped", "up in the middle": "a/../../../b", "dot": ".", "dots": "..",
    "leading dash": "-rf", "two dashes": "--store=/tmp/x", "percent": "%2e%2e%2f%2e%2e%2fescaped",
    "backslashes": "..\\..\\escaped",
    "look-alike dots": "․․/․․/escaped", "full-width": "．．／escaped", "slash look-alike": "..∕escaped", "cyrillic": "vіdео",
    "latin": "video", "composed": "\u00e9", "decomposed": "e\u0301", "glob": "*", "url": "s3://bucket/x", "chain": "a::b",
    "override": "\u202egpj.exe", "no width": "a\u200bb", "space of macOS": "3.15.22\u202fPM",
    "dollar": "$(touch escaped)", "tilde": "~/escaped", "long": "x" * 1024, "quotes": "'; --\"", "spaces": " a ",
}  # fmt: skip
ESCAPED = {
    "nul": "a\0b", "newline": "a\nb", "return": "a\rb", "tab": "a\tb", "escape": "\x1b[31mred", "4 KB": "x" * 4096,
    "next line": "a\x85b", "line separator": "a\u2028b", "byte": "\udce9",
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


def test_ids_that_no_line_can_show_are_escaped_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each stays an id of its own that is one line, of at most 1024 bytes."""
    lines = [json.dumps({"video_id": name, "uri": str(CLIP)}) for name in ESCAPED.values()]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    ids = read_corpus(str(tmp_path / "m.jsonl"))["video_id"].to_pylist()
    assert len(set(ids)) == len(ESCAPED)
    assert all(name.isprintable() and len(name.encode()) <= 1024 for name in ids)
    assert f"{len(ids)} video ids are escaped or too long" in caplog.text


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
