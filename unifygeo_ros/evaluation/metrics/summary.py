"""The numbers of a report, from a drive's arrays. docs/reference/evaluation.md defines each."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from unifygeo_ros.core.arrays import Bool, Float64, Int64
from unifygeo_ros.core.covariance import chi2_quantile
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.evaluation.metrics import definitions as metrics
from unifygeo_ros.evaluation.metrics.drive import Drive, dead_reckoning
from unifygeo_ros.evaluation.settings import Criteria

FORMAT = "unifygeo-evaluation"
SCHEMA_VERSION = 3

DISTANCES_M = (1.0, 3.0, 5.0, 10.0, 25.0)
ELLIPSES = (0.5, 0.68, 0.9, 0.95, 0.99)
RANKS = (1, 5, 10, 100)


@dataclass(frozen=True)
class Counts:
    """How many images of the drive there are of each kind."""

    images: int
    with_truth: int
    fixes: int
    judged: int
    """Fixes with ground truth."""
    rejections: Mapping[str, int]
    """By reason, the most frequent first."""


@dataclass(frozen=True)
class Accuracy:
    """Errors of the judged fixes, metres and degrees."""

    error_m: metrics.ErrorStatistics | None
    along_track_m: metrics.SignedStatistics | None
    cross_track_m: metrics.SignedStatistics | None
    yaw_deg: metrics.SignedStatistics | None
    distances_m: tuple[float, ...]
    within_of_fixes: tuple[float | None, ...]
    """Share of judged fixes, and of all images with ground truth, whose fix lies within each of `distances_m`."""
    within_of_images: tuple[float | None, ...]
    """See `within_of_fixes`."""
    truth_sigma_m: float | None
    """Median standard deviation of the ground truth along its long axis."""


@dataclass(frozen=True)
class Availability:
    """How often there was a fix."""

    fix: metrics.Share | None
    """Share of images with a fix."""
    declared: metrics.Share | None
    """Share with a fix that claims 95% within the alert limit."""
    time_to_first_fix_s: float | None
    time_to_first_good_fix_s: float | None
    """Until a fix within the alert limit."""
    longest_outage: metrics.Outage | None


@dataclass(frozen=True)
class Integrity:
    """Of the judged fixes."""

    false_fix: metrics.Share | None
    """Beyond the alert limit and outside their own 99.9% ellipse."""
    gross_error: metrics.Share | None
    """Beyond the alert limit, regardless of their covariance."""
    stanford: metrics.Stanford
    risk_coverage_area: float | None
    """Mean risk of a false fix when the fixes are taken in the order of their declared accuracy."""


@dataclass(frozen=True)
class CovarianceJudgement:
    """Normalised errors of position and yaw."""

    position: metrics.Consistency | None
    without_false_fixes: metrics.Consistency | None
    ellipses: tuple[float, ...]
    coverage: tuple[metrics.Share | None, ...]
    """Share of truths inside each of `ellipses`."""


@dataclass(frozen=True)
class Retrieval:
    """Shares of the images whose right tile stands among the first k, before and after re-ranking.

    covering: any tile that contains the camera. nearest: the one whose centre is nearest. After re-ranking only the
    `candidates` are ranked, so larger k are None.
    """

    images: int
    depth: int
    candidates: int
    ranks: tuple[int, ...]
    covering_retrieved: tuple[float | None, ...]
    covering_reranked: tuple[float | None, ...]
    nearest_retrieved: tuple[float | None, ...]
    nearest_reranked: tuple[float | None, ...]
    median_covering_rank: float | None


@dataclass(frozen=True)
class Method:
    """One row of the table of baselines."""

    name: str
    answered: int
    """Images with ground truth that it answers."""
    within: tuple[float | None, ...]
    """Share of all images with ground truth that it puts within each of the distances. Baselines declare no accuracy,
    so there is no rank of false answers."""
    error_m: metrics.ErrorStatistics | None


@dataclass(frozen=True)
class PerImage:
    """Columns with one entry an image; None where there is nothing."""

    stamp_ns: tuple[int, ...]
    time_s: tuple[float, ...]
    outcome: tuple[str, ...]
    has_truth: tuple[bool, ...]
    error_m: tuple[float | None, ...]
    along_m: tuple[float | None, ...]
    cross_m: tuple[float | None, ...]
    nees: tuple[float | None, ...]
    sigma_major_m: tuple[float | None, ...]


@dataclass(frozen=True)
class Summary:
    """All numbers of one replay."""

    identity: Mapping[str, Any]
    criteria: Criteria
    counts: Counts
    accuracy: Accuracy
    availability: Availability
    integrity: Integrity
    covariance: CovarianceJudgement
    retrieval: Retrieval
    methods: tuple[Method, ...]
    latency_ms: Mapping[str, metrics.ErrorStatistics]
    """By stage."""
    problems: tuple[str, ...]
    """What was wrong with the recording: unreadable parts, refused samples, late stamps."""
    setup: str
    """Mount, heading source and mode in one sentence."""
    advice: tuple[str, ...]
    """What to check: differences of the set-up from the bag, and, where there are hardly any fixes, likely causes."""
    per_image: PerImage

    def to_json(self) -> str:
        content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Judged:
    """Arrays over the m judged fixes only, for metrics and figures: float64 (m,) unless said otherwise."""

    frame_index: Int64
    """int64 (m,): which image of the drive each is, from 0."""
    vectors_m: Float64
    """float64 (m, 2): fix − truth, east and north."""
    errors_m: Float64
    nees: Float64
    sigma_major_m: Float64
    protection_m: Float64
    false: Bool
    gross: Bool


def judge(drive: Drive, criteria: Criteria) -> Judged:
    """Compare the fixes with the ground truth."""
    index = np.flatnonzero(drive.judged)
    vectors = drive.fix_m[index] - drive.truth_m[index]
    errors = metrics.horizontal_errors(drive.fix_m[index], drive.truth_m[index])
    nees = metrics.normalised_squared_errors(vectors, drive.covariance_m2[index] + drive.truth_covariance_m2[index])
    return Judged(
        index,
        vectors,
        errors,
        nees,
        metrics.major_sigmas(drive.covariance_m2[index]),
        metrics.protection_levels(drive.covariance_m2[index]),
        metrics.false_fixes(errors, nees, criteria.alert_limit_m),
        metrics.gross_errors(errors, criteria.alert_limit_m),
    )


def summarise(
    drive: Drive,
    criteria: Criteria,
    *,
    identity: Mapping[str, Any],
    latency_ms: Mapping[str, Sequence[float]],
    problems: tuple[str, ...],
    setup: str = "",
    advice: tuple[str, ...] = (),
    imagery_sigma_m: float = 0.0,
) -> Summary:
    """All numbers of a drive. imagery_sigma_m: as in `LocalizerConfig`; the error that all fixes have in common."""
    judged = judge(drive, criteria)
    index = judged.frame_index
    common = metrics.common_share(drive.covariance_m2[index] + drive.truth_covariance_m2[index], imagery_sigma_m)
    count, with_truth = len(judged.frame_index), int(np.count_nonzero(drive.has_truth))
    # Latencies are statistics of positive numbers like errors are.
    latency = {stage: metrics.error_statistics(values) for stage, values in latency_ms.items()}
    risk = metrics.risk_coverage(judged.sigma_major_m, judged.false, len(drive))
    return Summary(
        identity=identity,
        criteria=criteria,
        counts=Counts(
            images=len(drive),
            with_truth=with_truth,
            fixes=int(np.count_nonzero(drive.fixed)),
            judged=count,
            rejections=dict(Counter(outcome for outcome in drive.outcomes if outcome != "fix").most_common()),
        ),
        accuracy=_accuracy(drive, judged, with_truth),
        availability=_availability(drive, judged, criteria),
        integrity=Integrity(
            metrics.share(int(judged.false.sum()), count),
            metrics.share(int(judged.gross.sum()), count),
            metrics.stanford_regions(judged.errors_m, judged.protection_m, criteria.alert_limit_m),
            None if risk is None else risk.area,
        ),
        covariance=CovarianceJudgement(
            metrics.consistency(judged.nees, common=common),
            metrics.consistency(judged.nees[~judged.false], common=common),
            ELLIPSES,
            metrics.ellipse_coverage(judged.nees, ELLIPSES),
        ),
        retrieval=_retrieval(drive),
        methods=_methods(drive, with_truth),
        latency_ms={stage: statistics for stage, statistics in latency.items() if statistics is not None},
        problems=problems,
        setup=setup,
        advice=advice,
        per_image=_per_image(drive, judged),
    )


def _accuracy(drive: Drive, judged: Judged, with_truth: int) -> Accuracy:
    tracked = ~np.isnan(drive.track_yaw_rad[judged.frame_index])
    along, cross = metrics.along_and_cross_track(
        judged.vectors_m[tracked], drive.track_yaw_rad[judged.frame_index][tracked]
    )
    yaw_errors = drive.yaw_rad[judged.frame_index] - drive.truth_yaw_rad[judged.frame_index]
    sigmas = metrics.major_sigmas(drive.truth_covariance_m2[drive.has_truth])
    return Accuracy(
        metrics.error_statistics(judged.errors_m),
        metrics.signed_statistics(along),
        metrics.signed_statistics(cross),
        metrics.signed_statistics(np.degrees(wrap_angle(yaw_errors[~np.isnan(yaw_errors)]))),
        DISTANCES_M,
        metrics.shares_within(judged.errors_m, DISTANCES_M, len(judged.errors_m)),
        metrics.shares_within(judged.errors_m, DISTANCES_M, with_truth),
        float(np.median(sigmas)) if len(sigmas) else None,
    )


def _availability(drive: Drive, judged: Judged, criteria: Criteria) -> Availability:
    # 95% of a Gaussian with the ellipse's long axis in every direction lies within this radius.
    radius = math.sqrt(chi2_quantile(0.95)) * metrics.major_sigmas(drive.covariance_m2[drive.fixed])
    good = np.zeros(len(drive), np.bool_)
    good[judged.frame_index[~judged.gross]] = True
    return Availability(
        metrics.share(int(drive.fixed.sum()), len(drive)),
        metrics.share(int(np.count_nonzero(radius <= criteria.alert_limit_m)), len(drive)),
        metrics.time_to_first(drive.time_s, drive.fixed),
        metrics.time_to_first(drive.time_s, good),
        metrics.longest_outage(drive.time_s, drive.fixed),
    )


def _retrieval(drive: Drive) -> Retrieval:
    count = int(np.count_nonzero(drive.ranked))

    def among(ranks: Int64, limit: int) -> tuple[float | None, ...]:
        of = ranks[drive.ranked]
        return tuple(float(np.mean((of >= 1) & (of <= rank))) if count and rank <= limit else None for rank in RANKS)

    covering = drive.ranks_covering_retrieved[drive.ranked].astype(np.float64)
    covering[covering == 0] = np.inf
    median = float(np.median(covering)) if count else math.inf
    return Retrieval(
        count,
        drive.rank_depth,
        drive.candidates,
        RANKS,
        among(drive.ranks_covering_retrieved, drive.rank_depth),
        among(drive.ranks_covering_reranked, drive.candidates),
        among(drive.ranks_nearest_retrieved, drive.rank_depth),
        among(drive.ranks_nearest_reranked, drive.candidates),
        median if math.isfinite(median) else None,
    )


def _methods(drive: Drive, with_truth: int) -> tuple[Method, ...]:
    positions = {
        "fixes": np.where(drive.fixed[:, None], drive.fix_m, np.nan),
        "best answer of every image, no gates": drive.answer_m,
        "centre of the best tile": drive.tile_m,
        "retrieval only: centre of the first tile": drive.retrieved_m,
        "odometry alone, from the true start": dead_reckoning(drive),
    }
    methods = []
    for name, points in positions.items():
        answered = drive.has_truth & ~np.isnan(points).any(axis=1)
        errors = metrics.horizontal_errors(points[answered], drive.truth_m[answered])
        methods.append(
            Method(
                name,
                len(errors),
                metrics.shares_within(errors, DISTANCES_M, with_truth),
                metrics.error_statistics(errors),
            )
        )
    return tuple(methods)


def _per_image(drive: Drive, judged: Judged) -> PerImage:
    along, cross = np.full(len(judged.frame_index), np.nan), np.full(len(judged.frame_index), np.nan)
    tracked = ~np.isnan(drive.track_yaw_rad[judged.frame_index])
    along[tracked], cross[tracked] = metrics.along_and_cross_track(
        judged.vectors_m[tracked], drive.track_yaw_rad[judged.frame_index][tracked]
    )
    sigmas = np.full(len(drive), np.nan)
    sigmas[drive.fixed] = metrics.major_sigmas(drive.covariance_m2[drive.fixed])

    def column(values: Float64, index: Int64 | None = None) -> tuple[float | None, ...]:
        spread = values
        if index is not None:
            spread = np.full(len(drive), np.nan)
            spread[index] = values
        return tuple(None if math.isnan(value) else value for value in spread.tolist())

    return PerImage(
        stamp_ns=tuple(drive.stamps_ns.tolist()),
        time_s=tuple(drive.time_s.tolist()),
        outcome=drive.outcomes,
        has_truth=tuple(drive.has_truth.tolist()),
        error_m=column(judged.errors_m, judged.frame_index),
        along_m=column(along, judged.frame_index),
        cross_m=column(cross, judged.frame_index),
        nees=column(judged.nees, judged.frame_index),
        sigma_major_m=column(sigmas),
    )


def read_summary(path: Path) -> Mapping[str, Any]:
    """The JSON of a summary as it was written. Raises InputError where it is none, or of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the JSON that `unifygeo replay` wrote") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a {FORMAT} file; give the JSON that `unifygeo replay` wrote next to its report")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {content.get('schema_version')}, this release reads {SCHEMA_VERSION}; "
            "write the report again (the replay's results are kept, so that takes seconds)"
        )
    return content
