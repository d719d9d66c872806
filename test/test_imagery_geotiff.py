"""GeoTIFFs become tiles: where things end up, how bands become RGB, what is unknown, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from imagery_files import textured, town, write_geotiff
from rasterio.transform import Affine, from_origin

from unifygeo_ros.aerial.imagery import ImageryOptions
from unifygeo_ros.aerial.sources import open_imagery
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame, tile_from_map
from unifygeo_ros.inference.bundle import AerialSpec

SPEC = AerialSpec(64, 0.5)
GEOTIFFS = Path(__file__).resolve().parents[2] / "shared" / "data" / "geotiff"


def tiles_of(*paths, spec=SPEC, datum=None, stride=0.5, options=None):
    imagery = open_imagery(paths, options)
    if datum is None:
        datum = Datum(*imagery.centre_deg())
    return imagery.tiles(LocalFrame(datum), spec, stride)


def tile_nearest(tiles, east=0.0, north=0.0):
    number = int(np.argmin(np.hypot(*(tiles.centres_m - (east, north)).T)))
    return tiles.read(number), tiles.centres_m[number]


def utm_datum(east, north):
    longitude, latitude = pyproj.Transformer.from_crs(32632, 4326, always_xy=True).transform(east, north)
    return Datum(latitude, longitude)


# Latitude and longitude of the dot, the CRS, the size of a pixel in it, and a turn of the pixel grid.
PLACES = [
    ("EPSG:32632", 48.5, 9.0, 0.5, 0.0),
    ("EPSG:32632", 48.5, 11.9, 0.25, 30.0),  # 3° from the meridian, and a turned geotransform
    ("EPSG:3395", 14.596, 120.982, 0.5, 0.0),
    ("EPSG:3857", 60.0, 25.0, 0.6, 0.0),  # stretched by two
    ("EPSG:26914", 47.02, -99.15, 0.55, 0.0),
    ("EPSG:2056", 46.9, 7.4, 0.1, 0.0),
    ("EPSG:4326", -33.9, 151.2, 3e-6, 0.0),
    ("EPSG:32701", -13.8, -179.99, 0.4, 0.0),  # beside the date line
]


@pytest.mark.parametrize(("crs", "latitude", "longitude", "pixel", "turn"), PLACES)
def test_a_mark_is_where_pyproj_says(tmp_path, crs, latitude, longitude, pixel, turn):
    x, y = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(longitude, latitude)
    half = 300
    transform = Affine.translation(x, y) @ Affine.rotation(turn) @ Affine.scale(pixel, -pixel)
    transform = transform @ Affine.translation(-half - 0.3, -half + 0.2)  # the mark lies between pixels
    row, column = np.mgrid[: 2 * half, : 2 * half]
    # Two metres wide on the ground, so that it is many pixels in every raster and in the tile.
    ground = 0.5 * (2.0 / 111_320 if crs == "EPSG:4326" else 2.0) / pixel
    distance = np.hypot(column + 0.5 - half - 0.3, row + 0.5 - half + 0.2)
    dot = (20 + 220 * np.exp(-0.5 * (distance / ground) ** 2)).astype(np.uint8)
    path = write_geotiff(tmp_path / "dot.tif", dot, crs, transform)

    datum_latitude, datum_longitude = latitude + 3e-5, longitude - 4e-5
    tiles = tiles_of(path, datum=Datum(datum_latitude, datum_longitude), spec=AerialSpec(64, 0.3))
    azimuth, _, metres = pyproj.Geod(ellps="WGS84").inv(datum_longitude, datum_latitude, longitude, latitude)
    east, north = metres * np.sin(np.radians(azimuth)), metres * np.cos(np.radians(azimuth))
    tile, centre = tile_nearest(tiles, east, north)
    assert tile.valid.all()
    light = np.maximum(tile.pixels[..., 0].astype(float) - 25, 0)
    rows, columns = np.mgrid[:64, :64]
    found = np.array([(rows * light).sum(), (columns * light).sum()]) / light.sum()
    expected = tile_from_map(east, north, *centre, 64, 0.3)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_neighbouring_tiles_agree_where_they_overlap(tmp_path):
    tiles = tiles_of(town(tmp_path / "town.tif"))
    one, centre = tile_nearest(tiles)
    other, other_centre = tile_nearest(tiles, centre[0] + tiles.stride_m, centre[1])
    np.testing.assert_allclose(other_centre - centre, [16.0, 0.0])
    difference = one.pixels[:, 32:].astype(int) - other.pixels[:, :32]
    assert np.abs(difference).max() <= 2


def test_one_centre_is_the_datum_and_the_others_lie_on_the_grid(tmp_path):
    tiles = tiles_of(town(tmp_path / "town.tif"), stride=0.25)
    steps = tiles.centres_m / (0.25 * SPEC.side_m)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert [0.0, 0.0] in tiles.centres_m.tolist()
    assert len(np.unique(tiles.centres_m, axis=0)) == len(tiles.centres_m)


@pytest.mark.parametrize("metres_per_pixel", [0.4, 0.5, 0.83, 2.0])
@pytest.mark.parametrize("overviews", [(), (2, 4)])
def test_a_mosaic_of_parts_equals_the_whole(tmp_path, metres_per_pixel, overviews):
    whole = town(tmp_path / "whole.tif", overviews=overviews)
    with rasterio.open(whole) as dataset:
        pixels, transform = np.moveaxis(dataset.read(), 0, -1), dataset.transform
    parts = []
    for number, (rows, columns) in enumerate([(slice(0, 120), slice(0, 320)), (slice(120, 320), slice(0, 200)),
                                              (slice(120, 320), slice(200, 320))]):  # fmt: skip
        corner = transform @ Affine.translation(columns.start, rows.start)
        parts.append(write_geotiff(tmp_path / f"{number}.tif", pixels[rows, columns], "EPSG:32632", corner,
                                   overviews=overviews))  # fmt: skip
    spec = AerialSpec(64, metres_per_pixel)
    datum = Datum(48.5, 9.0)
    one, many = tiles_of(whole, spec=spec, datum=datum), tiles_of(*parts, spec=spec, datum=datum)
    np.testing.assert_array_equal(one.centres_m, many.centres_m)
    for number in range(len(one.centres_m)):
        tile, other = one.read(number), many.read(number)
        np.testing.assert_array_equal(tile.valid, other.valid)
        np.testing.assert_array_equal(tile.pixels, other.pixels)


def test_files_of_different_crs_are_laid_over_each_other_without_a_gap(tmp_path):
    flat = np.full((200, 200, 3), 100, np.uint8)
    left = write_geotiff(tmp_path / "left.tif", flat, "EPSG:32632", from_origin(500_000 - 99.7, 5_400_050, 0.5, 0.5))
    x, y = pyproj.Transformer.from_crs(32632, 3857, always_xy=True).transform(500_000 - 0.2, 5_400_050)
    right = write_geotiff(tmp_path / "right.tif", flat, "EPSG:3857", from_origin(x, y, 0.75, 0.75))
    tile, _ = tile_nearest(tiles_of(left, right, datum=utm_datum(500_000, 5_400_000)))
    assert tile.valid.all()
    assert tile.pixels.min() == tile.pixels.max() == 100


def test_averaging_keeps_fine_texture_from_aliasing(tmp_path):
    board = np.where((np.indices((800, 800)).sum(0) % 2)[..., None], 200, 50).astype(np.uint8).repeat(3, -1)
    path = write_geotiff(tmp_path / "board.tif", board, "EPSG:32632", from_origin(500_000, 5_400_000, 0.1, 0.1))
    tile, _ = tile_nearest(tiles_of(path))  # five raster pixels for one of the tile
    assert np.abs(tile.pixels[tile.valid].astype(int) - 125).max() <= 8


def test_very_fine_imagery_is_read_in_strips_with_the_same_result(tmp_path, monkeypatch):
    path = town(tmp_path / "town.tif", resolution=0.25)
    expected = tiles_of(path, spec=AerialSpec(64, 1.1))
    numbers = range(len(expected.centres_m))
    tiles = [expected.read(number).pixels for number in numbers]
    monkeypatch.setattr("unifygeo_ros.aerial.raster._STRIP_PIXELS", 2000)
    for number, tile in zip(numbers, tiles, strict=True):
        np.testing.assert_array_equal(expected.read(number).pixels, tile)


def test_coarser_imagery_is_enlarged_up_to_the_limit_and_refused_beyond(tmp_path):
    path = town(tmp_path / "town.tif", resolution=1.0)
    tile, _ = tile_nearest(tiles_of(path, spec=AerialSpec(64, 0.51)))
    assert tile.valid.all()
    with pytest.raises(InputError, match=r"town.tif: 1 m per pixel.*at most 0\.98 m"):
        tiles_of(path, spec=AerialSpec(64, 0.49))


def test_bands_nodata_and_alpha(tmp_path):
    colour = textured(400, 400)
    transform = from_origin(500_000, 5_400_000, 0.5, 0.5)
    datum = utm_datum(500_100, 5_399_900)
    rgb, _ = tile_nearest(tiles_of(write_geotiff(tmp_path / "rgb.tif", colour, "EPSG:32632", transform), datum=datum))
    grey = write_geotiff(tmp_path / "grey.tif", colour[..., 1], "EPSG:32632", transform)
    tile, _ = tile_nearest(tiles_of(grey, datum=datum))
    np.testing.assert_array_equal(tile.pixels, rgb.pixels[..., 1:2].repeat(3, -1))

    swapped = tiles_of(tmp_path / "rgb.tif", datum=datum, options=ImageryOptions(bands=(3, 2, 1)))
    np.testing.assert_array_equal(tile_nearest(swapped)[0].pixels, rgb.pixels[..., ::-1])

    infrared = np.concatenate([colour, 255 - colour[..., :1]], axis=-1)
    four = write_geotiff(
        tmp_path / "nir.tif", infrared, "EPSG:32632", transform, photometric="RGB", alpha="unspecified"
    )
    np.testing.assert_array_equal(tile_nearest(tiles_of(four, datum=datum))[0].pixels, rgb.pixels)

    hole = np.zeros((400, 400), bool)
    hole[180:215, 170:230] = True
    alpha = np.concatenate([colour, np.where(hole, 0, 255)[..., None].astype(np.uint8)], axis=-1)
    marked = np.where(hole[..., None], 7, colour).astype(np.uint8)
    for path, options in [
        (write_geotiff(tmp_path / "alpha.tif", alpha, "EPSG:32632", transform, photometric="RGB", alpha="yes"), None),
        (write_geotiff(tmp_path / "nodata.tif", marked, "EPSG:32632", transform, nodata=7), None),
        (write_geotiff(tmp_path / "option.tif", marked, "EPSG:32632", transform), ImageryOptions(nodata=7)),
        (write_geotiff(tmp_path / "black.tif", np.where(hole[..., None], 3, colour).astype(np.uint8), "EPSG:32632",
                       transform), None),
    ]:  # fmt: skip
        tile, _ = tile_nearest(tiles_of(path, datum=datum, options=options))
        assert 0.2 < 1 - tile.valid.mean() < 0.6, path
        assert not tile.pixels[~tile.valid].any()
        inside = cv2.erode(tile.valid.astype(np.uint8), np.ones((3, 3))).astype(bool)
        np.testing.assert_array_equal(tile.pixels[inside], rgb.pixels[inside])
        # The rim is neither darkened nor lost: it stays within the raster's own contrast.
        rim = tile.valid & ~inside
        assert np.abs(tile.pixels[rim].astype(int) - rgb.pixels[rim]).max() < 45


def test_sixteen_bits_are_scaled_by_what_is_stated(tmp_path):
    deep = textured(400, 400)[..., 0].astype(np.uint16) * 40 + 1000
    path = write_geotiff(tmp_path / "deep.tif", deep, "EPSG:32632", from_origin(500_000, 5_400_000, 0.5, 0.5))
    tile, _ = tile_nearest(tiles_of(path, options=ImageryOptions(scale=(1000, 1000 + 255 * 40))))
    tile8, _ = tile_nearest(
        tiles_of(write_geotiff(tmp_path / "8.tif", ((deep - 1000) // 40).astype(np.uint8), "EPSG:32632",
                               from_origin(500_000, 5_400_000, 0.5, 0.5)))
    )  # fmt: skip
    np.testing.assert_array_equal(tile.pixels, tile8.pixels)
    imagery = open_imagery([path])
    low, high = imagery.describe()["rasters"][0]["scale"]
    assert (low, high) == pytest.approx(np.percentile(deep, [0.5, 99.5]), rel=0.02)


def test_a_palette_becomes_its_colours(tmp_path):
    path = tmp_path / "palette.tif"
    numbers = (np.indices((300, 300)).sum(0) // 50 % 2).astype(np.uint8)
    write_geotiff(path, numbers, "EPSG:32632", from_origin(500_000, 5_400_000, 0.5, 0.5), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (200, 30, 40, 255), 1: (10, 220, 90, 255)})
    tile, _ = tile_nearest(tiles_of(path))
    colours = {tuple(colour) for colour in tile.pixels.reshape(-1, 3).tolist()}
    assert {(200, 30, 40), (10, 220, 90)} <= colours


def test_damaged_and_unreferenced_files_are_refused_with_their_name(tmp_path):
    colour, place = textured(300, 300), from_origin(500_000, 5_400_000, 0.5, 0.5)
    cases = {
        "no CRS": write_geotiff(tmp_path / "nowhere.tif", colour, None, place),
        "no geotransform": write_geotiff(tmp_path / "unplaced.tif", colour, "EPSG:32632", Affine.identity()),
        "outside the domain": write_geotiff(
            tmp_path / "far.tif", colour, "EPSG:32632", from_origin(9e9, 9e9, 0.5, 0.5)
        ),
        "does not exist": tmp_path / "absent.tif",
    }
    text = tmp_path / "text.tif"
    text.write_text("no image")
    cases["cannot be read"] = text
    for message, path in cases.items():
        with pytest.raises(InputError, match=message) as error:
            tiles_of(path)
        assert path.name in str(error.value)


@pytest.mark.parametrize("profile", [{}, {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 64},
                                     {"compress": "jpeg", "photometric": "ycbcr"}, {"compress": "lzw"}])  # fmt: skip
def test_a_truncated_file_is_refused_never_filled(tmp_path, profile):
    path = town(tmp_path / "town.tif", **profile)
    whole = path.read_bytes()
    tiles = tiles_of(path)
    assert tiles.read(0) is not None
    short = tmp_path / "short.tif"
    short.write_bytes(whole[: len(whole) * 6 // 10])

    def read_all():
        tiles = tiles_of(short)
        return [tiles.read(number) for number in range(len(tiles.centres_m))]

    with pytest.raises(InputError, match=r"short\.tif: cannot be read"):
        read_all()


@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bytes_are_read_or_refused_but_nothing_else(tmp_path_factory, data):
    """Whatever the bytes are: tiles or an InputError, never a crash or another exception."""
    folder = tmp_path_factory.mktemp("fuzz")
    profile = data.draw(st.sampled_from([{}, {"compress": "deflate"}, {"compress": "jpeg", "photometric": "ycbcr"}]))
    path = town(folder / "town.tif", metres=60.0, **profile)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(content), 600) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        tiles = tiles_of(path)
        for number in range(0, len(tiles.centres_m), 10)[:5]:
            tiles.read(number)
    except (InputError, ConfigurationError):
        pass


@pytest.mark.skipif(not GEOTIFFS.is_dir(), reason="no real GeoTIFFs beside the repository")
class TestRealFiles:
    def test_five_metre_imagery_is_too_coarse(self):
        with pytest.raises(InputError, match=r"m_4709963_se_14_1_20200831.tif: 5.002 m per pixel.*at most 1 m"):
            tiles_of(GEOTIFFS / "m_4709963_se_14_1_20200831.tif")

    def test_mercator_metres_are_not_ground_metres(self):
        # 0.1 m of EPSG:3395 at 14.6° north are 0.0968 m on the ground.
        path = GEOTIFFS / "5b90f92da0d7280005fab355_4310.tif"
        tiles_of(path, spec=AerialSpec(64, 0.0485))
        with pytest.raises(InputError, match=r"0\.096\d+ m per pixel"):
            tiles_of(path, spec=AerialSpec(64, 0.048))

    def test_undeclared_black_areas_count_as_unknown(self):
        tiles = tiles_of(GEOTIFFS / "5b90f92da0d7280005fab355_4310.tif")
        known = [tiles.read(number).valid.mean() for number in range(len(tiles.centres_m))]
        assert sum(share == 0 for share in known) > 20
        assert sum(share == 1 for share in known) > 60

    def test_sixteen_bit_panchromatic(self):
        tile, _ = tile_nearest(tiles_of(GEOTIFFS / "sample_geotiff.tif"))
        assert tile.valid.all()
        assert tile.pixels.std() > 20
        np.testing.assert_array_equal(tile.pixels[..., 0], tile.pixels[..., 2])

    def test_white_nodata(self):
        tile, _ = tile_nearest(tiles_of(GEOTIFFS / "OSBS_029.tif", spec=AerialSpec(64, 0.2)))
        assert tile.valid.mean() > 0.99
