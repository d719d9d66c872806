"""Exact rays against rays marched in small steps, which ask of every solid only whether a point is inside."""

from __future__ import annotations

import numpy as np
import pytest

from unifygeo_training.towns.pairs import street_positions
from unifygeo_training.towns.rays import FLOOR, SKY, cast, column_azimuths, row_elevations, sort_into_grid
from unifygeo_training.towns.scene import GROUND, OBJECT, Kind, Shape, Town
from unifygeo_training.towns.town import build_town

STEP_M = 0.02
FAR_M = 120.0


@pytest.fixture(scope="module")
def town() -> Town:
    return build_town(1003, 300.0, 0.5)


def inside(o: np.void, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Whether points lie in a solid, from the definition of the shapes alone."""
    dx, dy = x - o["x"], y - o["y"]
    u, v = dx * o["cos"] + dy * o["sin"], -dx * o["sin"] + dy * o["cos"]
    shape = Shape(int(o["shape"]))
    if shape is Shape.ELLIPSOID:
        half = (o["top"] - o["bottom"]) / 2
        return (dx**2 + dy**2) / o["half_x"] ** 2 + ((z - o["bottom"] - half) / half) ** 2 <= 1
    if shape is Shape.CYLINDER:
        return (dx**2 + dy**2 <= o["half_x"] ** 2) & (z >= o["bottom"]) & (z <= o["top"])
    if shape is Shape.CONE:
        share = (o["top"] - z) / (o["top"] - o["bottom"])
        return (np.hypot(dx, dy) <= o["half_x"] * share) & (share >= 0) & (share <= 1)
    ceiling = np.full(x.shape, o["top"])
    if shape is not Shape.BOX:
        ceiling = o["top"] + o["rise"] * (1 - abs(v) / o["half_y"])
    if shape is Shape.HIP:
        ceiling = np.minimum(ceiling, o["top"] + o["rise"] * (o["half_x"] - abs(u)) / o["half_y"])
    return (abs(u) <= o["half_x"]) & (abs(v) <= o["half_y"]) & (z >= o["bottom"]) & (z <= ceiling)


def march(objects: np.ndarray, x: float, y: float, h: float, azimuth: float, elevation: float) -> tuple[int, float]:
    """First solid met, or FLOOR or SKY, and its horizontal distance, by small steps."""
    t = np.arange(STEP_M, FAR_M, STEP_M)
    px, py, pz = x + t * np.sin(azimuth), y + t * np.cos(azimuth), h + t * np.tan(elevation)
    floor = np.nonzero(pz <= 0)[0]
    who, where = (FLOOR, float(t[floor[0]])) if len(floor) else (SKY, np.inf)
    reach = objects["half_x"] + objects["half_y"]
    along = (objects["x"] - x) * np.sin(azimuth) + (objects["y"] - y) * np.cos(azimuth)
    aside = (objects["x"] - x) * np.cos(azimuth) - (objects["y"] - y) * np.sin(azimuth)
    for n in np.nonzero((abs(aside) < reach) & (along > -reach) & (objects["views"] & GROUND > 0))[0]:
        hit = np.nonzero(inside(objects[n], px, py, pz))[0]
        if len(hit) and t[hit[0]] < where:
            who, where = int(n), float(t[hit[0]])
    return who, where


def compare(objects: np.ndarray, size_m: float, cameras: np.ndarray, rays: int, rng: np.random.Generator) -> float:
    """Asserts agreement wherever stepping is reliable; returns the share of rays where it was not."""
    grid = sort_into_grid(objects, size_m)
    grazing = 0
    for x, y, h in cameras:
        azimuths = rng.uniform(-np.pi, np.pi, rays)
        elevations = np.sort(rng.uniform(-1.3, 1.3, 2))[::-1]
        elevations = np.linspace(elevations[0], elevations[1], 7)
        hits = cast(objects, grid, GROUND, x, y, h, azimuths, elevations, FAR_M)
        for c in range(rays):
            r = int(rng.integers(len(elevations)))
            who, distance = march(objects, x, y, h, azimuths[c], elevations[r])
            agrees = hits.objects[r, c] == who and (
                who == SKY or distance - STEP_M * 1.01 <= hits.distance_m[r, c] <= distance + 1e-6
            )
            if not agrees:
                # A solid thinner along the ray than a step, or two within one step of each other, may be missed by the
                # march; then the exact ray must have hit first, and its point must lie on the solid it names.
                grazing += 1
                n, t = hits.objects[r, c], hits.distance_m[r, c]
                assert n >= 0, (who, distance, n, t)
                assert t <= distance + 1e-6
                point = [
                    np.array([k])
                    for k in (x + t * np.sin(azimuths[c]), y + t * np.cos(azimuths[c]), h + t * np.tan(elevations[r]))
                ]
                grown = objects[n].copy()
                for name in ("half_x", "half_y", "top"):
                    grown[name] += 1e-6
                assert inside(grown, *point)[0]
    return grazing / (len(cameras) * rays)


def test_streets_of_a_town(town: Town) -> None:
    rng = np.random.default_rng(5)
    cameras = np.column_stack([street_positions(rng, town, 12), rng.uniform(1.5, 2.5, 12)])
    assert compare(town.objects, town.size_m, cameras, 40, rng) < 0.02


@pytest.mark.parametrize("shape", list(Shape))
def test_each_shape_from_all_sides_and_above(shape: Shape) -> None:
    """Cameras low, level and high around one solid, some that would see its underside."""
    rng = np.random.default_rng(int(shape))
    one = np.zeros(1, OBJECT)
    angle = 0.4
    one["shape"], one["kind"], one["views"] = int(shape), int(Kind.PLAIN), GROUND
    one["x"], one["y"], one["cos"], one["sin"] = 50.0, 48.0, np.cos(angle), np.sin(angle)
    one["half_x"], one["half_y"], one["bottom"], one["top"] = 6.0, 4.0, 3.0, 9.0
    one["rise"] = 4.0 if shape in (Shape.GABLE, Shape.HIP) else 0.0
    grid = sort_into_grid(one, 100.0)
    seen = grazing = 0
    for _ in range(60):
        turn = rng.uniform(0, 2 * np.pi)
        x, y = 50 + 14 * np.cos(turn), 48 + 14 * np.sin(turn)
        h = rng.uniform(0.5, 20)
        azimuth = np.arctan2(50 - x, 48 - y) + rng.normal(0, 0.25, 1)
        elevation = np.array([np.arctan2(7 - h, 14) + rng.normal(0, 0.2)])
        hits = cast(one, grid, GROUND, x, y, h, azimuth, elevation, FAR_M)
        who, distance = march(one, x, y, h, azimuth[0], elevation[0])
        if hits.objects[0, 0] != who:
            grazing += 1
            continue
        seen += who == 0
        if who != SKY:
            assert distance - STEP_M * 1.01 <= hits.distance_m[0, 0] <= distance + 1e-6
    assert seen >= 25
    assert grazing <= 1  # through less than a step of a corner


def test_conventions_of_rows_and_columns() -> None:
    """The centre of the picture is north at the horizon; azimuth grows clockwise, elevation upwards."""
    azimuths = column_azimuths(4, 0.0)
    assert np.allclose(azimuths, [-0.75 * np.pi, -0.25 * np.pi, 0.25 * np.pi, 0.75 * np.pi])
    assert np.allclose(row_elevations(2, 0.8, -0.8), [0.4, -0.4])


def test_box_to_the_east_is_right_of_the_centre() -> None:
    """A box 10 m east of the camera, 2 m wide: its edges lie at azimuth 90° ± atan(1/9)."""
    one = np.zeros(1, OBJECT)
    one["views"], one["x"], one["y"], one["cos"] = GROUND, 60.0, 50.0, 1.0
    one["half_x"], one["half_y"], one["top"] = 1.0, 1.0, 4.0
    azimuths = column_azimuths(3600, 0.0)
    hits = cast(one, sort_into_grid(one, 100.0), GROUND, 50.0, 50.0, 2.0, azimuths, np.array([0.1, -0.1]), FAR_M)
    seen = azimuths[hits.objects[0] == 0]
    assert seen.min() == pytest.approx(np.pi / 2 - np.arctan2(1, 9), abs=0.002)
    assert seen.max() == pytest.approx(np.pi / 2 + np.arctan2(1, 9), abs=0.002)
    middle = np.argmin(abs(azimuths - np.pi / 2))
    assert hits.distance_m[0, middle] == pytest.approx(9.0, abs=1e-4)
