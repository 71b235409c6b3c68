"""One merging step of ToMe, row by row, from docs/methods/frames.md section 5.8. The first row is CLS."""

from tests.naive.common import Row, by_score, cosine


def merge_step(keys: list[Row], rows: list[Row], sizes: list[float], r: int) -> tuple[list[Row], list[float], list[int]]:
    """Return rows and sizes after the r best pairs have merged, and where each row went."""
    even, odd = list(range(0, len(rows), 2)), list(range(1, len(rows), 2))
    partner, likeness = {}, {}
    for row in even[1:]:
        alike = [cosine(keys[row], keys[other]) for other in odd]
        partner[row] = odd[by_score(alike)[0]]
        likeness[row] = max(alike)
    callers = list(partner)
    best = by_score([likeness[row] for row in callers])[: max(0, min(r, (len(rows) - 1) // 2))]
    merged = {callers[at] for at in best}
    left = [row for row in even if row not in merged] + odd
    goes = [left.index(partner[row] if row in merged else row) for row in range(len(rows))]
    totals = [0 * rows[0] for _ in left]
    counts = [0.0 for _ in left]
    for row, place in enumerate(goes):
        totals[place] = totals[place] + sizes[row] * rows[row]
        counts[place] += sizes[row]
    return [total / count for total, count in zip(totals, counts, strict=True)], counts, goes
