"""Two replays of the same drive, image by image."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Callable, Mapping

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64, Int64
from unifygeo_ros.core.covariance import chi2_quantile
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.evaluation.metrics import definitions as metrics

SEED = 20_240_501
"""The draws are the same in every comparison, so that its answer is."""


@dataclass(frozen=True)
class Difference:
    """One number of both runs and their difference."""

    name: str
    unit: str
    better: str
    """Either "lower" or "higher"."""
    a: float | None
    """None where the run has nothing to say."""
    b: float | None
    difference: metrics.Interval | None
    """b − a with its 95% paired block bootstrap interval."""

    @property
    def certain(self) -> bool:
        """Whether the interval excludes 0."""
        return self.difference is not None and (self.difference.lower > 0 or self.difference.upper < 0)

    @property
    def judgement(self) -> str:
        """One of "better", "worse", "same" (no certain difference) and "unknown"."""
        if self.difference is None:
            return "unknown"
        if not self.certain:
            return "same"
        return "better" if (self.difference.value < 0) == (self.better == "lower") else "worse"


@dataclass(frozen=True)
class Comparison:
    """Two replays of one drive, compared."""

    images: int
    """Number of compared images, matched by stamp."""
    only_a: int
    """Images that one run alone has."""
    only_b: int
    """Images that one run alone has."""
    block: int
    differences: tuple[Difference, ...]

    @property
    def regressions(self) -> tuple[Difference, ...]:
        return tuple(difference for difference in self.differences if difference.judgement == "worse")


@dataclass(frozen=True)
class _Columns:
    """Columns of one run over the common images: float64 (n,), NaN where there is nothing."""

    error_m: Float64
    nees: Float64
    known: Float64
    fixed: Float64


def compare(a: Mapping[str, Any], b: Mapping[str, Any], *, block: int = 20, draws: int = 2000) -> Comparison:
    """a, b: what `read_summary` gave. Raises InputError if they are not of the same bag."""
    bags = [summary["identity"]["bag"]["fingerprint"] for summary in (a, b)]
    if bags[0] != bags[1]:
        names = [summary["identity"]["bag"]["name"] for summary in (a, b)]
        raise InputError(f"the runs are of different bags ({names[0]} and {names[1]}); compare runs of the same drive")
    stamps_a, stamps_b = _recorded_stamps(a), _recorded_stamps(b)
    common, places_a, places_b = np.intersect1d(stamps_a, stamps_b, return_indices=True)
    if not len(common):
        raise InputError("the runs have no image in common; compare runs of the same drive")
    runs = (_columns(a, places_a), _columns(b, places_b))
    # At least ten blocks, else there is nothing to draw from.
    block = min(block, max(1, len(common) // 10))
    drawn = metrics.block_bootstrap_rows(len(common), block, draws, np.random.default_rng(SEED))
    limit_m = float(a["criteria"]["alert_limit_m"])
    differences = [
        _difference(name, unit, better, runs, drawn, statistic)
        for name, unit, better, statistic in _statistics(limit_m)
    ]
    return Comparison(len(common), len(stamps_a) - len(common), len(stamps_b) - len(common), block, tuple(differences))


def _recorded_stamps(summary: Mapping[str, Any]) -> Int64:
    """The images' stamps as they are in the bag, by which runs with different stamp_offset_s pair. int64 (n,)."""
    offset_ns = ns_from_s(summary["identity"]["session"]["stamp_offset_s"])
    return np.array(summary["per_image"]["stamp_ns"], np.int64) - offset_ns


def _columns(summary: Mapping[str, Any], rows: Int64) -> _Columns:
    table = summary["per_image"]

    def numbers(values: list[Any]) -> Float64:
        return np.array([np.nan if value is None else value for value in values], np.float64)[rows]

    return _Columns(
        numbers(table["error_m"]),
        numbers(table["nees"]),
        numbers(table["has_truth"]),
        numbers([outcome == "fix" for outcome in table["outcome"]]),
    )


Statistic = Callable[[_Columns, Int64], Float64]


def _statistics(limit_m: float) -> list[tuple[str, str, str, Statistic]]:
    """(name, unit, which is better, statistic). A statistic takes rows (d, n) and gives (d,), NaN for nothing."""

    def recall(distance_m: float) -> Statistic:
        return lambda run, rows: _ratio((run.error_m <= distance_m)[rows], (run.known == 1)[rows])

    def quantile(q: float) -> Statistic:
        return lambda run, rows: _nan_quantile(run.error_m[rows], q)

    def false_share(run: _Columns, rows: Int64) -> Float64:
        wrong = (run.error_m > limit_m) & (run.nees > chi2_quantile(metrics.FALSE_FIX_PROBABILITY))
        return _ratio(wrong[rows], ~np.isnan(run.error_m)[rows])

    def inconsistency(run: _Columns, rows: Int64) -> Float64:
        nees = run.nees[rows]
        mean = _ratio(np.nan_to_num(nees), ~np.isnan(nees)) / metrics.DIMENSIONS
        return np.asarray(np.abs(np.log(np.maximum(mean, 1e-12))))

    return [
        ("images with a fix", "share", "higher", lambda run, rows: run.fixed[rows].mean(axis=1)),
        *[(f"R@{distance:g} m", "share", "higher", recall(distance)) for distance in (1.0, 5.0, 10.0)],
        ("median error", "m", "lower", quantile(0.5)),
        ("95% error", "m", "lower", quantile(0.95)),
        ("false fixes", "share", "lower", false_share),
        ("|ln ANEES|, 0 is consistent", "", "lower", inconsistency),
    ]


def _ratio(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> Float64:
    """Σ numerator / Σ denominator along the last axis, NaN where the denominator is 0."""
    above, below = numerator.sum(axis=1), denominator.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(below > 0, above / below, np.nan))


def _nan_quantile(values: Float64, q: float) -> Float64:
    """Quantile of each row's finite values: float64 (d,), NaN for none."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.count_nonzero(~np.isnan(values), axis=1)
    position = q * np.maximum(count - 1, 0)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    rows = np.arange(len(values))
    below, above = ordered[rows, low], ordered[rows, high]
    return np.asarray(np.where(count > 0, below + (above - below) * (position - low), np.nan))


def _difference(
    name: str,
    unit: str,
    better: str,
    runs: tuple[_Columns, _Columns],
    drawn: Int64,
    statistic: Statistic,
) -> Difference:
    everything = np.arange(drawn.shape[1])[None]
    a, b = (float(statistic(run, everything)[0]) for run in runs)
    if np.isnan(a) or np.isnan(b):
        return Difference(name, unit, better, _known(a), _known(b), None)
    # The same images are drawn from both runs: images that are hard for both cancel in the difference.
    differences = statistic(runs[1], drawn) - statistic(runs[0], drawn)
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return Difference(name, unit, better, a, b, None)
    lower, upper = np.percentile(differences, [2.5, 97.5])
    return Difference(name, unit, better, a, b, metrics.Interval(b - a, float(lower), float(upper)))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def to_json(comparison: Comparison) -> str:
    content = dataclasses.asdict(comparison)
    for row, difference in zip(content["differences"], comparison.differences, strict=True):
        row["judgement"] = difference.judgement
    return json.dumps(content, indent=1, allow_nan=False)


def to_text(comparison: Comparison, name_a: str, name_b: str) -> str:
    """A table for the terminal."""
    lines = [f"{comparison.images} images in common, blocks of {comparison.block}"]
    if comparison.only_a or comparison.only_b:
        lines.append(f"left out: {comparison.only_a} only in {name_a}, {comparison.only_b} only in {name_b}")
    rows = [("", name_a, name_b, "difference", "95% interval", "")]
    for entry in comparison.differences:
        interval = entry.difference
        rows.append(
            (
                entry.name,
                _text(entry.a, entry.unit),
                _text(entry.b, entry.unit),
                _text(interval.value if interval else None, entry.unit, sign=True),
                f"{_text(interval.lower, entry.unit, sign=True)} … {_text(interval.upper, entry.unit, sign=True)}"
                if interval
                else "–",
                {"same": "", "unknown": "not known"}.get(entry.judgement, entry.judgement),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:5], widths[1:5], strict=True)),
        ]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join(lines)


def _text(value: float | None, unit: str, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    plus = "+" if sign else ""
    if unit == "share":
        return f"{100 * value:{plus}.1f}%"
    return f"{value:{plus}.2f}{' ' + unit if unit else ''}"
