"""From a golden case on a video to our own methods on whole clips, as published: no CLS rows, no exact budget."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from reducers.base import CONTEXTUAL
from reducers.methods.dycoke import DyCokeConfig, dycoke
from reducers.methods.evs import EvsConfig, evs
from reducers.methods.fastvid import FastVidConfig, anchor_frames, fastvid
from reducers.methods.flashvid import FlashVidConfig, flashvid
from reducers.methods.holitom import HoliTomConfig, holitom
from reducers.methods.unicomp import UniCompConfig, frame_groups, group_budgets, unicomp
from reducers.methods.vcast import VCastConfig, curvature, frame_budgets, vcast
from reducers.ops.clip_budget import Budget, Clip
from reducers.ops.ranking import adjacent_likeness, normalised
from reducers.ops.segments import saved, segment_of, windows
from tests.golden.cases import Case

Outputs = dict[str, Tensor]


def clip_of(case: Case) -> Clip:
    x, a = case.inputs["features"], case.inputs["cls_attention"]
    return Clip(x=x, a=a, g=case.inputs["frame_global"], metric=x)


def share(case: Case, ratio: float) -> Budget:
    total = case.inputs["cls_attention"].numel()
    return Budget(patches=int(total * ratio), ratio=ratio, cls=False)


def run_evs(case: Case) -> Outputs:
    ratio = 1 - case.params["q"]
    found = evs(clip_of(case), share(case, ratio), EvsConfig(ratio=ratio, compat=True))
    return {"mask": found.holder[:, 0] >= 0, "index": found.anchor}


def run_vcast(case: Case) -> Outputs:
    clip = clip_of(case)
    budget = Budget(patches=round(clip.a.numel() * case.params["r"]), ratio=case.params["r"], cls=False)
    config = VCastConfig(ratio=case.params["r"], least=case.params["min_k"], compat=True)
    turn = curvature(clip.x)
    found = vcast(clip, budget, config)
    budgets = frame_budgets(turn, budget.patches, clip.a.shape[1], config)
    return {"tokens": found.features, "index": found.anchor, "curvature": turn, "frame_budget": budgets}


def run_dycoke(case: Case) -> Outputs:
    """Inside a frame the case lists tokens by likeness, we by index: ours are put where the case has the same rank."""
    config = DyCokeConfig(prune=case.params["K"], compat=True)
    found = dycoke(clip_of(case), share(case, 1.0), config).by_anchor()
    rank = case.outputs["index_official_order"].argsort().argsort()
    if len(rank) != len(found.anchor):
        raise ValueError(f"expected {len(rank)} tokens, got {len(found.anchor)}")
    return {"tokens_official_order": found.features[rank], "index_official_order": found.anchor[rank]}


def run_fastvid(case: Case) -> Outputs:
    p, clip = case.params, clip_of(case)
    config = FastVidConfig(segments=p["c"], tau=p["tau"], context_share=p["d"], stride=p["p"], beta=p["beta"])
    found = fastvid(clip, share(case, p["r"]), config)
    g = normalised(clip.g)
    segment = segment_of((g[:-1] * g[1:]).sum(-1), p["c"], p["tau"])
    host, length, anchors = anchor_frames(segment, p["p"])
    per_frame = int(int(clip.a.shape[1] * p["r"]) * p["d"]) * length // anchors * host
    tokens = {"tokens": found.features, "index": found.anchor}
    return {**tokens, "segment_sizes": segment.bincount(), "context_per_frame": per_frame}


def run_holitom(case: Case) -> Outputs:
    """The case lists the still tokens of a window before the others, we sort by anchor."""
    p, clip = case.params, clip_of(case)
    patches = clip.a.shape[1]
    names = {"tau": p["tau"], "beta": p["beta"], "neighbours": p["K"], "context_share": p["D"]}
    config = HoliTomConfig(ratio=p["r"], max_window=p["max_window"], compat=True, **names)
    found = holitom(clip, share(case, p["r"]), config)
    spans, still = windows(adjacent_likeness(clip.x) > p["tau"], p["max_window"])
    gain, is_still = saved(spans, still), found.kind == CONTEXTUAL
    ratio = torch.tensor([min(1.0, p["r"] / (1 - gain / clip.a.numel()))], dtype=torch.float64)
    counts = still.sum(1)
    merged, changing = (counts * ratio).round().long(), ((patches - counts) * ratio).ceil().long()
    start, end = torch.tensor(spans).T.contiguous()
    window = torch.searchsorted(end, found.anchor // patches)
    order = (window * 2 + ~is_still).argsort(stable=True)
    return {
        "tokens": found.features[order],
        "index": found.anchor[order],
        "is_static": is_still[order],
        "windows": torch.stack([start, end, counts, merged, changing], dim=1),
        "adjusted_ratio": ratio,
        "total_reduced": torch.tensor([float(gain)], dtype=torch.float64),
    }


def run_flashvid(case: Case) -> Outputs:
    p, clip = case.params, clip_of(case)
    config = FlashVidConfig(
        alpha=p["alpha"],
        tau=p["temporal_threshold"],
        selection="v2" if p["selection"] == "attn_div_v2" else "v1",
        segments=p["min_segments"] if p["do_segment"] else 1,
        segment_tau=p["segment_threshold"] if p["do_segment"] else -1.0,
        compat=True,
    )
    found = flashvid(clip, share(case, p["r"]), config)
    features = twins_as_listed(found.features, found.anchor, case.outputs["tokens"])
    mean = normalised(clip.x.mean(1))
    segment = segment_of((mean[:-1] * mean[1:]).sum(-1), config.segments or 1, config.segment_tau)
    tokens = math.ceil(clip.a.shape[1] * p["r"])
    selected = math.ceil(tokens * p["alpha"])
    out = {"tokens": features, "index": found.anchor, "segment_sizes": segment.bincount()}
    return {**out, "per_frame": torch.tensor([selected, tokens - selected])}


def twins_as_listed(tokens: Tensor, index: Tensor, expected: Tensor) -> Tensor:
    """Swap two tokens of the same index (A3) where the case, which sorts unstably, lists them the other way round."""
    tokens = tokens.clone()
    for at in (index[1:] == index[:-1]).nonzero()[:, 0].tolist():
        pair, listed = tokens[at : at + 2], expected[at : at + 2]
        if (pair.flip(0) - listed).abs().sum() < (pair - listed).abs().sum():
            tokens[at : at + 2] = pair.flip(0)
    return tokens


def run_unicomp(case: Case) -> Outputs:
    p, clip = case.params, clip_of(case)
    names = {"frame_uniqueness": p["frame_uniqueness"], "spatial_uniqueness": p["spatial_uniqueness"]}
    config = UniCompConfig(channel_means=not p["use_global"], compat=True, **names)
    budget, patches = share(case, p["r"]), clip.a.shape[1]
    found = unicomp(clip, budget, config)
    first = torch.tensor(frame_groups(clip.x, p["frame_uniqueness"], int(1 / p["r"]) + 1))
    vector = clip.g[first]
    if not p["use_global"]:
        ends = [*first.tolist()[1:], len(clip.x)]
        vector = torch.stack([clip.x[start:end].mean((0, 2)) for start, end in zip(first.tolist(), ends, strict=True)])
    budgets = group_budgets(vector, budget.patches, patches, compat=True)
    out = {"tokens": found.features, "index": found.anchor, "group_first_frame": first}
    return {**out, "frame_budget": budgets.clamp(max=patches)}


METHODS: Mapping[str, Callable[[Case], Outputs]] = {
    "evs": run_evs,
    "vcast": run_vcast,
    "dycoke_ttm": run_dycoke,
    "fastvid": run_fastvid,
    "holitom": run_holitom,
    "flashvid": run_flashvid,
    "unicomp": run_unicomp,
}
"""Method of a case to what runs it."""
