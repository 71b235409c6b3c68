"""The benchmarks of answers and encoding run for real, small; what they count on paper is what torch counts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import VideoLlavaForConditionalGeneration

from jobs.bench import answer, efficiency, encode, steps
from jobs.bench.geometry import LANGUAGE, VISION, write_checkpoint
from jobs.bench.roofline import MACHINES, prefill, read_flops, tower_flops, weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bench") / "demo"
    write_checkpoint("demo", folder, torch.float32)
    return VideoLlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


def last_line(captured: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(captured.splitlines()[-1])
    return found


@torch.inference_mode()
def test_flops_on_paper_are_those_of_torch(model: Any) -> None:
    """Tower and language model within a hundredth; torch counts attention without its causal half."""
    vision, language = VISION["demo"], LANGUAGE["demo"]
    with FlopCounterMode(display=False) as counter:
        model.model.video_tower(torch.zeros(8, 3, vision["image_size"], vision["image_size"]))
    assert counter.get_total_flops() == pytest.approx(tower_flops(vision, 8, vision["num_hidden_layers"]), rel=0.01)
    positions = 200
    rows = torch.zeros(1, positions, language["hidden_size"])
    with FlopCounterMode(display=False) as counter:
        model.lm_head(model.model.language_model(inputs_embeds=rows).last_hidden_state[:, -1])
    hidden = 4 * positions * (positions - 1) / 2 * language["hidden_size"] * language["num_hidden_layers"]
    assert counter.get_total_flops() == pytest.approx(read_flops(language, positions) + hidden, rel=0.01)
    parameters = [p.numel() for n, p in model.named_parameters() if "language_model" in n and p.ndim > 1 and "embed" not in n]
    assert weights(language) == sum(parameters) + model.lm_head.weight.numel()


def test_reading_in_two_parts_costs_what_one_does() -> None:
    """All but the output layer, which runs once more."""
    config = LANGUAGE["llama-7b"]
    head = 2 * config["hidden_size"] * config["vocab_size"]
    assert read_flops(config, 300) + head == pytest.approx(read_flops(config, 260) + read_flops(config, 40, 260), rel=1e-9)


def test_the_roofline_of_the_paper_comes_out() -> None:
    """LLaVA-1.5-7B on a V100 with 576 and 36 visual tokens: PruMerge's table has 9.3 and 0.91 TFLOPs for its prompt lengths."""
    config = {**LANGUAGE["llama-7b"], "vocab_size": 32000}
    full, few = (prefill(config, tokens + 104, MACHINES["v100"]) for tokens in (576, 36))
    assert full.flops / 1e12 == pytest.approx(9.3, rel=0.06)
    assert full.seconds > 5 * few.seconds / 2
    assert prefill(config, 680, MACHINES["v100"], 4).memory_bytes < full.memory_bytes / 2


def test_the_bench_of_answers_prints_every_way_and_its_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    """Real files, real store, real generate, once each."""
    flags = ["--videos", "1", "--questions", "2", "--baseline-questions", "1", "--max-new-tokens", "2", "--dtype", "float32"]
    assert answer.main([*flags, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    arms = last_line(out)["arms"]
    assert list(arms) == [
        "documentation's loop",
        "full tokens cached, one prompt a question",
        "reduced tokens cached, one prompt a question",
        "framefold answer",
    ]
    assert arms["documentation's loop"]["ratio"] == 1.0
    assert all(arm["answers_per_s"] > 0 for arm in arms.values())
    for word in ("GFLOP/answer", "peak memory", "bytes per video", "break-even"):
        assert word in out


def test_the_bench_of_encoding_prints_its_share_of_the_tower(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "demo", "--videos", "2", "--reducers", "none", "--dtype", "float32", "--batch-clips", "2"]
    assert encode.main(flags) == 0
    found = last_line(capsys.readouterr().out)
    assert found["tower"] > 0
    assert found["clips_per_s"]["none"] > 0


def test_the_table_of_efficiency_has_a_line_for_each_budget(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert efficiency.main(["--preset", "demo", "--tokens", "64", "16", "--measure", "True", "--repeat", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.split()[0] in ("64", "16") for line in lines if line.split()) == 2 * 2 * 2 + 2


def test_the_bench_of_steps_times_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """Two kinds on the small geometry, more than one video in a batch; the bytes are those of the model's own tensors."""
    flags = ["--videos", "2", "--questions", "3", "--tokens", "20", "--steps", "3", "--repeat", "1", "--device", "cpu"]
    assert steps.main([*flags, "--kinds", "static", "eager", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    found = last_line(out)["steps"]
    assert list(found) == ["static", "eager"]
    assert all(kind["ms"] > 0 for kind in found.values())
    language = LANGUAGE["demo"]
    held = 4 * (weights(language) + 2 * 3 * 20 * 2 * language["hidden_size"] * language["num_hidden_layers"])
    assert f"a step reads {held / 1e9:.3f} GB" in out


def test_the_bench_of_steps_refuses_nothing_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one sentence."""
    assert steps.main(["--steps", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
