"""Files that the first edition wrote. They are made here from what it wrote, not by today's writers.

Bundles of the first edition are in test_bundle_loading.py: they say how to migrate.
"""

import hashlib
import json
import zlib

import numpy as np
import pytest

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.errors import IndexFormatError

CENTRES_M = np.array([[8.0, 8.0], [40.0, 8.0], [8.0, 40.0]])
SIDE_M, WIDTH, MATCH_SIZE, MATCH_CHANNELS = 32.0, 4, 2, 3


def digest(data):
    return hashlib.sha256(data).hexdigest()


def index_of_the_first_edition(folder):
    """Three tiles side by side; the one at (8, 40) lies in the second row of cells. Returns the tiles' descriptors."""
    descriptors = np.eye(3, WIDTH, dtype="<f4")
    maps = np.zeros((3, MATCH_SIZE, MATCH_SIZE, MATCH_CHANNELS), "<f2")
    maps[..., 0] = 1.0
    # A PNG of 64 × 64 pixels is opened only when a tile is decoded; what counts here is its place in the file.
    pngs = [b"first", b"second", b"third"]
    rows, offset = [], 0
    for number, (east, north) in enumerate(CENTRES_M):
        cell = int(north // SIDE_M) * 2**32 + int(east // SIDE_M)
        png = pngs[number]
        crcs = [zlib.crc32(data) for data in (descriptors[number].tobytes(), maps[number].tobytes(), png)]
        rows.append((east, north, cell, offset, len(png), *crcs))
        offset += len(png)
    table = np.array(rows, "<f8, <f8, <i8, <u8, <u4, <u4, <u4, <u4")
    files = {
        "tiles.bin": table.tobytes(),
        "descriptors.f32": descriptors.tobytes(),
        "match_maps.f16": maps.tobytes(),
        "pixels.bin": b"".join(pngs),
    }
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest = {
        "datum": {"height_m": 0.0, "latitude_deg": 48.5, "longitude_deg": 9.0},
        "descriptor_dim": WIDTH,
        "encoder": "ONNX Runtime 1.22.0, CPU, fp32",
        "files": {name: {"bytes": len(data), "sha256": digest(data)} for name, data in files.items()},
        "format": "unifygeo-index",
        "format_version": 1,
        "imagery": {"rasters": [{"bands": [1, 2, 3], "crs": "EPSG:32632", "files": ["world.tif"], "kind": "geotiff",
                                 "nodata": None, "scale": None}]},
        "match_channels": MATCH_CHANNELS,
        "match_size": MATCH_SIZE,
        "metres_per_pixel": SIDE_M / 64,
        "minimum_coverage": 0.5,
        "model": "towns-atto",
        "search": "exact",
        "skipped": 0,
        "stride_m": 32.0,
        "tile_size": 64,
        "tiles": 3,
        "weights_sha256": "d2e45d23366ddc4510de1e13bbd4ca0566b612f91cbadf13ecf9265a3775dd2a",
    }  # fmt: skip
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    text = json.dumps({**manifest, "sha256": digest(text.encode())}, indent=2, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(text)
    return descriptors


def test_index_of_the_first_edition_opens_and_is_searched(tmp_path):
    descriptors = index_of_the_first_edition(tmp_path / "index")
    index = open_index(tmp_path / "index")
    index.verify()
    np.testing.assert_array_equal(index.centres_m, CENTRES_M)
    for tile, descriptor in enumerate(descriptors):
        assert index.search(descriptor, 1).tile_ids.tolist() == [tile]


def test_index_of_another_format_version_says_to_build_it_again(tmp_path):
    index_of_the_first_edition(tmp_path / "index")
    manifest = tmp_path / "index" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(IndexFormatError, match="format version 7, this release reads 1; build the index again"):
        open_index(tmp_path / "index")
