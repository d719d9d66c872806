"""A land that training never draws: for judging what a network makes of a camera and imagery that are new to it.

Streets and solids are those of the town's seed. Different are the palette of roofs and vegetation, the light, the
camera, and the imagery, which is coarser, shifted and older than the drive.

Beyond strength 1 the land gets no older, and its imagery no worse: palette, light and camera alone go on, along the
same line, as far as colours reach. What they take from a network can be learnt, unlike a house that is gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from unifygeo_ros.core.arrays import Bool, Float64, UInt8
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.towns.furniture import Rgb
from unifygeo_training.towns.light import Appearance, draw_appearance
from unifygeo_training.towns.panorama import View
from unifygeo_training.towns.rays import row_elevations
from unifygeo_training.towns.scene import AERIAL, GROUND, Kind, Shape, Town

ROOFS: tuple[Rgb, ...] = (
    (0.20, 0.42, 0.66),  # blue sheet
    (0.44, 0.66, 0.56),  # copper
    (0.70, 0.62, 0.40),  # reed
    (0.12, 0.12, 0.14),  # tar
    (0.93, 0.93, 0.92),  # whitewash
    (0.56, 0.22, 0.42),
)
LEAVES: tuple[Rgb, ...] = (
    (0.36, 0.31, 0.29),  # bare twigs
    (0.46, 0.40, 0.36),
    (0.58, 0.50, 0.36),  # dry leaves
    (0.14, 0.19, 0.19),  # spruce
)
MEADOW: Rgb = (0.66, 0.61, 0.50)
"""Withered grass."""

HOUSES_CHANGED, TREES_CHANGED = 0.12, 0.35
"""Shares of the houses and trees that stand in one view alone: torn down or felled since the flight, or new."""
SHIFT_M = 0.8
"""Of the imagery's georeference, in a direction of the town's own."""
COARSER = 2.0
"""Factor on the imagery's metres per pixel."""
SUN_ELEVATIONS_RAD = (np.radians(7.0), np.radians(13.0))
"""Below the lowest sun of `draw_appearance`."""
BLUR_PX, NOISE = 1.8, 14.0
"""Of the camera: standard deviations of its blur, for panoramas of 768 columns, and of its noise in 8-bit counts."""
COLUMNS = 768
GREATEST_STRENGTH = 2.0
DARKEST, LEAST_LIGHT = 0.03, 0.05
"""Where colours of solids and of light end beyond strength 1."""
NEAR_INFRARED_OF_PLANTS = 0.85
"""Their albedo just beyond red."""
TONES = (0.0, 0.03, 0.12, 0.34, 0.66, 0.88, 0.97, 1.0)
"""Tone curve of the camera, at even steps of its input: it crushes shadows and highlights."""
COLOURS = ((0.68, 0.30, 0.14), (0.26, 0.58, 0.10), (0.10, 0.26, 0.50))
"""What the camera makes of red, green and blue: pale, with an orange cast."""


@dataclass(frozen=True)
class OtherLand:
    """How far the land is from the towns of training: 0, not at all, to 1; beyond that it only looks stranger."""

    strength: float
    infrared: bool = False
    """Imagery in colour infrared, flown in summer, and a camera of one channel that shows bright what is dark."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= GREATEST_STRENGTH:
            raise ConfigurationError(
                f"strength of the other land {self.strength:g} must lie in (0, {GREATEST_STRENGTH:g}]"
            )

    @property
    def age(self) -> float:
        """Of what is different and not only looks different, and of the imagery's faults: 0 to 1."""
        return min(self.strength, 1.0)

    def changed(self, town: Town) -> Town:
        """The town with the other palette, three years after its imagery was taken."""
        rng = np.random.default_rng([town.seed, 17])
        objects = town.objects.copy()
        self._recolour(rng, objects)
        self._age(rng, objects)
        ground = town.ground.copy()
        plants = self.strength * ground[..., 3:] / np.float32(255)  # beyond 1: away from the grass
        # Its brightness varies as that of the grass, so that patches and stains stay.
        tone = ground[..., :3].mean(axis=2, keepdims=True, dtype=np.float32) / 110
        meadow = np.asarray(MEADOW, np.float32) * 255 * tone
        ground[..., :3] = np.clip((1 - plants) * ground[..., :3] + plants * meadow, 0, 255)
        return replace(town, objects=objects, ground=ground)

    def flown(self, changed: Town, town: Town) -> Town:
        """The changed town in the colours that the imagery is taken in.

        In colour infrared red is what lies just beyond it, green is red, and blue is green. Leaves and grass, in their
        colours of summer, are bright red; of anything else near infrared is as bright as what is seen.
        """
        if not self.infrared:
            return changed
        objects = changed.objects.copy()
        leaves = objects["kind"] == Kind.LEAVES
        for names in (("r", "g", "b"), ("top_r", "top_g", "top_b")):
            visible = np.stack([np.where(leaves, town.objects[name], objects[name]) for name in names])
            for name, band in zip(
                names, (np.where(leaves, NEAR_INFRARED_OF_PLANTS, visible.mean(axis=0)), *visible[:2]), strict=True
            ):
                objects[name] = band
        ground = town.ground.copy()
        plants, grey = ground[..., 3] / 255, ground[..., :3].mean(axis=2)
        # Its brightness varies as that of the grass, as in `changed`.
        near = (1 - plants) * grey + plants * np.minimum(NEAR_INFRARED_OF_PLANTS * 255 * grey / 110, 255)
        ground[..., :3] = np.stack([near, town.ground[..., 0], town.ground[..., 1]], axis=2)
        return replace(changed, objects=objects, ground=ground)

    def appearance(self, rng: np.random.Generator) -> Appearance:
        """A clear winter day, at any hour: a low yellow sun, blue shadows. Drawn as by `draw_appearance`."""
        drawn, s = draw_appearance(rng), self.strength
        low = self.age  # a lower sun lights hardly anything
        elevation = (1 - low) * drawn.sun_elevation_rad + low * rng.uniform(*SUN_ELEVATIONS_RAD)
        ambient = rng.uniform(0.28, 0.4)
        sun = np.maximum((1 - s) * np.array(drawn.sun) + s * np.array([1.5, 1.05, 0.55]), LEAST_LIGHT)
        sky = np.maximum((1 - s) * np.array(drawn.sky) + s * ambient * np.array([0.75, 0.95, 1.35]), LEAST_LIGHT)
        plants = (1 - s) * np.array(drawn.plants) + s
        exposure = 1.25 / (sky[1] + sun[1] * np.sin(elevation)) * np.exp(rng.normal(0, 0.18))
        return replace(
            drawn,
            sun_elevation_rad=float(elevation),
            sun=_rgb(sun),
            sky=_rgb(sky),
            plants=_rgb(plants),
            gain=(float(exposure),) * 3,
            gamma=1.0,
            clouds=(1 - low) * drawn.clouds,
        )

    def photograph(self, pixels: UInt8, view: View, noise_seed: int) -> UInt8:
        """What the other camera makes of a panorama, uint8 (H, W, 3) RGB: its colours, tones, blur and noise.

        Near zenith and nadir a sensor's pixel covers many columns of a panorama, and so does its noise.
        """
        s, (height, width, _) = self.strength, pixels.shape
        colours = (1 - s) * np.eye(3) + s * np.array(COLOURS)
        if self.infrared:
            pixels = np.repeat(255 - pixels.mean(axis=2, keepdims=True, dtype=np.float32), 3, axis=2)
        values = pixels.astype(np.float32) @ colours.T.astype(np.float32) / 255
        steps = np.linspace(0, 1, len(TONES))
        values = (1 - s) * values + s * np.interp(values, steps, TONES).astype(np.float32)
        if s > 1:
            values = np.clip(values, 0, 1)
        sigma = s * BLUR_PX * width / COLUMNS
        pad = int(np.ceil(4 * sigma))
        around = np.concatenate([values[:, -pad:], values, values[:, :pad]], axis=1) if pad else values
        values = cv2.GaussianBlur(around, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)[:, pad : pad + width]
        noise = np.random.default_rng([noise_seed, 19]).standard_normal(values.shape, np.float32)
        across = np.cos(row_elevations(height, view.top_rad, view.bottom_rad))
        noise = noise[np.arange(height)[:, None], (np.arange(width) * across[:, None]).astype(np.int64)]
        return np.clip(values * 255 + s * NOISE * noise, 0, 255).astype(np.uint8)

    def imagery(self, pixels: UInt8, town: Town) -> tuple[UInt8, tuple[float, float], float]:
        """The orthophoto as it is delivered: its pixels, uint8 (P, P, 3), its origin and its metres per pixel."""
        count = round(len(pixels) / (1 + self.age * (COARSER - 1)))
        azimuth = np.random.default_rng([town.seed, 23]).uniform(0, 2 * np.pi)
        shift = self.age * SHIFT_M * np.array([np.sin(azimuth), np.cos(azimuth)])
        origin = (town.origin[0] + float(shift[0]), town.origin[1] + float(shift[1]))
        return cv2.resize(pixels, (count, count), interpolation=cv2.INTER_AREA), origin, town.size_m / count

    def _recolour(self, rng: np.random.Generator, objects: npt.NDArray[np.void]) -> None:
        leaves = objects["kind"] == Kind.LEAVES
        roofs = objects["kind"] == Kind.BUILDING
        for chosen, palette, names in (
            (roofs, ROOFS, ("top_r", "top_g", "top_b")),
            (leaves, LEAVES, ("r", "g", "b")),
            (leaves, LEAVES, ("top_r", "top_g", "top_b")),
        ):
            # By place, so that all parts of a crown have one colour.
            place = np.floor(objects[chosen]["x"] / 6) * 8191 + np.floor(objects[chosen]["y"] / 6)
            number = (place.astype(np.int64) * 2654435761 % 2**32) >> 7
            new = np.array(palette)[number % len(palette)] * rng.uniform(0.9, 1.1, (len(number), 1))
            for k, name in enumerate(names):
                mixed = (1 - self.strength) * objects[name][chosen] + self.strength * new[:, k]
                objects[name][chosen] = np.clip(mixed, DARKEST, 1) if self.strength > 1 else mixed

    def _age(self, rng: np.random.Generator, objects: npt.NDArray[np.void]) -> None:
        """Cars of another day, and some houses and trees that stand in one view alone."""
        s = self.age
        cars = np.flatnonzero(objects["kind"] == Kind.CAR)
        for k in cars[(objects["views"][cars] == AERIAL | GROUND) & (rng.random(len(cars)) < s)]:
            view = int(rng.choice([AERIAL, GROUND]))
            objects["views"][k] = view
            if k + 1 < len(objects) and objects["kind"][k + 1] == Kind.CABIN:
                objects["views"][k + 1] = view
        standing = objects["bottom"] == 0
        houses = np.flatnonzero((objects["kind"] == Kind.BUILDING) & standing)
        for house in houses[rng.random(len(houses)) < s * HOUSES_CHANGED]:
            objects["views"][_within(objects, house)] = int(rng.choice([AERIAL, GROUND]))
        trunks = np.flatnonzero(objects["kind"] == Kind.BARK)
        crowns = np.flatnonzero((objects["kind"] == Kind.LEAVES) & (objects["shape"] != Shape.BOX))
        if not len(trunks) or not len(crowns):
            return
        places = np.stack([objects["x"], objects["y"]], axis=1)
        away, nearest = KDTree(places[trunks]).query(places[crowns])
        views = rng.choice([AERIAL, GROUND], len(trunks))
        gone = rng.random(len(trunks)) < s * TREES_CHANGED
        objects["views"][trunks[gone]] = views[gone]
        own = gone[nearest] & (away < 1.5)  # a part of a crown has its middle within half its radius of the trunk
        objects["views"][crowns[own]] = views[nearest[own]]


def _within(objects: npt.NDArray[np.void], house: int) -> Bool:
    """The house, and what stands on its roof."""
    o = objects[house]
    dx, dy = objects["x"] - o["x"], objects["y"] - o["y"]
    u, v = dx * o["cos"] + dy * o["sin"], -dx * o["sin"] + dy * o["cos"]
    on_roof = np.isin(objects["kind"], (int(Kind.PLAIN), int(Kind.BUILDING))) & (objects["bottom"] > 0.5 * o["top"])
    found: Bool = on_roof & (np.abs(u) < o["half_x"]) & (np.abs(v) < o["half_y"])
    found[house] = True
    return found


def _rgb(values: Float64) -> Rgb:
    return float(values[0]), float(values[1]), float(values[2])
