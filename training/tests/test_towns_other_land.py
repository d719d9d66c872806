"""The other land: what differs from the towns of training, by how much, and that drives share their imagery."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.rig.description import read_rig
from unifygeo_training.towns import other_land
from unifygeo_training.towns.drive import DriveSettings, record_drive
from unifygeo_training.towns.light import draw_appearance
from unifygeo_training.towns.other_land import LEAVES, ROOFS, OtherLand
from unifygeo_training.towns.panorama import FULL_SPHERE, View
from unifygeo_training.towns.scene import AERIAL, GROUND, Kind, Town, geodetic_from_town
from unifygeo_training.towns.town import build_town

BOTH = AERIAL | GROUND
TINY = View(24, 48, np.pi / 2, -np.pi / 2)


@pytest.fixture(scope="module")
def town() -> Town:
    return build_town(1000, 300.0, 0.5)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_roofs_and_crowns_have_the_other_palette_by_the_strength(town: Town, strength: float) -> None:
    changed = OtherLand(strength).changed(town)
    for kind, names, palette in ((Kind.BUILDING, ("top_r", "top_g", "top_b"), ROOFS), (Kind.LEAVES, "rgb", LEAVES)):
        chosen = town.objects["kind"] == kind
        before, after = (np.stack([o[name][chosen] for name in names], 1) for o in (town.objects, changed.objects))
        # What was mixed in, at every solid: a colour of the palette, up to 10% lighter or darker.
        mixed_in = (after - (1 - strength) * before) / strength
        ratios = mixed_in[:, None] / np.array(palette)
        scales = ratios.mean(axis=2)
        error = np.abs(ratios / scales[..., None] - 1).max(axis=2)
        nearest = error.argmin(axis=1)
        assert error.min(axis=1).max() < 1e-9
        assert 0.9 <= scales[np.arange(len(nearest)), nearest].min() <= scales.max(initial=0, where=error < 1e-9) <= 1.1
        assert len(set(nearest)) == len(palette)


def test_grass_withers_and_asphalt_stays(town: Town) -> None:
    before, after = town.ground.astype(float), OtherLand(1.0).changed(town).ground.astype(float)
    grass, bare = before[..., 3] == 255, before[..., 3] == 0
    assert np.array_equal(before[bare], after[bare])
    assert before[grass][:, 1].mean() > 1.3 * before[grass][:, 2].mean()  # green
    red, green, blue = after[grass][:, :3].mean(axis=0)
    assert (green / red, blue / red) == pytest.approx((0.61 / 0.66, 0.50 / 0.66), abs=0.01)


def test_cars_houses_and_trees_changed_since_the_flight(town: Town) -> None:
    o = OtherLand(1.0).changed(town).objects
    assert BOTH not in o["views"][np.isin(o["kind"], (Kind.CAR, Kind.CABIN))]
    cabins = np.flatnonzero(o["kind"] == Kind.CABIN)
    assert np.array_equal(o["views"][cabins], o["views"][cabins - 1])  # with the car below it
    houses = (o["kind"] == Kind.BUILDING) & (o["bottom"] == 0)
    assert np.mean(o["views"][houses] != BOTH) == pytest.approx(other_land.HOUSES_CHANGED, abs=0.06)
    trunks = o["kind"] == Kind.BARK
    assert np.mean(o["views"][trunks] != BOTH) == pytest.approx(other_land.TREES_CHANGED, abs=0.08)
    gone = o[trunks & (o["views"] != BOTH)]
    crowns = o[(o["kind"] == Kind.LEAVES) & (o["bottom"] > 0.3)]
    for tree in gone:
        above = crowns[(crowns["x"] == tree["x"]) & (crowns["y"] == tree["y"])]
        assert len(above)
        assert set(above["views"]) == {tree["views"]}
    unchanged = (town.objects["views"] == o["views"]).mean()
    assert unchanged < (town.objects["views"] == OtherLand(0.3).changed(town).objects["views"]).mean() < 1


def test_nothing_stands_on_the_roof_of_a_house_that_is_gone(town: Town) -> None:
    o = OtherLand(1.0).changed(town).objects
    houses = o[(o["kind"] == Kind.BUILDING) & (o["bottom"] == 0) & (o["views"] != BOTH)]
    on_top = o[(o["kind"] == Kind.PLAIN) & (o["bottom"] > 2.5)]
    seen = 0
    for house in houses:
        here = on_top[np.hypot(on_top["x"] - house["x"], on_top["y"] - house["y"]) < 0.6 * house["half_y"]]
        here = here[here["bottom"] >= 0.8 * house["top"]]
        seen += len(here)
        assert set(here["views"]) <= {house["views"]}
    assert seen >= 3


def test_sun_stands_lower_than_training_draws_it() -> None:
    suns = [OtherLand(1.0).appearance(np.random.default_rng(seed)) for seed in range(60)]
    drawn = [draw_appearance(np.random.default_rng(seed)) for seed in range(60)]
    assert max(sun.sun_elevation_rad for sun in suns) <= np.radians(13.0) < np.radians(18.0)
    assert min(sun.sun_elevation_rad for sun in drawn) >= np.radians(18.0)
    assert all(sun.sun[0] > 2 * sun.sun[2] and sun.sky[2] > 1.5 * sun.sky[0] for sun in suns)  # yellow, blue
    assert max(sun.sun[0] / sun.sun[2] for sun in drawn) < 2


def test_camera_blurs_across_the_seam_and_adds_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.full((200, 768, 3), 128, np.uint8)
    shot = OtherLand(0.5).photograph(grey, FULL_SPHERE, 3).astype(float)
    assert shot.std(axis=(0, 1)) == pytest.approx(0.5 * other_land.NOISE, rel=0.03)
    alike = [np.corrcoef(row[:-1, 0], row[1:, 0])[0, 1] for row in (shot[100], shot[2])]  # at the horizon, the zenith
    assert abs(alike[0]) < 0.15
    assert alike[1] > 0.9
    monkeypatch.setattr(other_land, "NOISE", 0.0)
    stripe = np.full((40, 768, 3), 128, np.uint8)
    stripe[:, 0] = 255
    shot = OtherLand(1.0).photograph(stripe, FULL_SPHERE, 3)[20].astype(float)
    assert np.array_equal(shot[1:8], shot[:-8:-1])
    weight = (shot[:, 0] - shot[300, 0]) / (shot[:, 0] - shot[300, 0]).sum()
    away = np.minimum(np.arange(768), 768 - np.arange(768))
    assert np.sqrt((weight * away**2).sum()) == pytest.approx(other_land.BLUR_PX, rel=0.1)


def test_camera_is_pale_orange_and_crushes_shadows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_land, "NOISE", 0.0)

    def of(*colour: int) -> np.ndarray:
        return OtherLand(1.0).photograph(np.full((8, 16, 3), colour, np.uint8), FULL_SPHERE, 0)[4, 8].astype(float)

    # By hand: 128/255 in each channel becomes 0.562, 0.472, 0.432, which the curve takes to 0.639, 0.437, 0.348.
    assert of(128, 128, 128) == pytest.approx([163, 111, 89], abs=1.5)
    assert of(255, 0, 0) == pytest.approx([211, 26, 5], abs=1.5)  # pale: 0.68, 0.26, 0.10 before the curve
    assert of(36, 36, 36).mean() < 9


def test_imagery_is_coarser_and_lies_08_m_aside(town: Town) -> None:
    pixels = np.zeros((600, 600, 3), np.uint8)
    pixels[100:108, 200:208] = 255  # centre at x = 102 m, y = 300 − 52 m
    coarse, origin, metres_per_pixel = OtherLand(1.0).imagery(pixels, town)
    assert (coarse.shape, metres_per_pixel) == ((300, 300, 3), 1.0)
    rows, columns = np.nonzero(coarse[..., 0])
    east = origin[0] + (columns.mean() + 0.5) * metres_per_pixel
    north = origin[1] + 300.0 - (rows.mean() + 0.5) * metres_per_pixel
    shift = np.array([east - town.origin[0] - 102.0, north - town.origin[1] - 248.0])
    assert np.hypot(*shift) == pytest.approx(0.8, abs=1e-6)
    half, origin, metres_per_pixel = OtherLand(0.5).imagery(pixels, town)
    assert len(half) == 400
    assert np.hypot(origin[0] - town.origin[0], origin[1] - town.origin[1]) == pytest.approx(0.4)


def test_beyond_1_the_land_is_no_older_and_its_imagery_no_worse(town: Town) -> None:
    one, beyond = (OtherLand(strength).changed(town).objects for strength in (1.0, 1.7))
    assert np.array_equal(one["views"], beyond["views"])
    pixels = np.random.default_rng(0).integers(256, size=(600, 600, 3), dtype=np.uint8)
    (a, *same), (b, *as_there) = (OtherLand(strength).imagery(pixels, town) for strength in (1.0, 1.7))
    assert np.array_equal(a, b)
    assert same == as_there
    suns = [OtherLand(2.0).appearance(np.random.default_rng(seed)) for seed in range(40)]
    assert all(np.radians(7) <= sun.sun_elevation_rad <= np.radians(13) for sun in suns)
    assert all(sun.clouds == 0 and min(*sun.sun, *sun.sky) >= other_land.LEAST_LIGHT for sun in suns)


def test_beyond_1_colours_go_on_along_the_same_line_as_far_as_colours_reach(town: Town) -> None:
    roofs = town.objects["kind"] == Kind.BUILDING
    before, one, beyond = (
        o["top_b"][roofs]
        for o in (town.objects, OtherLand(1.0).changed(town).objects, OtherLand(1.5).changed(town).objects)
    )
    line = one + 0.5 * (one - before)
    inside = (line > 0.03) & (line < 1)
    assert 0.5 < inside.mean() < 1
    assert np.allclose(beyond[inside], line[inside])
    assert np.array_equal(beyond[~inside], np.where(line < 0.5, 0.03, 1.0)[~inside])
    grass = town.ground[..., 3] == 255
    blue, withered, farther = (
        o.ground[grass][:, 2].astype(float).mean()
        for o in (town, OtherLand(1.0).changed(town), OtherLand(1.5).changed(town))
    )
    assert farther == pytest.approx(withered + 0.5 * (withered - blue), abs=2)


def test_camera_goes_on_beyond_1_and_clips_before_it_blurs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_land, "NOISE", 0.0)
    grey = OtherLand(1.5).photograph(np.full((8, 16, 3), 160, np.uint8), FULL_SPHERE, 0)[4, 8]
    # By hand, of red: 160/255 · (1 + 1.5 · 0.12) is 0.740; the curve has 0.896 there; 0.740 + 1.5 · 0.156 is 0.974.
    assert grey[0] == pytest.approx(0.974 * 255, abs=1.5)
    # By hand, of blue: white is above 1; 70/255 · (2 · 0.86 − 1) is 0.198, where the curve has 0.065: −0.067, below 0.
    # What is darker than black must not swallow the light of every eighth column when the blur spreads it.
    lines = np.full((8, 768, 3), 70, np.uint8)
    lines[:, ::8] = 255
    shot = OtherLand(2.0).photograph(lines, FULL_SPHERE, 0)[4, :, 2]
    assert shot.mean() == pytest.approx(255 / 8, abs=1.5)


def test_infrared_imagery_has_red_plants_and_the_camera_delivers_negatives(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    land = OtherLand(1.5, infrared=True)
    changed = land.changed(town)
    flown = land.flown(changed, town)
    leaves, roofs = (town.objects["kind"] == kind for kind in (Kind.LEAVES, Kind.BUILDING))
    o = flown.objects
    assert np.all(o["top_r"][leaves] == 0.85)
    assert np.array_equal(o["top_g"][leaves], town.objects["top_r"][leaves])  # summer's red, shown as green
    assert np.array_equal(o["top_b"][roofs], changed.objects["top_g"][roofs])
    visible = np.mean([changed.objects[name][roofs] for name in ("top_r", "top_g", "top_b")], axis=0)
    assert np.allclose(o["top_r"][roofs], visible)
    grass, bare = town.ground[..., 3] == 255, town.ground[..., 3] == 0
    assert flown.ground[grass][:, 0].mean() > 1.6 * flown.ground[grass][:, 1].mean()
    assert np.array_equal(flown.ground[..., 2], town.ground[..., 1])
    near, seen = flown.ground[bare][:, 0].astype(float), town.ground[bare][:, :3].mean(axis=1)
    assert np.abs(near - seen).max() <= 1
    assert np.array_equal(o["views"], changed.objects["views"])
    assert OtherLand(1.5).flown(changed, town) is changed
    monkeypatch.setattr(other_land, "NOISE", 0.0)
    shot = [
        OtherLand(0.01, infrared=True).photograph(np.full((8, 16, 3), colour, np.uint8), FULL_SPHERE, 0)[4, 8]
        for colour in ((200, 40, 60), (20, 20, 20))
    ]
    assert shot[0] == pytest.approx([155, 155, 155], abs=3)
    assert shot[1] == pytest.approx([235, 235, 235], abs=3)


def test_recorded_drives_share_the_imagery_of_the_other_land(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unifygeo_training.towns.drive.build_town", lambda *_: town)
    folders = [
        record_drive(1000, tmp_path / str(n), DriveSettings(40.0, number=n, land=OtherLand(1.0, infrared), view=TINY))
        for n, infrared in ((1, False), (2, False), (3, True))
    ]
    folders, flown = folders[:2], folders[2]
    assert "(strength 1, infrared)" in (flown / "README.md").read_text()
    with rasterio.open(folders[0] / "town.tif") as visible, rasterio.open(flown / "town.tif") as infrared:
        (red, green, _), (near, shown, _) = visible.read().astype(float), infrared.read().astype(float)
    grass = cv2.resize(town.ground[..., 3], near.shape, interpolation=cv2.INTER_AREA) == 255
    ratios = (red[grass].mean() / green[grass].mean(), near[grass].mean() / shown[grass].mean())
    assert ratios == pytest.approx((1.1, 1.5), abs=0.1)
    a, b = ((folder / "town.tif").read_bytes() for folder in folders)
    assert a == b
    with rasterio.open(folders[0] / "town.tif") as file:
        assert file.res == (1.0, 1.0)
        off = np.array([file.bounds.left, file.bounds.bottom]) - town.origin
        assert np.hypot(*off) == pytest.approx(0.8, abs=1e-6)
        middle = np.array([[(file.bounds.left + file.bounds.right) / 2, (file.bounds.top + file.bounds.bottom) / 2]])
    words = (folders[0] / "README.md").read_text()
    assert "another land (strength 1)" in words
    # The truth's datum is the town's middle: against the imagery's, whose map frame an index takes, 0.8 m would vanish.
    latitude, longitude = map(float, words.split("--truth-frame ")[1].split("`")[0].split(","))
    frame = LocalFrame(Datum(latitude, longitude))
    place = frame.map_from_geodetic(*geodetic_from_town((0.0, 0.0), middle).T)[0]
    assert np.hypot(*place) == pytest.approx(0.8, abs=0.02)


def test_other_land_refuses_no_strength_and_rigs(tmp_path: Path) -> None:
    for strength in (0.0, 2.1):
        with pytest.raises(ConfigurationError, match=r"must lie in \(0, 2\]"):
            OtherLand(strength)
    rig = read_rig(Path(__file__).parents[2] / "config/rigs/six_pinholes.yaml")
    with pytest.raises(ConfigurationError, match="record it without a rig"):
        record_drive(1000, tmp_path / "rig", DriveSettings(land=OtherLand(1.0), rig=rig))
    assert not (tmp_path / "rig").exists()
