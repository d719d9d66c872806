"""A drive through a town: a route over streets, a smooth path in the right-hand lane, a speed at each place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.towns.scene import GROUND, Kind, Town, clearance
from unifygeo_training.towns.streets import SAMPLE_M, Street, normals

STATION_M = 0.25
"""Distance along the path between its tabulated speeds."""

SLOWEST_M_S, FASTEST_M_S = 3.0, 12.0
LATERAL_M_S2 = 2.0
FORWARD_M_S2 = 1.2
SHARPEST_PER_M = 1 / 5.5
"""Limit of the path's curvature: a car's turning circle."""

SHARPEST_TURN_RAD = 2.0

BODY_M = 1.1
"""Everything solid stays this far from the path of the vehicle's middle."""


@dataclass(frozen=True)
class Motion:
    """Where base_link is at some times; all arrays (n,), angles by REP-103 in the town's grid."""

    time_s: Float64
    x_m: Float64
    """Town coordinates."""
    y_m: Float64
    """Town coordinates."""
    yaw_rad: Float64
    """Of the direction of travel, unwrapped."""
    speed_m_s: Float64
    """Forward."""
    yaw_rate_rad_s: Float64
    acceleration_m_s2: Float64
    """Forward; the lateral one is speed · yaw rate."""


class Drive:
    """A path with a speed profile, evaluated exactly at any time."""

    def __init__(self, points: Float64) -> None:
        """points: float64 (n, 2), smooth and about 0.5 m apart."""
        chord = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        self._spline = CubicSpline(chord, points)
        # Stations at equal parameter; the spline's speed there is within 1e-3 of 1 and is divided out.
        self._u = np.arange(0, chord[-1], STATION_M)
        first, second = self._spline(self._u, 1), self._spline(self._u, 2)
        stretch = np.hypot(*first.T)
        self._s = np.concatenate([[0], np.cumsum((stretch[1:] + stretch[:-1]) / 2 * np.diff(self._u))])
        self.curvature_per_m = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / stretch**3
        self._v = _speeds(self._s, self.curvature_per_m)
        self._t = np.concatenate([[0], np.cumsum(2 * np.diff(self._s) / (self._v[1:] + self._v[:-1]))])

    @property
    def length_m(self) -> float:
        return float(self._s[-1])

    @property
    def duration_s(self) -> float:
        return float(self._t[-1])

    def at(self, time_s: npt.ArrayLike) -> Motion:
        """The motion at times within [0, duration_s], (n,)."""
        t = np.atleast_1d(np.asarray(time_s, np.float64))
        k = np.clip(np.searchsorted(self._t, t, side="right") - 1, 0, len(self._t) - 2)
        ds = self._s[k + 1] - self._s[k]
        a = (self._v[k + 1] ** 2 - self._v[k] ** 2) / (2 * ds)  # constant between stations
        tau = t - self._t[k]
        speed = self._v[k] + a * tau
        share = (self._v[k] * tau + a * tau**2 / 2) / ds
        u = self._u[k] + share * (self._u[k + 1] - self._u[k])
        p, first, second = self._spline(u), self._spline(u, 1), self._spline(u, 2)
        curvature = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / np.hypot(*first.T) ** 3
        yaw = np.unwrap(np.arctan2(first[:, 1], first[:, 0]))
        return Motion(t, p[:, 0], p[:, 1], yaw, speed, speed * curvature, a)


def _speeds(s: Float64, curvature: Float64) -> Float64:
    """Speed at each station: limited by the bend, then by what brakes and engine can do."""
    v = np.clip(np.sqrt(LATERAL_M_S2 / np.maximum(np.abs(curvature), 1e-6)), SLOWEST_M_S, FASTEST_M_S)
    v[0] = v[-1] = SLOWEST_M_S
    for k in range(1, len(v)):
        v[k] = min(v[k], np.sqrt(v[k - 1] ** 2 + 2 * FORWARD_M_S2 * (s[k] - s[k - 1])))
    for k in range(len(v) - 2, -1, -1):
        v[k] = min(v[k], np.sqrt(v[k + 1] ** 2 + 2 * FORWARD_M_S2 * (s[k + 1] - s[k])))
    return v


def plan_drive(
    town: Town,
    seed: int,
    length_m: float,
    margin_m: float = 45.0,
    *,
    number: int = 0,
    area_m: tuple[float, float, float, float] | None = None,
) -> Drive:
    """A drive of at least `length_m` in the town, never nearer than `margin_m` to its edge.

    Streets and turns that bend too sharply or pass too near to something solid are not used.

    Args:
        town: The town.
        seed: Of the route.
        length_m: At least.
        margin_m: To the town's edge.
        number: Another route for each number.
        area_m: West, south, east and north border in town coordinates, which no street of the route crosses; None:
            none.

    Raises:
        ConfigurationError: there is no such drive.
    """
    network = _Network(town, margin_m, area_m)
    enough_m = length_m * 1.02 + 5  # smoothing cuts corners
    for attempt in range(10):
        points = network.route(np.random.default_rng([seed, attempt, 11, number]), enough_m)
        if points is None:
            continue
        stations = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        points = points[stations <= enough_m]
        drive = Drive(_smooth(points))
        if drive.length_m >= length_m and network.passable(points, 1.0):
            return drive
    raise ConfigurationError(
        f"no drive of {length_m:.0f} m fits into {'town' if area_m is None else 'this area of town'} {town.seed} of "
        f"{town.size_m:.0f} m; make the drive shorter or the {'town' if area_m is None else 'area'} larger"
    )


class _Network:
    """Lanes of a town that can be driven, in either direction, and the turns between them.

    A leg is a street's number and whether it is driven from its start to its end.
    """

    def __init__(self, town: Town, margin_m: float, area_m: tuple[float, float, float, float] | None) -> None:
        west, south, east, north = area_m or (0.0, 0.0, town.size_m, town.size_m)
        low = np.maximum([west, south], margin_m)
        high = np.minimum([east, north], town.size_m - margin_m)
        streets = [s for s in town.streets if (s.line > low).all() and (s.line < high).all() and s.rank < 3]
        self._solid = town.objects[~np.isin(town.objects["kind"], (int(Kind.CAR), int(Kind.CABIN)))]
        self._lanes = {(k, way): _lane(s, way) for k, s in enumerate(streets) for way in (True, False)}
        self._ends = {(k, way): s.end if way else s.start for k, s in enumerate(streets) for way in (True, False)}
        self._leaving: dict[int, list[tuple[int, bool]]] = {}
        for k, s in enumerate(streets):
            self._leaving.setdefault(s.start, []).append((k, True))
            self._leaving.setdefault(s.end, []).append((k, False))
        self._known: dict[tuple[tuple[int, bool], ...], bool] = {}

    def passable(self, points: Float64, share: float = 0.93) -> bool:
        """Whether the smoothed path keeps to this share of the sharpest bend and clears everything solid."""
        drive = Drive(_smooth(points))
        if np.abs(drive.curvature_per_m).max() > share * SHARPEST_PER_M:
            return False
        motion = drive.at(np.arange(0, drive.duration_s, 0.15))
        reach = 40.0  # no solid is larger
        o = self._solid
        near = o[
            (np.abs(o["x"] - (motion.x_m.min() + motion.x_m.max()) / 2) < np.ptp(motion.x_m) / 2 + reach)
            & (np.abs(o["y"] - (motion.y_m.min() + motion.y_m.max()) / 2) < np.ptp(motion.y_m) / 2 + reach)
        ]
        return all(clearance(near, x, y) > BODY_M for x, y in zip(motion.x_m, motion.y_m, strict=True))

    def _usable(self, *legs: tuple[int, bool]) -> bool:
        """Whether one leg, or the turn from one to the next, can be driven."""
        if legs not in self._known:
            lanes = [self._lanes[leg] for leg in legs]
            if min(len(lane) for lane in lanes) < 12:
                self._known[legs] = False
            elif len(lanes) == 1:
                self._known[legs] = self.passable(lanes[0])
            else:
                before, after = lanes
                u, v = before[-1] - before[-3], after[2] - after[0]
                turn = abs(np.arctan2(u[0] * v[1] - u[1] * v[0], u @ v))
                piece = np.vstack([before[-25:], _join(before, after), after[:25]])
                self._known[legs] = bool(turn < SHARPEST_TURN_RAD) and self.passable(piece)
        return self._known[legs]

    def route(self, rng: np.random.Generator, length_m: float) -> Float64 | None:
        """Lanes and turns one after another, about 1 m between points; None where there is no such route.

        At each crossing the streets are tried in random order, those driven before last; a dead end is backed out of.
        """
        starts = list(self._lanes)
        if not starts:
            return None
        legs: list[tuple[int, bool]] = []
        untried: list[list[tuple[int, bool]]] = [[starts[int(k)] for k in rng.permutation(len(starts))]]
        for _ in range(20 * int(length_m)):
            if not untried:
                return None
            if not untried[-1]:
                untried.pop()
                legs = legs[:-1]
                continue
            leg = untried[-1].pop(0)
            if not self._usable(leg) or (legs and not self._usable(legs[-1], leg)):
                continue
            legs.append(leg)
            if sum(len(self._lanes[other]) for other in legs) * SAMPLE_M >= length_m:
                pieces = [self._lanes[legs[0]]]
                for leg in legs[1:]:
                    pieces += [_join(pieces[-1], self._lanes[leg]), self._lanes[leg]]
                return np.vstack(pieces)
            driven = [k for k, _ in legs]
            options = [other for other in self._leaving[self._ends[leg]] if other[0] != leg[0]]
            order = sorted(options, key=lambda other: (driven.count(other[0]), rng.random()))
            untried.append(order)
        return None


def _lane(s: Street, forward: bool) -> Float64:
    """The middle of the right-hand lane from crossing to crossing, in the direction of travel."""
    left, right = s.lane_edges_m
    middle = (left + right) / 2
    lane = (middle + (right if forward else left)) / 2
    if left - right > 10:  # two lanes each way: keep to the inner one
        lane = middle + (lane - middle) * 0.6
    first, last = int(s.set_back_m[0]), len(s.line) - int(s.set_back_m[1])
    points = (s.line + normals(s.line) * lane)[first:last]
    return points if forward else points[::-1]


def _join(before: Float64, after: Float64) -> Float64:
    """A cubic curve over the crossing, from the end of one lane to the start of the next, about 1 m apart."""
    a, b = before[-1], after[0]
    reach = np.hypot(*(b - a))
    u, v = before[-1] - before[-3], after[2] - after[0]
    u, v = u / np.hypot(*u) * reach * 0.45, v / np.hypot(*v) * reach * 0.45
    t = np.linspace(0, 1, max(3, int(reach) + 1))[1:-1, None]
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * (a + u) + 3 * (1 - t) * t**2 * (b - v) + t**3 * b


def _smooth(points: Float64) -> Float64:
    """Points every 0.5 m, smoothed over about 2 m."""
    chord = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    keep = np.concatenate([[True], np.diff(chord) > 1e-6])
    u = np.arange(0, chord[-1], 0.5)
    even = np.stack([np.interp(u, chord[keep], points[keep, k]) for k in (0, 1)], axis=1)
    return gaussian_filter1d(even, 4.0, axis=0, mode="nearest")[2:-2]


def clear_the_way(town: Town, drive: Drive) -> npt.NDArray[np.void]:
    """The town's objects without the cars that stand where the vehicle drives, as far as the ground view goes."""
    objects = town.objects.copy()
    motion = drive.at(np.arange(0, drive.duration_s, 0.1))
    for k in np.nonzero(np.isin(objects["kind"], (int(Kind.CAR), int(Kind.CABIN))))[0]:
        o = objects[k]
        dx, dy = motion.x_m - o["x"], motion.y_m - o["y"]
        along = np.maximum(np.abs(dx * o["cos"] + dy * o["sin"]) - o["half_x"], 0)
        across = np.maximum(np.abs(-dx * o["sin"] + dy * o["cos"]) - o["half_y"], 0)
        if np.hypot(along, across).min() < BODY_M:
            objects["views"][k] &= ~GROUND
    return objects
