"""A VIGOR city: tiles as they are, where their names say, at the city's own metres per pixel."""

import cv2
import numpy as np
import pyproj
import pytest
from bundles import random_bundle
from imagery_files import textured, town

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.aerial.sources import open_imagery
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.inference.bundle import AerialSpec
from unifygeo_ros.inference.select import open_engines

PLACES = [(47.6051, -122.3301), (47.6053, -122.3298), (47.6049, -122.3307), (47.6060, -122.3301)]
SPEC = AerialSpec(64, 1.0)  # Seattle's tiles are 64.5 m wide


@pytest.fixture(params=["Seattle/satellite", "satellite/Seattle"])
def city(tmp_path, request):
    folder = tmp_path / request.param
    folder.mkdir(parents=True)
    for seed, (latitude, longitude) in enumerate(PLACES):
        cv2.imwrite(str(folder / f"satellite_{latitude}_{longitude}.png"), textured(640, 640, seed)[..., ::-1])
    (folder / "notes.txt").write_text("not a tile")
    return folder if folder.name == "Seattle" else folder.parent


def test_tiles_are_centred_on_the_position_in_their_names(city):
    imagery = open_imagery([city])
    latitude, longitude = imagery.centre_deg()
    assert (latitude, longitude) == pytest.approx((47.60545, -122.33025))
    tiles = imagery.tiles(LocalFrame(Datum(latitude, longitude)), SPEC, 0.5)
    assert tiles.stride_m is None
    assert tiles.metres_per_pixel == pytest.approx(0.100817 * 10)
    seen = set()
    for number, (east, north) in enumerate(tiles.centres_m):
        distances = []
        for lat, lon in PLACES:
            azimuth, _, metres = pyproj.Geod(ellps="WGS84").inv(longitude, latitude, lon, lat)
            offset = metres * np.array([np.sin(np.radians(azimuth)), np.cos(np.radians(azimuth))])
            distances.append(np.hypot(*(offset - (east, north))))
        seed = int(np.argmin(distances))
        assert distances[seed] < 1e-3
        seen.add(seed)
        expected = cv2.resize(textured(640, 640, seed), (64, 64), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(tiles.read(number).pixels, expected)
    assert seen == {0, 1, 2, 3}


def test_city_becomes_an_index(city, tmp_path):
    bundle = random_bundle(tmp_path / "bundle", metres_per_pixel=1.0, sector_radius_m=16.0)
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        report = build_index([city], bundle, engines, tmp_path / "index")
    index = open_index(report.path, bundle=bundle, verify=True)
    assert len(index) == 4
    assert index.metres_per_pixel == pytest.approx(0.100817 * 10)
    assert index.manifest.imagery["city"] == "Seattle"


def test_vigor_folder_that_does_not_fit_is_refused(city, tmp_path):
    with pytest.raises(InputError, match="cannot be mixed"):
        open_imagery([city, town(tmp_path / "town.tif")])
    with pytest.raises(InputError, match=r"tiles of 64\.5 m, the model takes 128\.0 m"):
        open_imagery([city]).tiles(LocalFrame(Datum(47.6, -122.33)), AerialSpec(64, 2.0), 0.5)
    with pytest.raises(InputError, match="from the datum"):
        open_imagery([city]).tiles(LocalFrame(Datum(46.0, -122.33)), SPEC, 0.5)


def test_truncated_or_misshaped_tile_is_refused_by_name(city):
    victim = sorted(city.rglob("*.png"))[1]
    whole = victim.read_bytes()

    def read_all():
        tiles = open_imagery([city]).tiles(LocalFrame(Datum(47.605, -122.33)), SPEC, 0.5)
        return [tiles.read(number) for number in range(4)]

    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{victim.name}: a PNG that is cut off"):
        read_all()
    cv2.imwrite(str(victim), textured(640, 320))
    with pytest.raises(InputError, match="320x640 pixels"):
        read_all()
