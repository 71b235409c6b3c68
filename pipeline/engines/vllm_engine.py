"""Stored tokens and questions to text, with vLLM: continuous batching and automatic prefix caching.

vLLM knows no Video-LLaVA, so it runs the exported Llama part (`llama_export`) and is given prompts as embeddings, which are
made here. Questions go in video by video: blocks of the shared prefix are computed once and found again by the digest of their
embeddings. Decoding is greedy. Ids that no answer may hold have zero rows in the exported output layer and a bias of -100, so
none can win unless every other logit is below that.

Shapes: S visual tokens, D tower width, P prefix positions, L suffix positions, H hidden width.
"""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, VideoLlavaConfig
from transformers.models.video_llava.modeling_video_llava import VideoLlavaMultiModalProjector

from pipeline.engines.base import Reply, VideoQuestions
from pipeline.engines.oom_backoff import in_halves
from pipeline.engines.prompt_check import Asking
from pipeline.engines.vllm_config import VllmConfig, context_of, llm_settings, require_vllm, start
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.llama_export import export_llama, llama_settings, llama_tensors
from pipeline.models.prompts import PromptTemplate, video_token_id
from pipeline.models.special_tokens import eos_ids, never_said, reserved_ids

MOST_SILENT = 1024
"""Ids with a bias of their own that vLLM 0.32 takes for one request."""

PROMPT_POSITIONS = 1 << 16
"""Positions whose embeddings are held at once: 512 MB in half precision at a hidden width of 4096."""


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A question that will be asked, and what is known of its place: video and question number."""

    video: int
    at: int
    embeds: Tensor
    """(P + S + L, H), on the CPU."""
    room: int


class Embedder:
    """Projector and input embedding of a checkpoint: what turns a prompt into embeddings."""

    def __init__(self, checkpoint: Checkpoint, config: VideoLlavaConfig, device: str, dtype: torch.dtype) -> None:
        self.projector = VideoLlavaMultiModalProjector(config).eval()
        named = "multi_modal_projector."
        weights = {n.removeprefix(named): t for n, t in checkpoint.language_tensors() if n.startswith(named)}
        if lost := sorted(set(self.projector.state_dict()) - weights.keys()):
            raise ConfigError(f"{checkpoint.path}: {len(lost)} tensors of the projector are missing, first {lost[0]}")
        self.projector.load_state_dict(weights)
        self.projector.to(device, dtype)
        self.device, self.dtype = device, dtype
        self.table = next(t for n, t in llama_tensors(checkpoint) if n == "model.embed_tokens.weight").to(dtype)

    @property
    def width(self) -> int:
        """Return D, what the projector takes."""
        return int(self.projector.linear_1.in_features)

    def ids(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings (L, H) of ids."""
        return torch.nn.functional.embedding(torch.tensor(ids, dtype=torch.long), self.table)

    def video(self, features_SD: Tensor) -> Tensor:
        """Return the projected tokens (S, H), on the CPU."""
        shown: Tensor = self.projector(features_SD.to(self.device, self.dtype)).cpu()
        return shown


class VllmEngine:
    """Answers with vLLM's offline engine, in this process.

    `seen` counts the positions of all prompts so far, `found` those of them that the prefix cache held. `exports`: see
    `export_llama`.
    """

    name = "vllm"
    version = 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompt: PromptTemplate,
        *,
        device: str,
        dtype: str,
        max_new_tokens: int = 32,
        max_batch_tokens: int = 0,
        vllm: VllmConfig | None = None,
        exports: Path | None = None,
        **options: Any,  # Any: settings of vllm.LLM that come before ours
    ) -> None:
        require_vllm(device, vllm)
        config = VideoLlavaConfig.from_pretrained(checkpoint.path)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            checkpoint.path, local_files_only=True
        )  # Any: as in TransformersEngine
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.video_id = video_token_id(self.tokenizer, config.video_token_id)
        self.context = context_of(config.text_config.max_position_embeddings, vllm or VllmConfig())
        model = _Settings(config=config, generation_config=_generation(checkpoint.path, config))
        self.eos = eos_ids(model, self.tokenizer)
        self.reserved = reserved_ids(model, self.tokenizer) - set(self.eos)
        self.asking = Asking(
            tokenizer=self.tokenizer,
            prompt=prompt,
            video_id=self.video_id,
            context=self.context,
            reserved=frozenset(self.reserved),
            max_new_tokens=max_new_tokens,
        )
        self.silent = never_said(model, self.tokenizer, self.reserved, self.eos)
        if len(self.silent) > MOST_SILENT:
            raise ConfigError(
                f"{checkpoint.path}: {len(self.silent)} forbidden token ids, --engine vllm allows {MOST_SILENT} at most"
            )
        self.embedder = Embedder(checkpoint, config, device, getattr(torch, dtype))
        self.seen, self.found = 0, 0
        self._options = {
            **llm_settings(config.text_config, device, dtype, max_batch_tokens, vllm),
            "model": str(export_llama(checkpoint, self.silent, exports)),
            **options,
        }
        self._llm: Any = start(self._options)  # Any: vllm is an optional dependency

    @torch.inference_mode()
    def answer(self, groups: Sequence[VideoQuestions]) -> list[list[Reply]]:
        """Return one reply per question, in order; see `Engine`. Raises ConfigError for tokens of another model."""
        replies: list[list[Reply | None]] = [[None] * len(group.questions) for group in groups]
        for batch in self._batches(groups, replies):
            ran = in_halves(self._generate, batch, _out_of_memory, self._restart)
            for question, reply in zip(batch, ran, strict=True):
                replies[question.video][question.at] = reply
        return [[reply for reply in row if reply is not None] for row in replies]

    def converse(self, group: VideoQuestions) -> list[Reply]:
        """Raises ConfigError: turns are asked one by one here, and nothing would keep what was said."""
        raise ConfigError("conversations (column turn) are not supported by --engine vllm: use --engine transformers")

    def _batches(self, groups: Sequence[VideoQuestions], replies: list[list[Reply | None]]) -> Iterator[list[_Question]]:
        """Yield the questions to run, video by video, while their embeddings fit; put the other replies in their place."""
        batch: list[_Question] = []
        for video, group in enumerate(groups):
            self._check(group)
            before: Tensor | None = None
            for at, question in enumerate(group.questions):
                judged = self.asking.judge(question, len(group.features))
                if isinstance(judged, Reply):
                    replies[video][at] = judged
                    continue
                if before is None:
                    before = self._before(group)
                embeds = torch.cat([before, self.embedder.ids(judged.suffix)])
                batch.append(_Question(video=video, at=at, embeds=embeds, room=judged.room))
                if sum(len(one.embeds) for one in batch) >= PROMPT_POSITIONS:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _check(self, group: VideoQuestions) -> None:
        width = self.embedder.width
        if group.features.ndim != 2 or group.features.shape[1] != width:
            raise ConfigError(
                f"stored tokens have shape {tuple(group.features.shape)}, this model's projector takes (S, {width}): "
                "the store was encoded with another model"
            )
        if group.positions is not None:
            raise ConfigError("--positions original is not supported by --engine vllm: use --positions compact")

    def _before(self, group: VideoQuestions) -> Tensor:
        """Return what all questions of a video share, (P + S, H)."""
        prefix = self.asking.split("").prefix
        return torch.cat([self.embedder.ids(prefix), self.embedder.video(group.features)])

    def _generate(self, batch: Sequence[_Question]) -> list[Reply]:
        """Run some questions. Raises OutOfMemoryError where memory runs out in spite of vLLM's own accounts."""
        prompts = [{"prompt_embeds": question.embeds} for question in batch]
        outputs = self._llm.generate(prompts, [self._sampling(question.room) for question in batch], use_tqdm=False)
        self.seen += sum(len(question.embeds) for question in batch)
        self.found += sum(output.num_cached_tokens or 0 for output in outputs)
        return [self._reply(output.outputs[0].token_ids) for output in outputs]

    def _sampling(self, room: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=0,
            max_tokens=room,
            ignore_eos=True,  # the ends are ours alone, whatever vLLM finds in the model's files
            stop_token_ids=list(self.eos),
            logit_bias=dict.fromkeys(self.silent, -100.0) or None,
            detokenize=False,
        )

    def _reply(self, ids: Sequence[int]) -> Reply:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()
        return Reply(text=text, status="ok", tokens=len(ids))

    def forget(self) -> None:
        """Empty the prefix cache and begin to count anew, as a measurement must."""
        self._llm.reset_prefix_cache()
        self.seen, self.found = 0, 0

    def close(self) -> None:
        """Give back vLLM's memory. A process holds one open engine at a time: vLLM keeps its process groups globally."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _restart(self) -> None:
        """Begin anew after memory ran out: vLLM still holds what it was working on."""
        self.close()
        self._llm = start(self._options)


def check_vllm(checkpoint: Checkpoint, device: str, config: VllmConfig) -> None:
    """Raise ConfigError where this engine could not start, as far as that can be told without starting it.

    A driver calls it for its workers, before anything is written.
    """
    require_vllm(device, config)
    context_of(llama_settings(checkpoint)["max_position_embeddings"], config)


def _out_of_memory(_: _Question) -> Reply:
    return Reply(text=None, status="out_of_memory")


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What `special_tokens` asks of a model, without its weights. Any: configs of transformers are untyped."""

    config: Any
    generation_config: Any


def _generation(path: Path, config: VideoLlavaConfig) -> GenerationConfig:
    """Return the generation config as transformers does: from its file, or else from the model's config."""
    if (path / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(path)
    return GenerationConfig.from_model_config(config)
