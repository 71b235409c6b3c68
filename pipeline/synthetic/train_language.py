"""Second stage of training: projector and language model learn to answer from the tower's rows.

All questions of a clip are packed behind its visual tokens; each sees the prefix and itself, and its positions go on where
the prefix ends, which is exactly how the engine shares a prefix at inference. Most steps keep a random part of each
frame's patches, with more weight on those that show something, and blur a few into others: cheaper than all 520
tokens, and the model learns to read clips that were reduced. Some steps keep them all.

Shapes: B clips, F frames, N patches, V visual tokens, Q questions, T positions, D tower width, H hidden width.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, VideoLlavaForConditionalGeneration

from pipeline.synthetic.model import BOS, build_tokenizer
from pipeline.synthetic.pool import FRAMES, Pool
from pipeline.synthetic.questions import TYPES
from pipeline.synthetic.resume import Run
from pipeline.synthetic.train_tower import LOG_EVERY, SAVE_EVERY, TowerHeads, augment, normalise
from pipeline.synthetic.world import PATCHES

ALL = PATCHES**2
"""Patches of a frame."""
PATCHES_KEPT = ((6, 0.1), (12, 0.25), (24, 0.25), (40, 0.15), (ALL, 0.25))
"""Patches per frame that a step keeps, with how often."""
SAMPLE_CLIPS = 200
FIRST_KEPT, FIRST_SHARE = ((10, 0.5), (16, 0.5)), 0.55
"""The same for the first share of all steps: what shows something and little else, so that look-ups are learned soon."""
RARE, LAST_SHARE = 2, 0.15
"""In the last share of all steps half of the clips have a question of the rare type: one clip in four has any."""
WEIGHTS = {0: 2.0, 1: 1.5, 2: 20.0, 3: 0.8, 4: 1.0, 5: 1.0, 6: 1.2, 7: 1.5}
"""How likely a question of a type is drawn, beside the others of its clip."""
QUESTIONS = 12
"""Q drawn per clip and step."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Questions of B clips behind prefixes of P positions, ready for one forward pass."""

    ids: Tensor
    """(B, T) ids of questions and answers, padded."""
    segment: Tensor
    """(B, T) number of the question, -1 on pads."""
    place: Tensor
    """(B, T) place inside the question."""
    target: Tensor
    """(B, T) id to predict where an answer is due, else -100."""
    type: Tensor
    """(B, T) type of the question."""


def pack(clips: Sequence[Sequence[tuple[list[int], list[int], int]]]) -> Packed:
    """Lay the questions of each clip one after the other."""
    rows: list[list[tuple[int, int, int, int, int]]] = []
    for asked in clips:
        row: list[tuple[int, int, int, int, int]] = []
        for number, (prompt, answer, type_) in enumerate(asked):
            ids = [*prompt, *answer[:-1]]
            targets = [-100] * (len(prompt) - 1) + answer
            row += [(i, number, place, t, type_) for place, (i, t) in enumerate(zip(ids, targets, strict=True))]
        rows.append(row)
    longest = max(map(len, rows))
    padded = torch.tensor([row + [(0, -1, 0, -100, 0)] * (longest - len(row)) for row in rows])
    fields = ("ids", "segment", "place", "target", "type")
    return Packed(**dict(zip(fields, padded.unbind(-1), strict=True)))


def packed_logits(model: VideoLlavaForConditionalGeneration, visual_BVD: Tensor, packed: Packed) -> Tensor:
    """Return logits (B, T, vocabulary) of all packed questions behind `<s> USER:` and the visual tokens."""
    device = visual_BVD.device
    embed = model.get_input_embeddings()
    user = build_tokenizer().convert_tokens_to_ids("USER:")
    opening = embed(torch.tensor([[BOS, user]], device=device)).expand(len(visual_BVD), -1, -1)
    shown = model.model.multi_modal_projector(visual_BVD)
    prefix = opening.shape[1] + shown.shape[1]
    embeds = torch.cat([opening.to(shown.dtype), shown, embed(packed.ids).to(shown.dtype)], dim=1)
    ahead = torch.arange(prefix, device=device).expand(len(visual_BVD), -1)
    positions = torch.cat([ahead, prefix + packed.place], dim=1)
    hidden_BTH = model.model.language_model(
        inputs_embeds=embeds, attention_mask=_mask(packed.segment, prefix), position_ids=positions, use_cache=False
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden_BTH[:, prefix:])
    return logits


def _mask(segment_BT: Tensor, prefix: int) -> Tensor:
    """Return which position may see which (B, 1, P + T, P + T): the past of its own segment, and the whole prefix."""
    segment = F.pad(segment_BT, (prefix, 0), value=-2)
    length = segment.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    same = segment[:, :, None] == segment[:, None, :]
    return ((same | (segment == -2)[:, None, :]) & past)[:, None]


@torch.inference_mode()
def tower_rows(tower: CLIPVisionModel, pool: Pool, seed: int, chunk: int = 256) -> Tensor:
    """Return the selected layer's rows (C, F, 1 + N, D) of a pool, bfloat16, from slightly jittered frames."""
    device = next(tower.parameters()).device
    random = torch.Generator().manual_seed(seed)
    frames = pool.frames.flatten(0, 1)
    rows = []
    for some in frames.split(chunk):
        with torch.autocast(device.type, torch.bfloat16):
            seen = tower(augment(normalise(some), random).to(device), output_hidden_states=True)
        rows.append(seen.hidden_states[-2].to(torch.bfloat16).cpu())
    return torch.cat(rows).unflatten(0, (len(pool.frames), FRAMES))


def drop(rows_BFTD: Tensor, owner_BFN: Tensor, kept: int, random: torch.Generator, *, clean: bool = False) -> Tensor:
    """Return visual tokens (B, V, D): CLS and `kept` patches of each frame, in raster order, some of them blurred.

    `clean` keeps what shows something first and blurs nothing.
    """
    favour = 1.0 if clean else 0.3 + float(torch.rand((), generator=random)) * 1.5
    score = torch.rand(owner_BFN.shape, generator=random) + favour * (owner_BFN > 0)
    chosen = score.topk(kept, dim=-1).indices.sort(-1).values + 1
    if float(torch.rand((), generator=random)) < 0.75:
        chosen = F.pad(chosen, (1, 0))
    tokens = rows_BFTD.gather(2, chosen[..., None].expand(-1, -1, -1, rows_BFTD.shape[-1])).flatten(1, 2)
    if kept < ALL and not clean and float(torch.rand((), generator=random)) < 0.5:
        tokens = _blur(tokens, random)
    return tokens


def _blur(tokens_BVD: Tensor, random: torch.Generator) -> Tensor:
    """Add a share of the mean of eight random tokens to a fifth of the tokens, as merging reducers do."""
    count = tokens_BVD.shape[1]
    others = torch.randint(count, (8, count), generator=random)
    mean = tokens_BVD[:, others].mean(1)
    share = torch.rand(count, generator=random) * (torch.rand(count, generator=random) < 0.2)
    return tokens_BVD + (share[:, None] * mean.float()).to(tokens_BVD.dtype)


@torch.no_grad()
def start_projector(projector: nn.Module, heads: TowerHeads, rows_CFTD: Tensor, owner_CFN: Tensor) -> None:
    """Let the projector begin with what the tower's heads read from a row: colour, shape and place, all of one size.

    The directions in which a row tells its place vary little beside those of its colour; a random projector hides them
    from the language model for thousands of steps. `linear_1` takes the heads as its first rows, the place with both signs.
    """
    weight = torch.cat([heads.kind.weight, heads.centre.weight, -heads.centre.weight])
    bias = torch.cat([heads.kind.bias, heads.centre.bias, -heads.centre.bias])
    shown = rows_CFTD[:SAMPLE_CLIPS, :, 1:][owner_CFN[:SAMPLE_CLIPS] > 0].to(weight.device, weight.dtype)
    size = (shown @ weight.T + bias).std(0) / 1.5
    first, second = projector.get_submodule("linear_1"), projector.get_submodule("linear_2")
    first.get_parameter("weight")[: len(weight)] = weight / size[:, None]
    first.get_parameter("bias")[: len(weight)] = bias / size
    second.get_parameter("weight").normal_(0, 0.1)


def train_language(
    model: VideoLlavaForConditionalGeneration,
    rows: Tensor,
    pool: Pool,
    *,
    steps: int,
    rate: float,
    seed: int,
    log: Callable[[str], None],
    state: Path | None = None,
    tokens_per_step: int = 8 * 65 * 24,
) -> None:
    """Train projector and language model in place on the rows of a pool, from where `state` left off."""
    device = next(model.parameters()).device
    parts = {
        "projector": model.model.multi_modal_projector,
        "language": model.model.language_model,
        "head": model.lm_head,
    }
    rare = torch.tensor([at for at, asked in enumerate(pool.asked) if any(kind == RARE for _, _, kind in asked)])
    run = Run(parts, rate, steps, 0.06, 0.05, state)
    right: defaultdict[int, list[float]] = defaultdict(list)
    began, before = time.monotonic(), run.step
    while run.step < steps:
        random = run.draws(seed)
        first = run.step < FIRST_SHARE * steps
        counts, shares = zip(*(FIRST_KEPT if first else PATCHES_KEPT), strict=True)
        kept = counts[int(torch.multinomial(torch.tensor(shares), 1, generator=random))]
        clips = max(4, min(32, tokens_per_step // (FRAMES * (kept + 1))))
        last = run.step >= (1 - LAST_SHARE) * steps
        clip_B = _clips(clips, len(rows), rare if last else rare[:0], random)
        visual = drop(rows[clip_B], pool.owners[clip_B], kept, random, clean=first).to(device)
        visual = visual + 0.05 * torch.randn(visual.shape, generator=random).to(device, visual.dtype)
        packed = _draw(pool, clip_B.tolist(), random, device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = packed_logits(model, visual, packed).float()
        loss = F.cross_entropy(logits.flatten(0, 1), packed.target.flatten(), ignore_index=-100)
        run.descend(loss)
        for type_, value in _scores(logits, packed):
            right[type_].append(value)
        if run.step % LOG_EVERY == 0 or run.step == steps:
            shown = " ".join(f"{TYPES[t]} {sum(v) / len(v):.2f}" for t, v in sorted(right.items()))
            each = (time.monotonic() - began) / (run.step - before)
            log(f"language {run.step}/{steps} loss {loss.item():.3f} {shown} {each:.2f} s/step")
            right.clear()
        if run.step % SAVE_EVERY == 0 or run.step == steps:
            run.save()


def _clips(count: int, pool: int, rare: Tensor, random: torch.Generator) -> Tensor:
    """Draw clips of a pool (B,), half of them from the rare ones if there are any."""
    clip_B = torch.randint(pool, (count,), generator=random)
    if len(rare):
        clip_B[: count // 2] = rare[torch.randint(len(rare), (count // 2,), generator=random)]
    return clip_B


def _draw(pool: Pool, clips: Sequence[int], random: torch.Generator, device: torch.device) -> Packed:
    """Draw Q questions of each clip, by the weights of their types."""
    drawn = []
    for clip in clips:
        asked = pool.asked[clip]
        weights = torch.tensor([WEIGHTS[type_] for _, _, type_ in asked])
        chosen = torch.multinomial(weights, min(QUESTIONS, len(asked)), generator=random)
        drawn.append([asked[number] for number in chosen.tolist()])
    packed = pack(drawn)
    return Packed(**{name: value.to(device) for name, value in vars(packed).items()})


def _scores(logits_BTW: Tensor, packed: Packed) -> Iterator[tuple[int, float]]:
    """Yield type and 1 or 0 of each question: whether every token of its answer, EOS too, is the likeliest."""
    wrong = (logits_BTW.argmax(-1) != packed.target) & (packed.target != -100)
    clip, place = (packed.target != -100).nonzero(as_tuple=True)
    seen: dict[tuple[int, int], tuple[int, float]] = {}
    triples = zip(clip.tolist(), packed.segment[clip, place].tolist(), packed.type[clip, place].tolist(), strict=True)
    for (row, number, type_), bad in zip(triples, wrong[clip, place].tolist(), strict=True):
        _, value = seen.get((row, number), (type_, 1.0))
        seen[row, number] = (type_, 0.0 if bad else value)
    return iter(seen.values())


@torch.inference_mode()
def held_out_accuracy(model: VideoLlavaForConditionalGeneration, rows: Tensor, pool: Pool, kept: int = ALL) -> dict[str, float]:
    """Return exact match per type over all questions of a pool. Judging by forcing the truth equals greedy decoding."""
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(0)
    right: defaultdict[str, list[float]] = defaultdict(list)
    for clip in range(len(rows)):
        one = torch.tensor([clip])
        visual = rows[one].flatten(1, 2) if kept == ALL else drop(rows[one], pool.owners[one], kept, random)
        packed = pack([pool.asked[clip]])
        packed = Packed(**{name: value.to(device) for name, value in vars(packed).items()})
        with torch.autocast(device.type, torch.bfloat16):
            logits = packed_logits(model, visual.to(device), packed)
        for type_, value in _scores(logits, packed):
            right[TYPES[type_]].append(value)
            right["all"].append(value)
    return {name: sum(values) / len(values) for name, values in sorted(right.items())}
