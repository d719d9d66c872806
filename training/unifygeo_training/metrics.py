"""Metrics of retrieval, metric localization and both together (section IV-B of the paper).

Everything here takes arrays, keeps no state, and refuses what must not score: non-finite, unnormalised or constant
descriptors and non-finite errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from unifygeo_ros.core.arrays import Bool, Float32, Float64, Int64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.unit_length import UNIT_LENGTH_TOLERANCE, wrong_length

ROUNDING = 1e-6
"""Similarities closer than this are equal: float32 products in another order differ by as much."""
GALLERY_BLOCK = 4096
"""Rows of the gallery compared at a time: a gallery of any size needs n × GALLERY_BLOCK similarities of memory."""
METRIC_THRESHOLDS_M = (1.0, 3.0, 5.0, 10.0, 20.0)
CVGL_THRESHOLDS_M = (1.0, 5.0, 10.0)
CURVE_M = tuple(float(metres) for metres in range(1, 51))
"""Thresholds of the recall curve (Fig. 4 of the paper)."""


def check_descriptors(descriptors: Float32, name: str) -> None:
    """Refuse descriptors that could score by accident. descriptors: float32 (n, C). Raises InputError."""
    if descriptors.ndim != 2 or not len(descriptors):
        raise InputError(f"{name} descriptors have shape {descriptors.shape}, must be (n, C) with n ≥ 1")
    finite = np.asarray(np.isfinite(descriptors).all(axis=1))
    if not finite.all():
        raise InputError(
            f"{name} descriptor {int(np.argmin(finite))} is not finite ({int((~finite).sum())} of {len(finite)}); "
            "the network has diverged or fp16 overflowed"
        )
    wrong = wrong_length(descriptors)
    if wrong is not None:
        raise InputError(f"{name} descriptor {wrong[0]} has length {wrong[1]:.4f}, must be 1 ± {UNIT_LENGTH_TOLERANCE}")
    if len(descriptors) > 1 and float(np.ptp(descriptors, axis=0).max()) < 1e-6:
        raise InputError(f"all {len(descriptors)} {name} descriptors are the same: the network has collapsed")


def retrieval_ranks(queries: Float32, gallery: Float32, positives: Int64, masked: Int64 | None = None) -> Int64:
    """Rank of each query's positive: 1 + the number of gallery rows with strictly greater similarity.

    queries: float32 (n, C); gallery: float32 (m, C), a memory map is fine; positives: int64 (n,).
    masked: int64 (n, s) gallery rows that do not count against the query (its semi-positives), −1 for none.
    Returns int64 (n,). Raises InputError for descriptors that must not score.
    """
    check_descriptors(queries, "query")
    own = np.einsum("nc,nc->n", queries, np.asarray(gallery[positives], np.float32))
    uncounted = positives[:, None] if masked is None else np.concatenate([positives[:, None], masked], axis=1)
    ranks = np.ones(len(queries), np.int64)
    for start in range(0, len(gallery), GALLERY_BLOCK):
        block = np.ascontiguousarray(gallery[start : start + GALLERY_BLOCK], np.float32)
        check_descriptors(block, f"gallery (from row {start})")
        similarities = queries @ block.T
        query, column = np.nonzero((uncounted >= start) & (uncounted < start + len(block)))
        similarities[query, uncounted[query, column] - start] = -np.inf
        ranks += (similarities > own[:, None] + ROUNDING).sum(axis=1)
    return ranks


def nearest(queries: Float32, gallery: Float32, k: int) -> tuple[Float32, Int64]:
    """The k most similar gallery rows of each query, most similar first: similarities (n, k), rows (n, k).

    queries: float32 (n, C); gallery: float32 (m, C), a memory map is fine. Raises InputError.
    """
    check_descriptors(queries, "query")
    for start in range(0, len(gallery), GALLERY_BLOCK):
        check_descriptors(np.asarray(gallery[start : start + GALLERY_BLOCK]), f"gallery (from row {start})")
    similarities, rows = faiss.knn(queries, gallery, min(k, len(gallery)), metric=faiss.METRIC_INNER_PRODUCT)
    return similarities, rows


@dataclass(frozen=True)
class RetrievalScores:
    """Percentages of queries."""

    recall_1: float
    recall_5: float
    recall_10: float
    recall_percent: float
    """Cut-off at one hundredth of the gallery, at least 1 (R@1%)."""
    hit_rate: float
    """The positive is first when the semi-positives are masked."""


def retrieval_scores(ranks: Int64, masked_ranks: Int64, gallery_size: int) -> RetrievalScores:
    """Scores of ranks as `retrieval_ranks` gives them, without and with semi-positives masked. int64 (n,) each."""
    cut_off = max(1, gallery_size // 100)
    return RetrievalScores(
        recall_1=_percent(ranks <= 1),
        recall_5=_percent(ranks <= 5),
        recall_10=_percent(ranks <= 10),
        recall_percent=_percent(ranks <= cut_off),
        hit_rate=_percent(masked_ranks <= 1),
    )


@dataclass(frozen=True)
class RerankedScores:
    """Percentages of queries after re-ranking. R@5 and beyond cannot change at k = 5."""

    recall_1: float
    hit_rate: float
    """The positive is first among the candidates when the semi-positives are masked."""


def reranked_scores(order: Int64, positives: Int64, semi_positives: Int64) -> RerankedScores:
    """order: int64 (n, k) gallery rows, best first; positives: int64 (n,); semi_positives: int64 (n, s), −1: none."""
    masked = (order[:, :, None] == semi_positives[:, None, :]).any(axis=2) & (order != positives[:, None])
    first = np.argmin(masked, axis=1)  # the first that is not masked; 0 if all are, and then it is not the positive
    return RerankedScores(
        recall_1=_percent(order[:, 0] == positives),
        hit_rate=_percent(np.take_along_axis(order, first[:, None], axis=1)[:, 0] == positives),
    )


@dataclass(frozen=True)
class MetricScores:
    """Errors on the positive tile; mean and median in metres."""

    mean_m: float
    median_m: float
    recall: dict[float, float]
    """Percentage within METRIC_THRESHOLDS_M."""


def metric_scores(errors_m: Float64) -> MetricScores:
    """errors_m: float64 (n,), metres. Raises InputError if any is not finite."""
    _check_errors(errors_m)
    return MetricScores(
        float(np.mean(errors_m)),
        float(np.median(errors_m)),
        {threshold: _percent(errors_m <= threshold) for threshold in METRIC_THRESHOLDS_M},
    )


@dataclass(frozen=True)
class CvglScores:
    """Large-scale fine-grained localization: percentage of queries within each of CVGL_THRESHOLDS_M."""

    geographic: dict[float, float]
    """Distance from the predicted to the true position on the earth, whichever tile won."""
    strict: dict[float, float]
    """The positive tile must win, and its error be within the threshold. The paper's numbers are of this kind: in each
    of its rows R@10m is 97 to 98% of R@1 and never above it."""


def cvgl_scores(
    errors_m: Float64, winners: Int64, positives: Int64, thresholds_m: Sequence[float] = CVGL_THRESHOLDS_M
) -> CvglScores:
    """errors_m: float64 (n,), metres on the earth; winners, positives: int64 (n,). Raises InputError."""
    _check_errors(errors_m)
    won = winners == positives
    return CvglScores(
        {threshold: _percent(errors_m <= threshold) for threshold in thresholds_m},
        {threshold: _percent((errors_m <= threshold) & won) for threshold in thresholds_m},
    )


def _percent(successes: Bool) -> float:
    if not len(successes):
        raise InputError("no queries: a percentage of nothing is not 0; give a split that is not empty")
    return 100.0 * float(np.mean(successes))


def _check_errors(errors_m: Float64) -> None:
    bad = ~np.isfinite(errors_m)
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {len(bad)} errors are not finite, the first is query {int(np.argmax(bad))}"
        )
