"""Stored tokens and questions to text, with the language model of transformers.

The prefix of a prompt (its opening and the video) is read once per video and its keys and values are shared by all
questions of that video, which are answered as one batch; several short videos share a batch as well. Decoding is
greedy by construction: of the checkpoint's generation settings (temperature, sampling, beams) only its EOS ids are read.

Shapes: V videos of a batch, B rows (questions), P prefix positions, L suffix positions, S visual tokens, D tower width,
H hidden width. In float32 the answers equal one full `generate` per question, token for token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils.logging import disable_progress_bar

from pipeline.engines.base import STATUSES, Engine, Reply, VideoQuestions
from pipeline.engines.chat import Conversation
from pipeline.engines.generation import Rows, steps_for
from pipeline.engines.kv_cache import Seen
from pipeline.engines.oom_backoff import batch_tokens, in_halves
from pipeline.engines.prompt_check import Askable, Asking
from pipeline.errors import ConfigError
from pipeline.models.device import StepKind
from pipeline.models.prompts import PromptTemplate, SplitPrompt, video_token_id
from pipeline.models.special_tokens import eos_ids, never_said, reserved_ids

__all__ = ["STATUSES", "Engine", "Reply", "TransformersEngine", "VideoQuestions"]


@dataclass(frozen=True, kw_only=True)
class _Video:
    """A video with its rows and, for each of its questions, the reply that is known already or None."""

    features: Tensor
    positions: Tensor
    """(P,) of prefix and visual tokens."""
    end: int
    """Position of the first id after the video."""
    prefix: tuple[int, ...]
    rows: tuple[Askable, ...]
    known: tuple[Reply | None, ...] = field(repr=False)

    def merge(self, answered: Sequence[Reply]) -> list[Reply]:
        """Put answers where no reply was known."""
        fresh = iter(answered)
        return [next(fresh) if reply is None else reply for reply in self.known]


@dataclass(frozen=True, kw_only=True)
class _Prefixes:
    """What was read of some videos, right-padded to P columns."""

    cache: Cache
    mask: Tensor
    """(V, P)."""
    end: Tensor
    """(V,) position of the first id after each video."""


class TransformersEngine:
    """Answers with VideoLlavaForConditionalGeneration; everything is loaded once and kept."""

    name = "transformers"
    version = 1

    def __init__(
        self,
        model: VideoLlavaForConditionalGeneration,
        tokenizer: Any,  # Any: the tokenisers of transformers have no common typed base
        prompt: PromptTemplate,
        *,
        max_new_tokens: int = 32,
        max_batch_tokens: int = 0,
        steps: StepKind = "auto",
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.context: int = model.config.text_config.max_position_embeddings
        self.max_new_tokens = min(max_new_tokens, self.context)  # room is made for as many
        self.max_batch_tokens = max_batch_tokens or batch_tokens(self.model)
        self.video_id = video_token_id(tokenizer, model.config.video_token_id)
        self.eos = eos_ids(model, tokenizer)
        self.reserved = reserved_ids(model, tokenizer) - set(self.eos)
        self.asking = Asking(
            tokenizer=tokenizer,
            prompt=prompt,
            video_id=self.video_id,
            context=self.context,
            reserved=frozenset(self.reserved),
            max_new_tokens=max_new_tokens,
        )
        self._never = torch.tensor(never_said(model, tokenizer, self.reserved, self.eos), device=model.device)
        self.steps = steps_for(steps, self._next_ids, model.device, lambda: self.max_batch_tokens)

    @classmethod
    def load(
        cls,
        path: str | Path,
        prompt: PromptTemplate,
        *,
        device: str,
        dtype: str,
        **options: Any,
    ) -> "TransformersEngine":
        """Load a checkpoint directory. The vision towers are dropped before the model moves to the device.

        Raises ConfigError where it cannot be loaded, and where weights of the projector or the language model are missing:
        transformers itself would fill them with random numbers and only warn.
        """
        disable_progress_bar()
        try:
            model, found = VideoLlavaForConditionalGeneration.from_pretrained(
                path, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # the checks of transformers and huggingface_hub have no common root
            raise ConfigError(f"{path}: weights and config.json do not fit: {str(error)[:200]}") from error
        lost = sorted(name for name in found["missing_keys"] if "_tower." not in name)
        if lost:
            raise ConfigError(f"{path}: {len(lost)} tensors of projector or language model are missing, first {lost[0]}")
        model.model.video_tower = model.model.image_tower = None
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        return cls(model.to(device), tokenizer, prompt, **options)

    @torch.inference_mode()
    def answer(self, groups: Sequence[VideoQuestions]) -> list[list[Reply]]:
        """Return one reply per question, in order; see `Engine`. Raises ConfigError for tokens of another model."""
        videos = [self._prepare(group) for group in groups]
        replies: list[list[Reply]] = []
        for batch in self._batches(videos):
            replies += in_halves(self._answer_videos, batch, _out_of_memory, self._back_off)
        return replies

    def converse(self, group: VideoQuestions) -> list[Reply]:
        """Return one reply per question, each asked as a turn that sees those before it; see `Conversation`."""
        try:
            conversation = Conversation(self, group)
            return [conversation.ask(question) for question in group.questions]
        except torch.OutOfMemoryError:
            return [Reply(text=None, status="out_of_memory")] * len(group.questions)

    @torch.inference_mode()
    def begin(self, video: VideoQuestions) -> Seen:
        """Read a video, with the words in front of it."""
        prepared = self._prepare(replace(video, questions=()))
        return Seen(cache=self._read([prepared]).cache, end=prepared.end)

    @torch.inference_mode()
    def advance(self, seen: Seen, ids: Sequence[int]) -> int:
        """Read more ids behind what was seen and return the likeliest next one."""
        device = self.model.device
        position = torch.arange(seen.end, seen.end + len(ids), device=device)[None]
        seen.end, seen.spoken = seen.end + len(ids), True
        return int(self._next_ids(torch.tensor([list(ids)], device=device), None, position, seen.cache))

    def split(self, question: str) -> SplitPrompt:
        """Return the ids on both sides of the video."""
        return self.asking.split(question)

    def _back_off(self) -> None:
        """Make later batches smaller: this one did not fit."""
        self.steps.forget()
        self.max_batch_tokens = max(1, self.max_batch_tokens * 3 // 4)

    def _prepare(self, group: VideoQuestions) -> _Video:
        width = self.model.model.multi_modal_projector.linear_1.in_features
        if group.features.ndim != 2 or group.features.shape[1] != width:
            raise ConfigError(
                f"stored tokens have shape {tuple(group.features.shape)}, this model's projector takes (S, {width}): "
                "the store was encoded with another model"
            )
        prefix = self.split("").prefix
        span = len(group.features) if group.span is None else group.span
        judged = [self.asking.judge(question, span) for question in group.questions]
        places = torch.arange(len(group.features)) if group.positions is None else group.positions
        return _Video(
            features=group.features,
            positions=torch.cat([torch.arange(len(prefix)), len(prefix) + places]),
            end=len(prefix) + span,
            prefix=prefix,
            rows=tuple(row for row in judged if isinstance(row, Askable)),
            known=tuple(None if isinstance(row, Askable) else row for row in judged),
        )

    def _batches(self, videos: Sequence[_Video]) -> Iterator[list[_Video]]:
        """Group neighbouring videos while their rows fit `max_batch_tokens`; one video may be more than that."""
        batch: list[_Video] = []
        columns = rows = 0
        for video in videos:
            wide = len(video.prefix) + len(video.features) + max((len(r.suffix) for r in video.rows), default=0)
            columns = max(columns, wide + self.max_new_tokens)
            rows += len(video.rows) + 1  # one more for the prefix that the rows copy
            if batch and rows * columns > self.max_batch_tokens:
                yield batch
                batch, rows, columns = [], len(video.rows) + 1, wide + self.max_new_tokens
            batch.append(video)
        if batch:
            yield batch

    def _answer_videos(self, videos: Sequence[_Video]) -> list[list[Reply]]:
        """Read the prefixes of some videos together, then answer their rows in chunks that fit."""
        asked = [(owner, row) for owner, video in enumerate(videos) for row in video.rows]
        answered: list[Reply] = []
        if asked:
            seen = self._read(videos)
            by_length = sorted(range(len(asked)), key=lambda at: len(asked[at][1].suffix))
            for chunk in self._chunks([asked[at] for at in by_length], seen.mask.shape[1]):
                answered += self._generate_some(seen, chunk)
            answered = [reply for _, reply in sorted(zip(by_length, answered, strict=True), key=itemgetter(0))]
        replies = iter(answered)
        return [video.merge([next(replies) for _ in video.rows]) for video in videos]

    def _chunks(self, asked: Sequence[tuple[int, Askable]], columns: int) -> Iterator[Sequence[tuple[int, Askable]]]:
        longest = max(len(row.suffix) for _, row in asked)
        size = max(1, self.max_batch_tokens // (columns + longest + self.max_new_tokens))
        return (asked[start : start + size] for start in range(0, len(asked), size))

    def _generate_some(self, seen: _Prefixes, chunk: Sequence[tuple[int, Askable]]) -> list[Reply]:
        """Answer a chunk, in halves where memory runs out. A row that does not fit beside other videos raises."""

        def alone(_: tuple[int, Askable]) -> Reply:
            if len(seen.mask) > 1:
                raise torch.OutOfMemoryError("one row does not fit beside the prefixes of several videos")
            return Reply(text=None, status="out_of_memory")

        return in_halves(lambda rows: self._generate(seen, rows), chunk, alone, self._back_off)

    def _read(self, videos: Sequence[_Video]) -> _Prefixes:
        """Run the prefixes once. Right-padded: under the causal mask no real position ever sees a pad."""
        counts = [len(video.features) for video in videos]
        features_SD = torch.cat([video.features for video in videos]).to(self.model.device, self.model.dtype)
        shown = self.model.model.multi_modal_projector(features_SD).split(counts)
        opening_PH = self._embed(torch.tensor(videos[0].prefix, dtype=torch.long, device=self.model.device))
        prefixes = [torch.cat([opening_PH, visual_SH]) for visual_SH in shown]
        embeds_VPH = torch.nn.utils.rnn.pad_sequence(prefixes, batch_first=True)
        lengths_V = torch.tensor([len(prefix) for prefix in prefixes], device=self.model.device)
        mask_VP = (torch.arange(embeds_VPH.shape[1], device=self.model.device) < lengths_V[:, None]).long()
        cache = DynamicCache(config=self.model.config)
        position_VP = torch.nn.utils.rnn.pad_sequence([video.positions for video in videos], batch_first=True)
        self.model.model.language_model(
            inputs_embeds=embeds_VPH, position_ids=position_VP.to(self.model.device), past_key_values=cache, use_cache=True
        )
        end_V = torch.tensor([video.end for video in videos], device=self.model.device)
        return _Prefixes(cache=cache, mask=mask_VP, end=end_V)

    def _generate(self, seen: _Prefixes, asked: Sequence[tuple[int, Askable]]) -> list[Reply]:
        """Decode greedily. Columns of a row: its video's prefix, pads, its suffix, its answer."""
        device = self.model.device
        rows = [row for _, row in asked]
        owner_B = torch.tensor([owner for owner, _ in asked], device=device)
        room_B = torch.tensor([row.room for row in rows], device=device)
        longest = max(len(row.suffix) for row in rows)
        ids_BL = torch.tensor([[0] * (longest - len(row.suffix)) + [*row.suffix] for row in rows], device=device)
        mask_BL = torch.tensor([[0] * (longest - len(r.suffix)) + [1] * len(r.suffix) for r in rows], device=device)
        mask_BC = torch.cat([seen.mask[owner_B], mask_BL], dim=1)
        position_BL = seen.end[owner_B, None] + (mask_BL.cumsum(1) - 1).clamp(min=0)
        reading = Rows(prefixes=seen.cache, owner=owner_B, ids=ids_BL, mask=mask_BC, position=position_BL)
        done_B = torch.zeros(len(rows), dtype=torch.bool, device=device)
        eos = torch.tensor(self.eos, device=device)
        said: list[Tensor] = []
        for next_B in self.steps.say(reading, self.max_new_tokens):
            said.append(next_B)
            done_B = done_B | torch.isin(next_B, eos) | (len(said) >= room_B)
            if bool(done_B.all()):
                break
        return [self.reply(ids[: row.room]) for ids, row in zip(torch.stack(said, 1).tolist(), rows, strict=True)]

    def _next_ids(self, ids_BL: Tensor, mask_BC: Tensor | None, position_BL: Tensor, cache: Cache) -> Tensor:
        """Return the likeliest next id (B,) of each row; see `generation.Forward`."""
        hidden_BLH = self.model.model.language_model(
            inputs_embeds=self._embed(ids_BL),
            attention_mask=mask_BC,
            position_ids=position_BL,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits_BW: Tensor = self.model.lm_head(hidden_BLH[:, -1]).float()
        return logits_BW.index_fill(1, self._never, -torch.inf).argmax(dim=-1)

    def _embed(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        return embeds

    def reply(self, ids: Sequence[int]) -> Reply:
        """Return what was said up to its EOS."""
        ended = next((at + 1 for at, token in enumerate(ids) if token in self.eos), len(ids))
        text = self.tokenizer.decode(ids[:ended], skip_special_tokens=True).strip()
        return Reply(text=text, status="ok", tokens=ended)


def _out_of_memory(video: _Video) -> list[Reply]:
    return video.merge([Reply(text=None, status="out_of_memory")] * len(video.rows))
