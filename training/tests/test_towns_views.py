"""Both views of a town against what its description says: orthophoto, panorama, shadows, symmetries, GeoTIFF."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyproj
import pytest
import rasterio
from town_symmetry import mirrored, turned

from unifygeo_ros.core.geodesy import map_from_tile, tile_from_map
from unifygeo_training.towns.light import Appearance, draw_appearance, shadow_heights
from unifygeo_training.towns.orthophoto import crop_tile, render_orthophoto, surface_heights, write_geotiff
from unifygeo_training.towns.pairs import street_positions
from unifygeo_training.towns.panorama import TRAINING_VIEW, View, light_stage, render_panorama, set_stage
from unifygeo_training.towns.rays import FLOOR, cast, column_azimuths, row_elevations
from unifygeo_training.towns.scene import AERIAL, GROUND, Shape, Town
from unifygeo_training.towns.town import build_town

FLAT = Appearance(3.0, 0.8, (0, 0, 0), (1, 1, 1), (1, 1, 1), 1e12, (1, 1, 1), 1.1, 0.0, 0.0, 1)
"""No sun, no haze, no noise; gamma 1.1 makes the picture 210 · albedo."""

SUNNY = replace(FLAT, sun=(1.0, 1.0, 1.0), sky=(0.4, 0.4, 0.4), sun_elevation_rad=np.pi / 4)


def pixel_from_town(town: Town, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[npt.NDArray, npt.NDArray]:
    """Fractional raster row and column of town points (integer = pixel centre)."""
    row = (town.size_m - np.asarray(y, np.float64)) / town.metres_per_pixel - 0.5
    return row, np.asarray(x, np.float64) / town.metres_per_pixel - 0.5


@pytest.fixture(scope="module")
def town() -> Town:
    return build_town(1004, 280.0)


def top_at(town: Town, x: float, y: float) -> tuple[int, float]:
    """Highest aerial solid over a point and its height there, (−1, 0) for the ground; from the shapes alone."""
    best, height = -1, 0.0
    for n, o in enumerate(town.objects):
        dx, dy = x - o["x"], y - o["y"]
        if not o["views"] & AERIAL or np.hypot(dx, dy) > np.hypot(o["half_x"], o["half_y"]):
            continue
        u, v = dx * o["cos"] + dy * o["sin"], -dx * o["sin"] + dy * o["cos"]
        shape = Shape(int(o["shape"]))
        if shape in (Shape.BOX, Shape.GABLE, Shape.HIP):
            if abs(u) > o["half_x"] or abs(v) > o["half_y"]:
                continue
            z = o["top"] + (o["rise"] * (1 - abs(v) / o["half_y"]) if shape is not Shape.BOX else 0)
            if shape is Shape.HIP:
                z = min(z, o["top"] + o["rise"] * (o["half_x"] - abs(u)) / o["half_y"])
        else:
            q = np.hypot(dx, dy) / o["half_x"]
            if q > 1:
                continue
            middle = (o["top"] + o["bottom"]) / 2
            z = {
                Shape.CYLINDER: o["top"],
                Shape.CONE: o["top"] - (o["top"] - o["bottom"]) * q,
                Shape.ELLIPSOID: middle + (o["top"] - middle) * np.sqrt(1 - q * q),
            }[shape]
        if z > height:
            best, height = n, float(z)
    return best, height


def test_orthophoto_shows_the_highest_solid_over_each_pixel(town: Town) -> None:
    heights, ids, _ = surface_heights(town, AERIAL)
    rng = np.random.default_rng(0)
    for r, c in rng.integers(0, len(heights), (300, 2)):
        x, y = (c + 0.5) * town.metres_per_pixel, town.size_m - (r + 0.5) * town.metres_per_pixel
        n, z = top_at(town, x, y)
        assert ids[r, c] == n
        assert heights[r, c] == pytest.approx(z, abs=1e-4)


def test_panorama_ground_is_orthophoto_ground(town: Town) -> None:
    """Each near ground pixel of a panorama has the colour of the orthophoto's pixel at the place it looks at."""
    above = render_orthophoto(town, FLAT).astype(float)
    _, solid, _ = surface_heights(town, AERIAL)
    lit = light_stage(set_stage(town), FLAT)
    view = View(200, 1000, 0.0, -1.2)
    azimuths, elevations = column_azimuths(view.width, 0.3), row_elevations(view.height, 0.0, -1.2)
    errors = []
    for x, y in street_positions(np.random.default_rng(1), town, 5):
        pixels = render_panorama(lit, x, y, view, azimuth_rad=0.3, samples=1).astype(float)
        hits = cast(town.objects, lit.stage.grid, GROUND, x, y, 2.0, azimuths, elevations, 320.0)
        rows, columns = np.nonzero((hits.objects == FLOOR) & (hits.distance_m < 9))
        t = hits.distance_m[rows, columns]
        px, py = x + t * np.sin(azimuths[columns]), y + t * np.cos(azimuths[columns])
        row, column = pixel_from_town(town, px, py)
        open_ground = solid[np.round(row).astype(int), np.round(column).astype(int)] == -1
        r, c = np.floor(row).astype(int), np.floor(column).astype(int)
        u, v = (row - r)[:, None], (column - c)[:, None]
        expected = (1 - u) * ((1 - v) * above[r, c] + v * above[r, c + 1]) + u * (
            (1 - v) * above[r + 1, c] + v * above[r + 1, c + 1]
        )
        errors.append(np.abs(pixels[rows, columns] - expected)[open_ground])
    error = np.concatenate(errors)
    assert len(error) > 50_000
    assert np.median(error) <= 1.5
    assert np.percentile(error, 98) < 12  # where a solid covers a neighbour of the orthophoto's pixel, or a mark's edge


def test_crosswalk_stripes_appear_where_they_are_painted(town: Town) -> None:
    """From a camera near a crossing, each stripe is brighter than the gap beside it, in both views."""
    lit = light_stage(set_stage(town), FLAT)
    above = render_orthophoto(town, FLAT).astype(float).sum(axis=2)
    _, solid, _ = surface_heights(town, AERIAL | GROUND)
    view = View(400, 1600, 0.1, -1.0)
    rng = np.random.default_rng(2)
    seen = right = 0
    for x, y in street_positions(rng, town, 16):
        centres = town.marks.mean(axis=1)
        near = np.hypot(*(centres - (x, y)).T)
        chosen = np.nonzero((near > 2.5) & (near < 9))[0]
        if not len(chosen):
            continue
        azimuths, elevations = column_azimuths(view.width, 0.0), row_elevations(view.height, 0.1, -1.0)
        pixels = render_panorama(lit, x, y, view, samples=1).astype(float).sum(axis=2)
        hits = cast(town.objects, lit.stage.grid, GROUND, x, y, 2.0, azimuths, elevations, 50.0)
        for k in chosen:
            across = town.marks[k, 2] - town.marks[k, 1]  # 0.5 m, a stripe's width
            values = []
            for p in (centres[k], centres[k] + across):
                azimuth = np.arctan2(p[0] - x, p[1] - y)
                elevation = np.arctan2(-2.0, np.hypot(*(p - (x, y))))
                column = round((azimuth + np.pi) / (2 * np.pi) * view.width - 0.5) % view.width
                row = round((0.1 - elevation) / 1.1 * view.height - 0.5)
                r, c = (round(float(v)) for v in pixel_from_town(town, *p))
                if hits.objects[row, column] != FLOOR or solid[r, c] != -1:
                    break
                values.append((pixels[row, column], above[r, c]))
            if len(values) == 2:
                seen += 1
                right += values[0][0] > values[1][0] + 40 and values[0][1] > values[1][1] + 40
    assert seen > 20
    assert right / seen > 0.9  # the rest are painted over by a patch, another crossing or the kerb


def test_shadows_reach_as_far_as_rays_to_the_sun_say(town: Town) -> None:
    light = replace(SUNNY, sun_azimuth_rad=3.7, sun_elevation_rad=0.7)
    heights, _, _ = surface_heights(town, AERIAL)
    shadow = shadow_heights(heights, town.metres_per_pixel, light)
    reach = np.arange(0.3, 60, 0.1)
    agree = []
    for r, c in np.random.default_rng(3).integers(350, len(heights) - 350, (2000, 2)):
        if heights[r, c] > 0 or 0 < abs(shadow[r, c]) < 0.5:
            continue
        rows = np.round(r - reach * np.cos(3.7) / town.metres_per_pixel).astype(int)
        columns = np.round(c + reach * np.sin(3.7) / town.metres_per_pixel).astype(int)
        inside = (rows >= 0) & (rows < len(heights)) & (columns >= 0) & (columns < len(heights))
        blocked = (heights[rows[inside], columns[inside]] > reach[inside] * np.tan(0.7)).any()
        agree.append(blocked == (shadow[r, c] > 0))
    assert len(agree) > 500
    assert np.mean(agree) > 0.97


def test_shadow_of_a_wall_points_away_from_the_sun() -> None:
    """A wall 10 m high, the sun in the south at 45°: the shadow ends 10 m north of it."""
    heights = np.zeros((200, 200), np.float32)
    heights[120:124] = 10
    shadow = shadow_heights(heights, 0.5, replace(SUNNY, sun_azimuth_rad=np.pi))
    assert shadow[130, 100] == 0
    column = shadow[:120, 100]
    assert column[101] > 0
    assert column[98] == 0
    assert column[110] == pytest.approx(5.0, abs=0.01)


def test_another_azimuth_rolls_the_panorama(town: Town) -> None:
    lit = light_stage(set_stage(town), replace(draw_appearance(np.random.default_rng(4)), noise=0.0))
    x, y = street_positions(np.random.default_rng(5), town, 1)[0]
    north = render_panorama(lit, x, y, TRAINING_VIEW).astype(int)
    # 80 of 320 columns are 90°: facing east, what was 90° right of the centre is now in the centre.
    east = render_panorama(lit, x, y, TRAINING_VIEW, azimuth_rad=np.pi / 2).astype(int)
    assert np.mean(np.abs(np.roll(north, -80, axis=1) - east) > 1) < 1e-3


@pytest.mark.parametrize("kind", ["turned", "mirrored"])
def test_transformed_towns_transform_both_views(town: Town, kind: str) -> None:
    """The town turned by 90° counter-clockwise: the panorama rolls a quarter to the left. In the mirror: both flip."""
    x, y = street_positions(np.random.default_rng(6), town, 1)[0]
    other = turned(town) if kind == "turned" else mirrored(town)
    x2, y2 = (town.size_m - y, x) if kind == "turned" else (town.size_m - x, y)
    azimuths, elevations = column_azimuths(640, 0.0), row_elevations(160, 0.7, -0.7)
    first = cast(town.objects, set_stage(town).grid, GROUND, x, y, 2.0, azimuths, elevations, 200.0)
    second = cast(other.objects, set_stage(other).grid, GROUND, x2, y2, 2.0, azimuths, elevations, 200.0)
    expected = np.roll(first.objects, -160, axis=1) if kind == "turned" else first.objects[:, ::-1]
    assert np.mean(expected != second.objects) < 2e-3  # rays that graze an edge
    a, b = surface_heights(town, AERIAL)[1], surface_heights(other, AERIAL)[1]
    assert np.mean((np.rot90(a) if kind == "turned" else a[:, ::-1]) != b) < 1e-3


def test_same_seed_same_town_same_pictures(town: Town) -> None:
    again = build_town(1004, 280.0)
    assert np.array_equal(again.objects, town.objects)
    assert np.array_equal(again.ground, town.ground)
    assert not np.array_equal(build_town(1005, 280.0).ground, town.ground)
    light = draw_appearance(np.random.default_rng(7))
    assert light == draw_appearance(np.random.default_rng(7))
    assert np.array_equal(render_orthophoto(again, light), render_orthophoto(town, light))


def test_tile_follows_the_pixel_centre_convention(town: Town) -> None:
    """On a raster that is linear in x and y, a tile pixel must show the value at its own centre."""
    res, size, side = 0.2, 48, 19.2
    n = 400
    centres = (np.arange(n) + 0.5) * res  # metres east, or south of the northern edge
    raster = np.zeros((n, n, 3), np.uint8)
    raster[..., 0] = np.round(centres * 3)[None]
    raster[..., 1] = np.round(centres * 3)[:, None]
    x, y = 33.3, 41.7
    tile = crop_tile(raster, res, x, y, size, side)
    for row, column in ((0, 0), (10, 40), (47, 47)):
        east, north = map_from_tile(row, column, x, y, size, side / size)
        assert tile[row, column, 0] == pytest.approx(east * 3, abs=1.0)
        assert tile[row, column, 1] == pytest.approx((n * res - north) * 3, abs=1.0)
        assert tile_from_map(east, north, x, y, size, side / size) == pytest.approx([row, column])


def test_geotiff_lies_where_pyproj_says(town: Town, tmp_path: Path) -> None:
    pixels = render_orthophoto(town, FLAT)
    write_geotiff(tmp_path / "town.tif", pixels, town.origin, town.metres_per_pixel)
    with rasterio.open(tmp_path / "town.tif") as file:
        assert file.crs.to_epsg() == 32632
        assert np.array_equal(np.moveaxis(file.read(), 0, 2), pixels)
        row, column = pixel_from_town(town, 100.0, 200.0)
        east, north = file.transform @ (float(column) + 0.5, float(row) + 0.5)
    assert (east - town.origin[0], north - town.origin[1]) == pytest.approx((100.0, 200.0))
    to_wgs84 = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    longitude, latitude = to_wgs84.transform(east, north)
    assert abs(longitude - 9) < 0.01
    assert 48 < latitude < 49
    # Grid north is true north: the convergence of the town's corner is below 0.003°.
    assert abs(pyproj.Proj("EPSG:32632").get_factors(longitude, latitude).meridian_convergence) < 0.003
