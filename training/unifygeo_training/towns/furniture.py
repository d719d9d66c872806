"""Solids of a town, one call each: buildings with what stands on their roofs, trees, cars, hedges, lamps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64
from unifygeo_training.towns.scene import AERIAL, GROUND, OBJECT, Kind, Shape

Rgb = tuple[float, float, float]

WALLS: tuple[Rgb, ...] = (
    (0.88, 0.84, 0.76),
    (0.92, 0.90, 0.86),
    (0.85, 0.72, 0.52),
    (0.78, 0.50, 0.38),
    (0.62, 0.32, 0.26),
    (0.70, 0.42, 0.34),
    (0.90, 0.80, 0.55),
    (0.74, 0.78, 0.70),
    (0.60, 0.66, 0.74),
    (0.82, 0.62, 0.60),
    (0.55, 0.54, 0.52),
    (0.72, 0.70, 0.68),
    (0.42, 0.36, 0.32),
    (0.66, 0.74, 0.60),
    (0.86, 0.60, 0.42),
)
TILES: tuple[Rgb, ...] = (
    (0.66, 0.32, 0.22),
    (0.58, 0.26, 0.20),
    (0.74, 0.42, 0.28),
    (0.46, 0.24, 0.20),
    (0.32, 0.31, 0.33),
    (0.40, 0.40, 0.44),
    (0.50, 0.44, 0.38),
    (0.36, 0.42, 0.40),
)
FLATS: tuple[Rgb, ...] = (
    (0.60, 0.60, 0.60),
    (0.74, 0.73, 0.70),
    (0.44, 0.44, 0.46),
    (0.86, 0.86, 0.85),
    (0.56, 0.52, 0.46),
    (0.42, 0.52, 0.38),
    (0.52, 0.40, 0.34),
    (0.34, 0.34, 0.36),
    (0.50, 0.58, 0.64),
)
CARS: tuple[Rgb, ...] = (
    (0.92, 0.92, 0.92),
    (0.75, 0.76, 0.78),
    (0.50, 0.51, 0.53),
    (0.14, 0.14, 0.15),
    (0.20, 0.24, 0.36),
    (0.70, 0.12, 0.12),
    (0.14, 0.30, 0.60),
    (0.85, 0.72, 0.20),
    (0.20, 0.40, 0.28),
    (0.50, 0.30, 0.18),
)
ACCENTS: tuple[Rgb, ...] = (
    (0.70, 0.16, 0.14),
    (0.14, 0.34, 0.58),
    (0.16, 0.44, 0.26),
    (0.86, 0.62, 0.12),
    (0.36, 0.22, 0.16),
    (0.52, 0.18, 0.40),
    (0.12, 0.48, 0.52),
    (0.28, 0.28, 0.30),
)
GREENS: tuple[Rgb, ...] = (
    (0.36, 0.48, 0.22),
    (0.28, 0.42, 0.20),
    (0.44, 0.54, 0.26),
    (0.24, 0.36, 0.20),
    (0.50, 0.52, 0.26),
    (0.40, 0.42, 0.22),
    (0.52, 0.36, 0.24),  # copper beech
)


def pick(rng: np.random.Generator, colours: tuple[Rgb, ...], spread: float = 0.08) -> Rgb:
    """One of the colours, a little lighter, darker and off."""
    base = np.array(colours[int(rng.integers(len(colours)))])
    return tuple(np.clip(base * rng.uniform(1 - spread, 1 + spread) + rng.normal(0, spread / 5, 3), 0.03, 0.97))


class Objects:
    """Collects the solids of a town."""

    def __init__(self) -> None:
        self._rows: list[tuple[float | int, ...]] = []

    def array(self) -> npt.NDArray[np.void]:
        """All solids, (n,) of OBJECT."""
        return np.array(self._rows, OBJECT)

    def add(
        self,
        rng: np.random.Generator,
        shape: Shape,
        kind: Kind,
        x: float,
        y: float,
        half_x: float,
        half_y: float,
        bottom: float,
        top: float,
        *,
        angle_rad: float = 0.0,
        rise: float = 0.0,
        colour: Rgb,
        roof: Rgb | None = None,
        accent: Rgb = (0.3, 0.3, 0.3),
        facade: tuple[float, float, float, float, float, float] = (3.0, 3.0, 0.4, 0.5, 0.0, 0.0),
        views: int = AERIAL | GROUND,
    ) -> None:
        self._rows.append(
            (
                int(shape),
                int(kind),
                views,
                int(rng.integers(1 << 20)),
                x,
                y,
                float(np.cos(angle_rad)),
                float(np.sin(angle_rad)),
                half_x,
                half_y,
                bottom,
                top,
                rise,
                *colour,
                *(roof or colour),
                *accent,
                *facade,
            )
        )

    def box(
        self,
        rng: np.random.Generator,
        x: float,
        y: float,
        half_x: float,
        half_y: float,
        bottom: float,
        top: float,
        angle_rad: float,
        colour: Rgb,
        roof: Rgb | None = None,
        *,
        kind: Kind = Kind.PLAIN,
        views: int = AERIAL | GROUND,
    ) -> None:
        self.add(
            rng, Shape.BOX, kind, x, y, half_x, half_y, bottom, top,
            angle_rad=angle_rad, colour=colour, roof=roof, views=views,
        )  # fmt: skip

    def round(
        self,
        rng: np.random.Generator,
        shape: Shape,
        kind: Kind,
        x: float,
        y: float,
        radius_m: float,
        bottom: float,
        top: float,
        colour: Rgb,
    ) -> None:
        """A solid that looks the same from all sides: ellipsoid, cone or cylinder."""
        self.add(rng, shape, kind, x, y, radius_m, radius_m, bottom, top, colour=colour)

    def tree(self, rng: np.random.Generator, x: float, y: float, radius_m: float, bare_m: float = 0.0) -> None:
        """A tree: round or oval crown on a trunk, or a conifer."""
        green = pick(rng, GREENS, 0.15)
        if rng.random() < 0.16:
            height = radius_m * rng.uniform(3.0, 4.5)
            foot = max(rng.uniform(0.4, 1.2), bare_m)
            dark = (green[0] * 0.7, green[1] * 0.75, green[2] * 0.9)
            self.round(rng, Shape.CONE, Kind.LEAVES, x, y, radius_m * 0.85, foot, foot + height, dark)
        else:
            foot = max(rng.uniform(1.6, 2.8), bare_m)
            tall = radius_m * rng.uniform(1.5, 2.6)
            self.round(rng, Shape.ELLIPSOID, Kind.LEAVES, x, y, radius_m, foot, foot + tall, green)
            for _ in range(int(rng.integers(0, 3))):  # the crown is more than one ball
                turn = rng.uniform(0, 2 * np.pi)
                r = radius_m * rng.uniform(0.5, 0.75)
                low = foot + tall * rng.uniform(0.1, 0.6)
                u, v = x + np.cos(turn) * radius_m * 0.5, y + np.sin(turn) * radius_m * 0.5
                self.round(rng, Shape.ELLIPSOID, Kind.LEAVES, u, v, r, low, low + r * rng.uniform(1.5, 2.2), green)
        thick = 0.09 + 0.05 * radius_m
        bark = pick(rng, ((0.34, 0.27, 0.2), (0.45, 0.42, 0.38)))
        self.round(rng, Shape.CYLINDER, Kind.BARK, x, y, thick, 0.0, foot + 0.3 * radius_m, bark)

    def bush(self, rng: np.random.Generator, x: float, y: float, radius_m: float) -> None:
        top = radius_m * rng.uniform(0.9, 1.6)
        self.round(rng, Shape.ELLIPSOID, Kind.LEAVES, x, y, radius_m, -0.4 * radius_m, top, pick(rng, GREENS, 0.15))

    def add_bush_on(self, rng: np.random.Generator, x: float, y: float, radius_m: float, base_m: float) -> None:
        """A bush growing on a planter whose earth lies at base_m."""
        bottom, top = base_m - 0.3 * radius_m, base_m + radius_m * 1.1
        self.round(rng, Shape.ELLIPSOID, Kind.LEAVES, x, y, radius_m, bottom, top, pick(rng, GREENS, 0.15))

    def row_of_bushes(self, rng: np.random.Generator, line: Float64) -> None:
        """Bushes or small trees along a line of points 1 m apart."""
        step = int(rng.integers(5, 14))
        trees = rng.random() < 0.5
        for x, y in line[::step]:
            if trees:
                self.tree(rng, x, y, rng.uniform(1.2, 1.9), bare_m=2.8)
            else:
                self.bush(rng, x, y, rng.uniform(0.4, 0.6))

    def hedge(self, rng: np.random.Generator, a: Float64, b: Float64) -> None:
        """A clipped hedge or a garden wall from a to b."""
        middle, d = (a + b) / 2, b - a
        length = float(np.hypot(*d))
        angle = float(np.arctan2(d[1], d[0]))
        if rng.random() < 0.7:
            half, top = rng.uniform(0.3, 0.55), rng.uniform(0.8, 1.9)
            green = pick(rng, GREENS, 0.12)
            self.box(rng, *middle, length / 2, half, 0.0, top, angle, green, kind=Kind.LEAVES)
        else:
            self.box(rng, *middle, length / 2, 0.14, 0.0, rng.uniform(0.7, 1.5), angle, pick(rng, WALLS))

    def car(self, rng: np.random.Generator, x: float, y: float, angle_rad: float, *, moving: bool = False) -> None:
        """A car or van: a third of them seen in both views, a third only from the air, a third only from the ground.

        Cars in the lanes are never in both, as the two pictures were taken at different times.
        """
        views = int(rng.choice([AERIAL, GROUND] if moving else [AERIAL | GROUND, AERIAL, GROUND]))
        colour = pick(rng, CARS)
        length, width = rng.uniform(1.85, 2.35), rng.uniform(0.85, 0.95)
        if rng.random() < 0.12:  # van
            top = rng.uniform(1.9, 2.4)
            self.box(rng, x, y, 2.6, 1.0, 0.22, top, angle_rad, colour, kind=Kind.CAR, views=views)
            return
        waist, roof = rng.uniform(0.85, 1.0), rng.uniform(1.4, 1.65)
        self.box(rng, x, y, length, width, 0.2, waist, angle_rad, colour, kind=Kind.CAR, views=views)
        back = rng.uniform(0.15, 0.35)
        u, v = x - np.cos(angle_rad) * back, y - np.sin(angle_rad) * back
        cabin = length * rng.uniform(0.5, 0.62)
        self.box(rng, u, v, cabin, width * 0.9, waist, roof, angle_rad, colour, kind=Kind.CABIN, views=views)

    def lamp(self, rng: np.random.Generator, x: float, y: float) -> None:
        grey = (0.35, 0.36, 0.37)
        self.round(rng, Shape.CYLINDER, Kind.PLAIN, x, y, 0.09, 0.0, rng.uniform(5, 8), grey)

    def building(
        self,
        rng: np.random.Generator,
        x: float,
        y: float,
        half_x: float,
        half_y: float,
        angle_rad: float,
        height_m: float,
        style: str,
    ) -> None:
        """A building whose front looks along local −y. style: house, row, block, flats, hall or tower."""
        wall, accent = pick(rng, WALLS), pick(rng, ACCENTS)
        storey = rng.uniform(2.7, 3.8)
        trim = float(rng.integers(0, 4)) if style in ("block", "flats", "tower") else float(rng.choice([0, 0, 1, 2]))
        facade = (
            storey,
            rng.uniform(2.0, 4.6),
            rng.uniform(0.28, 0.62),
            rng.uniform(0.36, 0.62),
            float(rng.random() < {"row": 0.55, "block": 0.6, "flats": 0.25, "tower": 0.4}.get(style, 0.0)),
            trim,
        )
        if style == "hall":
            facade = (rng.uniform(5, 7), rng.uniform(5, 12), 0.5, rng.uniform(0.2, 0.4), 0.0, float(rng.choice([1, 3])))
        pitched = (
            rng.random() < {"house": 0.9, "row": 0.65, "block": 0.3, "flats": 0.3, "tower": 0.0, "hall": 0.25}[style]
        )
        common = {"angle_rad": angle_rad, "colour": wall, "accent": accent, "facade": facade}
        if not pitched:
            roof = pick(rng, FLATS)
            self.add(rng, Shape.BOX, Kind.BUILDING, x, y, half_x, half_y, 0, height_m, roof=roof, **common)
            self._on_the_roof(rng, x, y, half_x, half_y, angle_rad, height_m)
            return
        roof = pick(rng, TILES)
        long_x = half_x >= half_y
        ridge_angle = angle_rad if long_x else angle_rad + np.pi / 2
        a, b = (half_x, half_y) if long_x else (half_y, half_x)
        common["angle_rad"] = ridge_angle
        slope = rng.uniform(0.25, 0.4) if style == "hall" else rng.uniform(0.5, 1.05)
        shape = Shape.HIP if rng.random() < 0.35 else Shape.GABLE
        rise = min(b * slope, 6.5)
        self.add(rng, shape, Kind.BUILDING, x, y, a, b, 0, height_m, rise=rise, roof=roof, **common)
        along = np.array([np.cos(ridge_angle), np.sin(ridge_angle)])
        across = np.array([-along[1], along[0]])
        if rng.random() < 0.8:  # chimney
            at = np.array([x, y]) + along * rng.uniform(-0.6, 0.6) * a + across * rng.uniform(-0.4, 0.4) * b
            top = height_m + rise + rng.uniform(0.2, 1.0)
            brick = pick(rng, ((0.5, 0.3, 0.25), (0.6, 0.58, 0.55)))
            self.box(rng, *at, 0.4, 0.4, height_m * 0.8, top, ridge_angle, brick)
        for side in (1, -1):  # dormers
            dice = rng.random()
            if dice < 0.35 and a > 4:
                for u in np.arange(-a + 2, a - 1.5, rng.uniform(3, 6)):
                    at = np.array([x, y]) + along * u + across * side * 0.6 * b
                    top = height_m + rise * 0.4 + 0.9
                    self.box(rng, *at, 0.8, 0.28 * b, height_m, top, ridge_angle, wall, pick(rng, FLATS))

    def _on_the_roof(
        self, rng: np.random.Generator, x: float, y: float, half_x: float, half_y: float, angle_rad: float, top_m: float
    ) -> None:
        """Stair heads, machines, skylights, solar panels, a set-back storey."""
        c, s = np.cos(angle_rad), np.sin(angle_rad)

        def place(
            u: float, v: float, hu: float, hv: float, height: float, colour: Rgb, roof: Rgb | None = None
        ) -> None:
            at = (x + u * c - v * s, y + u * s + v * c)
            self.box(rng, *at, hu, hv, top_m, top_m + height, angle_rad, colour, roof)

        area = 4 * half_x * half_y
        if area > 150 and rng.random() < 0.3:
            inset = rng.uniform(0.55, 0.75)
            wall, roof = pick(rng, WALLS), pick(rng, FLATS)
            inner = (half_x * inset, half_y * inset)
            self.box(rng, x, y, *inner, top_m, top_m + 3, angle_rad, wall, roof, kind=Kind.BUILDING)
            return
        for _ in range(1 + rng.poisson(min(area / 90, 6))):
            hu, hv = rng.uniform(0.5, 2.2), rng.uniform(0.5, 1.6)
            if hu > half_x - 1 or hv > half_y - 1:
                continue
            u = rng.uniform(-half_x + hu + 0.6, half_x - hu - 0.6)
            v = rng.uniform(-half_y + hv + 0.6, half_y - hv - 0.6)
            place(u, v, hu, hv, rng.uniform(0.5, 2.6), pick(rng, FLATS), pick(rng, FLATS))
        if rng.random() < 0.3:  # solar panels or skylights in rows
            blue = pick(rng, ((0.12, 0.16, 0.28), (0.75, 0.82, 0.86)))
            for v in np.arange(-half_y + 1.8, half_y - 1.5, rng.uniform(2, 3.2)):
                place(0, v, half_x * 0.7, 0.6, 0.4, blue)
