"""A tiny Video-LLaVA of the transformers classes with random weights, and a word tokeniser for it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"]
SENTENCE = (
    "what is it who runs over there in the green field a this much longer question than whole prefix of video or not b one "
    "alone yes no how many are which way does move color circle square object objects word ? ."
)
WORDS = ["USER:", "ASSISTANT:", "\n", *SENTENCE.split()]
PADDED_VOCABULARY = 96
"""More rows than the tokeniser has words, as in the real checkpoint."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
    )


def vision_config(**changes: int) -> CLIPVisionConfig:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    return CLIPVisionConfig(**{**shape, "image_size": 32, "patch_size": 8, "projection_dim": 16, **changes})


def tiny_model(layer: int = -2, **text_changes: int) -> VideoLlavaForConditionalGeneration:
    """Random weights from torch's current seed; 16 patches and CLS per frame, 8 frames of 32 px."""
    shape = {
        "vocab_size": PADDED_VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": 256,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = LlamaConfig(**{**shape, **ids, **text_changes}, tie_word_embeddings=False)
    config = VideoLlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=4,
        video_token_index=5,
        image_token_id=4,
        video_token_id=5,
        image_seq_length=16,
        video_seq_length=8 * 17,
        vision_feature_layer=layer,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return VideoLlavaForConditionalGeneration(config)


def tiny_checkpoint(folder: Path, seed: int = 0, layer: int = -2) -> str:
    """Write a checkpoint directory and return its path."""
    torch.manual_seed(seed)
    model = tiny_model(layer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
