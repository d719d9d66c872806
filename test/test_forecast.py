"""The forecast of a route: the index asked with itself, against brute force. benchmarks/forecast.py says its worth."""

import dataclasses
import json
import math

import numpy as np
import pytest
import rasterio
from bundles import random_bundle
from index_parts import subset
from rasterio.transform import Affine
from worlds import CRS, colour_world

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.aerial.regions import open_map
from unifygeo_ros.cli import main
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.forecast import availability
from unifygeo_ros.evaluation.forecast.availability import (
    FIRST_FIX_M,
    TYPICAL_AVAILABILITY,
    confirmed,
    single_availability,
)
from unifygeo_ros.evaluation.forecast.forecast import forecast
from unifygeo_ros.evaluation.forecast.likeness import TEMPERATURE, Likeness, likeness_of, texture
from unifygeo_ros.evaluation.forecast.route import sampled
from unifygeo_ros.inference.select import open_engines

TWIN_M = 480.0
COPYRIGHT = "Survey of <Nowhere>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index of a town of 176 m, with a copy of its western half 480 m to the east."""
    folder = tmp_path_factory.mktemp("forecast")
    world = colour_world(side_m=176.0)
    image = world.write_geotiff(folder / "world.tif")
    with rasterio.open(image, "r+") as dataset:
        dataset.update_tags(TIFFTAG_COPYRIGHT=COPYRIGHT)
        pixels, place = dataset.read(), dataset.transform
    half = pixels[:, :, : pixels.shape[2] // 2]
    with rasterio.open(folder / "twin.tif", "w", driver="GTiff", width=half.shape[2], height=half.shape[1], count=3,
                       dtype="uint8", crs=CRS, transform=Affine.translation(TWIN_M, 0) @ place) as file:  # fmt: skip
        file.write(half)
    bundle = random_bundle(folder / "bundle")
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        for name, images in (("alone", [image]), ("twinned", [image, folder / "twin.tif"])):
            datum = None if name == "alone" else open_index(folder / "alone").manifest.datum
            build_index(images, bundle, engines, folder / name, datum=datum)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return open_index(folder / "alone")


@pytest.fixture(scope="module")
def twinned(folder):
    return open_index(folder / "twinned")


def places(count=30):
    return np.random.default_rng(3).uniform(-60, 60, (count, 2))


def brute_force(index, place):
    """Score of each tile that is a rival of a place, by loops over all tiles and cells."""
    centres, side, size = np.asarray(index.centres_m), index.manifest.side_m, index.manifest.match_size
    best = min(range(len(index)), key=lambda tile: np.abs(centres[tile] - place).max())
    column = math.floor((place[0] - centres[best, 0] + side / 2) / (side / size))
    row = math.floor((centres[best, 1] + side / 2 - place[1]) / (side / size))
    image, cell = index.descriptors[best], np.asarray(index.match_maps[best][row, column], np.float64)
    scores = {}
    for tile in range(len(index)):
        if np.abs(centres[tile] - place).max() > side:
            match = max(float(index.match_maps[tile][r, c] @ cell) for r in range(size) for c in range(size))
            scores[tile] = float(index.descriptors[tile] @ image) + match
    return scores


@pytest.mark.parametrize("name", ["alone", "twinned"])
def test_likeness_is_the_score_of_all_rivals_together(folder, name, monkeypatch):
    from unifygeo_ros.evaluation.forecast import likeness

    monkeypatch.setattr(likeness, "RIVALS", 10_000)
    index = open_index(folder / name)
    found = likeness_of(index, places(12))
    for number, place in enumerate(places(12)):
        scores = brute_force(index, place)
        expected = TEMPERATURE * math.log(sum(math.exp(score / TEMPERATURE) for score in scores.values()))
        assert found.likeness[number] == pytest.approx(expected, abs=2e-3)  # match maps are float16
        assert found.twin[number] == max(scores, key=scores.get)


def test_place_with_a_twin_is_as_like_it_as_itself_and_the_twin_is_named(alone, twinned):
    west, east = np.array([[-40.0, 10.0], [-30.0, -20.0]]), np.array([[50.0, 10.0], [60.0, -20.0]])
    found = likeness_of(twinned, np.concatenate([west, east]))
    assert np.all(found.likeness[:2] > 1.9)
    distances = np.asarray(twinned.centres_m[found.twin[:2]]) - west
    np.testing.assert_allclose(distances, [[TWIN_M, 0]] * 2, atol=twinned.manifest.side_m / 2)
    single = likeness_of(alone, np.concatenate([west, east]))
    assert np.all(single.likeness[:2] < found.likeness[:2] - 0.1)
    np.testing.assert_allclose(single.likeness[2:], found.likeness[2:], atol=0.1)  # the others have no twin
    expected = single_availability(found)
    assert expected[:2].max() < expected[2:].min()


def test_texture_tells_lines_from_corners_and_sharp_from_coarse():
    import cv2

    row, column = np.mgrid[:120, :120]
    stripes, squares = ((column // 6) % 2, (column // 6 + row // 6) % 2)
    coherence, detail = {}, {}
    for name, pattern in (("stripes", stripes), ("squares", squares)):
        picture = np.repeat((60 + 120 * pattern).astype(np.uint8)[..., None], 3, axis=-1)
        for kind, shown in (("sharp", picture), ("coarse", cv2.GaussianBlur(picture, (0, 0), 3.0))):
            found = texture(shown, 40)
            coherence[name, kind], detail[name, kind] = (values[60, 60] for values in found)
    assert coherence["stripes", "sharp"] > 0.98
    assert coherence["squares", "sharp"] < 0.05
    assert detail["squares", "coarse"] < 0.2 * detail["squares", "sharp"]
    assert np.all(np.isfinite(texture(np.zeros((50, 50, 3), np.uint8), 20)))
    assert texture(np.zeros((50, 50, 3), np.uint8), 20)[0].max() == 0.0


def test_places_without_imagery_have_no_numbers_and_no_fixes(alone):
    outside = np.array([[500.0, 0.0], [np.nan, np.nan], [0.0, 0.0]])
    found = likeness_of(alone, outside)
    assert found.covered.tolist() == [False, False, True]
    assert np.isnan(found.likeness[:2]).all()
    assert found.twin[:2].tolist() == [-1, -1]
    expected = single_availability(found)
    assert expected[:2].tolist() == [0.0, 0.0]
    assert 0.0 < expected[2] < 1.0


def test_index_of_one_tile_has_no_rivals(alone, tmp_path):
    index = open_index(subset(alone, np.arange(len(alone)) == 40, tmp_path / "one"))
    found = likeness_of(index, np.asarray(index.centres_m))
    assert found.twin.tolist() == [-1]
    assert found.likeness[0] == -np.inf
    assert np.isfinite(single_availability(found)).all()


def test_region_of_two_halves_is_forecast_as_one_index(alone, tmp_path):
    west = np.asarray(alone.centres_m[:, 0]) < 1
    subset(alone, west, tmp_path / "region" / "west")
    subset(alone, ~west, tmp_path / "region" / "east")
    one, both = likeness_of(alone, places()), likeness_of(open_map(tmp_path / "region"), places())
    np.testing.assert_allclose(both.likeness, one.likeness, atol=1e-5)
    np.testing.assert_allclose(both.coherence, one.coherence, atol=1e-6)


def test_first_fix_comes_as_two_random_confirmations_do():
    rng = np.random.default_rng(0)
    along_m = np.arange(0.0, 200.0, 2.0)
    share = np.where(along_m < 50, 0.2, 0.9)
    rate = 1.6783 / FIRST_FIX_M["searched"] * share / TYPICAL_AVAILABILITY
    counts = rng.poisson(rate * 2.0, (20_000, len(along_m))).cumsum(axis=1)
    simulated = (counts >= 2).mean(axis=0)
    np.testing.assert_allclose(confirmed(share, along_m, "searched")[1:], simulated[:-1], atol=0.03)


@pytest.mark.parametrize("heading", FIRST_FIX_M)
def test_median_of_the_first_fix_is_the_measured_one_on_a_typical_route(heading):
    along_m = np.arange(0.0, 2000.0, 0.5)
    done = confirmed(np.full(len(along_m), TYPICAL_AVAILABILITY), along_m, heading)
    assert along_m[np.argmax(done >= 0.5)] == pytest.approx(FIRST_FIX_M[heading], abs=1.0)
    assert np.all(confirmed(np.zeros(len(along_m)), along_m, heading) == 0.0)


def straight(index, start, end, step_m=5.0):
    corners = index.frame.geodetic_from_map(*np.array([start, end], np.float64).T)
    return sampled("way", corners, index.frame, step_m)


def test_stretches_cover_the_route_and_say_why_they_are_at_risk(alone, twinned):
    route = straight(twinned, (-230.0, 10.0), (80.0, 10.0))
    found = forecast(twinned, route, 50.0)
    ends = [(one.start_m, one.end_m) for one in found.stretches]
    assert [start for start, _ in ends] == [50.0 * number for number in range(6)]
    assert [end for _, end in ends] == [*(start for start, _ in ends[1:]), route.length_m]
    # Imagery begins 88 m west of the middle, 142 m along; the first tile a few metres before it.
    assert [one.covered for one in found.stretches[:2]] == [0.0, 0.0]
    first_m = np.asarray(twinned.centres_m[:, 0]).min() - twinned.manifest.side_m / 2
    assert found.stretches[2].covered == pytest.approx((-80.0 - first_m) / 50.0, abs=0.1)
    assert found.stretches[0].reason == "the index has no imagery there"
    assert found.stretches[2].reason.startswith("the index has no imagery there on ")
    assert found.stretches[3].likeness > 1.9
    assert found.stretches[3].reason  # in these blurred worlds not likeness alone
    assert found.stretches[3].availability < forecast(alone, route, 50.0).stretches[3].availability - 0.01
    assert found.covered == pytest.approx((80.0 - first_m) / 310, abs=0.03)
    assert found.stretches[0].sequence == {"given": 0.0, "searched": 0.0}
    assert found.share("given") > found.share("searched")


def test_first_fix_is_not_before_the_imagery_begins_and_none_where_it_hardly_comes(alone, monkeypatch):
    module = "unifygeo_ros.evaluation.forecast.forecast.single_availability"
    route = straight(alone, (-230.0, 10.0), (80.0, 10.0))
    first_m = np.asarray(alone.centres_m[:, 0]).min() - alone.manifest.side_m / 2 + 230.0
    monkeypatch.setattr(module, lambda found: TYPICAL_AVAILABILITY * found.covered)
    first = forecast(alone, route, 100.0).first_fix
    assert first["given"].median_m == pytest.approx(first_m + FIRST_FIX_M["given"], abs=6.0)
    assert first["given"].late_m == pytest.approx(first_m + 3.8897 / 1.6783 * FIRST_FIX_M["given"], abs=6.0)
    assert first["searched"].median_m == pytest.approx(first_m + FIRST_FIX_M["searched"], abs=6.0)
    assert first["searched"].late_m == pytest.approx(first_m + 3.8897 / 1.6783 * FIRST_FIX_M["searched"], abs=6.0)
    monkeypatch.setattr(module, lambda found: 0.5 * TYPICAL_AVAILABILITY * found.covered)
    first = forecast(alone, route, 100.0).first_fix
    assert first["searched"].median_m == pytest.approx(first_m + 2 * FIRST_FIX_M["searched"], abs=6.0)
    assert first["searched"].late_m is None  # the route ends before
    monkeypatch.setattr(module, lambda found: 0.01 * found.covered)
    assert forecast(alone, route, 100.0).first_fix["searched"].median_m is None


def test_a_rest_of_less_than_half_a_stretch_belongs_to_the_one_before(alone):
    for length_m, count in ((140.0, 1), (149.0, 1), (160.0, 2), (20.0, 1)):
        found = forecast(alone, straight(alone, (-70.0, 0.0), (length_m - 70.0, 0.0)), 100.0)
        assert len(found.stretches) == count, length_m
        assert found.stretches[-1].end_m == pytest.approx(length_m, abs=1e-3)


def test_route_beside_the_index_is_an_error_that_says_how_far(alone):
    with pytest.raises(InputError, match=r"no part of it is on the index alone: .* 9\.\d km from .*longitude first"):
        forecast(alone, straight(alone, (9500.0, 0.0), (9700.0, 0.0)), 100.0)


def test_model_of_the_fit_is_known_by_its_weights(alone, monkeypatch):
    route = straight(alone, (-40.0, 0.0), (40.0, 0.0))
    assert not forecast(alone, route, 100.0).fitted
    monkeypatch.setattr("unifygeo_ros.evaluation.forecast.forecast.FITTED_WITH", alone.manifest.weights_sha256)
    assert forecast(alone, route, 100.0).fitted


@pytest.fixture
def route_file(twinned, tmp_path):
    corners = twinned.frame.geodetic_from_map([-230.0, 80.0], [10.0, 10.0])
    path = tmp_path / "route <b>.geojson"
    path.write_text(json.dumps({"type": "LineString", "coordinates": corners[:, ::-1].tolist()}))
    return path


def test_command_writes_page_and_geojson(folder, twinned, route_file, tmp_path, capsys):
    outputs = ["--report", str(tmp_path / "out" / "r.html"), "--output", str(tmp_path / "out" / "r.geojson")]
    command = ["forecast", str(folder / "twinned"), "--route", str(route_file), "--stretch-m", "50"]
    assert main([*command, *outputs]) == 0
    told = capsys.readouterr().out
    assert "310 m, 5" in told
    assert "- 0 to 50 m: 0% of single images, the index has no imagery there" in told
    assert "fitted with another model" in told
    page = (tmp_path / "out" / "r.html").read_text()
    assert "route &lt;b&gt;.geojson" in page
    assert "<b>.geojson" not in page
    assert "Survey of &lt;Nowhere&gt;" in page
    assert page.count('class="stretch"') == 6
    assert "https://" not in page
    content = json.loads((tmp_path / "out" / "r.geojson").read_text())
    expected = forecast(twinned, straight(twinned, (-230.0, 10.0), (80.0, 10.0)), 50.0)
    assert len(content["features"]) == 6
    for item, one in zip(content["features"], expected.stretches, strict=True):
        assert item["properties"]["single_heading_given"] == pytest.approx(one.availability, abs=1e-3)
        assert item["properties"]["at_risk"] == one.reason
        points = np.array(item["geometry"]["coordinates"])[:, ::-1]
        places_m = twinned.frame.map_from_geodetic(*points.T)
        np.testing.assert_allclose(places_m[[0, -1], 0], [one.start_m - 230, one.end_m - 230], atol=0.05)
    assert content["features"][0]["properties"]["likeness"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stretch-m", "1"], "--stretch-m 1, must be at least 5"),
        (["--speed-m-s", "0"], "--speed-m-s 0, must be at least 0.1"),
        (["--report", "/proc/none/r.html"], "cannot be written .*choose another --report"),
    ],
)
def test_command_refuses_what_it_cannot_do(folder, route_file, options, message, capsys):
    assert main(["forecast", str(folder / "alone"), "--route", str(route_file), *options]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)


def test_more_likeness_coherence_or_less_detail_is_never_better():
    base = Likeness(np.array([True]), np.array([1.3]), np.array([0.2]), np.array([23.0]), np.array([0]))
    expected = single_availability(base)[0]
    for name, value in (("likeness", 1.5), ("coherence", 0.4), ("detail", 10.0)):
        worse = dataclasses.replace(base, **{name: np.array([value])})
        assert single_availability(worse)[0] < expected - 0.02, name
        reason = availability.weakest_feature(worse, slice(0, 1))
        assert {"likeness": "other places", "coherence": "one direction", "detail": "little detail"}[name] in reason
