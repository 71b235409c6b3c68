"""Geometries with random weights: the shapes of real checkpoints, for measuring speed where no weights are at hand."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from pipeline.synthetic.model import BOS, EOS, IMAGE, PAD, VIDEO, build_tokenizer

VISION = {
    "demo": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 64,
             "patch_size": 8},
    "vit-l": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "image_size": 224, "patch_size": 14},
}  # fmt: skip
LANGUAGE = {
    "demo": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 3,
             "num_key_value_heads": 3, "vocab_size": 96},
    "llama-1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                   "num_key_value_heads": 4, "vocab_size": 32064},
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 32, "vocab_size": 32064},
}  # fmt: skip
"""TinyLlama-1.1B and Llama-2-7B, with the vocabulary of Video-LLaVA."""
ALONE = {f"{name} alone": (name, "demo") for name in VISION}
"""A tower with next to nothing behind it."""
WHOLE = {"demo": ("demo", "demo"), "vit-l+llama-1.1b": ("vit-l", "llama-1.1b"), "vit-l+llama-7b": ("vit-l", "llama-7b")}
PRESETS = {**ALONE, **WHOLE}
FRAMES = 8


def config_of(preset: str) -> VideoLlavaConfig:
    """Return the configuration of a preset."""
    vision, language = (table[name] for table, name in zip((VISION, LANGUAGE), PRESETS[preset], strict=True))
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    places = {f"{kind}_token_{end}": at for kind, at in (("image", IMAGE), ("video", VIDEO)) for end in ("id", "index")}
    return VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**vision, projection_dim=512),
        text_config=LlamaConfig(**language, max_position_embeddings=4096, tie_word_embeddings=False, **ids),
        image_seq_length=patches,
        video_seq_length=FRAMES * (patches + 1),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=PAD,
        tie_word_embeddings=False,
        **places,
    )


@torch.inference_mode()
def random_model(preset: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """Return a model of random weights on the CPU, small enough that activations stay finite; the image tower is left out."""
    torch.manual_seed(seed)
    config = config_of(preset)
    with torch.device("meta"):
        model: Any = VideoLlavaForConditionalGeneration(config)
    model.model.image_tower = None
    model = model.to(dtype).to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return model


def write_checkpoint(preset: str, folder: Path, dtype: torch.dtype, seed: int = 0) -> None:
    """Write a checkpoint of random weights. Its tokeniser has a word for every id, as those of real checkpoints nearly have."""
    random_model(preset, dtype, seed).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    known = {*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])}
    ids = set(range(LANGUAGE[PRESETS[preset][1]]["vocab_size"])) - known
    content["model"]["vocab"].update({f"word{at}": at for at in sorted(ids)})
    (folder / "tokenizer.json").write_text(json.dumps(content))
