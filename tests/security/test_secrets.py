"""What SECURITY.md promises of secrets, tried: they stand in no output, no file and no child process."""

import json
from pathlib import Path

import pytest

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.errors import ConfigError, StoreError, VideoError
from pipeline.redaction import redact, redact_all, secrets_of
from pipeline.store.token_store import TokenStore
from tests.http_server import http_server
from tests.poison.push import one
from tests.security.command import CLIP, encode

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
