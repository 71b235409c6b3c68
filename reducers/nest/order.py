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

from reducers.base import BudgetError, ReducerError
from reducers.ops.clip_budget import Clip, summed

STEP = 2.0**-16
"""What kernel and mass are multiples of."""
TAKEN = -1.0
"""The gain of a row that has its rank."""
STALE = 16
"""Gains that lazy greedy looks at anew in one go."""
BLOCK = 256
"""Rows of a kernel that are made in one go."""
MOST_RANKS = 2**15
"""Of a superset: ranks and places of tokens are int16."""
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
    gamma: float = 4.0
    """Power of the cosine in the kernel."""
    memory: float | None = None
    """lambda, frames after which a patch explains others 1/e as well. Default: a quarter of the frames."""
    still: float = 0.2
    """nu0, mass of a patch that does not change, as a share of one that does."""
    cap: float = 3.0
    """Attention counts up to so many times the mean: it tames attention sinks."""
    spread: int = 2
    """c0, the first c0 * F ranks take frames in turn."""
    gate: float = 0.8
    """Cosine below which a patch is dropped rather than merged."""
    omega: float = 0.25
    """Weight of what a token takes in."""

    def __post_init__(self) -> None:
        if self.superset < 1 or self.spread < 0 or not 1 <= (1 if self.keep is None else self.keep) <= self.superset:
            got = f"{self.keep}, {self.superset} and {self.spread}"
            raise BudgetError(f"expected 1 <= keep <= superset and spread >= 0, got {got}")
        if self.superset > MOST_RANKS:
            raise BudgetError(f"expected a superset of at most {MOST_RANKS}, got {self.superset}: a rank is stored in 16 bits")
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
    """F, frames of the clip."""


def evidence(clip: Clip, config: NestConfig, out_MM: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return kernel (M, M), in `out_MM` if given, mass (M,) and centred directions (M, D) of a clip.

    Source: docs/methods/video.md section 7.1, 1 to 4.
    Departs: kernel and mass are rounded to 2**-16.
    """
    frames, patches, _ = clip.x.shape
    x_MD = clip.x.flatten(0, 1)
    u_MD = directions(x_MD, x_MD.mean(0))
    u_FND = u_MD.view_as(clip.x)
    change_FN = torch.ones_like(clip.a)
    change_FN[1:] -= (u_FND[1:] * u_FND[:-1]).sum(-1).clamp(0, 1)
    attended_FN = 0.3 + 0.7 * (patches * clip.a).clamp(max=config.cap)
    mass_M = (attended_FN * (config.still + (1 - config.still) * change_FN)).flatten()
    frame_M = torch.arange(len(x_MD), device=x_MD.device) // patches
    return kernel(u_MD, frame_M, frames, config, out_MM), rounded(mass_M), u_MD


def directions(x_nD: Tensor, centre_D: Tensor) -> Tensor:
    """Return unit rows (n, D) of what differs from the centre; 0 where nothing does."""
    apart_nD = x_nD - centre_D
    length_n1 = apart_nD.norm(dim=1, keepdim=True)
    same_n1 = length_n1 < 1e-6 * x_nD.norm(dim=1, keepdim=True)
    return apart_nD.div_(length_n1.clamp(min=1e-12).masked_fill(same_n1, torch.inf))


def kernel(u_nD: Tensor, frame_n: Tensor, frames: int, config: NestConfig, out_nn: Tensor | None = None) -> Tensor:
    """Return how well each row explains each other (n, n), 1 on the diagonal, less the further apart in time.

    A block of rows at a time, up to the diagonal; what lies beyond is the mirror image.
    """
    k_nn = u_nD.new_empty(len(u_nD), len(u_nD)) if out_nn is None else out_nn
    time_F = torch.arange(frames, device=u_nD.device)
    fade_Fn = (-(time_F[:, None] - frame_n).abs() / (config.memory or frames / 4)).exp() / STEP
    for start in range(0, len(u_nD), BLOCK):
        rows, columns = slice(start, start + BLOCK), slice(0, start + BLOCK)
        like = (u_nD[rows] @ u_nD[columns].T).clamp_(0, 1).pow_(config.gamma)
        k_nn[rows, columns] = like.mul_(fade_Fn[frame_n[rows], columns]).round_().mul_(STEP)
        k_nn[:start, rows] = k_nn[rows, :start].T
    return k_nn.fill_diagonal_(1)


def rounded(values: Tensor) -> Tensor:
    """Return values of any shape rounded to 2**-16: their sums are then exact in float64."""
    return (values / STEP).round() * STEP


class Search:
    """Lazy greedy over the rows of several clips, each at its own pace.

    Gains never rise, so a gain that was computed earlier is a bound. Each step looks anew at the rows of the largest
    bounds; a clip whose best row is among them ranks it. Nothing waits for the host, which asks only a few times how far
    the clips are.
    """

    def __init__(self, kernel_Cnn: Tensor, mass_Cn: Tensor, first_Cq: Tensor, frame_n: Tensor, frames: int) -> None:
        clips, rows = mass_Cn.shape
        self.kernel_Rn, self.mass_Cn1, self.frame_n = kernel_Cnn.flatten(0, 1), mass_Cn.double()[..., None], frame_n
        self.start_C1 = rows * torch.arange(clips, device=mass_Cn.device)[:, None]
        seen_Cqn = self._kernel_rows(first_Cq)
        self.best_Cn = torch.cat([seen_Cqn, torch.zeros_like(mass_Cn)[:, None]], dim=1).amax(1)
        above = 1 + rows * 2.0**-23  # more than what rounding in float32 takes off a sum
        self.bound_Cn = torch.stack([k_nn @ m_n for k_nn, m_n in zip(kernel_Cnn, mass_Cn, strict=True)]).double() * above
        self.bound_Cn.scatter_(1, first_Cq, TAKEN)
        self.top_C1, self.rank_C1 = torch.zeros_like(self.start_C1), torch.zeros_like(self.start_C1)
        self.taken_CF = mass_Cn.new_zeros(clips, frames, dtype=torch.int64)

    def _kernel_rows(self, row_Cb: Tensor) -> Tensor:
        row_R = (row_Cb + self.start_C1).flatten()
        return self.kernel_Rn.index_select(0, row_R).view(*row_Cb.shape, len(self.frame_n))

    def _open(self, rounds: int) -> Tensor:
        """Return the bounds of rows that may be ranked; in the first rounds frames take turns."""
        if rounds == 0:
            return self.bound_Cn
        frames = self.taken_CF.shape[1]
        had_CF = (self.taken_CF > self.rank_C1 // frames) & (self.rank_C1 < rounds * frames)
        return self.bound_Cn.masked_fill(had_CF[:, self.frame_n], 2 * TAKEN)

    def step(self, order_CS: Tensor, gain_CS: Tensor, rounds: int) -> None:
        """Look at the most promising rows of each clip; put its next rank, if it is found, in its place of the order."""
        look_Cb = self._open(rounds).topk(min(STALE, len(self.frame_n))).indices
        look_Cb = torch.cat([look_Cb, self.top_C1], dim=1)  # topk may miss the lowest of equals
        more_Cbn = self._kernel_rows(look_Cb).sub_(self.best_Cn[:, None]).relu_().double()
        gain_Cb = (more_Cbn @ self.mass_Cn1)[..., 0].masked_fill_(self.bound_Cn.gather(1, look_Cb) < 0, TAKEN)
        self.bound_Cn.scatter_(1, look_Cb, gain_Cb)
        self.top_C1 = self._open(rounds).argmax(1, keepdim=True)
        last = order_CS.shape[1] - 1  # a place that is thrown away
        ready_C1 = (look_Cb == self.top_C1).any(1, keepdim=True) & (self.rank_C1 < last)
        place_C1, gain_C1 = torch.where(ready_C1, self.rank_C1, last), self.bound_Cn.gather(1, self.top_C1)
        order_CS.scatter_(1, place_C1, self.top_C1)
        gain_CS.scatter_(1, place_C1, gain_C1)
        self.bound_Cn.scatter_(1, self.top_C1, torch.where(ready_C1, TAKEN, gain_C1))
        self.best_Cn = self.best_Cn.maximum(self._kernel_rows(self.top_C1)[:, 0].mul_(ready_C1))
        self.rank_C1 += ready_C1
        if rounds:
            self.taken_CF.scatter_add_(1, self.frame_n[self.top_C1], ready_C1.long())


def greedy(
    kernel_Cnn: Tensor, mass_Cn: Tensor, count: int, first_Cq: Tensor, frame_n: Tensor, frames: int, spread: int = 0
) -> tuple[Tensor, Tensor]:
    """Order rows by how much mass each explains beyond all before it; ties go to the lower row.

    Args:
        kernel_Cnn: how well row i explains row j, multiples of `STEP`.
        mass_Cn: multiples of `STEP`.
        count: ranks to fill after the first q.
        first_Cq: rows that come first, as they are.
        frame_n: frame of each row, below `frames`.
        frames: F.
        spread: so many rounds over the frames, all frames have equally many ranks after each.

    Returns:
        Rows by rank (C, q + count), int64, and their gains (C, count), float64.
    """
    search = Search(kernel_Cnn, mass_Cn, first_Cq, frame_n, frames)
    order_CS = first_Cq.new_zeros(len(mass_Cn), count + 1)
    gain_CS = order_CS.double()
    slowest = 0
    while slowest < count:
        turns = slowest < spread * frames
        goal = min(count, spread * frames) if turns else count
        for _ in range(goal - slowest):  # it takes that many at least
            search.step(order_CS, gain_CS, spread if turns else 0)
        slowest = int(search.rank_C1.min())
    return torch.cat([first_Cq, order_CS[:, :-1]], dim=1), gain_CS[:, :-1]


def build(clips: Sequence[Clip], config: NestConfig) -> list[Superset]:
    """Return the superset of each clip; clips of equal size are ordered together.

    Source: docs/methods/video.md section 7.1; prior art: FLoC (facility location), EVS, FlashVID, UniComp.
    """
    found: dict[int, Superset] = {}
    for shape in dict.fromkeys(clip.a.shape for clip in clips):
        same = [number for number, clip in enumerate(clips) if clip.a.shape == shape]
        group = max(1, KERNEL_BYTES // (4 * shape.numel() ** 2))
        for start in range(0, len(same), group):
            numbers = same[start : start + group]
            kernel_CMM = clips[numbers[0]].x.new_empty(len(numbers), shape.numel(), shape.numel())
            parts = [evidence(clips[number], config, k_MM) for number, k_MM in zip(numbers, kernel_CMM, strict=True)]
            mass_CM = torch.stack([part[1] for part in parts])
            frame_M = torch.arange(shape.numel(), device=mass_CM.device) // shape[1]
            count, nobody = min(config.superset, shape.numel()), frame_M.new_zeros(len(parts), 0)
            order_CS, gain_CS = greedy(kernel_CMM, mass_CM, count, nobody, frame_M, shape[0], config.spread)
            for number, part, order_S, gain_S in zip(numbers, parts, order_CS, gain_CS, strict=True):
                found[number] = _superset(clips[number], part, order_S, gain_S, config)
    return [found[number] for number in range(len(clips))]


def _superset(clip: Clip, part: tuple[Tensor, Tensor, Tensor], order_S: Tensor, gain_S: Tensor, config: NestConfig) -> Superset:
    """Point each rank at the earlier one that explains it best; absorb the patches that have no rank."""
    k_MM, mass_M, u_MD = part
    x_MD, ranks = clip.x.flatten(0, 1), torch.arange(len(order_S), device=order_S.device)
    explained_SM, own_SD = k_MM.index_select(0, order_S), u_MD.index_select(0, order_S)
    earlier_SS = explained_SM[:, order_S].T.masked_fill(ranks >= ranks[:, None], -1)
    parent_S = earlier_SS.argmax(1)
    link_S = (own_SD.index_select(0, parent_S).mul_(own_SD).sum(1) >= config.gate) & (ranks > 0)
    holder_M = explained_SM.argmax(0)
    alike_M = own_SD.index_select(0, holder_M).mul_(u_MD).sum(1) >= config.gate
    holder_M = torch.where(alike_M, holder_M, -1).index_copy(0, order_S, ranks)
    unranked_M = torch.ones_like(alike_M).index_fill(0, order_S, False)
    slot_M = torch.where(unranked_M, holder_M, -1) % (len(ranks) + 1)
    weight_S = 1 + config.omega * summed(torch.ones_like(mass_M), slot_M, len(ranks) + 1)[:-1]
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
