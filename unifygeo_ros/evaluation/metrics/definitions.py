"""Every number of the report as a pure function of arrays.

docs/reference/evaluation.md gives the formulas and the reasons.

All functions refuse NaN and infinity instead of dropping them: a frame without ground truth has to be left out by the
caller, knowingly. Where there is nothing to say (no frames) the answer is None, never zero and never NaN. Absolute
fixes are never aligned to the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from unifygeo_ros.core.arrays import Bool, Float64, Int64
from unifygeo_ros.core.covariance import chi2_quantile, semi_major_sigmas
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.se2 import rotate

DIMENSIONS = 2
"""A fix is a point of the plane."""
FALSE_FIX_PROBABILITY = 0.999
"""A fix with a correct covariance lies outside its ellipse of this content once in a thousand times."""
PROTECTION_PROBABILITY = 0.999
"""Content of the ellipse that the protection level encloses."""
COMMON_DRAWS = 1000
"""Equally likely sizes of an error that all fixes share, over which the bounds of their ANEES are a mixture."""


def _finite(values: npt.ArrayLike, name: str) -> Float64:
    array = np.asarray(values, np.float64)
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1)) if array.size else np.array([])
    if bad.size:
        raise InputError(f"{name}: {bad.size} of {len(array)} entries are not finite, the first is entry {bad[0]}")
    return array


# --- accuracy ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorStatistics:
    """Of distances, angles or milliseconds, in the unit of what went in. Percentiles interpolate linearly."""

    count: int
    mean: float
    rmse: float
    median: float
    p95: float
    p99: float
    maximum: float


def error_statistics(errors: npt.ArrayLike) -> ErrorStatistics | None:
    """errors: (n,), not negative. None for no errors."""
    values = _finite(errors, "errors")
    if not values.size:
        return None
    median, p95, p99 = np.percentile(values, [50, 95, 99])
    return ErrorStatistics(
        count=len(values),
        mean=float(values.mean()),
        rmse=float(np.sqrt(np.mean(values**2))),
        median=float(median),
        p95=float(p95),
        p99=float(p99),
        maximum=float(values.max()),
    )


@dataclass(frozen=True)
class SignedStatistics:
    """Of signed deviations: bias (mean), standard deviation about it, median and 95th percentile of the magnitude."""

    count: int
    bias: float
    standard_deviation: float
    median_magnitude: float
    p95_magnitude: float


def signed_statistics(deviations: npt.ArrayLike) -> SignedStatistics | None:
    """deviations: (n,). The standard deviation divides by n, so that one value has 0. None for no deviations."""
    values = _finite(deviations, "deviations")
    if not values.size:
        return None
    median, p95 = np.percentile(np.abs(values), [50, 95])
    return SignedStatistics(len(values), float(values.mean()), float(values.std()), float(median), float(p95))


def horizontal_errors(estimates: npt.ArrayLike, truth: npt.ArrayLike) -> Float64:
    """Distances of estimates (n, 2) from truth (n, 2), metres: float64 (n,)."""
    difference = _finite(estimates, "estimates") - _finite(truth, "truth")
    return np.hypot(difference[:, 0], difference[:, 1])


def along_and_cross_track(error_vectors: npt.ArrayLike, track_yaw_rad: npt.ArrayLike) -> tuple[Float64, Float64]:
    """Errors resolved along the direction of travel.

    Args:
        error_vectors: (n, 2) estimate − truth, east and north, metres.
        track_yaw_rad: (n,) direction of travel, counter-clockwise from east.

    Returns:
        Along (n,), positive when the estimate is ahead, and cross (n,), positive to the left.
    """
    errors = _finite(error_vectors, "error vectors")
    yaw = _finite(track_yaw_rad, "track yaw")
    resolved = rotate(-yaw, errors[:, 0], errors[:, 1])
    return resolved[:, 0], resolved[:, 1]


def shares_within(errors: npt.ArrayLike, thresholds: Sequence[float], total: int) -> tuple[float | None, ...]:
    """Share of `total` that has an error at or under each threshold.

    Args:
        errors: (n,).
        thresholds: in the errors' unit.
        total: the fixes for a precision, all frames with ground truth for a recall (a frame without a fix is then a
            miss).
    """
    values = _finite(errors, "errors")
    if len(values) > total:
        raise InputError(f"{len(values)} errors out of a total of {total}; the total must count at least the errors")
    if total == 0:
        return tuple(None for _ in thresholds)
    return tuple(float(np.count_nonzero(values <= limit)) / total for limit in thresholds)


def error_distribution(errors: npt.ArrayLike) -> tuple[Float64, Float64]:
    """Empirical distribution: the different errors in rising order (m,), and the share of errors at or under each.

    As `scipy.stats.ecdf`, which the oldest SciPy that is supported lacks.
    """
    values = np.sort(_finite(errors, "errors"))
    distinct, first = np.unique(values[::-1], return_index=True)
    counts = len(values) - first
    return distinct, counts / max(len(values), 1)


# --- availability -----------------------------------------------------------------------------------------------------


def time_to_first(stamps_s: npt.ArrayLike, answered: npt.ArrayLike) -> float | None:
    """Seconds from the first frame to the first answered one; None if none was.

    Args:
        stamps_s: (n,) in rising order.
        answered: bool (n,).
    """
    stamps = _rising(stamps_s)
    rows = np.flatnonzero(np.asarray(answered, np.bool_))
    return float(stamps[rows[0]] - stamps[0]) if rows.size else None


@dataclass(frozen=True)
class Outage:
    """The longest time without an answer."""

    duration_s: float
    start_s: float
    """When it began, same clock as the stamps."""


def longest_outage(stamps_s: npt.ArrayLike, answered: npt.ArrayLike) -> Outage | None:
    """Longest time between successive answers; the start and the end of the recording count as its limits.

    A pause of the camera is an outage too: the robot had no fix, whatever the cause. None for no frames.
    """
    stamps = _rising(stamps_s)
    if not stamps.size:
        return None
    limits = np.concatenate([stamps[:1], stamps[np.asarray(answered, np.bool_)], stamps[-1:]])
    gaps = np.diff(limits)
    longest = int(np.argmax(gaps))
    return Outage(float(gaps[longest]), float(limits[longest]))


def _rising(stamps_s: npt.ArrayLike) -> Float64:
    stamps = _finite(stamps_s, "stamps")
    if np.any(np.diff(stamps) < 0):
        row = int(np.flatnonzero(np.diff(stamps) < 0)[0]) + 1
        raise InputError(f"stamp {row} lies {stamps[row - 1] - stamps[row]:.3f} s before its predecessor; sort them")
    return stamps


# --- consistency ------------------------------------------------------------------------------------------------------


def normalised_squared_errors(error_vectors: npt.ArrayLike, covariances: npt.ArrayLike) -> Float64:
    """NEES, ε = eᵀ S⁻¹ e: float64 (n,).

    For consistent Gaussian covariances ε follows χ² with two degrees of freedom: mean 2, median 1.39.

    Args:
        error_vectors: (n, 2) metres.
        covariances: (n, 2, 2) S = fix covariance + ground truth covariance, m².
    """
    errors = _finite(error_vectors, "error vectors")
    matrices = _finite(covariances, "covariances")
    if not len(errors):
        return np.zeros(0)
    determinants = np.linalg.det(matrices)
    bad = np.flatnonzero((determinants <= 0) | (matrices[:, 0, 0] <= 0))
    if bad.size:
        raise InputError(f"{bad.size} covariances are not positive definite, the first is entry {bad[0]}")
    return np.asarray(np.einsum("ni,ni->n", errors, np.linalg.solve(matrices, errors[..., None])[..., 0]))


@dataclass(frozen=True)
class Consistency:
    """ANEES = mean NEES / 2: 1 is consistent, above is over-confident, below is conservative."""

    count: int
    anees: float
    lower: float
    """The 95% bounds for `count` independent fixes."""
    upper: float
    effective_count: float
    """The number of independent fixes that successive, correlated ones are worth."""
    effective_lower: float
    """The 95% bounds for that number."""
    effective_upper: float
    median_nees: float
    common: float = 0.0
    """Share of the declared covariance that all fixes have in common, which the bounds count as one draw."""

    @property
    def within_bounds(self) -> bool:
        return self.lower <= self.anees <= self.upper

    @property
    def within_effective_bounds(self) -> bool:
        return self.effective_lower <= self.anees <= self.effective_upper


def consistency(nees: npt.ArrayLike, confidence: float = 0.95, *, common: float = 0.0) -> Consistency | None:
    """Whether NEES values are those of correct covariances; None for no values.

    Args:
        nees: (n,) in order of time.
        confidence: of the interval in which the ANEES of consistent covariances lies.
        common: share of the covariances that all errors have in common (`common_share`).
    """
    values = _finite(nees, "NEES")
    if not values.size:
        return None
    count = len(values)
    effective = effective_sample_size(values)
    return Consistency(
        count,
        float(values.mean()) / DIMENSIONS,
        *anees_bounds(count, confidence, common=common),
        effective,
        *anees_bounds(effective, confidence, common=common),
        median_nees=float(np.median(values)),
        common=common,
    )


def common_share(covariances: npt.ArrayLike, common_sigma_m: float) -> float:
    """The share of declared covariances that is an error which all fixes have in common; 0 for no covariances.

    Args:
        covariances: (n, 2, 2) S as in `normalised_squared_errors`, which contains it.
        common_sigma_m: its standard deviation in each axis, such as `LocalizerConfig.imagery_sigma_m`.
    """
    matrices = _finite(covariances, "covariances")
    if not len(matrices):
        return 0.0
    return float(common_sigma_m**2 * np.trace(np.linalg.inv(matrices), axis1=1, axis2=2).mean()) / DIMENSIONS


def anees_bounds(
    count: float, confidence: float = 0.95, dimensions: int = DIMENSIONS, *, common: float = 0.0
) -> tuple[float, float]:
    """Bounds of the ANEES of so many independent, consistent fixes, which it keeps with this probability.

    They are the quantiles of χ²(dn), divided by dn, in d dimensions (Bar-Shalom, Li and Kirubarajan, Estimation, §5.4).
    Where all fixes share an error that is a part of their covariance, such as the imagery's, no number of them tells
    more than one draw of it: given that draw, n d ANEES / (1 − common) is noncentral χ²(dn), and the bounds are the
    quantiles of the mixture over all draws.

    Args:
        count: n, of fixes whose other errors are independent.
        confidence: that the ANEES lies within.
        dimensions: d.
        common: share of the covariance that all fixes have in common, from 0 to below 1.
    """
    degrees, tail = dimensions * count, (1 - confidence) / 2
    if common == 0:
        return chi2_quantile(tail, degrees) / degrees, chi2_quantile(1 - tail, degrees) / degrees
    draws = stats.chi2.ppf((np.arange(COMMON_DRAWS) + 0.5) / COMMON_DRAWS, dimensions)
    shifts = count * common / (1 - common) * draws

    def quantile(probability: float) -> float:
        def excess(anees: float) -> float:
            return float(stats.ncx2.cdf(degrees * anees / (1 - common), degrees, shifts).mean()) - probability

        return float(optimize.brentq(excess, 1e-9, 1e3))

    return quantile(tail), quantile(1 - tail)


def effective_sample_size(values: npt.ArrayLike) -> float:
    """n / (1 + 2 Σ ρ_k), the autocorrelations ρ_k summed up to the first that is not positive; between 1 and n.

    Neighbouring frames see the same houses and have correlated errors, so n frames are fewer than n independent trials.
    """
    series = _finite(values, "values")
    count = len(series)
    deviation = series - series.mean() if count else series
    variance = float(np.mean(deviation**2)) if count else 0.0
    if count < 3 or variance == 0:
        return float(count)
    correlation_sum = 0.0
    for lag in range(1, count // 2 + 1):
        correlation = float(np.dot(deviation[:-lag], deviation[lag:])) / (count * variance)
        if correlation <= 0:
            break
        correlation_sum += correlation
    return max(1.0, count / (1 + 2 * correlation_sum))


@dataclass(frozen=True)
class Share:
    """A share of `count` with its 95% Wilson interval."""

    value: float
    lower: float
    upper: float
    count: int


def share(successes: int, count: int, confidence: float = 0.95) -> Share | None:
    """Share and Wilson score interval, which is valid at 0, at 1 and for few trials. None for count = 0."""
    if not 0 <= successes <= count:
        raise InputError(f"{successes} successes out of {count}; must lie between 0 and the count")
    if count == 0:
        return None
    interval = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    # Rounding may put a limit beyond the value where the share is 0 or 1.
    ratio = successes / count
    return Share(ratio, min(ratio, float(interval.low)), max(ratio, float(interval.high)), count)


def ellipse_coverage(nees: npt.ArrayLike, contents: Sequence[float]) -> tuple[Share | None, ...]:
    """For each content (0.95: the 95% ellipse) the share of truths that lie inside."""
    values = _finite(nees, "NEES")
    return tuple(share(int(np.count_nonzero(values <= chi2_quantile(p))), len(values)) for p in contents)


def major_sigmas(covariances: npt.ArrayLike) -> Float64:
    """Standard deviation along each ellipse's long axis: covariances (n, 2, 2) m² → float64 (n,) metres."""
    matrices = _finite(covariances, "covariances")
    return semi_major_sigmas(matrices) if len(matrices) else np.zeros(0)


# --- integrity --------------------------------------------------------------------------------------------------------


def gross_errors(errors: npt.ArrayLike, alert_limit_m: float) -> Bool:
    """Fixes further from the truth than the alert limit, regardless of their covariance: bool (n,)."""
    return np.asarray(_finite(errors, "errors") > alert_limit_m)


def false_fixes(errors: npt.ArrayLike, nees: npt.ArrayLike, alert_limit_m: float) -> Bool:
    """Fixes that would harm a filter: beyond the alert limit *and* outside their own 99.9% ellipse. bool (n,).

    Either condition alone misleads. Outside the ellipse but a metre away is a calibration fault (NEES shows it) that
    does no harm; far away but inside a wide ellipse is a fix that declares its little value (availability shows it).
    """
    return gross_errors(errors, alert_limit_m) & (_finite(nees, "NEES") > chi2_quantile(FALSE_FIX_PROBABILITY))


def protection_levels(covariances: npt.ArrayLike) -> Float64:
    """Radii that the errors exceed once in a thousand times if the covariances are correct.

    K σ_major with K = √χ²₀.₉₉₉(2) = 3.72: a circle of this radius holds the 99.9% ellipse.

    Args:
        covariances: (n, 2, 2) of the fixes alone, as the robot sees them.
    """
    return math.sqrt(chi2_quantile(PROTECTION_PROBABILITY)) * major_sigmas(covariances)


@dataclass(frozen=True)
class Stanford:
    """Counts of the regions of the Stanford (integrity) diagram, error against protection level."""

    nominal: int
    """Error ≤ PL ≤ AL."""
    misleading: int
    """PL < error ≤ AL."""
    hazardous: int
    """PL ≤ AL < error."""
    unavailable: int
    """PL > AL, error ≤ PL."""
    unavailable_misleading: int
    """AL < PL < error."""


def stanford_regions(errors: npt.ArrayLike, protection_levels_m: npt.ArrayLike, alert_limit_m: float) -> Stanford:
    """Counts in the regions of the Stanford diagram.

    Args:
        errors: (n,) metres.
        protection_levels_m: (n,) metres.
        alert_limit_m: the largest error that is allowed.
    """
    error = _finite(errors, "errors")
    level = _finite(protection_levels_m, "protection levels")
    available = level <= alert_limit_m
    bounded = error <= level
    hazardous = available & (error > alert_limit_m)
    return Stanford(
        nominal=int(np.count_nonzero(available & bounded)),
        misleading=int(np.count_nonzero(available & ~bounded & ~hazardous)),
        hazardous=int(np.count_nonzero(hazardous)),
        unavailable=int(np.count_nonzero(~available & bounded)),
        unavailable_misleading=int(np.count_nonzero(~available & ~bounded)),
    )


@dataclass(frozen=True)
class RiskCoverage:
    """What is risked when only the most confident fixes are used."""

    coverage: Float64
    """(m,) share of all frames that keep their fix, rising."""
    risk: Float64
    """(m,) share of the kept fixes that fail."""
    area: float
    """Mean risk over the fixes, each kept set weighted by its newly added fixes; lower is better."""


def risk_coverage(uncertainties: npt.ArrayLike, failed: npt.ArrayLike, total: int) -> RiskCoverage | None:
    """How many fixes fail if only the most confident are kept; None for no fixes.

    Fixes of equal uncertainty enter together, so that their order in the file cannot flatter the curve.

    Args:
        uncertainties: (n,) of the fixes, lower is more confident.
        failed: bool (n,).
        total: all frames.
    """
    values = _finite(uncertainties, "uncertainties")
    failures = np.asarray(failed, np.float64)
    if not values.size:
        return None
    if len(values) > total:
        raise InputError(f"{len(values)} fixes out of a total of {total}; the total must count at least the fixes")
    order = np.argsort(values, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    kept = last_of_ties + 1
    risk = np.cumsum(failures[order])[last_of_ties] / kept
    added = np.diff(kept, prepend=0)
    return RiskCoverage(kept / total, risk, float(np.dot(risk, added) / len(values)))


# --- comparison -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval."""

    value: float
    lower: float
    upper: float


def block_bootstrap_rows(count: int, block: int, draws: int, generator: np.random.Generator) -> Int64:
    """Places for a circular block bootstrap: int64 (draws, count).

    Whole runs of `block` successive frames are drawn, since errors of neighbouring frames are correlated and drawing
    them one by one would make the intervals too narrow (Politis and Romano, 1992).
    """
    if block < 1:
        raise InputError(f"bootstrap block of {block} frames, must be at least 1")
    if count == 0:
        return np.zeros((draws, 0), np.int64)
    starts = generator.integers(0, count, (draws, -(-count // block)))
    rows = (starts[:, :, None] + np.arange(block)) % count
    return np.asarray(rows.reshape(draws, -1)[:, :count], np.int64)
