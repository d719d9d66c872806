"""`unifygeo region fetch` against a server on the loopback that fails in every way that servers fail in."""

import http.server
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
import pyproj
import pytest
from bundles import random_bundle
from imagery_files import textured, town

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.fetch import MISSING, Bounds, fetch_region, metres_per_pixel
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.aerial.sources import open_imagery
from unifygeo_ros.aerial.tile_server import FetchSettings, TileServer, TileSource
from unifygeo_ros.cli import main
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.inference.select import open_engines

ZOOM = 17
SIDE = 64  # pixels of a tile; as small tiles of a coarse map do, they have 4.8 m per pixel at the equator
BOUNDS = Bounds(9.0, 48.498, 9.009, 48.502)
TERMS = {"attribution": "© Survey of Nowhere", "licence": "CC BY 4.0, example.org/terms"}


class Server:
    """A server of tiles. faults: tile to a list of what it does at each request before it behaves."""

    def __init__(self):
        self.requests, self.agents, self.faults = [], [], {}
        self.colours = textured(64, 64, seed=8)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                tile = tuple(map(int, re.search(r"/(\d+)/(\d+)/(\d+)\.png", self.path).groups()))
                outer.requests.append(tile)
                outer.agents.append(self.headers["User-Agent"])
                outer.answer(self, tile)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}/{{z}}/{{x}}/{{y}}.png"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def png(self, tile):
        picture = np.roll(self.colours, (tile[1] * 7, tile[2] * 11), axis=(1, 0))
        return cv2.imencode(".png", picture)[1].tobytes()

    def answer(self, handler, tile):
        waiting = self.faults.get(tile, [])
        fault = waiting.pop(0) if len(waiting) > 1 or (waiting and waiting[0] != "always") else None
        if isinstance(fault, int) or (isinstance(fault, tuple) and isinstance(fault[0], int)):
            status, headers = (fault, {}) if isinstance(fault, int) else fault
            if status == 404:
                waiting.insert(0, 404)  # it stays so
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = self.png(tile)
        stated = len(body)
        if fault == "cut":
            body = body[:-200]
        elif fault == "cut, and said so":
            body, stated = body[:-200], stated - 200
        elif fault == "words":
            body = b"<html>Service is being maintained</html>"
            stated = len(body)
        elif fault == "reset":
            handler.connection.close()
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(stated))
        handler.end_headers()
        handler.wfile.write(body)
        if len(body) < stated:
            handler.connection.close()


@pytest.fixture
def tiles():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now, self.sleeps = 1000.0, []

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds

    def __call__(self):
        return self.now


def fetch(tiles, folder, bounds=BOUNDS, zoom=ZOOM, clock=None, most_tiles=1000, source=None, **settings):
    clock = clock or Clock()
    source = source or TileSource(tiles.url, **TERMS)
    server = TileServer(source, "someone@example.org", FetchSettings(**settings), clock.sleep, clock)
    return fetch_region(source, bounds, zoom, folder, server, most_tiles=most_tiles)


def region(bounds=BOUNDS, zoom=ZOOM):
    columns, rows = bounds.tiles(zoom)
    return [(zoom, x, y) for y in rows for x in columns]


def held(folder):
    return {tuple(map(int, (path.parts[-3], path.parts[-2], path.stem))): path.read_bytes()
            for path in folder.glob("*/*/*.png")}  # fmt: skip


def test_tiles_of_a_region_are_fetched_once_and_named(tiles, tmp_path):
    clock = Clock()
    report = fetch(tiles, tmp_path / "tiles", clock=clock, rate_hz=4.0)
    assert held(tmp_path / "tiles") == {tile: tiles.png(tile) for tile in region()}
    assert tiles.requests == region()
    assert set(tiles.agents) == {tiles.agents[0]}
    assert re.fullmatch(r"unifygeo/[\d.]+ \(\+someone@example\.org\)", tiles.agents[0])
    assert (report.tiles, report.fetched, report.missing) == (len(region()), len(region()), 0)
    assert clock.now - 1000.0 == pytest.approx((len(region()) - 1) / 4.0)
    again = fetch(tiles, tmp_path / "tiles")
    assert (again.tiles, again.fetched) == (len(region()), 0)
    assert tiles.requests == region()
    source = json.loads((tmp_path / "tiles" / "source.json").read_text())
    assert source == {"format": "unifygeo-imagery", "url": tiles.url, "zoom": ZOOM, **TERMS,
                      "bounds": [[9.0, 48.498, 9.009, 48.502]]}  # fmt: skip
    east = replace(BOUNDS, west=9.009, east=9.012)
    fetch(tiles, tmp_path / "tiles", bounds=east)
    assert set(held(tmp_path / "tiles")) == {*region(), *region(east)}
    assert len(tiles.requests) == len(set(tiles.requests))


@pytest.mark.parametrize(
    ("bounds", "zoom"),
    [
        (BOUNDS, 17), (Bounds(-0.001, -0.001, 0.001, 0.001), 18), (Bounds(179.99, -17.01, -179.99, -17.0), 15),
        (Bounds(-180.0, -85.0, 180.0, 85.0), 2), (Bounds(0.0, 0.0, 90.0, 66.51326044311186), 2),
    ],
)  # fmt: skip
def test_tiles_are_those_whose_square_overlaps_the_bounds(bounds, zoom):
    """Against the squares of all tiles around in EPSG:3857, by pyproj."""
    to_mercator = pyproj.Transformer.from_crs(4326, 3857, always_xy=True)
    half = 20037508.342789244
    size = 2 * half / 2**zoom
    boxes = ([bounds] if bounds.west < bounds.east
             else [replace(bounds, east=180.0), replace(bounds, west=-180.0)])  # fmt: skip
    expected = set()
    for box in boxes:
        west, south = to_mercator.transform(box.west, box.south)
        east, north = to_mercator.transform(box.east, box.north)
        low, high = math.floor((west + half) / size) - 2, math.ceil((east + half) / size) + 2
        top, bottom = math.floor((half - north) / size) - 2, math.ceil((half - south) / size) + 2
        for x in range(max(low, 0), min(high, 2**zoom)):
            for y in range(max(top, 0), min(bottom, 2**zoom)):
                overlap_x = min((x + 1) * size - half, east) - max(x * size - half, west)
                overlap_y = min(half - y * size, north) - max(half - (y + 1) * size, south)
                if overlap_x > 1e-6 and overlap_y > 1e-6:
                    expected.add((zoom, x, y))
    assert set(region(bounds, zoom)) == expected


@pytest.mark.parametrize("fault", [500, 502, 503, 504, 408, "cut", "cut, and said so", "words", "reset"])
def test_passing_fault_is_waited_for(tiles, tmp_path, fault):
    victim = region()[3]
    tiles.faults[victim] = [fault, fault]
    clock = Clock()
    fetch(tiles, tmp_path / "tiles", clock=clock)
    assert held(tmp_path / "tiles") == {tile: tiles.png(tile) for tile in region()}
    assert tiles.requests.count(victim) == 3
    assert 3.0 <= clock.now - 1000.0 - (len(region()) - 1) / 4 < 4.0  # 1 s and 2 s, in place of a quarter each


def test_server_that_asks_for_patience_gets_it(tiles, tmp_path):
    victim = region()[0]
    tiles.faults[victim] = [(429, {"Retry-After": "70"}), (503, {"Retry-After": "5"})]
    clock = Clock()
    fetch(tiles, tmp_path / "tiles", clock=clock, rate_hz=4.0)
    assert clock.sleeps[:2] == [70.0, 5.0]
    assert clock.sleeps[2:] == [pytest.approx(0.5)] * (len(region()) - 1)  # half as often after a 429
    tiles.faults[victim] = [(429, {"Retry-After": "4000"})]
    with pytest.raises(InputError, match=r"status 429.*asks to wait 4000 s.*give the same command again later"):
        fetch(tiles, tmp_path / "other", longest_wait_s=300.0)
    assert not (tmp_path / "other").exists()


def test_retry_after_may_be_a_date(tiles, tmp_path):
    import email.utils
    import time

    tiles.faults[region()[0]] = [(503, {"Retry-After": email.utils.formatdate(time.time() + 100, usegmt=True)})]
    clock = Clock()
    fetch(tiles, tmp_path / "tiles", clock=clock)
    assert 90 < clock.sleeps[0] < 101


def test_server_that_stays_broken_ends_the_download_and_keeps_what_is_there(tiles, tmp_path):
    victim = region()[4]
    tiles.faults[victim] = [500] * 3
    with pytest.raises(InputError, match=rf"tile {ZOOM}/{victim[1]}/{victim[2]}: status 500 .*3 attempts at most"):
        fetch(tiles, tmp_path / "tiles", attempts=3)
    assert len(held(tmp_path / "tiles")) == 4
    del tiles.faults[victim]
    report = fetch(tiles, tmp_path / "tiles")
    assert (report.tiles, report.fetched) == (len(region()), len(region()) - 4)


def test_server_that_sends_pages_in_place_of_images_is_quoted_with_the_remedy(tiles, tmp_path):
    tiles.faults[region()[0]] = ["words"] * 2
    with pytest.raises(InputError) as refused:
        fetch(tiles, tmp_path / "tiles", attempts=2)
    message = str(refused.value)
    assert "no image but '<html>Service is being maintained</html>'; check the URL, and the key" in message
    assert message.count("http://") == 1
    assert "convert" not in message


@pytest.mark.parametrize("status", [400, 401, 403, 451])
def test_refusal_is_not_asked_again(tiles, tmp_path, status):
    tiles.faults[region()[0]] = [status] * 9
    with pytest.raises(InputError, match=rf"status {status}.*check the URL, the key"):
        fetch(tiles, tmp_path / "tiles")
    assert len(tiles.requests) == 1
    assert not (tmp_path / "tiles").exists()


def test_missing_tiles_are_remembered_even_after_a_cut_line(tiles, tmp_path):
    gone = region()[2:5]
    for tile in gone:
        tiles.faults[tile] = [404, "always"]
    report = fetch(tiles, tmp_path / "tiles")
    assert (report.tiles, report.missing) == (len(region()) - 3, 3)
    fetch(tiles, tmp_path / "tiles")
    assert all(tiles.requests.count(tile) == 1 for tile in region())
    # A kill cut the last line in the middle of a number; another tile would be meant.
    file = tmp_path / "tiles" / MISSING
    file.write_text(file.read_text()[:-3])
    report = fetch(tiles, tmp_path / "tiles")
    assert report.missing == 3
    assert [tiles.requests.count(tile) for tile in gone] == [1, 1, 2]
    assert len(open_imagery([tmp_path / "tiles"])._rasters[0].levels[0].footprints()) == len(region()) - 3


def test_region_without_any_tile_is_an_error_that_leaves_nothing(tiles, tmp_path):
    for tile in region():
        tiles.faults[tile] = [404, "always"]
    with pytest.raises(InputError, match=r"tiles of the region are all missing; check the bounds, the zoom \(17\)"):
        fetch(tiles, tmp_path / "tiles")
    assert not (tmp_path / "tiles").exists()


KILLED = """
import os, signal, sys
import unifygeo_ros.aerial.fetch as fetch
from unifygeo_ros.cli import main

count = 0
write = fetch._write_tile
def counted(*args):
    global count
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*args)
fetch._write_tile = counted
sys.exit(main(sys.argv[2:]))
"""


def test_download_killed_in_the_middle_goes_on(tiles, tmp_path, capsys):
    command = ["region", "fetch", tiles.url, "--bounds", "9.0,48.498,9.009,48.502", "--zoom", str(ZOOM),
               "--attribution", TERMS["attribution"], "--licence", TERMS["licence"], "--contact", "https://example.org",
               "--rate-hz", "20", "--output", str(tmp_path / "tiles")]  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", KILLED, "4", *command], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(held(tmp_path / "tiles")) == 3
    (tmp_path / "tiles" / str(ZOOM) / f".{region()[0][2]}.png.part").write_bytes(b"half of a tile")
    assert main(command) == 0
    told = capsys.readouterr().out
    assert f"{len(region())} tiles of" in told
    assert f"{len(region()) - 3} fetched now" in told
    assert "© Survey of Nowhere, CC BY 4.0" in told
    assert held(tmp_path / "tiles") == {tile: tiles.png(tile) for tile in region()}
    assert len(tiles.requests) == len(region()) + 1  # the tile that was in hand is asked for again


def test_attribution_and_licence_reach_the_index_and_its_info(tiles, tmp_path, capsys):
    fetch(tiles, tmp_path / "tiles")
    bundle = random_bundle(tmp_path / "bundle", metres_per_pixel=metres_per_pixel(ZOOM, 48.5, SIDE))
    printed = town(tmp_path / "town.tif", resolution=3.0, metres=600.0)
    import rasterio

    with rasterio.open(printed, "r+") as dataset:
        dataset.update_tags(TIFFTAG_COPYRIGHT="Town of Elsewhere, 2027")
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        build_index([tmp_path / "tiles", printed], bundle, engines, tmp_path / "index")
    manifest = open_index(tmp_path / "index").manifest
    assert manifest.attributions == ("Town of Elsewhere, 2027", "© Survey of Nowhere, CC BY 4.0, example.org/terms")
    assert main(["index", "info", str(tmp_path / "index")]) == 0
    told = capsys.readouterr().out
    for words in ("Town of Elsewhere, 2027", "© Survey of Nowhere", "example.org/terms", tiles.url):
        assert words in told
    (tmp_path / "tiles" / "source.json").write_text("{")
    with pytest.raises(InputError, match=r"source\.json: cannot be read .*fetch the tiles again"):
        open_imagery([tmp_path / "tiles"])


def test_keys_are_sent_but_written_nowhere(tiles, tmp_path):
    source = TileSource(tiles.url.replace("http://", "http://me:pass@") + "?apikey=hush-hush&style=rgb", **TERMS)
    assert source.public_url == tiles.url + "?apikey=…&style=rgb"
    assert "hush-hush" in source.tile_url(1, 0, 0)
    source = TileSource(tiles.url + "?Api_Token=hush-hush&style=rgb", **TERMS)
    tiles.faults[region()[1]] = [403]
    with pytest.raises(InputError) as error:
        fetch(tiles, tmp_path / "tiles", source=source)
    assert "hush" not in str(error.value)
    fetch(tiles, tmp_path / "tiles", source=source)
    assert all(b"hush" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_rows_counted_from_the_south_are_asked_for_so():
    source = TileSource("https://example.org/wmts?TILEMATRIX={z}&TILEROW={-y}&TILECOL={x}", **TERMS)
    assert source.tile_url(3, 6, 1) == "https://example.org/wmts?TILEMATRIX=3&TILEROW=6&TILECOL=6"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ftp://example.org/{z}/{x}/{y}"}, "is no URL of http or https"),
        ({"url": "https://example.org/{z}/{y}"}, r"lacks \{x\}; write \{z\} for the zoom"),
        ({"url": "https://example.org/{z}/{x}"}, r"lacks either \{y\} or \{-y\}"),
        ({"url": "https://mt1.google.com/vt/lyrs=s&x={x}&y={y}&z={z}"}, "Google's terms forbid storing its tiles"),
        ({"url": "https://a.tile.openstreetmap.org/{z}/{x}/{y}.png"}, "forbids bulk downloads"),
        ({"attribution": " "}, "--attribution is empty"),
        ({"licence": ""}, "--licence is empty"),
    ],
)  # fmt: skip
def test_sources_that_must_not_be_fetched_are_refused(change, message):
    good = {"url": "https://example.org/{z}/{x}/{y}", **TERMS}
    TileSource(**good)
    with pytest.raises(ConfigurationError, match=message):
        TileSource(**good | change)


@pytest.mark.parametrize("bounds", [(9.0, 48.5, 9.0, 48.6), (9, 48.6, 9.1, 48.5), (9, 48, 181, 49), (9, -86, 10, 0)])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(ConfigurationError, match="must be west, south, east, north in degrees"):
        Bounds(*bounds)


def test_folders_and_regions_that_do_not_fit_are_refused(tiles, tmp_path):
    with pytest.raises(ConfigurationError, match=r"has \d+ tiles of zoom 17 \(0\.79 m per pixel\), at most 5"):
        fetch(tiles, tmp_path / "tiles", most_tiles=5)
    with pytest.raises(ConfigurationError, match="zoom 31: must be between 0 and 30"):
        fetch(tiles, tmp_path / "tiles", zoom=31)
    source = TileSource(tiles.url, **TERMS)
    with pytest.raises(ConfigurationError, match=r"--contact 'me': give an e-mail address or a web page"):
        TileServer(source, "me", FetchSettings())
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match=r"holds thesis\.txt, and no source\.json"):
        fetch(tiles, tmp_path / "tiles")
    fetch(tiles, tmp_path / "mine")
    other = TileSource(tiles.url + "?year=2027", **TERMS)
    with pytest.raises(ConfigurationError, match=r"holds tiles of url .*year=2027.*choose another folder"):
        fetch(tiles, tmp_path / "mine", source=other)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        fetch(tiles, tmp_path / "file" / "tiles")
    assert tiles.requests == region()


def test_download_stops_at_a_full_disk_and_goes_on(tiles, tmp_path):
    tiles.colours = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    small = cv2.imencode(".png", np.full((SIDE, SIDE, 3), 50, np.uint8))[1].tobytes()
    large = tiles.png
    first = region()[0]
    tiles.png = lambda tile: small if tile == first else large(tile)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(ConfigurationError, match=r"cannot be written .*free space .*give the same command again"):
            fetch(tiles, tmp_path / "tiles")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(held(tmp_path / "tiles")) == [first]
    assert not list((tmp_path / "tiles").rglob("*.part"))
    assert fetch(tiles, tmp_path / "tiles").tiles == len(region())


@contextmanager
def no_server():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_server_that_is_not_there_is_named(tiles, tmp_path):
    with no_server() as port:
        source = TileSource(f"http://127.0.0.1:{port}/{{z}}/{{x}}/{{y}}.png", **TERMS)
        clock = Clock()
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}.*Connection refused"):
            fetch(tiles, tmp_path / "tiles", source=source, clock=clock, attempts=4)
    assert clock.now - 1000.0 >= 7.0  # 1, 2 and 4 s
    assert os.listdir(tmp_path) == []
