"""A person names a video as it comes to mind: what means exactly one is taken, anything else is answered with the closest."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.names import local_uri
from pipeline.store.resolve import find_video
from pipeline.store.token_store import TokenStore
from tests.tables import SPEC, encoded, failed, row


def store(tmp_path: Path, *rows: dict) -> TokenStore:
    found = TokenStore.create(str(tmp_path / "store"), SPEC)
    found.commit(encoded(list(rows)))
    found.refresh()
    return found


@pytest.fixture
def cats(tmp_path: Path) -> TokenStore:
    return store(
        tmp_path,
        row("day1/cat", uri=f"file://{tmp_path}/v/day1/cat.mp4"),
        row("day2/cat", uri="s3://bucket/day2/cat.mp4"),
        row("day2/dog.v2", uri="s3://bucket/day2/dog.v2.mov"),
        row("long#t=0.000,4.000", uri="/v/long.mp4#t=0.000,4.000"),
        row("long#t=4.000,8.000", uri="/v/long.mp4#t=4.000,8.000"),
        failed("broken", uri="/v/broken.mp4"),
    )


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("day2/cat", "day2/cat"),
        ("s3://bucket/day2/cat.mp4", "day2/cat"),
        ("v/day1/cat.mp4", "day1/cat"),
        ("./v/../v/day1/cat.mp4", "day1/cat"),
        ("dog.v2", "day2/dog.v2"),
        ("dog.v2.mov", "day2/dog.v2"),
        ("long.mp4#t=4.000,8.000", "long#t=4.000,8.000"),
        ("broken.mp4", "broken"),
    ],
)
def test_what_means_one_video_is_that_video(
    cats: TokenStore, asked: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_video(asked, cats.index)["video_id"] == meant


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("cat", "matches day1/cat, day2/cat; pass a full id"),
        ("cat.mp4", "matches day1/cat, day2/cat; pass a full id"),
        ("long.mp4", "matches long#t=0.000,4.000, long#t=4.000,8.000; pass a full id"),
        ("day1/cta", "the closest: day1/cat"),
        ("day2/dogs.mp4", "the closest: day2/dog.v2"),
        ("zebra", "which has 6 videos, such as broken, day1/cat, day2/cat and 3 more"),
    ],
)
def test_what_means_none_or_several_is_answered_with_ids(cats: TokenStore, asked: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_video(asked, cats.index)
    assert said in str(caught.value)


def test_an_id_comes_before_the_name_of_a_file(tmp_path: Path) -> None:
    """One video is called as the file of another."""
    found = store(tmp_path, row("a.mp4", uri="/v/x.mp4"), row("b", uri="/v/a.mp4"))
    assert find_video("a.mp4", found.index)["video_id"] == "a.mp4"


def test_a_video_with_tokens_comes_before_a_failed_one_of_that_name(tmp_path: Path) -> None:
    found = store(tmp_path, row("new/a", uri="/new/a.mp4"), failed("old/a", uri="/old/a.mp4"))
    assert find_video("a.mp4", found.index)["video_id"] == "new/a"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("tab\tname", "tab%09name"),
        ("/v/tab\tname.mp4", "tab%09name"),
        ("file:///v/tab%09name.mp4", "tab%09name"),
        ("tab\tname.mp4", "tab%09name"),
        ("/v/byte\udce9.mp4", "byte%E9"),
        ("byte\udce9", "byte%E9"),
        ("dir\t/x", "dir%09/x"),
        ("file:///v/a b.mp4", "spaced"),
        ("file:///v/a%20b.mp4", "a%20b"),
        ("file:///v/c%20d.mp4", "other"),
        ("/v/a%20b.mp4", "a%20b"),
        ("s3://b/x%20y.mp4", "remote"),
        ("s3://b/tab%09.mp4", "remote tab"),
        ("/v/a&key=1.mp4", "signed"),
        ("/v/./w/../old%20form.mp4", "old"),
    ],
)
def test_an_odd_name_is_found_as_it_is_shown_and_as_it_is(tmp_path: Path, asked: str, meant: str) -> None:
    """Whether or not the files are there; an entry of an older version has the plain URL of a name with `%`."""
    found = store(
        tmp_path,
        row("tab%09name", uri=local_uri("/v/tab\tname.mp4")),
        row("byte%E9", uri=local_uri("/v/byte\udce9.mp4")),
        row("dir%09/x", uri="s3://b/other.mp4"),
        row("spaced", uri="file:///v/a b.mp4"),
        row("other", uri="file:///v/c d.mp4"),
        row("a%20b", uri=local_uri("/v/a%20b.mp4")),
        row("remote", uri="s3://b/x y.mp4"),
        row("remote tab", uri="s3://b/tab\t.mp4"),
        row("signed", uri=local_uri("/v/a&key=1.mp4")),
        row("old", uri="file:///v/old%20form.mp4"),
    )
    assert find_video(asked, found.index)["video_id"] == meant


def test_an_empty_store_has_nothing_close(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which has 0 videos: encode it first"):
        find_video("a", TokenStore.create(str(tmp_path / "store"), SPEC).index)
