"""The exported Llama is the checkpoint's own, whole or not there."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, VideoLlavaForConditionalGeneration

from pipeline.errors import ConfigError
from pipeline.models import llama_export
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.llama_export import cache_folder, export_llama
from tests.models import tiny_checkpoint

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "pipeline" / "synthetic" / "checkpoint"


@pytest.fixture
def tiny(tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint(tmp_path / "model"))


def exported(cache: Path) -> list[str]:
    """Return what a reader sees, hidden files left out."""
    return [path.name for path in (cache / "llama").iterdir() if not path.name.startswith(".")]


@torch.inference_mode()
@pytest.mark.parametrize("source", ["tiny", "shapes"])
def test_the_export_has_the_logits_of_the_checkpoint(tmp_path: Path, source: str) -> None:
    """Plain Llama from the directory and the whole Video-LLaVA agree bit for bit, but for silent ids, which get zero."""
    path = tiny_checkpoint(tmp_path / "model") if source == "tiny" else str(SHAPES)
    whole = VideoLlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    plain = LlamaForCausalLM.from_pretrained(export_llama(Checkpoint.open(path), [4, 5], tmp_path), dtype=torch.float32).eval()
    ids = torch.arange(6, 40)[None]
    expected, got = whole(input_ids=ids).logits, plain(input_ids=ids).logits
    assert torch.equal(got[..., [4, 5]], torch.zeros(1, 34, 2))
    expected[..., [4, 5]] = 0
    assert torch.equal(got, expected)


def test_old_and_new_names_give_one_export(tiny: Checkpoint, tmp_path: Path) -> None:
    """A checkpoint whose language model is named as in transformers 4 has the same content, under the same name."""
    old = tmp_path / "old"
    old.mkdir()
    for file in tiny.path.iterdir():
        if file.suffix != ".safetensors":
            (old / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tiny.path / "model.safetensors")
    save_file({f"model.{name}" if "tower" in name else name: tensor for name, tensor in tensors.items()}, old / "m.safetensors")
    assert export_llama(Checkpoint.open(str(old)), [], tmp_path) == export_llama(tiny, [], tmp_path)


def test_an_export_is_written_once_and_named_by_what_is_in_it(tiny: Checkpoint, tmp_path: Path) -> None:
    """The same again touches nothing; other weights, other settings or other silent ids have another name."""
    first = export_llama(tiny, [5], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert export_llama(Checkpoint.open(str(tiny.path)), [5], tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    names = {first, export_llama(tiny, [4], tmp_path)}
    names.add(export_llama(Checkpoint.open(tiny_checkpoint(tmp_path / "other", seed=1)), [5], tmp_path))
    config = json.loads((tiny.path / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    (tiny.path / "config.json").write_text(json.dumps(config))
    names.add(export_llama(Checkpoint.open(str(tiny.path)), [5], tmp_path))
    assert len(names) == 4


def test_many_small_files_hold_what_one_large_one_does(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index leads to every tensor."""
    one = LlamaForCausalLM.from_pretrained(export_llama(tiny, [], tmp_path / "one"))
    monkeypatch.setattr(llama_export, "SHARD_BYTES", 20_000)
    folder = export_llama(tiny, [], tmp_path / "many")
    many = LlamaForCausalLM.from_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in many.state_dict().items())


def test_exports_at_once_leave_one_whole_directory(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One writes, the others wait for it and take what it made."""
    ready = threading.Barrier(4)
    found: list[Path] = []
    written = 0
    write = llama_export.save_file

    def counted(*args: Any, **given: Any) -> None:
        nonlocal written
        written += 1
        write(*args, **given)

    monkeypatch.setattr(llama_export, "save_file", counted)

    def export() -> None:
        mine = Checkpoint.open(str(tiny.path))
        ready.wait()
        found.append(export_llama(mine, [5], tmp_path / "cache"))

    threads = [threading.Thread(target=export) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert exported(tmp_path / "cache") == [found[0].name]
    assert len(set(found)) == 1
    assert written == 1
    LlamaForCausalLM.from_pretrained(found[0])


def test_a_killed_export_leaves_no_directory_that_a_reader_would_take(tiny: Checkpoint, tmp_path: Path) -> None:
    """kill -9 between two files: nothing stands under the final name; the next export is whole and clears the rest."""
    cache = tmp_path / "cache"
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from pipeline.models import llama_export\nfrom pipeline.models.checkpoint import Checkpoint\n"
        "llama_export.SHARD_BYTES = 20_000\n"
        "write = llama_export.save_file\n"
        "def slowly(*a, **k):\n    write(*a, **k)\n    time.sleep(3600)\n"
        "llama_export.save_file = slowly\n"
        "llama_export.export_llama(Checkpoint.open(sys.argv[1]), [], Path(sys.argv[2]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tiny.path), str(cache)], cwd=ROOT, env=os.environ)
    try:
        while not list(cache.rglob("*.safetensors")):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert exported(cache) == []
    assert list((cache / "llama").glob("*.tmp"))
    LlamaForCausalLM.from_pretrained(export_llama(tiny, [], cache))
    assert not list((cache / "llama").glob("*.tmp"))


def test_a_missing_tensor_is_told_and_nothing_is_left(tiny: Checkpoint, tmp_path: Path) -> None:
    """An engine would fill it with anything."""
    tensors = load_file(tiny.path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({k: v for k, v in tensors.items() if k != name}, tiny.path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"1 tensors of the language model are missing, first model\.layers\.1\.mlp\.up_proj"):
        export_llama(Checkpoint.open(str(tiny.path)), [], tmp_path / "cache")
    assert exported(tmp_path / "cache") == []
    assert not list((tmp_path / "cache" / "llama").glob("*.tmp"))


def test_another_kind_of_language_model_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    """The message names what was found."""
    config = json.loads((tiny.path / "config.json").read_text())
    config["text_config"]["model_type"] = "mistral"
    (tiny.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="type llama, got 'mistral'"):
        export_llama(Checkpoint.open(str(tiny.path)), [], tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_named(tiny: Checkpoint, tmp_path: Path) -> None:
    """A file stands where the cache folder should be."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match="cannot be exported there"):
        export_llama(tiny, [], tmp_path / "cache")


def test_the_cache_folder_is_the_one_in_the_environment_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """FRAMEFOLD_CACHE wins."""
    monkeypatch.delenv("FRAMEFOLD_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "framefold"
    monkeypatch.setenv("FRAMEFOLD_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
