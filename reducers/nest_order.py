"""The order of `nest`: patches ranked so that every prefix explains as much of the clip as it can.

Shapes: C clips of equal size, F frames, N patches, M = F * N, D width, S ranks of the superset. id = frame * N + patch; a
rank is a place in the order, 0 the first.

Kernel and mass are rounded to 2**-16, so gains are sums without rounding in float64: lazy and plain greedy, alone or
in a batch, with one thread or many, all give the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reducers.base import (
    BudgetError,
    ReducerError,
    normalised,
)
from reducers.evs import adjacent_likeness
from reducers.fit import Clip, summed

STEP = 2.0**-16
STALE = 32
"""Gains that lazy greedy looks at anew in one go."""
KERNEL_BYTES = 1 << 30
"""Most that the kernels of clips ordered together take."""


@dataclass(frozen=True, kw_only=True)
class NestConfig:
    """Parameters of `nest`."""

    keep: int | None = None
    """B, tokens per clip, CLS rows included. Default: the superset; less is what folding it later gives, bit by bit."""
    superset: int = 512
    """S, patches that are ranked."""
    keep_cls: bool = True
    """Keep the CLS row of each frame in front of its tokens, if B leaves as many tokens for patches again."""
    gamma: float = 2.0
    """Power of the cosine in the kernel."""
    memory: float | None = None
    """lambda, frames after which a patch explains others 1/e as well. Default: a quarter of the frames."""
    still: float = 0.2
    """nu0, mass of a patch that does not change, as a share of one that does."""
    cap: float = 3.0
    """Attention counts up to so many times the mean: it tames attention sinks."""
    spread: int = 2
    """c0, the first c0 * F ranks take frames in turn."""
    gate: float = 0.6
    """Cosine below which a patch is dropped rather than merged."""
    omega: float = 0.25
    """Weight of what a token takes in."""

    def __post_init__(self) -> None:
        if self.superset < 1 or self.spread < 0 or not 1 <= (self.keep or 1) <= self.superset:
            got = f"{self.keep}, {self.superset} and {self.spread}"
            raise BudgetError(f"expected 1 <= keep <= superset and spread >= 0, got {got}")
        if not self.gamma > 0 or not self.cap > 0 or (self.memory is not None and not self.memory > 0):
            raise ReducerError(f"expected gamma, cap and memory above 0, got {self.gamma}, {self.cap}, {self.memory}")
        if not all(0 <= share <= 1 for share in (self.still, self.omega)) or not 0 < self.gate <= 1:
            got = f"{self.still}, {self.omega}, {self.gate}"
            raise ReducerError(f"expected still and omega in [0, 1] and gate in (0, 1], got {got}")


@dataclass(frozen=True, kw_only=True)
class Superset:
    """The ordered tokens of one clip: what is stored. Any prefix serves; `fold` is better; the question may choose."""

    features: Tensor
    """(S, D) float32."""
    id: Tensor
    """(S,) int64, by rank."""
    parent: Tensor
    """(S,) int64: the earlier rank that explains this one best; 0 for rank 0."""
    link: Tensor
    """(S,) bool: like enough to the parent to be merged into it."""
    weight: Tensor
    """(S,) float32: merge weight."""
    gain: Tensor
    """(S,) float32: share of the clip's mass that the rank explains beyond all before it."""
    holder: Tensor
    """(M,) int64: rank that holds each patch, -1 if dropped."""
    frames: int


def evidence(clip: Clip, config: NestConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return kernel (M, M), mass (M,) and centred directions (M, D) of a clip.

    Source: REDUCERS_VIDEO.md section 7.1, 1 to 4.
    Departs: kernel and mass are rounded to 2**-16.
    """
    frames, patches, _ = clip.x.shape
    x_MD = clip.x.flatten(0, 1)
    u_MD = directions(x_MD, x_MD.mean(0))
    change_FN = torch.ones_like(clip.a)
    change_FN[1:] -= adjacent_likeness(u_MD.view_as(clip.x)).clamp(0, 1)
    attended_FN = 0.3 + 0.7 * (patches * clip.a).clamp(max=config.cap)
    mass_M = (attended_FN * (config.still + (1 - config.still) * change_FN)).flatten()
    frame_M = torch.arange(len(x_MD), device=x_MD.device) // patches
    return kernel(u_MD, frame_M, config.gamma, config.memory or frames / 4), rounded(mass_M), u_MD


def directions(x_nD: Tensor, centre_D: Tensor) -> Tensor:
    """Return unit rows of what differs from the centre; 0 where nothing does."""
    apart_nD = x_nD - centre_D
    same_n1 = apart_nD.norm(dim=1, keepdim=True) < 1e-6 * x_nD.norm(dim=1, keepdim=True)
    return normalised(apart_nD.masked_fill(same_n1, 0))


def kernel(u_nD: Tensor, frame_n: Tensor, gamma: float, memory: float) -> Tensor:
    """Return how well each row explains each other (n, n), 1 on the diagonal, less the further apart in time."""
    gap_nn = (frame_n[:, None] - frame_n).abs()
    k_nn = (u_nD @ u_nD.T).clamp(0, 1).pow(gamma) * (-gap_nn / memory).exp()
    return rounded(k_nn).fill_diagonal_(1)


def rounded(values: Tensor) -> Tensor:
    """Return values rounded to 2**-16: their sums are then exact in float64."""
    return (values / STEP).round() * STEP


def greedy(
    kernel_Cnn: Tensor, mass_Cn: Tensor, count: int, first_Cq: Tensor, frame_n: Tensor, spread: int = 0
) -> tuple[Tensor, Tensor]:
    """Order rows by how much mass each explains beyond all before it; ties go to the lower row.

    Gains never rise (below rank `spread` * F only because frames take turns), so a gain that was computed earlier is a
    bound: only the rows of the largest bounds are looked at again, until the best of them is up to date.

    Args:
        kernel_Cnn: how well row i explains row j, multiples of `STEP`.
        mass_Cn: multiples of `STEP`.
        count: ranks to fill after the first q.
        first_Cq: rows that come first, as they are.
        frame_n: frame of each row.
        spread: so many rounds over the frames, all frames have equally many ranks after each.

    Returns:
        Rows by rank (C, q + count), int64, and their gains (C, count), float64.
    """
    clips = len(mass_Cn)
    clip_C1 = torch.arange(clips, device=mass_Cn.device)[:, None]
    best_Cn = torch.cat([kernel_Cnn[clip_C1, first_Cq], torch.zeros_like(mass_Cn)[:, None]], dim=1).amax(1)
    bound_Cn = torch.full_like(mass_Cn, torch.inf, dtype=torch.float64)
    bound_Cn.scatter_(1, first_Cq, -1)
    frames = int(frame_n.max()) + 1
    taken_CF = torch.zeros(clips, frames, dtype=torch.int64, device=mass_Cn.device)
    chosen, gains = [first_Cq], []
    for rank in range(count):  # each choice depends on all before
        open_Cn = bound_Cn >= 0
        if rank < spread * frames:
            open_Cn &= (taken_CF <= rank // frames)[:, frame_n]
        new_C1 = _best(kernel_Cnn, mass_Cn, best_Cn, bound_Cn, open_Cn)
        gains.append(bound_Cn.gather(1, new_C1))
        chosen.append(new_C1)
        bound_Cn.scatter_(1, new_C1, -1)
        taken_CF.scatter_add_(1, frame_n[new_C1], torch.ones_like(new_C1))
        best_Cn = best_Cn.maximum(kernel_Cnn[clip_C1, new_C1][:, 0])
    return torch.cat(chosen, dim=1), torch.cat([bound_Cn[:, :0], *gains], dim=1)


def _best(kernel_Cnn: Tensor, mass_Cn: Tensor, best_Cn: Tensor, bound_Cn: Tensor, open_Cn: Tensor) -> Tensor:
    """Return the open row of largest gain (C, 1); update bounds in place, those of the returned rows to their gains."""
    clip_C1 = torch.arange(len(mass_Cn), device=mass_Cn.device)[:, None]
    known_Cn = bound_Cn == 0  # a gain of 0 stays 0
    while True:
        top_C1 = bound_Cn.masked_fill(~open_Cn, -2).argmax(1, keepdim=True)
        if bool(known_Cn.gather(1, top_C1).all()):
            return top_C1
        stale_Cn = bound_Cn.masked_fill(~open_Cn | known_Cn, -2)
        look_Cb = stale_Cn.topk(min(STALE, stale_Cn.shape[1]), dim=1).indices
        more_Cbn = (kernel_Cnn[clip_C1, look_Cb] - best_Cn[:, None]).clamp(min=0).double()
        gain_Cb = (more_Cbn @ mass_Cn.double()[..., None])[..., 0]
        gain_Cb = torch.where(bound_Cn.gather(1, look_Cb) < 0, -1, gain_Cb)
        bound_Cn.scatter_(1, look_Cb, gain_Cb)
        known_Cn.scatter_(1, look_Cb, torch.ones_like(look_Cb, dtype=torch.bool))


def build(clips: Sequence[Clip], config: NestConfig) -> list[Superset]:
    """Return the superset of each clip; clips of equal size are ordered together.

    Source: REDUCERS_VIDEO.md section 7.1; prior art: FLoC (facility location), EVS, FlashVID, UniComp.
    """
    found: dict[int, Superset] = {}
    for shape in dict.fromkeys(clip.a.shape for clip in clips):
        same = [number for number, clip in enumerate(clips) if clip.a.shape == shape]
        group = max(1, KERNEL_BYTES // (4 * shape.numel() ** 2))
        for start in range(0, len(same), group):
            numbers = same[start : start + group]
            parts = [evidence(clips[number], config) for number in numbers]
            kernel_CMM, mass_CM = torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])
            frame_M = torch.arange(shape.numel(), device=mass_CM.device) // shape[1]
            count = min(config.superset, shape.numel())
            nobody = frame_M.new_zeros(len(parts), 0)
            order_CS, gain_CS = greedy(kernel_CMM, mass_CM, count, nobody, frame_M, config.spread)
            for number, part, order_S, gain_S in zip(numbers, parts, order_CS, gain_CS, strict=True):
                found[number] = _superset(clips[number], part, order_S, gain_S, config)
    return [found[number] for number in range(len(clips))]


def _superset(clip: Clip, part: tuple[Tensor, Tensor, Tensor], order_S: Tensor, gain_S: Tensor, config: NestConfig) -> Superset:
    """Point each rank at the earlier one that explains it best; absorb the patches that have no rank."""
    k_MM, mass_M, u_MD = part
    x_MD, ranks = clip.x.flatten(0, 1), torch.arange(len(order_S), device=order_S.device)
    explained_SM = k_MM[order_S]
    earlier_SS = explained_SM[:, order_S].T.masked_fill(ranks >= ranks[:, None], -1)
    parent_S = earlier_SS.argmax(1)
    link_S = ((u_MD[order_S] * u_MD[order_S[parent_S]]).sum(1) >= config.gate) & (ranks > 0)
    holder_M = explained_SM.argmax(0)
    alike_M = (u_MD * u_MD[order_S[holder_M]]).sum(1) >= config.gate
    holder_M = torch.where(alike_M, holder_M, -1).index_copy(0, order_S, ranks)
    unranked_M = torch.ones_like(alike_M).index_fill(0, order_S, False)
    slot_M = torch.where(unranked_M, holder_M, -1) % (len(ranks) + 1)
    weight_S = 1 + config.omega * slot_M.bincount(minlength=len(ranks) + 1)[:-1].float()
    absorbed_SD = summed(x_MD, slot_M, len(ranks) + 1)[:-1]
    return Superset(
        features=(x_MD[order_S] + config.omega * absorbed_SD) / weight_S[:, None],
        id=order_S,
        parent=parent_S,
        link=link_S,
        weight=weight_S,
        gain=(gain_S / mass_M.double().sum()).float(),
        holder=holder_M,
        frames=len(clip.x),
    )
