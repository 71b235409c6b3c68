"""From a golden case to our own code: inputs into VisualTokens, parameters into a config, results by the case's names."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from transformers import CLIPVisionConfig, CLIPVisionModel

from pipeline.models.token_merging import merge_blocks
from pipeline.models.tower import capture_tower
from reducers.base import AGGREGATE, CONTEXTUAL, KEPT, Capture, ReducedTokens, TextQuery, VisualTokens
from reducers.methods.grids import sequential_indices, spatial_indices
from reducers.methods.hired import best_attended
from reducers.methods.prumerge import PruMerge, PruMergeConfig, PruMergePlus
from reducers.methods.tome import match, merge, schedule
from reducers.methods.trim import Trim, TrimConfig, text_scores
from reducers.methods.visionzip import VisionZip, VisionZipConfig
from reducers.ops.attention import cls_attention, mean_over_heads, received_attention
from reducers.ops.budgets import allocate
from reducers.ops.ranking import upper_fence
from tests.golden.cases import Case
from tests.golden.video_methods import METHODS as VIDEO
from tests.reducers.hired_image import HiRedImageConfig, partition_masks, stitched

Outputs = dict[str, Tensor]


def run(case: Case) -> Outputs | None:
    """Return our outputs for a case, None where the method is not built yet."""
    adapter = ADAPTERS.get(case.method)
    return None if adapter is None else adapter(case)


def _grid(patches: int) -> tuple[int, int]:
    """Return the square grid of a number of patches, or a single row."""
    side = round(patches**0.5)
    return (side, side) if side * side == patches else (1, patches)


def _prumerge_config(params: Mapping[str, Any], *, plus: bool, compat: bool = False) -> PruMergeConfig:
    adaptive = params.get("adaptive", True)
    scope = params.get("outlier_scope", "frame")
    return PruMergeConfig(
        adaptive=adaptive,
        ratio=None if adaptive else params["ratio"],
        knn=params.get("knn", 32),
        iqr_factor=params.get("iqr_factor", 1.5),
        residual=params.get("residual_token", True),
        merge=params.get("merge", "add"),
        order=params.get("order", "attention"),
        scope=scope,
        duplicates=bool(params.get("duplicates", False)) and plus,
        int_truncation=bool(params.get("int_truncation", False)),
        compat=compat,
    )


def prumerge(case: Case) -> Outputs:
    """PruMerge and PruMerge+ from hidden rows, the CLS query and all keys."""
    build = PruMergePlus if case.method == "prumerge_plus" else PruMerge
    config = _prumerge_config(case.params, plus=build.plus, compat=case.tier == "quirk")
    hidden, keys = case.inputs["hidden"], case.inputs["k"]
    scores = cls_attention(case.inputs["q_cls"], keys, 1, "concat")
    reducer = build(config)
    tokens = _tokens(hidden, {reducer._attention: scores, reducer._keys: keys[:, 1:]}, config.scope)
    out = _selection(reducer.reduce(tokens), tokens, config.scope)
    out["cls_attn"] = scores
    factor = config.iqr_factor
    rows = scores.flatten()[None] if config.scope in ("clip", "batch") else scores
    fence = upper_fence(rows, factor)
    out["fence"], out["outlier_count"] = fence[:, 0], (rows > fence).sum(1)
    return out


def _tokens(hidden: Tensor, captures: Mapping[Capture, Tensor], scope: str) -> VisualTokens:
    frames, rows, _ = hidden.shape
    ends = [0, frames] if scope == "clip" else range(frames + 1)
    return VisualTokens(
        features=hidden[:, 1:],
        cls=hidden[:, 0],
        grid=_grid(rows - 1),
        clip_ptr=torch.tensor(list(ends)),
        captures=captures,
    )


def _selection(reduced: ReducedTokens, tokens: VisualTokens, scope: str) -> Outputs:
    """Return tokens, counts and indices in the layout of the cases."""
    counts = reduced.ptr[1:] - reduced.ptr[:-1]
    clip = torch.repeat_interleave(torch.arange(len(counts)), counts)
    chosen = reduced.anchor >= 0
    index = reduced.anchor.long() if scope == "clip" else reduced.anchor.long() % tokens.features.shape[1]
    return {
        "tokens": reduced.features,
        "num_tokens": counts,
        "selected": index[chosen],
        "num_selected": torch.bincount(clip[chosen], minlength=len(counts)),
        "num_residual": (reduced.kind == AGGREGATE).sum()[None],
    }


def visionzip(case: Case) -> Outputs:
    """VisionZip from hidden rows, the CLS query and keys of the block that produced them."""
    p, heads = case.params, case.params["num_heads"]
    scores = cls_attention(case.inputs["q_cls"], case.inputs["k"], heads, "sum")
    metric = mean_over_heads(case.inputs["k"], heads)
    config = VisionZipConfig(
        dominant=p["dominant"],
        contextual=p["contextual"],
        merge=p.get("merge", "add"),
        keep_cls=p.get("dominant_counts_cls", True),
    )
    reducer = VisionZip(config)
    tokens = _tokens(case.inputs["hidden"], {reducer.attention: scores, reducer.keys: metric[:, 1:]}, "frame")
    return {"cls_attn_head_sum": scores, "metric": metric, **_zipped(reducer.reduce(tokens), tokens)}


def _zipped(reduced: ReducedTokens, tokens: VisualTokens) -> Outputs:
    """Return VisionZip's result with one row per frame."""
    frames, patches = tokens.features.shape[:2]

    def indices(kind: int) -> Tensor:
        index = reduced.anchor[reduced.kind == kind].long() % patches
        return index.view(frames, len(index) // frames)

    return {
        "tokens": reduced.features.view(frames, -1, reduced.features.shape[1]),
        "dominant_index": indices(KEPT),
        "contextual_index": indices(CONTEXTUAL),
    }


def trim(case: Case) -> Outputs:
    """TRIM from patches, the norm and the projection into the joint space, and a text."""
    p, x = case.params, case.inputs
    v = layer_norm(x["features"].float(), x["features"].shape[-1:], x["ln_weight"], x["ln_bias"], p["layernorm_eps"])
    ratio = None if p["ratio"] == -1 else p["ratio"]
    scope = p["outlier_scope"]
    if ratio is not None and scope == "batch":
        scope = "frame"  # a given ratio needs no fence, so there is nothing to pool
    frames = len(x["features"])
    tokens = VisualTokens(
        features=x["features"],
        cls=None,
        grid=_grid(x["features"].shape[1]),
        clip_ptr=torch.tensor([0, frames]) if scope == "clip" else torch.arange(frames + 1),
        captures={},
        clip_space=v @ x["proj_weight"].T,
    )
    aggregate = p.get("aggregate_token", "mean") == "mean"
    config = TrimConfig(ratio=ratio, score=p["score"], scope=scope, aggregate=aggregate, compat=case.tier == "quirk")
    reducer = Trim(config)
    out = _selection(reducer.reduce(tokens, TextQuery(embedding=x["text"])), tokens, scope)
    text = x["text"].expand(frames, -1)
    score = text_scores(tokens.clip_space, text, p["score"])
    shares = score.flatten()[None] if scope == "clip" else score
    return {**out, "score": shares.softmax(-1)}


def visionzip_received(case: Case) -> Outputs:
    """VisionZip for towers without CLS: attention received."""
    p, heads = case.params, case.params["num_heads"]
    received = received_attention(case.inputs["q"], case.inputs["k"], heads)
    reducer = VisionZip(VisionZipConfig(dominant=p["dominant"], contextual=p["contextual"], score="received", keep_cls=False))
    features = case.inputs["features"]
    tokens = VisualTokens(
        features=features,
        cls=None,
        grid=_grid(features.shape[1]),
        clip_ptr=torch.arange(len(features) + 1),
        captures={reducer.attention: received, reducer.keys: mean_over_heads(case.inputs["k"], heads)},
    )
    return {"received": received, **_zipped(reducer.reduce(tokens), tokens)}


def hired_single(case: Case) -> Outputs:
    """The mask of HiRED for one partition."""
    scores = cls_attention(case.inputs["q_cls_late"], case.inputs["k_late"], case.params["num_heads"], "sum")
    count = int(scores.shape[1] * case.params["token_budget_rate"])
    mask = best_attended(scores, torch.full((len(scores),), count), case.params.get("spatial_tokens", 0))
    return {"late_attn_head_sum": scores, "mask": mask}


def hired(case: Case) -> Outputs:
    """HiRED over a full image and its sub-images."""
    p, x = case.params, case.inputs
    early = cls_attention(x["q_cls_early"], x["k_early"], p["num_heads"], "sum")
    late = cls_attention(x["q_cls_late"], x["k_late"], p["num_heads"], "sum")
    layout, side = (p["partition_rows"], p["partition_cols"]), p["tokens_per_side"]
    config = HiRedImageConfig(
        rate=p["token_budget_rate"],
        alpha=p["alpha"],
        budget_mode=p["budget_mode"],
        swapped_grid=p.get("swapped_grid", False),
        compat=case.tier == "quirk",
    )
    mask, budgets = partition_masks(early[0], late, layout, (side, side), config)
    part, patch = mask.nonzero(as_tuple=True)
    if p.get("order", "partition") == "stitched":
        part, patch = stitched(mask, layout, (side, side), tuple(p["image_size"]), config)
    tokens = x["features"][part, patch]
    return {"early_attn_head_sum": early, "late_attn_head_sum": late, "mask": mask, "budgets": budgets, "tokens": tokens}


def tome_match(case: Case) -> Outputs:
    """ToMe's matching, step by step on given metrics."""
    x = case.inputs["x"]
    size = case.inputs["size"][..., 0] if "size" in case.inputs else torch.ones(x.shape[:2])
    owner = torch.arange(x.shape[1]).expand(len(x), -1)
    for step, r in enumerate(case.params["r"]):
        found = match(case.inputs[f"metric{step}"], r, class_token=case.params["class_token"])
        x, size = merge(x, size, found)
        owner = found.slot.gather(1, owner)
    return {"tokens": x, "size": size[..., None], "owner": owner}


def tome_vit(case: Case) -> Outputs:
    """ToMe inside the blocks of a small vision transformer."""
    p, x = case.params, case.inputs["x"]
    width, inner = case.inputs["layers.0.mlp.fc1.weight"].shape[::-1]
    shape = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": p["num_heads"]}
    shape |= {"num_hidden_layers": p["layers"], "layer_norm_eps": p["layernorm_eps"]}
    config = CLIPVisionConfig(**shape, hidden_act=p["activation"])
    encoder = CLIPVisionModel(config).encoder.eval()
    encoder.load_state_dict({name: w for name, w in case.inputs.items() if name.startswith("layers.")})
    r = tuple(p["r"]) if p["r_is_pair"] else p["r"]
    steps = schedule(r, p["layers"])
    if steps != p["schedule"]:
        raise ValueError(f"expected schedule {p['schedule']}, got {steps}")
    with torch.inference_mode():
        merged = merge_blocks(list(encoder.layers), x, steps, prop_attn=p["prop_attn"])
    return {"tokens": merged.rows, "size": merged.size[..., None], "owner": merged.slot}


def baseline_indices(case: Case) -> Outputs:
    """Sequential and spatial indices."""
    out = {}
    for entry in case.params["entries"]:
        grid = (entry["rows"], entry["cols"])
        if entry["kind"] == "sequential":
            out[entry["name"]] = sequential_indices(grid[0] * grid[1], entry["k"])
        else:
            shape = tuple(entry["shape"]) if "shape" in entry else None
            out[entry["name"]] = spatial_indices(
                grid, keep=entry.get("k"), shape=shape, anchor=entry.get("anchor", "start")
            )
    return out


def allocation(case: Case) -> Outputs:
    """Largest-remainder budgets."""
    entries = enumerate(case.params["entries"])
    return {f"budgets{j}": allocate(total, case.inputs[f"score{j}"], cap) for j, (total, cap) in entries}


def tower(case: Case) -> Outputs:
    """The whole way from pixels: blocks, captures and the reducers that the case names."""
    shape = case.params["clip_config"]
    model = CLIPVisionModel(CLIPVisionConfig(**shape)).eval()
    weights = {name.removeprefix("weights."): w for name, w in case.inputs.items() if name.startswith("weights.")}
    absent = set(model.state_dict()) - set(weights) - {"embeddings.position_ids"}
    model.load_state_dict(weights, strict=False)
    if {name for name in absent if not name.startswith(("post_layernorm", f"encoder.layers.{shape['num_hidden_layers']}"))}:
        raise ValueError(f"weights missing: {sorted(absent)[:3]}")
    config = _prumerge_config(case.params["prumerge"], plus=False)
    reducers = {"prumerge": PruMerge(config), "prumerge_plus": PruMergePlus(config)}
    late, early = Capture(kind="cls_attn", block="selected"), Capture(kind="cls_attn", block="first")
    zip_ = VisionZip(VisionZipConfig(**case.params["visionzip"]))
    needs = reducers["prumerge"].needs | zip_.needs | {late, early}
    with torch.inference_mode():
        layer = case.params["select_hidden_state"]
        hidden, captures = capture_tower(model, case.inputs["pixel_values"], needs, layer)
    tokens = _tokens(hidden, captures, "frame")
    out = {
        "hidden": hidden,
        "late_cls_attn_head_sum": captures[late],
        "early_cls_attn_head_sum": captures[early],
        "prumerge_cls_attn": captures[reducers["prumerge"]._attention],
    }
    out |= {f"visionzip_{key}": value for key, value in _zipped(zip_.reduce(tokens), tokens).items()}
    budget = torch.full((len(hidden),), int(tokens.features.shape[1] * case.params["hired_rate"]))
    out["hired_mask"] = best_attended(captures[late], budget)
    for name, reducer in reducers.items():
        found = _selection(reducer.reduce(tokens), tokens, "frame")
        out |= {f"{name}_{key}": value for key, value in found.items()}
    return out


ADAPTERS: Mapping[str, Callable[[Case], Outputs]] = {
    "prumerge": prumerge,
    "prumerge_plus": prumerge,
    "baseline_indices": baseline_indices,
    "allocate": allocation,
    "tower": tower,
    "visionzip": visionzip,
    "hired_single": hired_single,
    "trim": trim,
    "hired": hired,
    "tome_match": tome_match,
    "tome_vit": tome_vit,
    "visionzip_received": visionzip_received,
    **VIDEO,
}
