"""A VIGOR of two tiles and one query a city, made by hand."""

import math
from pathlib import Path

import cv2
import numpy as np

from unifygeo_training.data.split import METRES_PER_DEGREE
from unifygeo_training.data.vigor import CITIES, METRES_PER_PIXEL


def write_image(file: Path, height: int, width: int, value: int = 128) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((height, width, 3), value, np.uint8)
    image[:: max(1, height // 7)] = 255 - value
    assert cv2.imwrite(str(file), image)


def make_vigor(
    root: Path, *, nested: bool = True, labels: str = "original", newline: str = "\n", folder: str | None = None
) -> None:
    """Two tiles a city, half a tile apart in latitude; a query 100 px below and 60 px left of the first's centre.

    By the coordinates in the file names of the original labels it stands a tenth farther from the centre.
    folder: of the labels, in the place of their usual one.
    """
    folder = folder or ("splits" if labels == "original" else "splits__corrected")
    suffix = "__corrected.txt" if folder == "splits__corrected" else ".txt"
    stretch = 1.1 if labels == "original" else 1.0
    for number, city in enumerate(CITIES["same-area", "train"]):
        scale = METRES_PER_PIXEL[city]
        latitude, longitude = 47.6, -122.3
        north_degrees = 320 * scale / METRES_PER_DEGREE
        east_degrees_per_px = scale / METRES_PER_DEGREE / math.cos(math.radians(latitude))
        tiles = [f"satellite_{latitude + i * north_degrees:.10f}_{longitude}.png" for i in range(2)]
        camera = (
            latitude - stretch * 100 * scale / METRES_PER_DEGREE,
            longitude - stretch * 60 * east_degrees_per_px,
        )
        panorama = f"Abc_-1,{camera[0]:.6f},{camera[1]:.6f},.jpg"
        # The second tile is 320 px further north: the camera is 420 px below its centre, outside. Named thrice.
        row = f"{panorama} {tiles[0]} 100.0 60.0" + f" {tiles[1]} 420.0 60.0" * 3
        aerial = root / (f"{city}/satellite" if nested else f"satellite/{city}")
        ground = root / (f"{city}/panorama" if nested else f"ground/{city}")
        for i, tile in enumerate(tiles):
            write_image(aerial / tile, 640, 640, 20 + 50 * number + 20 * i)
        write_image(ground / panorama, 64, 128, 20 + 50 * number)
        (root / "splits" / city).mkdir(parents=True, exist_ok=True)
        (root / "splits" / city / "satellite_list.txt").write_text("\n".join(tiles))
        (root / folder / city).mkdir(parents=True, exist_ok=True)
        for stem in ("same_area_balanced_train", "same_area_balanced_test", "pano_label_balanced"):
            (root / folder / city / (stem + suffix)).write_bytes((row + newline).encode())


STREET_TILES = 8
STREETS_AT = {"NewYork": (40.7, -74.0), "Seattle": (47.6, -122.3)}


def make_vigor_street(root: Path, *, labels: str = "corrected") -> None:
    """In each of New York and Seattle eight tiles in a row, half a tile (320 px) apart eastward.

    Query i stands (40 + 10 i) px below and 60 px right of the centre of tile i, so that tile i + 1 holds it as well,
    260 px left of its centre: its semi-positive, named thrice; the last query's is the tile before it, which does not
    hold it. A ninth query stands on tile 0, 30 px above and 20 px left of its centre, with tile 1 as semi-positive.
    """
    for city, (latitude, longitude) in STREETS_AT.items():
        scale = METRES_PER_PIXEL[city]
        north_deg = scale / METRES_PER_DEGREE  # of a pixel
        east_deg = north_deg / math.cos(math.radians(latitude))
        tiles = [f"satellite_{latitude}_{longitude + 320 * i * east_deg:.10f}.png" for i in range(STREET_TILES)]
        cameras = [(i, 40 + 10 * i, 60) for i in range(STREET_TILES)] + [(0, -30, -20)]
        rows = []
        for number, (tile, down, right) in enumerate(cameras):
            panorama = (
                f"Abc{number}_-1,{latitude - down * north_deg:.6f},"
                f"{longitude + (320 * tile + right) * east_deg:.6f},.jpg"
            )
            beside = tile + 1 if tile + 1 < STREET_TILES else tile - 1
            # The labels count d_col to the left.
            semi = f" {tiles[beside]} {down} {320 * (beside - tile) - right}"
            rows.append(f"{panorama} {tiles[tile]} {down} {-right}" + 3 * semi)
            write_image(root / city / "panorama" / panorama, 64, 128, 20 + 20 * number)
        for number, name in enumerate(tiles):
            write_image(root / city / "satellite" / name, 640, 640, 20 + 20 * number)
        folder, suffix = ("splits", ".txt") if labels == "original" else ("splits__corrected", "__corrected.txt")
        (root / folder / city).mkdir(parents=True)
        (root / folder / city / "satellite_list.txt").write_text("\n".join(tiles))
        for stem in ("same_area_balanced_train", "pano_label_balanced"):
            (root / folder / city / (stem + suffix)).write_text("\n".join(rows))
