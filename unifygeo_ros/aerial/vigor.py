"""A city of the VIGOR data set: its satellite tiles as they are, centred on the position in their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Mapping

import cv2
import numpy as np

from unifygeo_ros.aerial.imagery import TileImage
from unifygeo_ros.aerial.manifest import cell_keys
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import MAX_RANGE_M, LocalFrame
from unifygeo_ros.images.files import decode_rgba, read_bytes
from unifygeo_ros.inference.bundle import AerialSpec

SIZE = 640
METRES_PER_PIXEL: Mapping[str, float] = {
    "NewYork": 0.113248,
    "Seattle": 0.100817,
    "SanFrancisco": 0.118141,
    "Chicago": 0.111262,
}
"""Of the tiles as they come, 640 × 640 pixels."""

_TILE_NAME = re.compile(r"satellite_(-?\d+\.\d+)_(-?\d+\.\d+)\.(?:png|jpg)")
_SCALE_TOLERANCE = 1.5
"""Largest factor between the data set's metres per pixel and the model's."""


class VigorCity:
    """One city folder, `{City}/satellite` or `satellite/{City}`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = find_city(path)
        if found is None:
            raise InputError(f"{path}: is no VIGOR city folder; its name or its parent's must be one of {_cities()}")
        self.city, self._folder = found
        named = sorted((file, _TILE_NAME.fullmatch(file.name)) for file in self._folder.iterdir())
        self._files = [file for file, match in named if match]
        if not self._files:
            raise InputError(f"{self._folder}: holds no satellite_LAT_LON.png; unpack the city's satellite tiles there")
        positions = [(float(match[1]), float(match[2])) for _, match in named if match]
        self._latitude_deg, self._longitude_deg = np.array(positions).T

    def centre_deg(self) -> tuple[float, float]:
        latitude, longitude = self._latitude_deg, self._longitude_deg
        return float(latitude.min() + latitude.max()) / 2, float(longitude.min() + longitude.max()) / 2

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "vigor", "city": self.city, "files": len(self._files), "metres_per_pixel": self._scale()}

    def fingerprint(self) -> str:
        status = [file.stat() for file in self._files]
        total, last = sum(s.st_size for s in status), max(s.st_mtime_ns for s in status)
        return f"{self._folder.resolve()} {len(status)} {total} {last}"

    def tiles(self, frame: LocalFrame, aerial: AerialSpec, stride: float) -> VigorTiles:
        """stride is ignored: the data set gives the positions of the tiles."""
        metres_per_pixel = self._scale() * SIZE / aerial.size
        ratio = metres_per_pixel / aerial.metres_per_pixel
        if not 1 / _SCALE_TOLERANCE <= ratio <= _SCALE_TOLERANCE:
            raise InputError(
                f"{self.path}: tiles of {SIZE * self._scale():.1f} m, the model takes {aerial.side_m:.1f} m; at most a "
                f"factor of {_SCALE_TOLERANCE} apart is of use: take a model trained on VIGOR"
            )
        centres = frame.map_from_geodetic(self._latitude_deg, self._longitude_deg)
        farthest = float(np.max(np.hypot(*centres.T)))
        if farthest > MAX_RANGE_M:
            raise InputError(
                f"{self.path}: a tile lies {farthest:.0f} m from the datum, the map frame reaches {MAX_RANGE_M:.0f} m; "
                "leave --datum out"
            )
        order = np.lexsort((centres[:, 0], centres[:, 1], cell_keys(centres, aerial.size * metres_per_pixel)))
        return VigorTiles([self._files[i] for i in order.tolist()], centres[order], aerial.size, metres_per_pixel)

    def _scale(self) -> float:
        return METRES_PER_PIXEL[self.city]


class VigorTiles:
    """The city's tiles, resized to the model's pixels; they keep their side in metres."""

    stride_m = None

    def __init__(self, files: list[Path], centres_m: Float64, size: int, metres_per_pixel: float) -> None:
        self._files = files
        self._size = size
        self.centres_m = centres_m
        self.metres_per_pixel = metres_per_pixel

    def read(self, number: int) -> TileImage:
        file = self._files[number]
        image = decode_rgba(read_bytes(file, "get the data set again"), str(file))
        if image.shape[:2] != (SIZE, SIZE):
            raise InputError(f"{file}: {image.shape[1]}x{image.shape[0]} pixels, VIGOR's tiles have {SIZE}x{SIZE}")
        image = cv2.resize(image, (self._size, self._size), interpolation=cv2.INTER_AREA)
        valid = image[..., 3] >= 128
        return TileImage(np.where(valid[..., None], image[..., :3], 0).astype(np.uint8), valid)


def find_city(path: Path) -> tuple[str, Path] | None:
    """The city's name and the folder of its tiles, if the path is a VIGOR city folder."""
    candidates = [(path.name, path / "satellite"), (path.name, path)]
    if path.name == "satellite":
        candidates.append((path.parent.name, path))
    for name, folder in candidates:
        if (
            name in METRES_PER_PIXEL
            and folder.is_dir()
            and (folder.name == "satellite" or folder.parent.name == "satellite")
        ):
            return name, folder
    return None


def _cities() -> str:
    return ", ".join(METRES_PER_PIXEL)
