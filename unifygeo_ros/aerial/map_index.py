"""What localizer, tracker and pictures need of the known ground: one index, or a region of several."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Sequence

import numpy as np
import numpy.typing as npt

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.manifest import IndexManifest
from unifygeo_ros.core.arrays import Array, Float64, Int64, UInt8
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.core.records import Candidates


class TileRows(Protocol):
    """An array with one row a tile, verified when it is taken."""

    def __getitem__(self, tile_ids: int | np.integer | Sequence[int] | Int64) -> Array:
        """Rows of the tiles. Raises IndexFormatError."""
        ...


class MapIndex(Protocol):
    """Tiles in one map frame, by their numbers 0 … n − 1. Safe for reading from several threads."""

    @property
    def path(self) -> Path: ...

    @property
    def manifest(self) -> IndexManifest:
        """Of the index; of a region, what its indexes have in common, and their sums."""
        ...

    @property
    def frame(self) -> LocalFrame:
        """The map frame."""
        ...

    @property
    def centres_m(self) -> Float64:
        """float64 (n, 2): east and north of the tile centres."""
        ...

    @property
    def descriptors(self) -> TileRows:
        """float32 (n, C), unit length."""
        ...

    @property
    def match_maps(self) -> TileRows:
        """float16 (n, S, S, C_0), unit length along the last axis."""
        ...

    @property
    def tile_size(self) -> int:
        """Rows = columns of a tile, pixels."""
        ...

    @property
    def metres_per_pixel(self) -> float: ...

    @property
    def area_m2(self) -> float:
        """Area that the tiles cover; where indexes of a region overlap, each counts."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 of what identifies the content."""
        ...

    @property
    def search_description(self) -> str:
        """How all tiles are searched."""
        ...

    def __len__(self) -> int: ...

    def tile_yaw_rad(self, tile_id: int) -> float:
        """Yaw in the map of a tile's eastward axis: 0 in a single index."""
        ...

    def yaw_at_rad(self, east_m: float, north_m: float) -> float:
        """`tile_yaw_rad` of the tiles at or nearest to a place."""
        ...

    def tile_pixels(self, tile_id: int) -> UInt8:
        """The pixels that the aerial encoder saw: uint8 (L, L, 3) RGB. Raises IndexFormatError."""
        ...

    def tiles_within(self, gate: Gate) -> Int64:
        """The tiles inside the gate, int64, rising."""
        ...

    def search(self, descriptor: npt.ArrayLike, k: int, gate: Gate | None = None) -> Candidates:
        """The k most similar tiles, of those inside the gate if there is one. Raises InputError, IndexFormatError."""
        ...

    def open_gpu_search(self) -> None:
        """Open the search of all tiles now, if it is to be on a GPU. Raises ConfigurationError, IndexFormatError."""
        ...

    def prepare_search(self) -> None:
        """Begin to open the search of all tiles in the background, for who will use it soon."""
        ...

    def close_search(self) -> None:
        """Free what the search of all tiles holds."""
        ...
