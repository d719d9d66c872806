"""A drive through a town: a route over streets, a smooth path in the right-hand lane, a speed at each place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from unifygeo_ros.errors import ConfigurationError
from unifygeo_training.towns.scene import GROUND, Kind, Town, clearance
from unifygeo_training.towns.streets import Street, normals

Float = npt.NDArray[np.float64]

STATION_M = 0.25
"""Distance along the path between its tabulated speeds."""

SLOWEST_M_S, FASTEST_M_S = 3.0, 12.0
LATERAL_M_S2 = 2.0
FORWARD_M_S2 = 1.2
SHARPEST_PER_M = 1 / 5.5
"""Limit of the path's curvature: a car's turning circle."""

BODY_M = 1.1
"""Everything solid stays this far from the path of the vehicle's middle."""


@dataclass(frozen=True)
class Motion:
    """Where base_link is at some times; all arrays (n,), angles by REP-103 in the town's grid.

    x_m, y_m: town coordinates. yaw_rad: of the direction of travel, unwrapped. speed_m_s: forward. yaw_rate_rad_s.
    acceleration_m_s2: forward; the lateral one is speed · yaw rate.
    """

    time_s: Float
    x_m: Float
    y_m: Float
    yaw_rad: Float
    speed_m_s: Float
    yaw_rate_rad_s: Float
    acceleration_m_s2: Float


class Drive:
    """A path with a speed profile, evaluated exactly at any time."""

    def __init__(self, points: Float) -> None:
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


def _speeds(s: Float, curvature: Float) -> Float:
    """Speed at each station: limited by the bend, then by what brakes and engine can do."""
    v = np.clip(np.sqrt(LATERAL_M_S2 / np.maximum(np.abs(curvature), 1e-6)), SLOWEST_M_S, FASTEST_M_S)
    v[0] = v[-1] = SLOWEST_M_S
    for k in range(1, len(v)):
        v[k] = min(v[k], np.sqrt(v[k - 1] ** 2 + 2 * FORWARD_M_S2 * (s[k] - s[k - 1])))
    for k in range(len(v) - 2, -1, -1):
        v[k] = min(v[k], np.sqrt(v[k + 1] ** 2 + 2 * FORWARD_M_S2 * (s[k + 1] - s[k])))
    return v


def plan_drive(town: Town, seed: int, length_m: float, margin_m: float = 45.0) -> Drive:
    """A drive of at least `length_m` in the town, never nearer than `margin_m` to its edge.

    Routes are drawn until one bends gently enough and clears every solid.
    """
    usable = [
        s for s in town.streets if s.line.min() > margin_m and s.line.max() < town.size_m - margin_m and s.rank < 3
    ]
    legs: dict[int, list[tuple[int, bool]]] = {}
    for k, s in enumerate(usable):
        legs.setdefault(s.start, []).append((k, True))
        legs.setdefault(s.end, []).append((k, False))
    for attempt in range(200 if usable else 0):
        rng = np.random.default_rng([seed, attempt, 11])
        points = _route(rng, usable, legs, length_m)
        if points is None:
            continue
        drive = Drive(_smooth(points))
        if np.abs(drive.curvature_per_m).max() < SHARPEST_PER_M and drive.length_m >= length_m and _clear(town, drive):
            return drive
    raise ConfigurationError(
        f"no drive of {length_m:.0f} m fits into town {town.seed} of {town.size_m:.0f} m; "
        "make the drive shorter or the town larger"
    )


def _lane(s: Street, forward: bool) -> Float:
    """The middle of the right-hand lane from crossing to crossing, in the direction of travel."""
    left, right = s.lane_edges_m
    middle = (left + right) / 2
    lane = (middle + (right if forward else left)) / 2
    if left - right > 10:  # two lanes each way: keep to the inner one
        lane = middle + (lane - middle) * 0.6
    first, last = int(s.set_back_m[0]), len(s.line) - int(s.set_back_m[1])
    points = (s.line + normals(s.line) * lane)[first:last]
    return points if forward else points[::-1]


def _route(
    rng: np.random.Generator, usable: list[Street], legs: dict[int, list[tuple[int, bool]]], length_m: float
) -> Float | None:
    """Lanes one after another over random turns, never straight back; streets already driven are avoided."""
    k, forward = int(rng.integers(len(usable))), bool(rng.random() < 0.5)
    lanes = [_lane(usable[k], forward)]
    driven = {k: 1}
    length = 0.0
    while length < length_m * 1.08 + 20:
        s = usable[k]
        node = s.end if forward else s.start
        options = []
        for other, onward in legs[node]:
            lane = _lane(usable[other], onward)
            if other == k or len(lane) < 8 or len(lanes[-1]) < 8:
                continue
            u, v = lanes[-1][-1] - lanes[-1][-3], lane[2] - lane[0]
            turn = abs(np.arctan2(u[0] * v[1] - u[1] * v[0], u @ v))
            if turn < 2.0:
                options.append((other, onward, lane))
        if not options:
            return None
        weight = np.array([4.0 ** -driven.get(other, 0) for other, _, _ in options])
        k, forward, lane = options[int(rng.choice(len(options), p=weight / weight.sum()))]
        driven[k] = driven.get(k, 0) + 1
        lanes.append(_join(lanes[-1], lane))
        lanes.append(lane)
        length += float(np.hypot(*np.diff(np.vstack(lanes[-2:]), axis=0).T).sum())
    return np.vstack(lanes)


def _join(before: Float, after: Float) -> Float:
    """A cubic curve over the crossing, from the end of one lane to the start of the next, about 1 m apart."""
    a, b = before[-1], after[0]
    reach = np.hypot(*(b - a))
    u, v = before[-1] - before[-3], after[2] - after[0]
    u, v = u / np.hypot(*u) * reach * 0.45, v / np.hypot(*v) * reach * 0.45
    t = np.linspace(0, 1, max(3, int(reach) + 1))[1:-1, None]
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * (a + u) + 3 * (1 - t) * t**2 * (b - v) + t**3 * b


def _smooth(points: Float) -> Float:
    """Points every 0.5 m, smoothed over about 2 m."""
    chord = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    keep = np.concatenate([[True], np.diff(chord) > 1e-6])
    u = np.arange(0, chord[-1], 0.5)
    even = np.stack([np.interp(u, chord[keep], points[keep, k]) for k in (0, 1)], axis=1)
    return gaussian_filter1d(even, 4.0, axis=0, mode="nearest")[2:-2]


def _clear(town: Town, drive: Drive) -> bool:
    solid = town.objects[(town.objects["kind"] != int(Kind.CAR)) & (town.objects["kind"] != int(Kind.CABIN))]
    motion = drive.at(np.arange(0, drive.duration_s, 0.25))
    return all(clearance(solid, x, y) > BODY_M for x, y in zip(motion.x_m, motion.y_m, strict=True))


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
