"""The joint space of images and words of the bundled model: what text-aware methods compare patches and a question in.

Shapes: F frames, N patches, D width, P width of the joint space.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModelWithProjection


@torch.inference_mode()
def patches_in_joint_space(tower: Any, features_FND: Tensor, checkpoint: Path) -> Tensor:
    """Return patches of the selected layer (F, N, P): post-layernorm, then the visual projection.

    `tower` is a transformers CLIPVisionModel. Any: its parts are untyped.

    Source: docs/methods/frames.md section 5.6.
    """
    weight_PD = load_file(checkpoint / "text_tower" / "visual_projection.safetensors")["weight"]
    return tower.post_layernorm(features_FND) @ weight_PD.to(features_FND).T


@torch.inference_mode()
def words_in_joint_space(words: str, checkpoint: Path) -> Tensor:
    """Return the projected end-of-text state (1, P) of some words of the bundled vocabulary, not normalised."""
    text = CLIPTextModelWithProjection.from_pretrained(checkpoint / "text_tower", dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(checkpoint)(words, add_special_tokens=False).input_ids
    return text(input_ids=torch.tensor([[*ids, text.config.eos_token_id]])).text_embeds
