"""Small engines with random weights, questions for them, and the plain way to answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pipeline.engines.transformers_engine import Reply, TransformersEngine, VideoQuestions
from pipeline.models.prompts import PromptTemplate, split_prompt
from tests.models import tiny_model, tiny_tokenizer

TEMPLATE = PromptTemplate()
NEW = 9

RAGGED = [
    (37, ["what is it", "who runs over there in the green field", "a"]),
    (1, ["is this a much longer question than the whole prefix of the video or is it not", "b"]),
    (64, ["one question alone"]),
    (12, ["yes or no", "how many are there", "how many are there"]),
]


def lively(seed: int) -> VideoLlavaForConditionalGeneration:
    """Random weights large enough that answers differ from question to question and some end early."""
    torch.manual_seed(seed)
    model = tiny_model().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "tower" not in name:
                parameter.normal_(0, 0.35)
    model.generation_config.eos_token_id = [model.config.text_config.eos_token_id, *range(20, 40)]
    return model


def engine(seed: int = 0, **options: Any) -> TransformersEngine:
    return TransformersEngine(lively(seed), tiny_tokenizer(), TEMPLATE, **{"max_new_tokens": NEW, **options})


def groups(asked: list[tuple[int, list[str]]], width: int, seed: int = 0) -> list[VideoQuestions]:
    draw = torch.Generator().manual_seed(seed)
    return [VideoQuestions(features=torch.randn(n, width, generator=draw), questions=q) for n, q in asked]


def width_of(asked: TransformersEngine) -> int:
    return int(asked.model.config.vision_config.hidden_size)


@torch.inference_mode()
def one_generate(asked: TransformersEngine, features: Tensor, question: str) -> Reply:
    """The plain way: the whole prompt through `generate`, one question at a time."""
    model, tokenizer = asked.model, asked.tokenizer
    split = split_prompt(tokenizer, TEMPLATE, question, asked.video_id)
    ids = torch.tensor([[*split.prefix, *[asked.video_id] * len(features), *split.suffix]])
    projected = model.model.multi_modal_projector(features.to(model.dtype))[None]
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_encoder_outputs={"video": BaseModelOutputWithPooling(pooler_output=projected)},
        do_sample=False,
        num_beams=1,
        max_new_tokens=asked.max_new_tokens,
        suppress_tokens=asked._never.tolist(),
        pad_token_id=tokenizer.pad_token_id,
    )[0, ids.shape[1] :].tolist()
    return Reply(text=tokenizer.decode(said, skip_special_tokens=True).strip(), status="ok", tokens=len(said))


def plainly(asked: TransformersEngine, videos: list[VideoQuestions]) -> list[list[Reply]]:
    return [[one_generate(asked, video.features, q) for q in video.questions] for video in videos]


@contextmanager
def memory_for(asked: TransformersEngine, enough: Callable[[Tensor], bool]) -> Iterator[list[int]]:
    """Let the language model run out of memory unless `enough` says otherwise; yields the batch sizes it tried."""
    tried: list[int] = []

    def allocate(_: Any, __: Any, given: dict[str, Any]) -> None:
        tried.append(len(given["inputs_embeds"]))
        if not enough(given["inputs_embeds"]):
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = asked.model.model.language_model.register_forward_pre_hook(allocate, with_kwargs=True)
    try:
        yield tried
    finally:
        hook.remove()
