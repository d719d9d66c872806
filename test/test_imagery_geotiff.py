"""GeoTIFFs become tiles: where things end up, how bands become RGB, what is unknown, and what is refused."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.control
from hypothesis import given, settings
from hypothesis import strategies as st
from imagery_files import textured, town, write_geotiff
from rasterio.transform import Affine, from_origin

from unifygeo_ros.aerial.geotiff import _rectangles
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
def test_mark_is_where_pyproj_says(tmp_path, crs, latitude, longitude, pixel, turn):
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
def test_mosaic_of_parts_equals_the_whole(tmp_path, metres_per_pixel, overviews):
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


def test_very_fine_imagery_read_in_strips_gives_the_same_result(tmp_path, monkeypatch):
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


def test_palette_becomes_its_colours(tmp_path):
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


def rewritten(path, **changes):
    """Change the georeference of a file in place."""
    with rasterio.open(path, "r+") as dataset:
        for name, value in changes.items():
            setattr(dataset, name, value)
    return path


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Affine(0.5, 0, 500_000, 0, 0, 5_400_000), "gives pixels no area or no place"),
        (Affine(0.5, 0.5, 500_000, 0.5, 0.5, 5_400_000), "gives pixels no area or no place"),
        (Affine(0.5, 0, float("nan"), 0, -0.5, 5_400_000), "gives pixels no area or no place"),
        (Affine(float("inf"), 0, 500_000, 0, -0.5, 5_400_000), "gives pixels no area or no place"),
    ],
)
def test_geotransform_that_is_singular_or_not_finite_is_refused(tmp_path, transform, message):
    path = town(tmp_path / "town.tif")
    vrt = tmp_path / "town.vrt"
    numbers = ", ".join(str(value) for value in transform.to_gdal())
    with rasterio.open(path) as dataset:
        crs = dataset.crs.to_wkt()
    vrt.write_text(
        f'<VRTDataset rasterXSize="300" rasterYSize="300"><SRS>{crs}</SRS><GeoTransform>{numbers}</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{path}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(InputError, match=rf"town\.vrt: .*{message}"):
        tiles_of(vrt)


def test_control_points_and_other_colours_are_refused_with_the_remedy(tmp_path):
    corners = [(0, 0, 9.0, 48.5), (0, 300, 9.002, 48.5), (300, 0, 9.0, 48.498), (300, 300, 9.002, 48.498)]
    points = [rasterio.control.GroundControlPoint(row, col, lon, lat) for row, col, lon, lat in corners]
    path = write_geotiff(tmp_path / "points.tif", textured(300, 300), None, Affine.identity())
    rewritten(path, gcps=(points, rasterio.crs.CRS.from_epsg(4326)))
    with pytest.raises(InputError, match=r"points\.tif: is georeferenced by 4 ground control points only.*gdalwarp"):
        tiles_of(path)
    place = from_origin(500_000, 5_400_000, 0.5, 0.5)
    ink = write_geotiff(tmp_path / "ink.tif", textured(300, 300)[..., [0, 1, 2, 0]], "EPSG:32632", place,
                        photometric="minisblack")  # fmt: skip
    rewritten(ink, colorinterp=[rasterio.enums.ColorInterp[name] for name in ("cyan", "magenta", "yellow", "black")])
    with pytest.raises(InputError, match=r"ink\.tif: its bands are cyan, magenta, yellow, black"):
        tiles_of(ink)


def test_all_nodata_is_named_as_the_cause(tmp_path):
    deep = np.full((300, 300), 9, np.uint16)
    path = write_geotiff(
        tmp_path / "empty.tif", deep, "EPSG:32632", from_origin(500_000, 5_400_000, 0.5, 0.5), nodata=9
    )
    with pytest.raises(InputError, match=r"empty\.tif: none of its sampled pixels is known.*nodata"):
        tiles_of(path)


def test_too_coarse_imagery_is_reported_before_its_size(tmp_path):
    path = write_geotiff(tmp_path / "coarse.tif", textured(500, 500), "EPSG:32632",
                         from_origin(400_000, 5_500_000, 300, 300))  # fmt: skip
    with pytest.raises(InputError, match=r"coarse\.tif: 30\d.* m per pixel, the model can use at most"):
        tiles_of(path)


@pytest.mark.parametrize("order", ["bgr", "grb", "infrared first"])
def test_declared_colours_of_bands_are_used(tmp_path, order):
    from rasterio.enums import ColorInterp as Colour

    colour = textured(400, 400)
    place, datum = from_origin(500_000, 5_400_000, 0.5, 0.5), utm_datum(500_100, 5_399_900)
    rgb, _ = tile_nearest(tiles_of(write_geotiff(tmp_path / "rgb.tif", colour, "EPSG:32632", place), datum=datum))
    names = {"bgr": (Colour.blue, Colour.green, Colour.red), "grb": (Colour.green, Colour.red, Colour.blue),
             "infrared first": (Colour.undefined, Colour.red, Colour.green, Colour.blue)}[order]  # fmt: skip
    channel = {Colour.red: 0, Colour.green: 1, Colour.blue: 2}
    bands = np.dstack([colour[..., channel[name]] if name in channel else 255 - colour[..., 0] for name in names])
    path = write_geotiff(tmp_path / "other.tif", bands, "EPSG:32632", place, photometric="minisblack")
    rewritten(path, colorinterp=names)
    np.testing.assert_array_equal(tile_nearest(tiles_of(path, datum=datum))[0].pixels, rgb.pixels)
    # --bands takes them by number, whatever they are called
    chosen = tiles_of(path, datum=datum, options=ImageryOptions(bands=(1, 2, 3)))
    np.testing.assert_array_equal(tile_nearest(chosen)[0].pixels[0, 0], [
        np.asarray(rgb.pixels[0, 0])[channel[name]] if name in channel else tile_nearest(chosen)[0].pixels[0, 0, number]
        for number, name in enumerate(names[:3])
    ])  # fmt: skip


@pytest.mark.parametrize("west", [179.9995, -180.0005, 539.9995])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:3395"])
def test_mark_beside_180_degrees_is_where_pyproj_says(tmp_path, crs, west):
    """Files whose columns go on beyond 180°, as GDAL writes them."""
    transformer = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    unit = transformer.transform(1.0, 0.0)[0]  # of x, for one degree
    pixel = unit * 0.001 / 400
    _, top = transformer.transform(0.0, -16.9995)
    mark_column, mark_row = 230.0, 180.0
    row, column = np.mgrid[:400, :400] + 0.5
    ground = 1.0 / (111_320 * 0.001 / 400)  # pixels of 1 m
    dot = 20 + 220 * np.exp(-0.5 * (np.hypot(column - mark_column, row - mark_row) / ground) ** 2)
    place = Affine(pixel, 0, west * unit, 0, -pixel, top)
    imagery = open_imagery([write_geotiff(tmp_path / "fiji.tif", dot.astype(np.uint8), crs, place)])
    datum = Datum(*imagery.centre_deg())
    assert abs(datum.longitude_deg) == pytest.approx(180, abs=1e-5)
    longitude = west + mark_column * 0.001 / 400
    latitude = transformer.transform(0.0, top - mark_row * pixel, direction="INVERSE")[1]
    azimuth, _, metres = pyproj.Geod(ellps="WGS84").inv(datum.longitude_deg, datum.latitude_deg, longitude, latitude)
    east, north = metres * np.sin(np.radians(azimuth)), metres * np.cos(np.radians(azimuth))
    tiles = imagery.tiles(LocalFrame(datum), AerialSpec(64, 0.3), 0.5)
    assert np.abs(tiles.centres_m).max() < 57 + 20
    tile, centre = tile_nearest(tiles, east, north)
    assert tile.valid.all()
    light = np.maximum(tile.pixels[..., 0].astype(float) - 25, 0)
    rows, columns = np.mgrid[:64, :64]
    found = np.array([(rows * light).sum(), (columns * light).sum()]) / light.sum()
    np.testing.assert_allclose(found, tile_from_map(east, north, *centre, 64, 0.3), atol=0.05)


def sparse_geotiff(path, size=1024, filled=((256, 256, 200, 150), (750, 50, 30, 20)), resolution=0.5, **profile):
    """Blocks of 128 pixels; only the rectangles (row, column, rows, columns) are written."""
    settings = {"driver": "GTiff", "width": size, "height": size, "count": 3, "dtype": "uint8", "crs": "EPSG:32632",
                "transform": from_origin(500_000, 5_400_000, resolution, resolution), "tiled": True, "blockxsize": 256,
                "blockysize": 256, "compress": "deflate"} | profile  # fmt: skip
    picture = textured(size, size)
    with rasterio.open(path, "w", **settings) as dataset:
        for row, column, rows, columns in filled:
            part = np.moveaxis(picture[row : row + rows, column : column + columns], -1, 0)
            part = np.resize(part, (settings["count"], rows, columns)).astype(settings["dtype"])
            dataset.write(part, window=rasterio.windows.Window(column, row, columns, rows))
    return path


@pytest.mark.parametrize("profile", [{}, {"interleave": "band"}, {"nodata": 0}, {"count": 4, "alpha": "yes"}])
def test_sparse_files_offer_only_tiles_that_touch_stored_blocks(tmp_path, profile):
    sparse = tiles_of(
        sparse_geotiff(tmp_path / "sparse.tif", sparse_ok=True, **profile), datum=utm_datum(500_256, 5_399_744)
    )
    full = tiles_of(sparse_geotiff(tmp_path / "full.tif", **profile), datum=utm_datum(500_256, 5_399_744))
    assert (tmp_path / "sparse.tif").stat().st_size < (tmp_path / "full.tif").stat().st_size
    assert len(sparse.centres_m) < len(full.centres_m) / 3
    known = {tuple(centre): number for number, centre in enumerate(sparse.centres_m.tolist())}
    compared = 0
    for number in range(0, len(full.centres_m), 2):
        tile, centre = full.read(number), full.centres_m[number].tolist()
        if tuple(centre) in known:
            other = sparse.read(known[tuple(centre)])
            np.testing.assert_array_equal(other.pixels, tile.pixels)
            np.testing.assert_array_equal(other.valid, tile.valid)
            compared += tile.valid.any()
        else:
            assert not tile.valid.any(), centre
    assert compared > 10


def test_sparse_files_whose_missing_blocks_are_known_are_read_whole(tmp_path):
    """Where zero is a value like others, blocks that are not stored are black ground."""
    path = sparse_geotiff(tmp_path / "sparse.tif", sparse_ok=True)
    marked = tiles_of(path, options=ImageryOptions(nodata=255))
    assert tile_nearest(marked, 0.0, 0.0)[0].valid.all()
    empty = sparse_geotiff(tmp_path / "empty.tif", filled=(), sparse_ok=True)
    with pytest.raises(InputError, match=r"empty\.tif: stores no pixels at all"):
        tiles_of(empty)


def test_sparse_files_with_overviews_give_the_tiles_of_the_whole_file(tmp_path):
    whole = tiles_of(
        sparse_geotiff(tmp_path / "whole.tif"), spec=AerialSpec(64, 1.0), datum=utm_datum(500_256, 5_399_744)
    )
    path = sparse_geotiff(tmp_path / "sparse.tif", sparse_ok=True)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.average)
    with rasterio.open(tmp_path / "whole.tif", "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.average)
    whole = tiles_of(tmp_path / "whole.tif", spec=AerialSpec(64, 1.0), datum=utm_datum(500_256, 5_399_744))
    sparse = tiles_of(path, spec=AerialSpec(64, 1.0), datum=utm_datum(500_256, 5_399_744))
    known = {tuple(centre): number for number, centre in enumerate(sparse.centres_m.tolist())}
    for number in range(0, len(whole.centres_m), 3):
        tile, centre = whole.read(number), whole.centres_m[number].tolist()
        if tile.valid.any():
            np.testing.assert_array_equal(sparse.read(known[tuple(centre)]).pixels, tile.pixels)


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=6))
def test_rectangles_cover_each_true_cell_once_and_no_other(cells):
    covered = np.zeros((len(cells), 7), int)
    for top, bottom, left, right in _rectangles(np.array(cells)):
        covered[top:bottom, left:right] += 1
    np.testing.assert_array_equal(covered, np.array(cells).astype(int))


# Situations of real archives, one each.


def test_imagery_in_feet(tmp_path):
    """EPSG:2263 counts in US survey feet; 1 ft pixels are 0.3048 m."""
    x, y = pyproj.Transformer.from_crs(4326, 2263, always_xy=True).transform(-73.98, 40.75)
    path = write_geotiff(tmp_path / "feet.tif", textured(600, 600), "EPSG:2263", from_origin(x - 300, y + 300, 1, 1))
    tiles = tiles_of(path, datum=Datum(40.75, -73.98))
    tile, _ = tile_nearest(tiles)
    assert tile.valid.all()
    assert np.abs(tiles.centres_m).max() < 600 * 0.3048006 / 2 + 16 + 4
    with pytest.raises(InputError, match=r"feet\.tif: 0\.3048 m per pixel"):
        tiles_of(path, datum=Datum(40.75, -73.98), spec=AerialSpec(64, 0.15))


def test_jpeg_in_ycbcr_gives_the_colours_of_rgb(tmp_path):
    smooth = cv2.GaussianBlur(textured(512, 512), (0, 0), 6)
    place, datum = from_origin(500_000, 5_400_000, 0.5, 0.5), utm_datum(500_128, 5_399_872)
    plain = write_geotiff(tmp_path / "rgb.tif", smooth, "EPSG:32632", place)
    packed = write_geotiff(tmp_path / "jpeg.tif", smooth, "EPSG:32632", place, compress="jpeg", photometric="ycbcr",
                           jpeg_quality=95, tiled=True, blockxsize=256, blockysize=256)  # fmt: skip
    one, other = (tile_nearest(tiles_of(path, datum=datum))[0] for path in (plain, packed))
    np.testing.assert_allclose(other.pixels.astype(int), one.pixels, atol=12)


def test_internal_mask_of_one_bit_is_used(tmp_path):
    place, datum = from_origin(500_000, 5_400_000, 0.5, 0.5), utm_datum(500_100, 5_399_900)
    path = write_geotiff(tmp_path / "town.tif", textured(400, 400), "EPSG:32632", place)
    hole = np.full((400, 400), 255, np.uint8)
    hole[180:215, 170:230] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(hole)
    tile, _ = tile_nearest(tiles_of(path, datum=datum))
    assert 0.2 < 1 - tile.valid.mean() < 0.6


def test_raster_smaller_than_a_tile_is_one_partly_known_tile(tmp_path):
    path = town(tmp_path / "yard.tif", metres=6.0)
    tile, _ = tile_nearest(tiles_of(path))
    assert tile.valid.mean() == pytest.approx((6 / 32) ** 2, rel=0.1)


def test_finer_of_two_overlapping_rasters_shows_where_it_is_named_first(tmp_path):
    coarse = write_geotiff(tmp_path / "coarse.tif", np.full((400, 400, 3), 60, np.uint8), "EPSG:32632",
                           from_origin(500_000, 5_400_000, 0.5, 0.5))  # fmt: skip
    fine = write_geotiff(tmp_path / "fine.tif", np.full((200, 200, 3), 180, np.uint8), "EPSG:32632",
                         from_origin(500_090, 5_399_910, 0.1, 0.1))  # fmt: skip
    datum = utm_datum(500_100, 5_399_900)
    over, _ = tile_nearest(tiles_of(fine, coarse, datum=datum))
    under, _ = tile_nearest(tiles_of(coarse, fine, datum=datum))
    assert over.valid.all()
    assert np.unique(under.pixels).tolist() == [60]
    assert (over.pixels > 120).mean() == pytest.approx((20 / 32) ** 2, rel=0.05)


@pytest.mark.parametrize("profile", [{}, {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 64},
                                     {"compress": "jpeg", "photometric": "ycbcr"}, {"compress": "lzw"}])  # fmt: skip
def test_truncated_geotiff_is_refused(tmp_path, profile):
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
def test_geotiff_with_flipped_bytes_is_read_or_refused(tmp_path_factory, data):
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


MANY_FILES = """
import resource, sys
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from unifygeo_ros.aerial.sources import open_imagery
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.inference.bundle import AerialSpec

resource.setrlimit(resource.RLIMIT_NOFILE, (320, 320))
tiles = open_imagery(sys.argv[1:2]).tiles(LocalFrame(Datum(48.5, 9.0)), AerialSpec(64, 0.5), 0.5)
with ThreadPoolExecutor(8) as readers:
    images = list(readers.map(tiles.read, range(len(tiles.centres_m))))
np.save(sys.argv[2], np.stack([image.pixels for image in images]))
"""


@pytest.mark.slow
def test_more_files_than_may_be_open_are_read_by_many_threads(tmp_path):
    """Each of eight threads would hold as many files open as it has read; the system allows 320."""
    whole = town(tmp_path / "whole.tif")
    with rasterio.open(whole) as dataset:
        pixels, transform = np.moveaxis(dataset.read(), 0, -1), dataset.transform
    side = 16
    for row in range(0, 320, side):
        for column in range(0, 320, side):
            path = tmp_path / "parts" / str(row) / f"{column}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            part = pixels[row : row + side, column : column + side]
            write_geotiff(path, part, "EPSG:32632", transform @ Affine.translation(column, row))
    result = subprocess.run([sys.executable, "-c", MANY_FILES, str(tmp_path / "parts" / "**" / "*.tif"),
                             str(tmp_path / "found.npy")], capture_output=True, text=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    tiles = tiles_of(whole, datum=Datum(48.5, 9.0))
    expected = np.stack([tiles.read(number).pixels for number in range(len(tiles.centres_m))])
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)


def test_tile_is_cut_from_the_rasters_near_it_alone(tmp_path, monkeypatch):
    """Files of grids of their own, each a raster: a tile asks those that it may touch, and comes out the same."""
    whole = town(tmp_path / "whole.tif")
    with rasterio.open(whole) as dataset:
        pixels, transform = np.moveaxis(dataset.read(), 0, -1), dataset.transform
    paths = []
    for number, column in enumerate(range(0, 320, 20)):
        corner = transform @ Affine.translation(column + 0.02 * number, 0)
        paths.append(write_geotiff(tmp_path / f"{number}.tif", pixels[:, column : column + 20], "EPSG:32632", corner))
    tiles = tiles_of(*paths, datum=Datum(48.5, 9.0))
    assert len(tiles._levels) > 10
    asked = []
    cut = type(tiles._levels[0]).cut

    def counting(level, *args):
        asked.append(cut(level, *args) is not None)
        return cut(level, *args)

    monkeypatch.setattr(type(tiles._levels[0]), "cut", counting)
    near = tiles.at(-40.0, 3.0)
    assert 3 <= sum(asked) <= len(asked) <= 10
    monkeypatch.setattr(tiles, "_boxes_m", np.tile([-np.inf, -np.inf, np.inf, np.inf], (len(tiles._levels), 1)))
    every = tiles.at(-40.0, 3.0)
    np.testing.assert_array_equal(near.pixels, every.pixels)
    np.testing.assert_array_equal(near.valid, every.valid)


def test_percentiles_of_many_deep_files_take_bounded_memory(tmp_path, monkeypatch):
    sizes = []
    read = rasterio.io.DatasetReader.read

    def measured(self, *args, **options):
        values = read(self, *args, **options)
        sizes.append(values.size)
        return values

    monkeypatch.setattr("unifygeo_ros.aerial.geotiff._POOLED_PIXELS", 64 * 64)
    picture = textured(100, 100).astype(np.uint16) * 100
    paths = []
    for number in range(12):
        corner = from_origin(500_000 + 50 * number, 5_400_000, 0.5, 0.5)
        paths.append(write_geotiff(tmp_path / f"{number}.tif", picture, "EPSG:32632", corner))
    with monkeypatch.context() as patch:
        patch.setattr("rasterio.io.DatasetReader.read", measured)
        found = open_imagery(paths).describe()["rasters"][0]["scale"]
    assert sum(sizes) <= 3 * 64 * 64
    np.testing.assert_allclose(found, np.percentile(picture, [0.5, 99.5]), rtol=0.05)


def test_files_of_one_grid_are_one_raster_whatever_lies_between_them(tmp_path):
    """And a file that a folder and its own name both give is read once."""
    paths = [town(tmp_path / "a.tif"), town(tmp_path / "b.tif", resolution=0.4), town(tmp_path / "c.tif", seed=1)]
    rasters = open_imagery([tmp_path, paths[1]]).describe()["rasters"]
    assert [raster["files"] for raster in rasters] == [["a.tif", "c.tif"], ["b.tif"]]
