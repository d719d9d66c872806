"""What every kind of imagery offers to the index: tiles, as pixels together with what of them is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Protocol

from unifygeo_ros.core.arrays import Bool, Float64, UInt8
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.inference.bundle import AerialSpec

COARSEST = 2.0
"""Imagery may be this many times coarser than the model's metres per pixel. Enlarged twice, a tile holds a quarter of
the pixels that the model was trained on; beyond, what it learned to look at is not in the image."""


@dataclass(frozen=True)
class TileImage:
    """One north-up tile."""

    pixels: UInt8
    """uint8 (L, L, 3) RGB, black where nothing is known (as in the coarse dropout of training)."""
    valid: Bool
    """bool (L, L), where the imagery says something."""


class TileSet(Protocol):
    """The tiles that a source offers for one map frame and one model, in the order of the index.

    `read` may be called from several threads at once.
    """

    @property
    def centres_m(self) -> Float64:
        """float64 (n, 2): east and north of the tile centres, map frame."""
        ...

    @property
    def metres_per_pixel(self) -> float: ...

    @property
    def stride_m(self) -> float | None:
        """Distance of neighbouring centres; None where they do not lie on a grid."""
        ...

    def read(self, number: int) -> TileImage:
        """The tile of centres_m[number]. Raises InputError, which names the file."""
        ...


class Imagery(Protocol):
    """A source of aerial imagery."""

    def centre_deg(self) -> tuple[float, float]:
        """WGS84 latitude and longitude of its middle."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """For the manifest: kind, file names, CRS, metres per pixel.

        No paths and no times: the same imagery in another folder makes the same index.
        """
        ...

    def fingerprint(self) -> str:
        """Changes whenever a file of the source is changed: an interrupted build must not go on with other imagery."""
        ...

    def tiles(self, frame: LocalFrame, aerial: AerialSpec, stride: float) -> TileSet:
        """Lay out the tiles. stride: of a tile's side. Raises InputError, for imagery that is too coarse above all."""
        ...


@dataclass(frozen=True)
class ImageryOptions:
    """How bands become RGB and what counts as unknown."""

    bands: tuple[int, int, int] | None = None
    """Three band numbers from 1 for red, green, blue; None: the first three of a file with three or more, else the
    first for all."""
    scale: tuple[float, float] | None = None
    """The values that become 0 and 255; None: as they are in 8-bit files, the 0.5th and 99.5th percentile of the
    imagery in others; either is written into the manifest."""
    nodata: float | None = None
    """Value that marks unknown pixels where the files do not say it themselves (all bands equal to it)."""
    deep_scale: tuple[float, float] | None = None
    """`scale` for the files that are not of 8 bit, in place of the percentiles: that of the index which is updated."""

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ConfigurationError(f"scale {self.scale[0]}, {self.scale[1]}: the first value must be the smaller one")
        if self.bands is not None and min(self.bands) < 1:
            raise ConfigurationError(f"bands {self.bands}: bands are numbered from 1")
