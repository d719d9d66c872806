"""Parts of a data set split by place: what is in one part is no neighbour of what is in another."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64
from unifygeo_training.data.split import METRES_PER_DEGREE

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


def parts_of(geodetic_deg: Float64, *, cell_m: float, shares: tuple[float, float], seed: int) -> npt.NDArray[np.str_]:
    """The part of each position: its cell of the ground decides, the same for every drive, index and day.

    Cells are squares of latitude and longitude, so that neither the map frame of an index nor the order of drives has
    a say. A cell goes to a part by a hash of its numbers: a drive that is added later moves no other cell.

    Args:
        geodetic_deg: float64 (n, 2), latitude and longitude.
        cell_m: side of a cell.
        shares: of val and of test among all cells, in expectation.
        seed: another one gives another split.

    Returns:
        (n,), each "train", "val" or "test".
    """
    cells, inverse = np.unique(cells_of(geodetic_deg, cell_m), axis=0, return_inverse=True)
    val, test = shares
    parts = []
    for row, column in cells.tolist():
        digest = hashlib.sha256(f"{seed} {row} {column}".encode()).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64
        parts.append("test" if draw < test else "val" if draw < test + val else "train")
    return np.array(parts, dtype="<U5")[inverse.reshape(-1)]


def cells_of(geodetic_deg: Float64, cell_m: float) -> npt.NDArray[np.int64]:
    """Row and column of the cell of each position: int64 (n, 2). The cells of a row are equally wide in degrees."""
    latitude, longitude = np.asarray(geodetic_deg, np.float64).reshape(-1, 2).T
    row = np.floor(latitude * METRES_PER_DEGREE / cell_m)
    # By the latitude of the row's middle, so that all positions of a row agree.
    width_deg = cell_m / METRES_PER_DEGREE / np.cos(np.radians((row + 0.5) * cell_m / METRES_PER_DEGREE))
    return np.stack([row, np.floor(longitude / width_deg)], axis=-1).astype(np.int64)


def near_other_part(
    geodetic_deg: Float64, own: str, *, guard_m: float, cell_m: float, shares: tuple[float, float], seed: int
) -> npt.NDArray[np.bool_]:
    """Which positions lie within guard_m of a cell of another part than `own`: bool (n,)."""
    latitude = np.asarray(geodetic_deg)[:, 0]
    north_deg = guard_m / METRES_PER_DEGREE
    east_deg = north_deg / np.cos(np.radians(latitude))
    near = np.zeros(len(latitude), np.bool_)
    for up in (-1, 0, 1):
        for right in (-1, 0, 1):
            moved = np.asarray(geodetic_deg) + np.stack([np.full_like(latitude, up * north_deg), right * east_deg], -1)
            near |= parts_of(moved, cell_m=cell_m, shares=shares, seed=seed) != own
    return near
