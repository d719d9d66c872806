"""XYZ folders and MBTiles, made from a GeoTIFF in their own projection: both must give the tiles that it gives."""

import sqlite3

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagery_files import textured, write_geotiff
from rasterio.transform import Affine

from unifygeo_ros.aerial.sources import open_imagery
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.images.files import decode_rgba
from unifygeo_ros.inference.bundle import AerialSpec

ZOOM, X, Y, ACROSS = 18, 137_600, 90_900, 3  # at 48.0° north, 8.96° east; 0.40 m on the ground
SPEC = AerialSpec(64, 0.5)
HALF_WORLD = np.pi * 6378137.0


@pytest.fixture(scope="module")
def picture():
    return textured(256 * ACROSS, 256 * ACROSS)


def web_tile(picture, zoom, x, y):
    """A tile of the picture's pyramid, averaged from the finest zoom; black where the picture ends."""
    shrink = 1 << (ZOOM - zoom)
    canvas = np.zeros((256 * shrink, 256 * shrink, 3), np.uint8)
    top, left = (Y - y * shrink) * 256, (X - x * shrink) * 256
    rows = slice(max(top, 0), min(top + picture.shape[0], canvas.shape[0]))
    columns = slice(max(left, 0), min(left + picture.shape[1], canvas.shape[1]))
    canvas[rows, columns] = picture[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return cv2.resize(canvas, (256, 256), interpolation=cv2.INTER_AREA)


def tiles_of_zoom(zoom):
    shift = ZOOM - zoom
    return sorted({((X + i) >> shift, (Y + j) >> shift) for i in range(ACROSS) for j in range(ACROSS)})


def encode(image, suffix="png"):
    return cv2.imencode(f".{suffix}", image[..., ::-1])[1].tobytes()


def write_xyz(folder, picture, zooms=(ZOOM,), suffix="png"):
    for zoom in zooms:
        for x, y in tiles_of_zoom(zoom):
            path = folder / str(zoom) / str(x) / f"{y}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(web_tile(picture, zoom, x, y), suffix))
    return folder


def write_mbtiles(path, picture, zooms=(ZOOM,)):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE metadata (name TEXT, value TEXT)")
        database.execute("CREATE TABLE tiles (zoom_level INT, tile_column INT, tile_row INT, tile_data BLOB)")
        database.execute("INSERT INTO metadata VALUES ('format', 'png')")
        for zoom in zooms:
            for x, y in tiles_of_zoom(zoom):
                row = 2**zoom - 1 - y  # counted from the south
                data = encode(web_tile(picture, zoom, x, y))
                database.execute("INSERT INTO tiles VALUES (?, ?, ?, ?)", (zoom, x, row, data))
    database.close()
    return path


def as_geotiff(path, picture):
    size = 2 * HALF_WORLD / (256 << ZOOM)
    corner = Affine(size, 0, X * 256 * size - HALF_WORLD, 0, -size, HALF_WORLD - Y * 256 * size)
    return write_geotiff(path, picture, "EPSG:3857", corner)


def all_tiles(path, spec=SPEC):
    tiles = open_imagery([path]).tiles(LocalFrame(DATUM), spec, 0.5)
    return tiles.centres_m, [tiles.read(number) for number in range(len(tiles.centres_m))]


def some_tiles_are_those_of(path, reference):
    """Every seventeenth tile."""
    tiles = open_imagery([path]).tiles(LocalFrame(DATUM), SPEC, 0.5)
    shown = dict(zip(map(tuple, reference[0].tolist()), reference[1], strict=True))
    numbers = range(0, len(tiles.centres_m), 17)
    assert len(numbers) > 10
    for number in numbers:
        tile, expected = tiles.read(number), shown[tuple(tiles.centres_m[number].tolist())]
        np.testing.assert_allclose(tile.pixels.astype(int), expected.pixels, atol=1)
        np.testing.assert_array_equal(tile.valid, expected.valid)


def middle(path):
    return Datum(*open_imagery([path]).centre_deg())


DATUM = Datum(48.005, 8.9605)


@pytest.fixture(scope="module")
def reference(picture, tmp_path_factory):
    path = as_geotiff(tmp_path_factory.mktemp("reference") / "whole.tif", picture)
    globals()["DATUM"] = middle(path)
    return all_tiles(path)


@pytest.mark.parametrize("kind", ["xyz", "mbtiles"])
def test_web_tiles_give_what_the_whole_picture_gives(tmp_path, picture, reference, kind):
    writer = {"xyz": write_xyz, "mbtiles": write_mbtiles}[kind]
    centres, tiles = all_tiles(writer(tmp_path / f"tiles.{kind}", picture))
    expected_centres, expected_tiles = reference
    shown = {tuple(c): t for c, t in zip(expected_centres.tolist(), expected_tiles, strict=True) if t.valid.any()}
    found = {tuple(c): t for c, t in zip(centres.tolist(), tiles, strict=True) if t.valid.any()}
    assert shown.keys() == found.keys()
    assert len(found) > 100
    for centre, tile in found.items():
        # One grey level where a coordinate falls between two of the warp's 1/32 pixels.
        np.testing.assert_allclose(tile.pixels.astype(int), shown[centre].pixels, atol=1)
        np.testing.assert_array_equal(tile.valid, shown[centre].valid)


@pytest.mark.parametrize("east", [1, 2, 3])
def test_tiles_on_both_sides_of_180_degrees_are_one_region(tmp_path, picture, east):
    """Fiji: as a GeoTIFF whose columns go on beyond 180°. east: how many of the four columns lie east of 180°."""
    rows, size = range(143_400, 143_402), 2 * HALF_WORLD / (256 << ZOOM)
    first = (1 << ZOOM) - 4 + east
    part = picture[:512, :1024] if picture.shape[1] >= 1024 else np.tile(picture[:512], (1, 2, 1))[:, :1024]
    for number, y in enumerate(rows):
        for column in range(4):
            path = tmp_path / "xyz" / str(ZOOM) / str((first + column) % (1 << ZOOM)) / f"{y}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(part[number * 256 :, column * 256 :][:256, :256]))
    corner = Affine(size, 0, first * 256 * size - HALF_WORLD, 0, -size, HALF_WORLD - rows[0] * 256 * size)
    whole = open_imagery([write_geotiff(tmp_path / "a.tif", part, "EPSG:3857", corner)])
    imagery = open_imagery([tmp_path / "xyz"])
    np.testing.assert_allclose(imagery.centre_deg(), whole.centre_deg(), atol=1e-9)
    frame = LocalFrame(Datum(*whole.centre_deg()))
    expected, found = (source.tiles(frame, SPEC, 1.0) for source in (whole, imagery))
    np.testing.assert_array_equal(found.centres_m, expected.centres_m)
    assert len(found.centres_m) > 40
    for number in range(0, len(found.centres_m), 7):
        np.testing.assert_allclose(found.read(number).pixels.astype(int), expected.read(number).pixels, atol=1)


def test_zoom_that_is_just_fine_enough_is_read(tmp_path, picture, reference):
    folder = write_xyz(tmp_path / "xyz", picture, zooms=(ZOOM, ZOOM - 1, ZOOM - 2))
    imagery = open_imagery([folder])
    assert imagery.describe()["rasters"][0]["zooms"] == [18, 17, 16]
    datum = middle(folder)
    for zoom, metres_per_pixel in ((18, 0.5), (17, 0.85), (16, 3.0)):
        only = write_xyz(tmp_path / str(zoom), picture, zooms=(zoom,))
        spec = AerialSpec(64, metres_per_pixel)
        both = [open_imagery([path]).tiles(LocalFrame(datum), spec, 1.0) for path in (folder, only)]
        number = int(np.argmin(np.hypot(*both[0].centres_m.T)))
        np.testing.assert_array_equal(both[0].read(number).pixels, both[1].read(number).pixels)


def test_zoom_with_holes_is_not_used(tmp_path, picture):
    folder = write_xyz(tmp_path / "xyz", picture, zooms=(ZOOM, ZOOM - 1))
    next((folder / str(ZOOM - 1)).glob("*/*.png")).unlink()
    assert open_imagery([folder]).describe()["rasters"][0]["zooms"] == [18]


def test_missing_tile_is_unknown_ground(tmp_path, picture, reference):
    folder = write_xyz(tmp_path / "xyz", picture)
    (folder / str(ZOOM) / str(X + 1) / f"{Y + 1}.png").unlink()
    _, tiles = all_tiles(folder)
    whole, holed = (sum(tile.valid.sum() for tile in all_of) for all_of in (reference[1], tiles))
    ground = 2 * HALF_WORLD * np.cos(np.radians(DATUM.latitude_deg)) / (1 << ZOOM)  # a web tile's side, metres
    missing = (whole - holed) * SPEC.metres_per_pixel**2 / 4  # every place lies on four tiles
    assert missing == pytest.approx(ground**2, rel=0.02)


def test_jpeg_tiles_and_transparent_ones_are_read(tmp_path, picture, reference):
    _, tiles = all_tiles(write_xyz(tmp_path / "jpg", picture, suffix="jpg"))
    assert max(tile.valid.mean() for tile in tiles) == 1
    clear = np.dstack([picture[:256, :256], np.zeros((256, 256), np.uint8)])
    assert not decode_rgba(cv2.imencode(".png", clear)[1].tobytes(), "clear.png").any()


def test_damaged_sources_are_refused_with_their_name(tmp_path, picture):
    folder = write_xyz(tmp_path / "xyz", picture)
    victim = folder / str(ZOOM) / str(X + 1) / f"{Y + 1}.png"
    victim.write_bytes(victim.read_bytes()[:-2000])
    with pytest.raises(InputError, match=rf"tile {ZOOM}/{X + 1}/{Y + 1}: a PNG that is cut off"):
        all_tiles(folder)
    victim.write_bytes(encode(picture[:128, :128]))
    with pytest.raises(InputError, match="128x128 pixels, the others have 256"):
        all_tiles(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no tiles"):
        open_imagery([empty])
    text = tmp_path / "text.mbtiles"
    text.write_text("no database" * 100)
    with pytest.raises(InputError, match=r"text.mbtiles: cannot be read as MBTiles"):
        open_imagery([text])
    with sqlite3.connect(tmp_path / "vector.mbtiles") as database:
        database.execute("CREATE TABLE metadata (name TEXT, value TEXT)")
        database.execute("INSERT INTO metadata VALUES ('format', 'pbf')")
    database.close()
    with pytest.raises(InputError, match="format pbf"):
        open_imagery([tmp_path / "vector.mbtiles"])


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_image_is_whole_or_refused(data):
    """A PNG never changes unnoticed; a JPEG cut off anywhere is refused."""
    picture = textured(32, 32)
    png, jpeg = encode(picture), encode(picture, "jpg")
    flipped = bytearray(png)
    flipped[data.draw(st.integers(0, len(png) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InputError, match=r"tile\.png"):
        decode_rgba(bytes(flipped), "tile.png")
    for whole in (png, jpeg):
        with pytest.raises(InputError, match="tile"):
            decode_rgba(whole[: data.draw(st.integers(0, len(whole) - 2))], "tile")


@settings(max_examples=25)
@given(data=st.data())
def test_mbtiles_with_flipped_bytes_are_read_or_refused(tmp_path_factory, picture, data):
    path = write_mbtiles(tmp_path_factory.mktemp("fuzz") / "a.mbtiles", picture[: 256 * ACROSS])
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[data.draw(st.integers(0, min(len(content), 20_000) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        tiles = open_imagery([path]).tiles(LocalFrame(DATUM), SPEC, 4.0)
        for number in range(min(len(tiles.centres_m), 4)):
            tiles.read(number)
    except InputError:
        pass


@pytest.mark.parametrize("profile", ["mercator", "global-mercator"])
def test_tms_folder_counts_rows_from_the_south(tmp_path, picture, reference, profile):
    """The layout that gdal2tiles writes by default."""
    folder = tmp_path / "tms"
    for x, y in tiles_of_zoom(ZOOM):
        path = folder / str(ZOOM) / str(x) / f"{2**ZOOM - 1 - y}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(web_tile(picture, ZOOM, x, y)))
    (folder / "tilemapresource.xml").write_text(TMS.format(profile=profile))
    imagery = open_imagery([folder])
    assert imagery.describe()["rasters"][0]["kind"] == "tms"
    assert imagery.centre_deg() == pytest.approx((DATUM.latitude_deg, DATUM.longitude_deg), abs=1e-6)
    some_tiles_are_those_of(folder, reference)


TMS = """<?xml version="1.0" encoding="utf-8"?>
<TileMap version="1.0.0" tilemapservice="http://tms.osgeo.org/1.0.0">
  <Title>a.tif</Title> <SRS>EPSG:3857</SRS>
  <BoundingBox minx="14.5" miny="120.9" maxx="14.6" maxy="121"/>
  <TileFormat width="256" height="256" mime-type="image/png" extension="png"/>
  <TileSets profile="{profile}"><TileSet href="18" units-per-pixel="0.59716428347793" order="18"/></TileSets>
</TileMap>"""


def test_tms_folder_of_another_projection_is_refused(tmp_path, picture):
    folder = write_xyz(tmp_path / "tms", picture)
    (folder / "tilemapresource.xml").write_text(TMS.format(profile="geodetic"))
    with pytest.raises(InputError, match=r"profile 'geodetic', only mercator.*--profile=mercator"):
        open_imagery([folder])
    (folder / "tilemapresource.xml").write_text("<TileMap")
    with pytest.raises(InputError, match=r"tilemapresource\.xml: cannot be read"):
        open_imagery([folder])


def test_xyz_folder_with_leading_zeros_is_read(tmp_path, picture, reference):
    folder = write_xyz(tmp_path / "xyz", picture)
    for file in sorted(folder.glob("*/*/*.png")):
        file.rename(file.with_name("0" + file.name))
    for column in sorted(folder.glob("*/*")):
        column.rename(column.with_name("00" + column.name))
    some_tiles_are_those_of(folder, reference)


def png_header(width, height):
    """A PNG without pixels, every checksum right."""
    import zlib

    data = b"\x89PNG\r\n\x1a\n"
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    for chunk in (header, b"IEND"):
        data += (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return data


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png_header(20_000, 20_000), "20000x20000"),
        (png_header(100_000, 100_000), "100000x100000"),
        (png_header(0, 5), "0x5"),
        (b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\0\xff\x3f\0", "65536x16384"),
        (b"RIFF\x16\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f", "16383x16383"),
        (b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f\xff\xff\xff\x0f" + bytes(5), "16384x16384"),
    ],
)
def test_decode_rgba_refuses_sizes_that_no_tile_has(data, size):
    with pytest.raises(InputError, match=rf"bomb\.png: is {size} pixels.*at most 16777216"):
        decode_rgba(data, "bomb.png")


def test_decode_rgba_takes_no_more_memory_than_bytes():
    import tracemalloc

    data = encode(textured(2000, 2000))
    tracemalloc.start()
    decode_rgba(data, "large.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 2000 * 10  # OpenCV's three bytes a pixel and four of the result; int64 took more than 32


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_decode_rgba_keeps_the_colours_of_every_number_of_channels(extension):
    colour = textured(40, 30)
    alpha = np.zeros((40, 30), np.uint8)
    alpha[:, 10:] = 255
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if extension == "webp" else []
    for pixels in (colour, np.dstack([colour, alpha])):
        bgr = np.dstack([pixels[..., 2::-1], *([alpha] if pixels.shape[2] == 4 else [])])
        rgba = decode_rgba(cv2.imencode(f".{extension}", bgr, lossless)[1].tobytes(), "a")
        known = np.ones((40, 30), bool) if pixels.shape[2] == 3 else alpha > 0
        np.testing.assert_array_equal(rgba[..., 3], np.where(known, 255, 0))
        np.testing.assert_array_equal(rgba[..., :3], np.where(known[..., None], colour, 0))


@pytest.mark.parametrize("number", ["1099511627776", "1000000000", "-1", "9e999", "1.5", "'x'", "NULL"])
@pytest.mark.parametrize("column", ["zoom_level", "tile_column", "tile_row"])
def test_mbtiles_with_absurd_numbers_are_refused(tmp_path, picture, number, column):
    path = write_mbtiles(tmp_path / "a.mbtiles", picture)
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE tiles SET {column} = {number} WHERE rowid = 3")
    database.close()
    with pytest.raises(InputError, match=r"a\.mbtiles: has a tile of zoom .* make the file again"):
        open_imagery([path])


def test_mbtiles_with_a_view_are_read_unless_it_is_recursive(tmp_path, picture, reference):
    path = write_mbtiles(tmp_path / "view.mbtiles", picture)
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE tiles RENAME TO stored")
        database.execute("CREATE VIEW tiles AS SELECT * FROM stored")
    database.close()
    some_tiles_are_those_of(path, reference)
    endless = (
        "CREATE VIEW tiles AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT 18 AS zoom_level, i AS tile_column, 0 AS tile_row, NULL AS tile_data FROM n"
    )
    with sqlite3.connect(path) as database:
        database.execute("DROP VIEW tiles")
        database.execute(endless)
    database.close()
    with pytest.raises(InputError, match="its view tiles has a WITH clause"):
        open_imagery([path])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["fifo", "link to a device"])
def test_tiles_that_are_no_files_are_refused_and_not_read(tmp_path, picture, kind):
    import os

    folder = write_xyz(tmp_path / "xyz", picture)
    victim = folder / str(ZOOM) / str(X + 1) / f"{Y + 1}.png"
    victim.unlink()
    if kind == "fifo":
        os.mkfifo(victim)
    else:
        victim.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"{Y + 1}\.png: is no regular file; get the tiles again"):
        all_tiles(folder)
    with pytest.raises(InputError, match="is neither a file nor a folder"):
        open_imagery([victim if kind == "fifo" else "/dev/zero"])
