"""What docs/reducers.md says of each reducer beyond what its code says: how it goes on, what it costs, how many tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

INTRODUCTION = """# Reducers

Made by `framefold reducers --markdown True` from the code; a test holds it equal. A spec names one with parameters, for example
`prumerge+(ratio=0.125)`; all of them are in the fingerprint. F is the number of frames of a clip, 8 by default; N the number of
patches of a frame, 256 in the real model; M = F x N; D the width of the tower. Milliseconds are in
[benchmarks/RESULTS.md](../benchmarks/RESULTS.md), from `framefold bench reducers`.

Every reducer is pure torch over `[frames, patches, width]`, scores in float32, breaks ties by the lower index, and gives a clip
the same tokens alone or in a batch; `tests/reducers/test_invariants.py` holds all of them to it. Parameters that cannot be are
refused when the spec is parsed, before a video is read. The reducers are written from two specifications,
[methods/frames.md](methods/frames.md) and [methods/video.md](methods/video.md). Letters and numbers such as P6 or A2 are rows
of their tables of differences between published code and paper.

The pictures show eight frames of one generated clip (a square appears, a ring moves to the left, a cross stands still) as the
bundled model's tower sees them, 8 x 8 patches each, a quarter of the tokens kept where a budget is asked for. A patch that is a
token of its own keeps its colours; a token that took others in is orange; a patch that was taken in is pale orange; a patch
that was dropped is pale grey. `framefold reducers --pictures docs/pictures` draws them.

Thresholds of similarity were published for other towers: `framefold calibrate` finds them on a sample of a corpus.
"""

COMPOSITIONS = """# Compositions

`first|second`, or with a plus sign between them: the first part decides over time where tokens may be and how many, the second
is a method for frames that spends them. The budget, CLS rows included, is a parameter of the first part and met exactly; what
the second part is called with otherwise (its own counts, rates, residual, CLS) is refused, but `dominant` and `contextual` of
`visionzip` are a proportion here, 5 to 1 unless told otherwise. Parts that read the question or work inside the tower cannot be
composed. CLS attention and keys stay those of the unreduced frames; what is merged counts by the patches behind it.

    --reducer "evs(keep=256)|visionzip"
    --reducer "alloc(vcast, ratio=0.25)+prumerge+"
    --reducer "static(ratio=0.25, tau=0.93, tau_mode=quantile)|visionzip(merge=mean)"

`alloc(uniform)+visionzip` at the same budget is the baseline of every claim about a composition.

- Source: docs/methods/video.md section 6; no published code composes them.
- Departs: `static` shares its budget over all places at once, so that totals are exact. There is no residual token behind any
  first part. A target of `visionzip` is an open place; int(budget x contextual / (dominant + contextual)) of a row are.
"""


@dataclass(frozen=True, kw_only=True)
class About:
    """What the code does not say of itself."""

    how: str
    """A second sentence on what the method does."""
    budget: str
    cost: str


CLIP_BUDGET = (
    "Exactly `keep`, or int(M x `ratio`), CLS rows included; `exact=false` leaves what the published arithmetic gives. "
    "A budget of all "
    "tokens or more leaves the clip as it is."
)

ABOUT: Mapping[str, About] = {
    "none": About(
        how="It is what every other method is compared with.",
        budget="F x (N + 1), or F x N without CLS rows.",
        cost="O(M D): a copy.",
    ),
    "sequential": About(
        how="Nothing of the picture is looked at, so whatever beats it has learnt something from the features.",
        budget="Exactly min(k, N) per frame, or min(k, M) per clip.",
        cost="O(k F D): a copy.",
    ),
    "spatial": About(
        how="Given only k, it takes the factorisation of k whose shape is nearest to the grid's, or every (N / k)-th patch.",
        budget="Exactly min(k, N) or rows x cols per frame; more rows or columns than the grid has are refused.",
        cost="O(k F D): a copy.",
    ),
    "prumerge": About(
        how="Neighbours are added with their attention as weight, and one residual token stands for all that was not kept.",
        budget="Adaptive: about 5 % of the patches, as many as are outliers. With `ratio`: int(N x ratio) per frame; one more "
        "for the residual.",
        cost="O(K N D) per frame for K kept: likeness of the kept keys to all keys.",
    ),
    "prumerge+": About(
        how="The stride of the grid falls with the number of outliers, so that busy frames keep more of everything.",
        budget="Adaptive: about 20 % of the patches. With `ratio`: exactly 2 x int(N x ratio) per frame; one more for "
        "the residual.",
        cost="O(K N D) per frame for K kept.",
    ),
    "visionzip": About(
        how="Targets are spread evenly over what is left in raster order, and every other patch joins the target with "
        "the likest key.",
        budget="Exactly dominant + contextual per frame, as far as there are patches.",
        cost="O(N C d) per frame for C contextual tokens, d the width of a head.",
    ),
    "hired": About(
        how="Patches are kept as they are; with `frame_score=mosaic` the tower also looks at a contact sheet of the "
        "clip, and frames "
        "that its first block attends to get more.",
        budget="Exactly int(M x rate) per clip and at least one, besides `spatial_tokens`.",
        cost="O(N log N) per frame; the contact sheet costs one embedding and two projections per clip.",
    ),
    "trim": About(
        how="The question is compared with patches in the joint space of a text and an image tower, which must be of "
        "the same model.",
        budget="Adaptive, or int(N x ratio) per frame (of M per clip); one more for the mean, if anything is left over.",
        cost="O(M D P) for the projection into a joint space of width P.",
    ),
    "tome": About(
        how="In each block every second row looks for the likest of the others, and the best pairs become their mean "
        "by size, so that "
        "all later blocks see fewer rows; `framefold bench tome` measures what that saves.",
        budget="`keep` per frame where each block can merge what it must, which is at most half of its rows; more otherwise.",
        cost="Below zero: encoding gets faster. Matching is O(T^2 d / 4) per frame and block of T rows.",
    ),
    "evs": About(
        how="The first frame counts as all new, so it comes first; below one frame's worth of tokens its best attended "
        "patches do.",
        budget=CLIP_BUDGET + " Fewer tokens are always a subset of more, on either side of N.",
        cost="O(M D): one cosine per patch.",
    ),
    "dycoke_ttm": About(
        how="It works in windows of four frames and is here to reproduce the literature.",
        budget=CLIP_BUDGET,
        cost="O(M D): one cosine per patch.",
    ),
    "fastvid": About(
        how="A clip is cut into segments; in each, a few frames hold density peaks that take in the free patches of "
        "all its frames.",
        budget=CLIP_BUDGET,
        cost="O(F N^2 D) for densities, O(M C D) for joining C contexts.",
    ),
    "holitom": About(
        how="Windows come from dynamic programming over what is saved, and what stands still is merged by density once "
        "per window.",
        budget=CLIP_BUDGET,
        cost="O(F^2 N) for the windows, O(W N^2 D) for densities in W windows.",
    ),
    "flashvid": About(
        how="Selection is max-min diversity weighted by attention; links may lead to another place, so it follows what moves.",
        budget=CLIP_BUDGET,
        cost="O(F N^2 D): likeness inside frames and between neighbours.",
    ),
    "unicomp": About(
        how="A kept patch suppresses all that are closer than a threshold and is blended with them; frames unlike the "
        "others get more.",
        budget=CLIP_BUDGET,
        cost="O(G N^2 D) for G groups of frames.",
    ),
    "vcast": About(
        how="How sharply the clip turns at a frame is the angle between the steps of the mean patch to it and from it.",
        budget=CLIP_BUDGET,
        cost="O(M D) for the means.",
    ),
    "nest": About(
        how="Any smaller budget is then a prefix into which the tail is merged along pointers, bit by bit the same in "
        "one step or in two.",
        budget="Exactly `keep`, CLS rows included, at most S patches; the superset by default.",
        cost="O(M^2 D) for the kernel, O(S M) and more for the order; the most expensive one here.",
    ),
}
"""By name; a test holds it complete."""
