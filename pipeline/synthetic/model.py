"""The small Video-LLaVA of the transformers classes, its word tokeniser and its CLIP-like text tower.

Geometry: frames of 64 px in patches of 8 px, so 8 x 8 patches and CLS per frame, a quarter of the real model's, and
8 x 65 = 520 visual tokens per video. The tower is 5 blocks of width 128, the language model 4 blocks of width 192.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from pipeline.synthetic.world import COLOURS, PATCHES, SHAPES, SIDE_PX

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>")
PAD, BOS, EOS, UNKNOWN, IMAGE, VIDEO = range(len(SPECIAL))
WORDS = (
    "USER:", "ASSISTANT:", "\n", *COLOURS, *SHAPES, "left", "right", "up", "down", "it", "stays", "yes", "no",
    "0", "1", "2", "3", "top", "bottom", "half", "which", "way", "does", "the", "move", "what", "color", "is", "shape",
    "of", "object", "objects", "in", "or", "on", "appears", "disappears", "from", "video", "there", "a", "an", "and",
    "how", "many", "are", "where", "who", "?", ".", ",", "do", "you", "see", "to", "at", "moves", "shown", "clip",
)  # fmt: skip
"""Every word of questions, answers, prompt and captions; the rest is <unk>."""
PROJECTION = 64
"""Width P of the joint space of the two CLIP towers."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokeniser that puts BOS in front and knows `<video>` as one token."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Split("?", "isolated"),
        ]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
    )


def build_model() -> VideoLlavaForConditionalGeneration:
    """Return the model with random weights; positions of the tower start as 2-D sines, so that place is readable."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=2,
        image_size=SIDE_PX,
        patch_size=SIDE_PX // PATCHES,
        projection_dim=PROJECTION,
    )
    text = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=4096,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    config = VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_seq_length=PATCHES**2,
        video_seq_length=8 * (PATCHES**2 + 1),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    model = VideoLlavaForConditionalGeneration(config)
    with torch.no_grad():
        model.model.video_tower.embeddings.position_embedding.weight[1:] = _sines(PATCHES, 128)
    return model


def build_text_tower() -> CLIPTextModelWithProjection:
    """Return the text side of the contrastive pair, with random weights; same tokeniser as the language model."""
    config = CLIPTextConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=PROJECTION,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return CLIPTextModelWithProjection(config)


def save(
    folder: Path,
    model: Any,
    text_tower: Any,
    visual_projection: nn.Linear,
) -> None:
    """Write a checkpoint that transformers loads as it is; half precision, the image tower a copy of the video tower.

    Any: a VideoLlavaForConditionalGeneration and a CLIPTextModelWithProjection, whose methods mypy cannot see.
    """
    model.model.image_tower.load_state_dict(model.model.video_tower.state_dict())
    copy.deepcopy(model).half().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(PREPROCESSOR)
    copy.deepcopy(text_tower).half().save_pretrained(folder / "text_tower")
    weight = visual_projection.weight.detach().half().contiguous().cpu()
    save_file({"weight": weight}, folder / "text_tower" / "visual_projection.safetensors")


def _sines(side: int, width: int) -> Tensor:
    """Return (side*side, width): a quarter each sine and cosine of row and column, at falling frequencies."""
    frequency = torch.exp(torch.linspace(0, -3.5, width // 4))
    angle = torch.arange(side)[:, None] * frequency * 1.5
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = waves[:, None, :].expand(side, side, -1)
    columns = waves[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width) * 0.5


PREPROCESSOR = """{
  "image_processor_type": "VideoLlavaImageProcessor",
  "do_convert_rgb": true,
  "do_resize": true,
  "size": {"shortest_edge": 64},
  "resample": 3,
  "do_center_crop": true,
  "crop_size": {"height": 64, "width": 64},
  "do_rescale": true,
  "rescale_factor": 0.00392156862745098,
  "do_normalize": true,
  "image_mean": [0.48145466, 0.4578275, 0.40821073],
  "image_std": [0.26862954, 0.26130258, 0.27577711]
}
"""
