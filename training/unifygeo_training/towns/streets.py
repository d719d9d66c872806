"""A street network that is no grid: a Gabriel graph over scattered crossings, its edges bent into curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import Delaunay

from unifygeo_ros.core.arrays import Float64
from unifygeo_training.towns.kinds import MIXED, TownKind

SAMPLE_M = 1.0
"""Distance between the points of a street's centre line."""

SHARPEST_CROSSING_RAD = np.radians(38)


@dataclass(frozen=True)
class Street:
    """One street between two crossings."""

    start: int
    end: int
    line: Float64
    """float64 (n, 2), centre line x, y about SAMPLE_M apart, from crossing `start` to crossing `end`."""
    width_m: float
    """Kerb to kerb, parking included."""
    rank: int
    """0 avenue, 1 street, 2 side street, 3 lane."""
    pavement_m: float
    """Width of the footway at each side."""
    parking_left: bool
    """a row of cars at that kerb."""
    parking_right: bool
    """a row of cars at that kerb."""
    set_back_m: tuple[float, float]
    """How far from each end the crossing reaches."""

    @property
    def length_m(self) -> float:
        return float(np.sum(np.hypot(*np.diff(self.line, axis=0).T)))

    @property
    def lane_edges_m(self) -> tuple[float, float]:
        """Left and right limit of the moving lanes, as offsets to the left of the centre line."""
        left = self.width_m / 2 - (PARKING_M if self.parking_left else 0.0)
        right = -self.width_m / 2 + (PARKING_M if self.parking_right else 0.0)
        return left, right


PARKING_M = 2.2


def normals(line: Float64) -> Float64:
    """Unit normals to the left of a polyline, float64 (n, 2)."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.hypot(*tangent.T)[:, None]
    return np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)


def _scatter(rng: np.random.Generator, size_m: float, margin_m: float) -> Float64:
    """Points at least 52 … 92 m apart, the distance varying over the town."""
    phase = rng.uniform(0, 2 * np.pi, 4)
    scale = rng.uniform(180, 420, 2)
    points: list[Float64] = []
    failures = 0
    while failures < 400:
        p = rng.uniform(-margin_m, size_m + margin_m, 2)
        wave = np.sin(p[0] / scale[0] * 2 * np.pi + phase[0]) * np.cos(p[1] / scale[1] * 2 * np.pi + phase[1])
        apart = 72 + 20 * wave
        if all(np.hypot(*(p - q)) > apart for q in points):
            points.append(p)
            failures = 0
        else:
            failures += 1
    return np.array(points)


def _lattice(rng: np.random.Generator, size_m: float, margin_m: float, apart_m: tuple[float, float]) -> Float64:
    """Crossings of two families of streets, unevenly spaced, turned by any angle, each a few metres off its place."""
    reach = (size_m / 2 + margin_m) * np.sqrt(2)
    lines = []
    for _ in range(2):
        steps = rng.uniform(*apart_m, int(2 * reach / apart_m[0]) + 2)
        at = np.cumsum(steps) - reach - apart_m[1]
        lines.append(at[at < reach])
    points = np.stack(np.meshgrid(*lines), axis=-1).reshape(-1, 2)
    points += rng.normal(0, 3.0, points.shape)
    turn = rng.uniform(0, np.pi / 2)
    c, s = np.cos(turn), np.sin(turn)
    points = points @ np.array([[c, s], [-s, c]]) + size_m / 2
    return points[((points > -margin_m) & (points < size_m + margin_m)).all(axis=1)]


def _gabriel(points: Float64) -> list[tuple[int, int]]:
    """Pairs whose circle on the pair as diameter holds no other point."""
    pairs = {
        (min(a, b), max(a, b))
        for triangle in Delaunay(points).simplices
        for a, b in ((triangle[0], triangle[1]), (triangle[1], triangle[2]), (triangle[0], triangle[2]))
    }
    edges = []
    for a, b in sorted(pairs):
        middle = (points[a] + points[b]) / 2
        radius = np.hypot(*(points[a] - points[b])) / 2
        distance = np.hypot(*(points - middle).T)
        distance[[a, b]] = np.inf
        if distance.min() > radius and radius < 85:
            edges.append((int(a), int(b)))
    return edges


def _angle_between(points: Float64, node: int, a: int, b: int) -> float:
    u, v = points[a] - points[node], points[b] - points[node]
    return float(abs(np.arctan2(u[0] * v[1] - u[1] * v[0], u @ v)))


def _thin(rng: np.random.Generator, points: Float64, edges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Drops the longer of two edges that leave a crossing at a sharp angle, and some at random.

    What stays is one connected network without needless dead ends.
    """
    kept = set(edges)

    def neighbours(node: int) -> list[int]:
        return [b if a == node else a for a, b in kept if node in (a, b)]

    for node in range(len(points)):
        near = sorted(neighbours(node), key=lambda k: float(np.hypot(*(points[k] - points[node]))))
        accepted: list[int] = []
        for k in near:
            if all(_angle_between(points, node, k, other) > SHARPEST_CROSSING_RAD for other in accepted):
                accepted.append(k)
            else:
                kept.discard((min(node, k), max(node, k)))
    for edge in rng.permutation(sorted(kept)):
        a, b = int(edge[0]), int(edge[1])
        if rng.random() < 0.12 and len(neighbours(a)) > 2 and len(neighbours(b)) > 2:
            kept.discard((a, b))
    # Dead ends go, again and again; then the largest connected part stays.
    while True:
        degree = np.bincount(np.array(sorted(kept)).ravel(), minlength=len(points))
        dead = [e for e in kept if degree[e[0]] == 1 or degree[e[1]] == 1]
        if not dead:
            break
        kept.difference_update(dead)
    return _largest_part(kept)


def _largest_part(edges: set[tuple[int, int]]) -> list[tuple[int, int]]:
    part = {n: n for e in edges for n in e}

    def root(n: int) -> int:
        while part[n] != n:
            n = part[n]
        return n

    for a, b in sorted(edges):
        part[root(a)] = root(b)
    count: dict[int, int] = {}
    for a, _ in edges:
        count[root(a)] = count.get(root(a), 0) + 1
    largest = max(sorted(count), key=lambda n: count[n])
    return sorted(e for e in edges if root(e[0]) == largest)


def _curve(rng: np.random.Generator, start: Float64, end: Float64, bends: float) -> Float64:
    """A cubic Bézier curve, one- or two-sided bend of up to 11% of its length times `bends`, sampled evenly."""
    chord = end - start
    side = np.array([-chord[1], chord[0]])
    bend = rng.normal(0, 0.10)
    twist = rng.normal(0, 0.07)
    first = start + chord / 3 + side * np.clip(bend + twist, -0.17, 0.17) * bends
    second = start + chord * 2 / 3 + side * np.clip(bend - twist, -0.17, 0.17) * bends
    t = np.linspace(0, 1, 200)[:, None]
    dense = (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3 * end
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(dense, axis=0).T))])
    stations = np.linspace(0, length[-1], max(3, int(length[-1] / SAMPLE_M) + 1))
    return np.stack([np.interp(stations, length, dense[:, k]) for k in (0, 1)], axis=1)


def lay_streets(
    rng: np.random.Generator, size_m: float, kind: TownKind = MIXED, margin_m: float = 90.0
) -> tuple[Street, ...]:
    """The streets of a town, running `margin_m` beyond its edges so that they leave it."""
    if kind.lattice_m is None:
        points = _scatter(rng, size_m, margin_m)
    else:
        points = _lattice(rng, size_m, margin_m, kind.lattice_m)
    edges = _thin(rng, points, _gabriel(points))
    ranks = _ranks(rng, points, edges)
    lines = [_curve(rng, points[a], points[b], kind.bend) for a, b in edges]
    widths = []
    parking = []
    for rank in ranks:
        left, right = (bool(rng.random() < (0.3, 0.6, 0.5, 0.0)[rank]) for _ in range(2))
        lanes = rng.uniform(*((8.5, 12.0), (6.2, 7.5), (5.2, 6.2), (4.2, 5.2))[rank]) * kind.width
        parking.append((left, right))
        widths.append(float(lanes + PARKING_M * (left + right)))
    reach = _set_backs(edges, lines, widths)
    return tuple(
        Street(
            a,
            b,
            lines[k],
            widths[k],
            ranks[k],
            float(rng.uniform(*((2.6, 4.5), (1.8, 3.2), (1.4, 2.4), (0.5, 1.2))[ranks[k]])) * kind.width,
            *parking[k],
            reach[k],
        )
        for k, (a, b) in enumerate(edges)
    )


def _ranks(rng: np.random.Generator, points: Float64, edges: list[tuple[int, int]]) -> list[int]:
    """Two avenues wander across the town; the other streets draw their rank."""
    ranks = {e: int(rng.choice([1, 2, 3], p=[0.40, 0.42, 0.18])) for e in edges}
    nodes = sorted({n for e in edges for n in e})
    for angle in rng.uniform(0, np.pi) + np.array([0.0, rng.uniform(0.9, 1.6)]):
        along = points[nodes] @ np.array([np.cos(angle), np.sin(angle)])
        here, goal = nodes[int(np.argmin(along))], nodes[int(np.argmax(along))]
        seen = {here}
        while here != goal:
            options = [n for e in edges if here in e for n in e if n not in seen]
            if not options:
                break
            there = min(options, key=lambda n: float(np.hypot(*(points[n] - points[goal]))))
            ranks[(min(here, there), max(here, there))] = 0
            seen.add(there)
            here = there
    return [ranks[e] for e in edges]


def _set_backs(edges: list[tuple[int, int]], lines: list[Float64], widths: list[float]) -> list[tuple[float, float]]:
    """From each end of each street, the distance at which its carriageway parts from its neighbours'."""
    leaving: dict[int, list[tuple[float, float]]] = {}
    for (a, b), line, width in zip(edges, lines, widths, strict=True):
        for node, u in ((a, line[min(12, len(line) - 1)] - line[0]), (b, line[-min(13, len(line))] - line[-1])):
            leaving.setdefault(node, []).append((float(np.arctan2(u[1], u[0])), width))
    reach = []
    for (a, b), line, width in zip(edges, lines, widths, strict=True):
        ends = []
        for node, u in ((a, line[min(12, len(line) - 1)] - line[0]), (b, line[-min(13, len(line))] - line[-1])):
            angle = np.arctan2(u[1], u[0])
            far = width / 2
            for other, other_width in leaving[node]:
                between = abs((other - angle + np.pi) % (2 * np.pi) - np.pi)
                if between > 1e-6 and between < 2.6:
                    far = max(far, (other_width / 2 + width / 2 * np.cos(between)) / np.sin(between))
            ends.append(float(min(far + 1.0, 0.4 * len(line))))
        reach.append((ends[0], ends[1]))
    return reach
