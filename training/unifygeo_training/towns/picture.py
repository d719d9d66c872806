"""An overview picture of a town: seen from above, and panoramas next to the tiles around their cameras."""

from __future__ import annotations

import cv2
import numpy as np

from unifygeo_ros.core.arrays import UInt8
from unifygeo_training.towns.light import draw_appearance
from unifygeo_training.towns.orthophoto import crop_tile, render_orthophoto
from unifygeo_training.towns.pairs import street_positions
from unifygeo_training.towns.panorama import View, light_stage, render_panorama, set_stage
from unifygeo_training.towns.town import build_town

ROW_PX = 288
TILE_M = 70.0
VIEW = View(ROW_PX, 960, np.pi / 4, -np.pi / 4)
RED = (230, 30, 30)


def draw_picture(seed: int, panoramas: int) -> UInt8:
    """The town and, numbered in it, `panoramas` cameras with what each sees: uint8 (H, W, 3) RGB.

    In the tiles and the town the camera is a dot with a tick towards north, where the panorama's centre looks.
    """
    town = build_town(seed)
    rng = np.random.default_rng([seed, 5])
    above = render_orthophoto(town, draw_appearance(rng))
    stage = set_stage(town)
    rows = []
    overview = cv2.resize(above, (1200, 1200), interpolation=cv2.INTER_AREA)
    for number, (x, y) in enumerate(street_positions(rng, town, panoramas), start=1):
        lit = light_stage(stage, draw_appearance(rng))
        pixels = render_panorama(lit, x, y, VIEW, noise_seed=number)
        tile = np.ascontiguousarray(crop_tile(above, town.metres_per_pixel, x, y, ROW_PX, TILE_M))
        _mark(tile, ROW_PX / 2, ROW_PX / 2, "")
        _mark(overview, x * 1200 / town.size_m, (town.size_m - y) * 1200 / town.size_m, str(number))
        for letter, column in zip("SWNE", range(0, VIEW.width, VIEW.width // 4), strict=True):
            cv2.putText(pixels, letter, (column + 3, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, RED, 2, cv2.LINE_AA)
        rows.append(np.hstack([tile, pixels]))
    side = np.vstack(rows)
    height = max(len(side), len(overview))
    padded = [np.pad(image, ((0, height - len(image)), (0, 0), (0, 0))) for image in (overview, side)]
    return np.hstack(padded)


def _mark(image: UInt8, column: float, row: float, text: str) -> None:
    at = (round(column), round(row))
    cv2.circle(image, at, 4, RED, -1, cv2.LINE_AA)
    cv2.line(image, at, (at[0], at[1] - 14), RED, 2, cv2.LINE_AA)
    cv2.putText(image, text, (at[0] + 6, at[1] - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.9, RED, 2, cv2.LINE_AA)
