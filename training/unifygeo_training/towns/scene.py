"""What a town is made of: solid objects, painted ground, streets, and where it lies on the Earth.

Town coordinates: metres east (x) and north (y) of the town's south-west corner, z up from the flat ground. They are
UTM grid coordinates (EPSG:32632) less `Town.origin`, so one town metre is one grid metre. The towns lie astride
the central meridian, 9° E, where grid north is true north (to 0.003° for a town of 600 m).

Rasters: row 0 is the northern edge. Pixel-centre convention of `unifygeo_ros.core.geodesy`: the centre of pixel (r, c)
is at x = (c + 0.5) · res, y = size − (r + 0.5) · res.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyproj

from unifygeo_ros.core.arrays import Float64, UInt8
from unifygeo_training.towns.streets import Street

CRS = "EPSG:32632"


def geodetic_from_town(origin: tuple[float, float], points: Float64) -> Float64:
    """WGS84 latitude, longitude (degrees) of town points x, y: both float64 (n, 2). origin: `Town.origin`."""
    to_wgs84 = pyproj.Transformer.from_crs(CRS, "EPSG:4326", always_xy=True)
    longitude, latitude = to_wgs84.transform(points[:, 0] + origin[0], points[:, 1] + origin[1])
    return np.stack([latitude, longitude], axis=1)


class Shape(enum.IntEnum):
    """Solids in their own frame: turned by the heading about z, standing from `bottom` to `top`."""

    BOX = 0
    GABLE = 1
    """Box with a ridge along local x, `rise` above `top`."""
    HIP = 2
    """Box with four slopes of equal pitch, ridge along local x, `rise` above `top`; half_x ≥ half_y."""
    ELLIPSOID = 3
    """`half_x` horizontally, (top − bottom)/2 vertically."""
    CYLINDER = 4
    """Its radius is `half_x`."""
    CONE = 5
    """Its radius is `half_x` at the bottom; it ends in a point at the top."""


class Kind(enum.IntEnum):
    """What the solid's surface looks like."""

    BUILDING = 0
    PLAIN = 1
    CAR = 2
    CABIN = 3
    LEAVES = 4
    BARK = 5


AERIAL, GROUND = 1, 2
"""Bits of `views`: in which of the two views an object was there."""

OBJECT = np.dtype(
    [
        ("shape", np.int32),
        ("kind", np.int32),
        ("views", np.int32),
        ("seed", np.int32),
        ("x", np.float64),
        ("y", np.float64),
        ("cos", np.float64),  # of the angle of local x, counter-clockwise from east
        ("sin", np.float64),
        ("half_x", np.float64),
        ("half_y", np.float64),
        ("bottom", np.float64),
        ("top", np.float64),
        ("rise", np.float64),
        ("r", np.float64),  # side colour, 0 … 1
        ("g", np.float64),
        ("b", np.float64),
        ("top_r", np.float64),  # colour from above
        ("top_g", np.float64),
        ("top_b", np.float64),
        ("accent_r", np.float64),  # doors, signs, shutters
        ("accent_g", np.float64),
        ("accent_b", np.float64),
        ("storey_m", np.float64),
        ("bay_m", np.float64),
        ("window_w", np.float64),  # share of the bay
        ("window_h", np.float64),  # share of the storey
        ("shop", np.float64),  # 1: shopfronts on the ground floor
        ("trim", np.float64),  # 0 none, 1 bands between storeys, 2 balconies, 3 ribbon windows
    ]
)
"""One solid; also a numba record type, which cannot hold nested arrays."""


@dataclass(frozen=True)
class Town:
    """A town, without light or season."""

    seed: int
    size_m: float
    metres_per_pixel: float
    origin: tuple[float, float]
    """UTM east and north of the south-west corner, metres."""
    objects: npt.NDArray[np.void]
    """(n,) of OBJECT."""
    ground: UInt8
    """uint8 (P, P, 4), albedo RGB and share of vegetation, row 0 north."""
    streets: tuple[Street, ...]
    marks: Float64
    """Quadrilaterals painted on the ground, float64 (m, 4, 2) as x, y: crosswalk stripes."""


def clearance(objects: npt.NDArray[np.void], x: float, y: float, height_m: float = 2.6, views: int = GROUND) -> float:
    """Horizontal distance from a point to the nearest solid that begins below `height_m`; 0 inside one."""
    o = objects[((objects["views"] & views) != 0) & (objects["bottom"] < height_m)]
    if not len(o):
        return float("inf")
    dx, dy = x - o["x"], y - o["y"]
    along = np.maximum(np.abs(dx * o["cos"] + dy * o["sin"]) - o["half_x"], 0)
    across = np.maximum(np.abs(-dx * o["sin"] + dy * o["cos"]) - o["half_y"], 0)
    return float(np.min(np.hypot(along, across)))
