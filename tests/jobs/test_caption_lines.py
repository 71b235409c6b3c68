"""What a caption run says while it works: a person reads of videos and captions, not of questions and answers."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from jobs.commands import caption
from jobs.commands.caption import CaptionJob
from jobs.runtime.cluster import ClusterConfig
from pipeline.encode.stage import EncodeConfig
from pipeline.errors import ConfigError
from tests.models import tiny_checkpoint

VIDEOS = Path(__file__).parents[1] / "videos"


def test_a_caption_run_speaks_of_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (tmp_path / "videos").mkdir()
    shutil.copy2(VIDEOS / "testsrc2.mp4", tmp_path / "videos")
    config = EncodeConfig(model=tiny_checkpoint(tmp_path / "tiny"), reducer="nest(keep=16,superset=16)", device="cpu")
    place = {"corpus": str(tmp_path / "videos"), "store": str(tmp_path / "store"), "out": str(tmp_path / "out")}
    caption.run(CaptionJob(**place, encode=config, cluster=ClusterConfig(runner="local"), max_new_tokens=2))
    assert "1 videos or segments, 1 to caption" in caplog.text
    assert "caption 1/1" in caplog.text
    assert "question" not in caplog.text
    assert not list((tmp_path / "out").glob("answers.*"))


def test_a_file_in_the_place_of_the_captions_is_told_before_anything_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    shutil.copy2(VIDEOS / "testsrc2.mp4", tmp_path / "videos")
    (tmp_path / "out").write_text("mine")
    config = EncodeConfig(model=tiny_checkpoint(tmp_path / "tiny"), reducer="nest(keep=16,superset=16)", device="cpu")
    place = {"corpus": str(tmp_path / "videos"), "store": str(tmp_path / "store"), "out": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="--out must be a directory"):
        caption.run(CaptionJob(**place, encode=config, cluster=ClusterConfig(runner="local")))
    assert not (tmp_path / "store").exists()


def test_what_a_nightly_run_may_set_reaches_both_halves(tmp_path: Path) -> None:
    """A renamed copy is not encoded again; each video shows what it needs, which is another set of captions than a budget."""
    (tmp_path / "videos").mkdir()
    shutil.copy2(VIDEOS / "testsrc2.mp4", tmp_path / "videos" / "a.mp4")
    config = EncodeConfig(model=tiny_checkpoint(tmp_path / "tiny"), reducer="nest(keep=16,superset=16)", device="cpu")
    place = {"corpus": str(tmp_path / "videos"), "store": str(tmp_path / "store"), "out": str(tmp_path / "out")}
    given = {**place, "encode": config, "cluster": ClusterConfig(runner="local"), "max_new_tokens": 2, "identity": "content"}
    first = caption.run(CaptionJob(**given, budget=8))
    shutil.copy2(VIDEOS / "testsrc2.mp4", tmp_path / "videos" / "b.mp4")
    second = caption.run(CaptionJob(**given, coverage=0.5))
    assert (first["encode"]["this_run"]["committed"], second["encode"]["same_content"]) == (1, 1)
    assert second["captioned"] == 2
    assert first["answer"]["answers_fingerprint"] != second["answer"]["answers_fingerprint"]
    with pytest.raises(ConfigError, match="expected one of budget, coverage"):
        caption.run(CaptionJob(**given, coverage=0.5, budget=8))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm_it_is_asked_for_before_anything_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    shutil.copy2(VIDEOS / "testsrc2.mp4", tmp_path / "videos")
    config = EncodeConfig(model=tiny_checkpoint(tmp_path / "tiny"), reducer="nest(keep=16,superset=16)", device="cpu")
    place = {"corpus": str(tmp_path / "videos"), "store": str(tmp_path / "store"), "out": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="the engine vllm is not installed"):
        caption.run(CaptionJob(**place, encode=config, cluster=ClusterConfig(runner="local"), engine="vllm"))
    assert not (tmp_path / "store").exists()
