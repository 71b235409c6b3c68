"""Raw replies of a judge on storage, so that none is paid for twice.

    <root>/specs/<fingerprint>.json               model, prompt and request settings of the judge
    <root>/replies/<fingerprint>/<digest>.jsonl   immutable, one or more replies, named by content, created only if absent
    <root>/judged.jsonl                           every question once, with its verdict, in the order of the question file

A reply is a file of its own the moment it arrives: what is lost when a run is killed are the requests in flight. `fold` turns
the small files into one afterwards, and removes a file only once its replies stand in another.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import StoreError
from pipeline.fingerprint import canonical_json, fingerprint
from pipeline.names import json_line
from pipeline.storage.filesystem import create_exclusive, list_files, open_root, read_many, write_whole

LOOKS = 5
"""How often to list again where another run folds the files that we are reading."""

Reply = dict[str, Any]
"""question, answer, prediction, bodies (raw, the last one counts); Any, as it is JSON."""

Case = tuple[str, str, str]
"""Question, reference and prediction: what a reply is about."""


class ReplyStore:
    """The replies of one judge under one root."""

    def __init__(self, url: str, spec: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None) -> None:
        self.fs, self.root = open_root(url, storage_options)
        self.fingerprint = fingerprint(spec)
        self.folder = f"{self.root}/replies/{self.fingerprint}"
        create_exclusive(self.fs, f"{self.root}/specs/{self.fingerprint}.json", canonical_json(spec).encode())

    def add(self, reply: Reply) -> None:
        """Keep one reply, durably."""
        self._write([reply])

    def read(self) -> dict[Case, Reply]:
        """Return every stored reply. Raises StoreError if a file is not what its name says."""
        return _by_case(self._files())

    def fold(self) -> dict[Case, Reply]:
        """Write all replies as one file, then remove the files it replaces. Returns the replies."""
        files = self._files()
        replies = _by_case(files)
        if len(files) > 1:
            kept = self._write(sorted(replies.values(), key=canonical_json))
            for path in files.keys() - {kept}:
                self._remove(path)
        return replies

    def write_judged(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Write judged.jsonl, all of it or nothing. Returns its path. Raises ConfigError where it cannot be written."""
        path = f"{self.root}/judged.jsonl"
        write_whole(self.fs, path, "".join(json_line(row) + "\n" for row in rows).encode())
        return path

    def _write(self, replies: Sequence[Reply]) -> str:
        content = "".join(canonical_json(reply) + "\n" for reply in replies).encode()
        path = f"{self.folder}/{hashlib.sha256(content).hexdigest()}.jsonl"
        create_exclusive(self.fs, path, content)
        return path

    def _files(self) -> dict[str, bytes]:
        """Return all files with their content; lists again where one vanished, as its replies stand in another by then."""
        for _ in range(LOOKS):
            paths = list(list_files(self.fs, self.folder, ".jsonl"))
            try:
                return read_many(self.fs, paths)
            except StoreError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
        raise StoreError(f"{self.folder}: files are removed while they are read")

    def _remove(self, path: str) -> None:
        try:
            self.fs.rm_file(path)
        except FileNotFoundError:  # another run folded too
            return


def case_of(reply: Mapping[str, Any]) -> Case:
    """Return what a reply is about."""
    return reply["question"], reply["answer"], reply["prediction"]


def _by_case(files: Mapping[str, bytes]) -> dict[Case, Reply]:
    """Return the replies; where two runs asked the same at once, always the same one of both."""
    found: dict[Case, Reply] = {}
    for path, content in files.items():
        name, digest = path.rsplit("/", 1)[-1].removesuffix(".jsonl"), hashlib.sha256(content).hexdigest()
        if name != digest:
            raise StoreError(f"{path}: the content has SHA-256 {digest}; the replies were changed after they were stored")
        for reply in map(json.loads, content.splitlines()):
            known = found.setdefault(case_of(reply), reply)
            if canonical_json(reply) < canonical_json(known):
                found[case_of(reply)] = reply
    return found
