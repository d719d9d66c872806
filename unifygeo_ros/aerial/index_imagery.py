"""The tiles of an index as imagery: to encode them with another model where the imagery itself is not at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unifygeo_ros.aerial.imagery import TileImage
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.aerial.manifest import MANIFEST
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.inference.bundle import AerialSpec

RESOLUTION_TOLERANCE = 0.01
"""Relative difference between an index's metres per pixel and the model's that does not matter."""


def is_index(path: Path) -> bool:
    """Whether a path of imagery is the folder of an index."""
    return path.is_dir() and (path / MANIFEST).is_file()


class IndexImagery:
    """The tiles of one index, in its map frame (`Imagery`)."""

    def __init__(self, folder: Path) -> None:
        """Raises IndexFormatError for a damaged index."""
        self._index = open_index(folder)

    @property
    def datum(self) -> Datum:
        """Of the map frame. Another one would need other tiles."""
        return self._index.manifest.datum

    def centre_deg(self) -> tuple[float, float]:
        """Latitude and longitude of the datum."""
        return self.datum.latitude_deg, self.datum.longitude_deg

    def describe(self) -> Mapping[str, Any]:
        """The imagery that the index was built from."""
        return self._index.manifest.imagery

    def fingerprint(self) -> str:
        return self._index.checksum

    def tiles(self, frame: LocalFrame, aerial: AerialSpec, stride: float) -> IndexTiles:
        """The tiles, at the index's own stride.

        Raises:
            ConfigurationError: the frame has another datum.
            InputError: the model takes tiles of another size.
        """
        index = self._index
        if frame.datum != self.datum:
            raise ConfigurationError(f"{index.path}: its tiles belong to its own datum; leave --datum out")
        relative = index.metres_per_pixel / aerial.metres_per_pixel
        if index.tile_size != aerial.size or abs(relative - 1) > RESOLUTION_TOLERANCE:
            raise InputError(
                f"{index.path}: tiles of {index.tile_size} pixels at {index.metres_per_pixel:.4g} m, the model takes "
                f"{aerial.size} at {aerial.metres_per_pixel:.4g} m; give the imagery that the index was built from"
            )
        return IndexTiles(index)


class IndexTiles:
    """See `IndexImagery` (`TileSet`)."""

    def __init__(self, index: TileIndex) -> None:
        self._index = index

    @property
    def centres_m(self) -> Float64:
        return self._index.centres_m

    @property
    def metres_per_pixel(self) -> float:
        return self._index.metres_per_pixel

    @property
    def stride_m(self) -> float | None:
        return self._index.manifest.stride_m

    def read(self, number: int) -> TileImage:
        """All of it counts as known: enough was, when the index was built. Raises IndexFormatError."""
        pixels = self._index.tile_pixels(number)
        return TileImage(pixels, np.ones(pixels.shape[:2], np.bool_))
