"""The flat world of colours with a bundle and its index: made once in a run of the tests, copied for each that asks."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import rasterio
from bundles import random_bundle
from worlds import World, colour_world

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.inference.bundle import Calibration
from unifygeo_ros.inference.select import open_engines

COPYRIGHT = "Survey of <Nowhere> & Sons, CC BY 4.0"
"""In the imagery's own tag, with characters that have a meaning in HTML."""


def write_colour_region(folder: Path) -> World:
    """Write `world.tif`, `bundle` (of `random_bundle`, calibrated) and `index` to a folder."""
    shutil.copytree(_made(), folder, dirs_exist_ok=True)
    return colour_world()


@functools.cache
def _made() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="colour_region_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    bundle = random_bundle(folder / "bundle", calibration=Calibration(distribution_temperature=0.5))
    image = colour_world().write_geotiff(folder / "world.tif")
    with rasterio.open(image, "r+") as dataset:
        dataset.update_tags(TIFFTAG_COPYRIGHT=COPYRIGHT)
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        build_index([image], bundle, engines, folder / "index")
    return folder
