"""Where nothing can lie is refused as a wrong setting: an unset variable of a shell must not become the working folder."""

import os
from pathlib import Path

import pytest

from pipeline.corpus.listing import read_corpus
from pipeline.errors import ConfigError
from pipeline.storage.filesystem import create_exclusive, open_root


@pytest.mark.parametrize("use", [open_root, read_corpus])
@pytest.mark.parametrize("url", ["", "  "])
def test_an_empty_name_is_no_place(use, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="empty text"):
        use(url)


def test_a_name_that_is_too_long_is_a_wrong_setting(tmp_path: Path) -> None:
    fs, root = open_root(str(tmp_path / ("x" * 300)))
    with pytest.raises(ConfigError, match="too long"):
        create_exclusive(fs, f"{root}/specs/a.json", b"{}")


@pytest.mark.skipif(not Path("/proc/self/mounts").exists(), reason="needs Linux")
def test_a_place_where_nothing_can_be_written_is_a_wrong_setting() -> None:
    """Whatever the kernel calls it: root may write to folders without permission, and still not there."""
    fs, root = open_root(f"/proc/{os.getpid()}/store")
    with pytest.raises(ConfigError):
        create_exclusive(fs, f"{root}/specs/a.json", b"{}")
