"""Several indexes as one: the fixes of one index over everything, whatever borders lie between."""

import itertools
import math
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyproj
import pytest
from bundles import random_bundle
from imagery_files import write_geotiff
from index_parts import subset
from rasterio.transform import Affine
from worlds import World, colour_world

from unifygeo_ros.aerial import regions
from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.index import RESIDENT_BYTES, VerifiedRows, _MappedFile, open_index
from unifygeo_ros.aerial.regions import RegionIndex, open_map
from unifygeo_ros.cli import main
from unifygeo_ros.core.errors import ConfigurationError, IndexFormatError
from unifygeo_ros.core.geodesy import Datum, LocalFrame, wrap_angle
from unifygeo_ros.core.records import CameraImage, Fix, Heading, HeadingSource, Prior, Query, Rejection
from unifygeo_ros.inference.bundle import Calibration
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer

OPEN_GATES = LocalizerConfig(gate_ambiguity=1.0, gate_sigma_m=1000.0, gate_heading_sigma_rad=math.pi, gate_score=-4.0)
SIDE_M = 32.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return random_bundle(tmp_path_factory.mktemp("bundle"), calibration=Calibration(distribution_temperature=0.5))


@pytest.fixture(scope="module")
def engines(bundle):
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        yield engines


@dataclass
class Ground:
    """A flat world about a place, whichever projection its imagery has."""

    world: World
    frame: LocalFrame

    def write_geotiff(self, path, epsg, columns_m):
        """Between two distances east of the place, in a projection of which the pixels are found by pyproj."""
        pixel = 0.5
        middle = self.frame.datum
        forth = pyproj.Transformer.from_crs(4326, epsg, always_xy=True)
        half = len(self.world.pixels) * self.world.metres_per_pixel / 2
        corners = self.frame.geodetic_from_map([columns_m[0], columns_m[1]] * 2, [-half, -half, half, half])
        x, y = forth.transform(corners[:, 1], corners[:, 0])
        # Zone 1's own x of a place west of 180° is far off: stay on the side of the raster's own corners.
        assert np.ptp(x) < 1000, (x, middle)
        columns, rows = math.ceil(np.ptp(x) / pixel), math.ceil(np.ptp(y) / pixel)
        place = Affine.translation(min(x), max(y)) @ Affine.scale(pixel, -pixel)
        column, row = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
        longitude, latitude = forth.transform(min(x) + column * pixel, max(y) - row * pixel, direction="INVERSE")
        points = self.frame.map_from_geodetic(latitude, longitude)
        centre = (len(self.world.pixels) - 1) / 2
        picture = cv2.remap(
            self.world.pixels,
            (centre + points[..., 0] / self.world.metres_per_pixel).astype(np.float32),
            (centre - points[..., 1] / self.world.metres_per_pixel).astype(np.float32),
            cv2.INTER_LINEAR,
        )
        outside = (points[..., 0] < columns_m[0]) | (points[..., 0] > columns_m[1]) | (np.abs(points[..., 1]) > half)
        picture[outside] = 0
        return write_geotiff(path, np.maximum(picture, np.where(outside, 0, 8)[..., None]).astype(np.uint8),
                             f"EPSG:{epsg}", place)  # fmt: skip


@pytest.fixture(scope="module")
def ground():
    return Ground(colour_world(side_m=176.0), LocalFrame(Datum(48.3, 9.0)))


@pytest.fixture(scope="module")
def whole(ground, bundle, engines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    image = ground.write_geotiff(folder / "world.tif", 32632, (-88, 88))
    build_index([image], bundle, engines, folder / "index", datum=ground.frame.datum)
    return open_index(folder / "index")


@pytest.fixture(scope="module")
def halves(whole, tmp_path_factory):
    """A region of the same tiles in two indexes, with the border at x = 0."""
    folder = tmp_path_factory.mktemp("halves")
    subset(whole, whole.centres_m[:, 0] < 1, folder / "west")
    subset(whole, whole.centres_m[:, 0] >= 1, folder / "east")
    return folder


DRIVE = [(x, 12.0 * math.sin(x / 20)) for x in range(-44, 45, 8)]
"""East and north of places on a way across the border."""


def query_at(index_frame, ground_frame, place, *, yaw_offset=0.0, sigma_m=6.0, yaw=0.4, heading=True):
    geodetic = ground_frame.geodetic_from_map(*place)
    east, north = index_frame.map_from_geodetic(*geodetic)
    return Query(
        prior=Prior(float(east) + 3.0, float(north) - 2.0, np.eye(2) * sigma_m**2),
        heading=Heading(yaw + yaw_offset, 1e-4, HeadingSource.CONSTANT) if heading else None,
        distributions=2,
    )


def image_at(ground, place, yaw=0.4):
    return CameraImage(ground.world.panorama(*place, math.pi / 2 - yaw), 0)


def test_fixes_across_a_border_are_those_of_one_index_over_both(ground, whole, halves, bundle, engines):
    region = open_map(halves, bundle=bundle, verify=True)
    assert isinstance(region, RegionIndex)
    assert len(region) == len(whole)
    assert region.area_m2 == pytest.approx(whole.area_m2)
    assert region.manifest.datum == whole.manifest.datum
    one, both = (Localizer(index, bundle, engines, OPEN_GATES) for index in (whole, region))
    used = set()
    for place in DRIVE:
        for query in (query_at(whole.frame, ground.frame, place), Query(heading=Heading(0.4, 1e-4, HeadingSource.IMU)),
                      query_at(whole.frame, ground.frame, place, heading=False)):  # fmt: skip
            expected, found = (localizer.observe(image_at(ground, place), query) for localizer in (one, both))
            np.testing.assert_array_equal(region.centres_m[found.matches.tile_ids],
                                          whole.centres_m[expected.matches.tile_ids])  # fmt: skip
            np.testing.assert_allclose(found.matches.scores, expected.matches.scores, atol=1e-6)
            expected, found = one.decide(expected, query), both.decide(found, query)
            assert isinstance(found, Fix)
            for name in ("east_m", "north_m", "latitude_deg", "longitude_deg", "yaw_rad", "ambiguity"):
                assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-6), (place, name)
            np.testing.assert_allclose(found.covariance_m2, expected.covariance_m2, rtol=1e-5)
            used.add(region.centres_m[found.tile_id][0] < 1)
    assert used == {True, False}


@pytest.fixture(scope="module", params=[(48.3, 12.0, 32632, 32633), (-17.0, 180.0, 32760, 32701)],
                ids=["zone-border", "antimeridian"])  # fmt: skip
def border(request, bundle, engines, tmp_path_factory):
    """Imagery in one UTM zone on either side of a zone border, an index of each, and one index over both."""
    latitude, longitude, west, east = request.param
    folder = tmp_path_factory.mktemp("border")
    ground = Ground(colour_world(side_m=176.0, seed=3), LocalFrame(Datum(latitude, longitude)))
    files = [ground.write_geotiff(folder / "west.tif", west, (-88, 20)),
             ground.write_geotiff(folder / "east.tif", east, (-20, 88))]  # fmt: skip
    for file in files:
        build_index([file], bundle, engines, folder / file.stem)
    build_index(files, bundle, engines, folder / "one", datum=ground.frame.datum)
    (folder / "region.yaml").write_text(f"datum: [{latitude}, {longitude}]\nindexes: [west, east]\n")
    return ground, folder


def test_no_gap_in_fixes_across_a_zone_border_and_the_antimeridian(border, bundle, engines):
    """The two indexes have datums and grids of their own, so the fixes are those of one index to its own accuracy."""
    ground, folder = border
    one, region = open_map(folder / "one", bundle=bundle), open_map(folder / "region.yaml", bundle=bundle)
    datums = [open_index(folder / name).manifest.datum for name in ("west", "east")]
    assert (abs(datums[0].longitude_deg - datums[1].longitude_deg) > 180) == (ground.frame.datum.longitude_deg == 180)
    errors = {}
    for name, index in (("one", one), ("region", region)):
        localizer = Localizer(index, bundle, engines, OPEN_GATES)
        fixes = [localizer.locate(image_at(ground, place), query_at(index.frame, ground.frame, place))
                 for place in DRIVE]  # fmt: skip
        assert all(isinstance(fix, Fix) for fix in fixes), name
        geodesic = pyproj.Geod(ellps="WGS84")
        truth = ground.frame.geodetic_from_map(*np.array(DRIVE).T)
        found = np.array([(fix.latitude_deg, fix.longitude_deg) for fix in fixes])
        errors[name] = geodesic.inv(truth[:, 1], truth[:, 0], found[:, 1], found[:, 0])[2]
        in_map = np.array([(fix.east_m, fix.north_m) for fix in fixes])
        assert np.all(np.abs(np.diff(in_map, axis=0)) < 16.0)  # one map frame: no jump where the index changes
    assert np.median(errors["region"]) < np.median(errors["one"]) + 0.2
    assert np.max(errors["region"]) < np.max(errors["one"]) + 1.0
    assert np.max(errors["one"]) < 4.0


def test_region_takes_the_turn_of_distant_indexes_into_account(ground, whole, bundle, engines, tmp_path):
    """In a map about a datum 250 km to the west the index lies turned by 2.5°; fixes and headings are as before."""
    datum = Datum(48.3, 5.6)
    path = tmp_path / "region.yaml"
    path.write_text(f"datum: [{datum.latitude_deg}, {datum.longitude_deg}]\nindexes: ['{whole.path}']\n")
    region = open_map(path, bundle=bundle)
    turn = region.tile_yaw_rad(0)
    # Parallels of latitude bend to the north in the plane about a place further west.
    assert turn == pytest.approx(math.radians(9.0 - datum.longitude_deg) * math.sin(math.radians(48.3)), rel=0.01)
    alone, far = (Localizer(index, bundle, engines, OPEN_GATES) for index in (whole, region))
    for place in DRIVE[::3]:
        for heading in (True, False):
            near_query = query_at(whole.frame, ground.frame, place, heading=heading)
            far_query = query_at(region.frame, ground.frame, place, heading=heading, yaw_offset=turn)
            expected = alone.locate(image_at(ground, place), near_query)
            found = far.locate(image_at(ground, place), far_query)
            # The prior's circle is 2.5° turned, and lengths are 0.08% shorter; the best tile is the same.
            np.testing.assert_array_equal(region.centres_m[found.tile_id], region.centres_m[expected.tile_id])
            back = whole.frame.map_from_geodetic(found.latitude_deg, found.longitude_deg)
            np.testing.assert_allclose(back, [expected.east_m, expected.north_m], atol=0.1)
            assert wrap_angle(found.yaw_rad - expected.yaw_rad - turn) == pytest.approx(0.0, abs=1e-3)


def test_lengths_and_the_way_back_at_the_end_of_a_regions_range():
    frame = LocalFrame(Datum(60.0, 20.0), regions.REGION_RANGE_M)
    geodesic = pyproj.Geod(ellps="WGS84")
    longitude, latitude, _ = geodesic.fwd(20.0, 60.0, 70.0, 299_000.0)
    east, north = frame.map_from_geodetic(latitude, longitude)
    assert 1 - np.hypot(east, north) / 299_000.0 < 0.0011 / 3 + 1e-4  # the mean over the way, of d²/2R² at its end
    np.testing.assert_allclose(frame.geodetic_from_map(east, north), [latitude, longitude], atol=1e-11)
    beside, _, _ = geodesic.fwd(longitude, latitude, 70.0, 100.0)[:3]
    step = frame.map_from_geodetic(geodesic.fwd(longitude, latitude, 70.0, 100.0)[1], beside) - (east, north)
    assert 99.87 < np.hypot(*step) < 99.95


@pytest.fixture(scope="module")
def row(whole, tmp_path_factory):
    """Six indexes from west to east, far enough apart for a small `AHEAD_M`."""
    folder = tmp_path_factory.mktemp("row")
    edges = np.linspace(whole.centres_m[:, 0].min() - 1, whole.centres_m[:, 0].max() + 1, 7)
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        subset(whole, (whole.centres_m[:, 0] >= low) & (whole.centres_m[:, 0] < high), folder / f"{number}")
    return folder


def test_indexes_are_opened_ahead_and_closed_behind(row, whole, bundle, monkeypatch):
    monkeypatch.setattr(regions, "AHEAD_M", 20.0)
    monkeypatch.setattr(regions, "MOST_OPEN", 2)
    easts = [np.array(open_index(row / f"{number}").centres_m[:, 0]) for number in range(6)]
    before = len(os.listdir("/proc/self/fd"))
    at_start = []

    def counting(*args, **options):
        at_start.append(len(os.listdir("/proc/self/fd")) - before)
        return open_index(*args, **options)

    monkeypatch.setattr(regions, "open_index", counting)
    region = open_map(row, bundle=bundle)
    assert region.open_indexes == ()
    assert len(at_start) == 6
    assert max(at_start) <= 4  # the files of the one before, at most
    before = len(os.listdir("/proc/self/fd"))
    query = np.zeros(bundle.manifest.descriptor_dim, np.float32)
    query[0] = 1.0
    ways = []
    for east in range(-80, 81, 10):
        gate = Gate(Prior(float(east), 0.0, np.eye(2) * 4.0), 3.0)
        found, expected = region.search(query, 5, gate), whole.search(query, 5, gate)
        np.testing.assert_allclose(found.similarities, expected.similarities, atol=1e-6)
        region.match_maps[found.tile_ids]
        region.tile_pixels(int(found.tile_ids[0]))
        ways.append([int(path.name) for path in region.open_indexes])
        assert len(ways[-1]) <= 4
        assert len(os.listdir("/proc/self/fd")) - before <= 4 * 4
        for number, own in enumerate(easts):
            if np.min(np.abs(own - east)) <= 20.0 + SIDE_M / 2:
                assert number in ways[-1]
    assert 0 in ways[0]
    assert 5 not in ways[0]
    assert 5 in ways[-1]
    assert 0 not in ways[-1]
    region.close_search()
    assert region.open_indexes == ()


def test_search_of_the_whole_region_is_brute_force(row, whole, bundle, monkeypatch):
    monkeypatch.setattr(regions, "_BLOCK", 7)  # fewer than an index has tiles, as 4096 in a large one
    region = open_map(row, bundle=bundle)
    query = np.random.default_rng(2).normal(size=bundle.manifest.descriptor_dim).astype(np.float32)
    query /= np.linalg.norm(query)
    similarities = region.descriptors[np.arange(len(region))] @ query
    found = region.search(query, 9)
    np.testing.assert_array_equal(found.tile_ids, np.argsort(-similarities, kind="stable")[:9])
    assert len(region.search(query, 10_000).tile_ids) == len(region)
    assert len(region.search(query, 3, Gate(Prior(9000.0, 0.0, np.eye(2)), 4.0)).tile_ids) == 0
    everything = region.tiles_within(Gate(Prior(0.0, 0.0, np.eye(2) * 1e8), 4.0))
    np.testing.assert_array_equal(everything, np.arange(len(region)))


def test_index_that_vanishes_or_changes_during_the_drive_is_named(row, whole, bundle, tmp_path):
    for name in ("0", "5"):
        (tmp_path / name).mkdir()
        for file in (row / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    region = open_map(tmp_path, bundle=bundle)
    query = np.zeros(bundle.manifest.descriptor_dim, np.float32)
    query[0] = 1.0
    (tmp_path / "5").rename(tmp_path.parent / "unmounted")
    with pytest.raises(IndexFormatError, match=r"5/manifest\.json: cannot be read"):
        region.search(query, 5, Gate(Prior(80.0, 0.0, np.eye(2)), 3.0))
    subset(whole, whole.centres_m[:, 0] > 70, tmp_path / "5")
    with pytest.raises(IndexFormatError, match=r"5: is another index than at the start"):
        region.search(query, 5, Gate(Prior(80.0, 0.0, np.eye(2)), 3.0))
    (tmp_path / "5").rename(tmp_path.parent / "other")
    (tmp_path.parent / "unmounted").rename(tmp_path / "5")
    assert len(region.search(query, 5, Gate(Prior(80.0, 0.0, np.eye(2)), 3.0)).tile_ids)


def test_regions_that_cannot_be_are_refused_with_the_remedy(halves, whole, bundle, engines, tmp_path):
    stranger = random_bundle(tmp_path / "stranger", seed=1)
    with pytest.raises(IndexFormatError, match="made with the weights"):
        open_map(halves, bundle=stranger)
    with pytest.raises(ConfigurationError, match="a region is searched on the CPU; choose auto or cpu"):
        open_map(halves, search_device="gpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IndexFormatError, match=r"empty/manifest\.json: cannot be read"):
        open_map(tmp_path / "empty")
    region = tmp_path / "region.yaml"
    for text, message in [
        ("indexes: []", "is no region; it must hold `datum"),
        ("indexes: [a", "cannot be read"),
        ("index: a", "is no region"),
        ("indexes: [nowhere]", "there is no index nowhere beside it"),
        (f"datum: [48, x]\nindexes: ['{halves}/west']", r"its datum is \[48, 'x'\]"),
        (f"datum: [95, 1]\nindexes: ['{halves}/west']", "outside latitude ±89°"),
        (f"datum: [52, 9]\nindexes: ['{halves}/west']", r"west: reaches 41\d km from the region's datum .*two regions"),
    ]:
        region.write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            open_map(region, bundle=bundle)


def test_info_shows_a_region(halves, capsys):
    assert main(["index", "info", str(halves), "--verify"]) == 0
    told = capsys.readouterr().out
    for expected in ("2: east, west", "every file read and correct", "48.3000000, 9.0000000"):
        assert expected in told


def test_node_and_its_session_load_a_region(ground, halves, whole, bundle, tmp_path):
    pytest.importorskip("rclpy")
    from unifygeo_ros.parameters.settings import NodeConfig, Settings
    from unifygeo_ros.ros.loading import load

    # An index that is being built lies beside the others, complete but for its name.
    shutil.copytree(halves, tmp_path / "region")
    shutil.copytree(halves / "east", tmp_path / "region" / "north.partial")
    settings = Settings(NodeConfig(bundle=str(bundle.path), index=str(tmp_path / "region"), backend="onnx_cpu"))
    loaded = load(settings, settings.camera, None, lambda step: None)
    try:
        assert loaded.identity["index"] == f"{len(whole)} tiles ({tmp_path / 'region'})"
        assert loaded.identity["datum"].startswith("48.3000000, 9.0000000")
        assert loaded.identity["search"] == "exact, index by index (2), CPU"
        result = loaded.localizer.observe(image_at(ground, DRIVE[0]), query_at(whole.frame, ground.frame, DRIVE[0]))
        assert not isinstance(result, Rejection)
    finally:
        loaded.close()
    assert loaded.index.open_indexes == ()


def test_resident_memory_does_not_grow_with_what_was_read(bundle, whole, tmp_path):
    """The mapped files of an index give pages back: without that, all of what was read stays in the process."""
    tiles, row = 400, 200_000
    folder = subset(whole, np.arange(len(whole)) < 2, tmp_path / "index")
    file = folder / "large"
    with file.open("wb") as stream:
        stream.truncate(tiles * row)
    rows = VerifiedRows(
        _MappedFile(file, np.uint8, (tiles, row)), np.full(tiles, zlib.crc32(bytes(row)), np.uint32), ""
    )
    before = resident_bytes()
    most = 0
    for tile in range(tiles):
        rows[tile].max()
        most = max(most, resident_bytes() - before)
    assert most < 3 * RESIDENT_BYTES < tiles * row / 3


def resident_bytes():
    """Pages of files that are mapped into this process and in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024
