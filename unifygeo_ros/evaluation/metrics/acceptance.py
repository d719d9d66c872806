"""Whether a changed model may take the place of the old one: judged on drives that were kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Bool, Float64
from unifygeo_ros.core.covariance import chi2_quantile
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.metrics import definitions as metrics
from unifygeo_ros.evaluation.metrics.against_odometry import Agreement
from unifygeo_ros.evaluation.metrics.comparison import SEED, compare

LEAST_IMAGES = 100
"""Images with ground truth, over all drives, under which nothing is accepted."""
BLOCK, DRAWS = 20, 2000
"""As in `unifygeo compare`."""


@dataclass(frozen=True)
class Condition:
    """One thing that a new model must fulfil."""

    name: str
    met: bool
    detail: str
    """The values of both and the limit."""


@dataclass(frozen=True)
class Acceptance:
    """The verdict, with its reasons."""

    conditions: tuple[Condition, ...]

    @property
    def accepted(self) -> bool:
        return all(condition.met for condition in self.conditions)

    def __str__(self) -> str:
        lines = [f"{'yes' if c.met else 'NO ':3}  {c.name}: {c.detail}" for c in self.conditions]
        lines.append("accepted" if self.accepted else "refused: keep the old model")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Run:
    """One replay: float64 or bool (n,), an entry an image."""

    fixed: Bool
    known: Bool
    wrong: Bool
    """Beyond the alert limit and outside its own 99.9% ellipse."""
    nees: Float64
    """NaN where there is no judged fix."""
    common: float
    """`Consistency.common`."""


def accept(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Acceptance:
    """Judge replays of the same drives with the old and with the new model, in the same order.

    Accepted are: no more false fixes on any drive; an ANEES inside its bounds, over all drives together; certainly more
    images with a fix; and enough images to say so. A model that learnt from a wrong truth fails one of them.

    Args:
        before: what `read_summary` gave of the old model.
        after: the same of the new one.

    Raises:
        InputError: there are none, or a pair is not of the same drive, or judged by another alert limit.
    """
    drives = _paired(before, after)
    return Acceptance((_enough(drives), *_false(drives), _consistent(drives), _available(drives)))


def accept_without_truth(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    agreements: Sequence[tuple[Agreement, Agreement]],
) -> Acceptance:
    """Judge replays of the same drives where nobody knows where the vehicle was.

    In place of the ground truth stands, for what is certainly wrong, the smoothed track of the old model, where that is
    certain; for the covariances, the odometry. The track's errors are partly those of the replays, so that an ANEES
    against it says nothing.

    Args:
        before: what `read_summary` gave of the old model, with its own smoothed track as truth.
        after: the same of the new model, with the same track.
        agreements: for each drive, of the fixes of single images with the odometry, of the old and of the new model.

    Raises:
        InputError: as `accept`.
    """
    drives = _paired(before, after)
    names = [name for name, _, _ in drives]
    contradicted = [_contradicted(name, old, new) for name, (old, new) in zip(names, agreements, strict=True)]
    squared = np.concatenate([new.squared for _, new in agreements])
    consistent = _anees(squared, "covariances agree with the odometry")
    return Acceptance((_enough(drives), *_false(drives), *contradicted, consistent, _available(drives)))


def _contradicted(name: str, old: Agreement, new: Agreement) -> Condition:
    # As many of both: a model that answers more often is not worse for it.
    count = min(int(old.judged.sum()), int(new.judged.sum()))
    was, found = old.contradicted_among_surest(count), new.contradicted_among_surest(count)
    return Condition(
        f"no more fixes of single images on {name} that the odometry contradicts",
        found <= was,
        f"{found} of the {count} surest, before {was}",
    )


def _paired(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> _Drives:
    """Name, old and new run of each drive."""
    if not before or len(before) != len(after):
        raise InputError(f"{len(before)} replays before and {len(after)} after; give the same drives, one at least")
    drives: list[tuple[str, _Run, _Run]] = []
    names: list[str] = []
    for old, new in zip(before, after, strict=True):
        limits = [summary["criteria"]["alert_limit_m"] for summary in (old, new)]
        if limits[0] != limits[1]:
            raise InputError(f"alert limits of {limits[0]:g} and {limits[1]:g} m; judge both with the same one")
        same = compare(old, new, draws=1)  # raises for different bags
        name = old["identity"]["bag"]["name"]
        if same.only_a or same.only_b:
            raise InputError(f"{name}: {same.only_a + same.only_b} images are in one replay only; replay all of both")
        names.append(name)
        name += f" ({names.count(name)})" if names.count(name) > 1 else ""  # bags are often called bag
        drives.append((name, _run(old, limits[0]), _run(new, limits[1])))
    return drives


_Drives = Sequence[tuple[str, _Run, _Run]]


def _run(summary: Mapping[str, Any], limit_m: float) -> _Run:
    rows = summary["per_image"]

    def numbers(name: str) -> Float64:
        return np.array([np.nan if value is None else value for value in rows[name]], np.float64)

    error_m, nees = numbers("error_m"), numbers("nees")
    return _Run(
        fixed=np.array([outcome == "fix" for outcome in rows["outcome"]], np.bool_),
        known=np.array(rows["has_truth"], np.bool_),
        wrong=(error_m > limit_m) & (nees > chi2_quantile(metrics.FALSE_FIX_PROBABILITY)),
        nees=nees,
        common=position["common"] if (position := summary["covariance"]["position"]) else 0.0,
    )


def _enough(drives: _Drives) -> Condition:
    images = sum(int(new.known.sum()) for _, _, new in drives)
    return Condition("enough images", images >= LEAST_IMAGES, f"{images} with ground truth, at least {LEAST_IMAGES}")


def _false(drives: _Drives) -> list[Condition]:
    return [
        Condition(
            f"no more false fixes on {name}",
            int(new.wrong.sum()) <= int(old.wrong.sum()),
            f"{int(new.wrong.sum())}, before {int(old.wrong.sum())}",
        )
        for name, old, new in drives
    ]


def _consistent(drives: _Drives) -> Condition:
    # Drive by drive in order of time: the correlation of neighbours decides how many fixes they are worth.
    nees = [new.nees[~np.isnan(new.nees)] for _, _, new in drives]
    fixes = [len(values) for values in nees]
    # Of the same imagery, so that its error is one draw for all drives together.
    common = float(np.average([new.common for _, _, new in drives], weights=fixes)) if any(fixes) else 0.0
    return _anees(np.concatenate(nees), "covariances are right", common)


def _anees(squared: Float64, name: str, common: float = 0.0) -> Condition:
    found = metrics.consistency(squared, common=common)
    if found is None:
        return Condition(name, False, "no fix can be judged")
    bounds = f"{found.effective_lower:.2f} … {found.effective_upper:.2f}"
    return Condition(name, found.within_effective_bounds, f"ANEES {found.anees:.2f}, bounds {bounds}")


def _available(drives: _Drives) -> Condition:
    old = np.concatenate([before.fixed for _, before, _ in drives])
    new = np.concatenate([after.fixed for _, _, after in drives])
    block = min(BLOCK, max(1, len(old) // 10))
    drawn = metrics.block_bootstrap_rows(len(old), block, DRAWS, np.random.default_rng(SEED))
    gained = new.astype(np.float64) - old
    lower = float(np.percentile(gained[drawn].mean(axis=1), 2.5))
    detail = f"{_percent(new)}, before {_percent(old)}; the gain is at least {lower:+.1%} with 97.5%"
    return Condition("more images with a fix", lower > 0, detail)


def _percent(values: npt.NDArray[np.bool_]) -> str:
    return f"{float(values.mean()):.1%}"
