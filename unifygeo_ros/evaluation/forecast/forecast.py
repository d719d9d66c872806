"""The forecast of a route: what is expected by stretches, and when the first fix comes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyproj

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.forecast.availability import (
    AT_RISK,
    FIRST_FIX_M,
    FITTED_WITH,
    confirmed,
    single_availability,
    weakest_feature,
)
from unifygeo_ros.evaluation.forecast.likeness import Likeness, likeness_of
from unifygeo_ros.evaluation.forecast.route import Route

STEP_M = 5.0
"""Distance of the places that are looked at."""

NO_IMAGERY = "the index has no imagery there"


@dataclass(frozen=True)
class Stretch:
    """A part of the route."""

    start_m: float
    end_m: float
    covered: float
    """Share of it that the index shows, 0 … 1."""
    availability: float
    """Expected share of single images with a fix, heading given."""
    sequence: dict[str, float]
    """Expected share of images with a fix in mode sequence, from the start of the route with nothing known, by the
    heading ("given", "searched")."""
    likeness: float | None
    """Median of `Likeness.likeness`; None where the index has no imagery."""
    reason: str
    """Why it is at risk; empty: it is not."""
    rows: slice
    """Its points in the route, with the one after its end."""


@dataclass(frozen=True)
class FirstFix:
    """When the first fix of a sequence comes; None: less probable than that by the end of the route."""

    median_m: float | None
    late_m: float | None
    """In nine of ten drives it comes before."""


@dataclass(frozen=True)
class Forecast:
    """What is expected of a drive along a route."""

    route: Route
    index_name: str
    tiles: int
    attributions: tuple[str, ...]
    fitted: bool
    """Whether the constants were fitted with the model that made the index."""
    found: Likeness
    availability: Float64
    """float64 (n,), of single images, at the route's points."""
    first_fix: dict[str, FirstFix]
    """By the heading."""
    stretches: tuple[Stretch, ...]

    @property
    def covered(self) -> float:
        """Share of the route that the index shows."""
        return float(self.found.covered.mean())

    def share(self, heading: str) -> float:
        """Expected share of the route with fixes in mode sequence."""
        weights = [stretch.end_m - stretch.start_m for stretch in self.stretches]
        return float(np.average([stretch.sequence[heading] for stretch in self.stretches], weights=weights))

    @property
    def at_risk(self) -> tuple[Stretch, ...]:
        return tuple(stretch for stretch in self.stretches if stretch.reason)


def forecast(index: MapIndex, route: Route, stretch_m: float) -> Forecast:
    """Forecast a drive.

    Args:
        index: an index, or a region of several.
        route: in the index's map frame.
        stretch_m: length of the stretches.

    Raises:
        InputError: no part of the route is on the index.
        IndexFormatError: the index is damaged.
    """
    found = likeness_of(index, route.points_m)
    if not found.covered.any():
        raise InputError(f"{route.name}: {_how_far(index, route)}")
    availability = single_availability(found)
    sequence = {heading: found.covered * confirmed(availability, route.along_m, heading) for heading in FIRST_FIX_M}
    return Forecast(
        route,
        index.path.name,
        len(index),
        index.manifest.attributions,
        index.manifest.weights_sha256 == FITTED_WITH,
        found,
        availability,
        {heading: _first_fix(availability, route, heading) for heading in FIRST_FIX_M},
        tuple(_stretch(found, availability, sequence, route, start, stretch_m) for start in _starts(route, stretch_m)),
    )


def _starts(route: Route, stretch_m: float) -> Float64:
    """Where stretches begin. A rest of less than half a stretch belongs to the one before."""
    return np.asarray(np.arange(max(1, round(route.length_m / stretch_m))) * stretch_m, np.float64)


def _stretch(
    found: Likeness,
    availability: Float64,
    sequence: dict[str, Float64],
    route: Route,
    start_m: float,
    stretch_m: float,
) -> Stretch:
    last = start_m == _starts(route, stretch_m)[-1]
    end_m = route.length_m if last else start_m + stretch_m
    first, after = np.searchsorted(route.along_m, [start_m, end_m])
    inside = slice(int(first), int(after) + 1 if last else int(max(after, first + 1)))
    covered = found.covered[inside]
    expected = float(availability[inside].mean())
    reason = ""
    if not covered.all():
        reason = NO_IMAGERY if not covered.any() else f"{NO_IMAGERY} on {1 - covered.mean():.0%} of it"
    elif expected < AT_RISK:
        reason = weakest_feature(found, inside)
    return Stretch(
        float(start_m),
        float(end_m),
        float(covered.mean()),
        expected,
        {heading: float(values[inside].mean()) for heading, values in sequence.items()},
        float(np.median(found.likeness[inside][covered])) if covered.any() else None,
        reason,
        slice(inside.start, min(inside.stop + 1, len(route.along_m))),
    )


def _first_fix(availability: Float64, route: Route, heading: str) -> FirstFix:
    done = confirmed(availability, route.along_m, heading)
    median_m, late_m = (
        float(route.along_m[np.argmax(done >= level)]) if done[-1] >= level else None for level in (0.5, 0.9)
    )
    return FirstFix(median_m, late_m)


def _how_far(index: MapIndex, route: Route) -> str:
    latitude, longitude = route.geodetic_deg[0]
    datum = index.manifest.datum
    distance_m = pyproj.Geod(ellps="WGS84").inv(longitude, latitude, datum.longitude_deg, datum.latitude_deg)[2]
    return (
        f"no part of it is on the index {index.path.name}: it begins at {latitude:.5f}, {longitude:.5f}, "
        f"{distance_m / 1e3:.1f} km from the index's datum {datum.latitude_deg:.5f}, {datum.longitude_deg:.5f}; give "
        "the index of the place (GeoJSON has the longitude first)"
    )
