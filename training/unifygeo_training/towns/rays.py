"""Exact rays: which solid each pixel of a panorama sees, and how far away.

All pixels of a column share an azimuth, so a column is a vertical slice through the town. A walk over a coarse grid
gathers the solids that the slice meets; in the slice each is a convex shape in two coordinates, horizontal distance t
and height z, and a ray is z = h + s·t with s the tangent of its elevation. Every solid is the intersection of
half-planes a·t + b·z ≤ c (or a quadric), so the ray's interval inside it is exact: there is no marching and no step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from unifygeo_ros.core.arrays import Float64, Int64
from unifygeo_training.towns.scene import Shape

SKY, FLOOR = -2, -1
"""Values of `Hits.objects` where the ray meets no solid."""

CELL_M = 8.0
NEAR_M = 0.05

# Faces. Sides of a box: where the ray enters the slab. The rest: roofs, top and bottom.
PLUS_X, MINUS_X, PLUS_Y, MINUS_Y, TOP, BOTTOM, SLOPE_PLUS_Y, SLOPE_MINUS_Y, SLOPE_PLUS_X, SLOPE_MINUS_X, ROUND = range(
    11
)

_BOX, _GABLE, _HIP = int(Shape.BOX), int(Shape.GABLE), int(Shape.HIP)
_ELLIPSOID, _CYLINDER, _CONE = int(Shape.ELLIPSOID), int(Shape.CYLINDER), int(Shape.CONE)


@dataclass(frozen=True)
class Grid:
    """Solids by grid cell: those of cell (i, j), column i eastward, are items[first[j·n + i] : first[j·n + i + 1]]."""

    cells: int
    first: Int64
    items: Int64


@dataclass(frozen=True)
class Hits:
    """What the ray of each pixel meets."""

    objects: npt.NDArray[np.int32]
    """int32 (H, W), index of the solid seen, or FLOOR or SKY."""
    faces: npt.NDArray[np.int8]
    """int8 (H, W)."""
    distance_m: Float64
    """float64 (H, W), horizontal distance; inf for SKY."""


def column_azimuths(width: int, centre_rad: float) -> Float64:
    """Azimuth (clockwise from north) of each column's centre, float64 (width,)."""
    return centre_rad + (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi


def row_elevations(height: int, top_rad: float, bottom_rad: float) -> Float64:
    """Elevation of each row's centre, float64 (height,), from the top."""
    return top_rad - (np.arange(height) + 0.5) / height * (top_rad - bottom_rad)


def sort_into_grid(objects: npt.NDArray[np.void], size_m: float) -> Grid:
    """Grid over the town; solids beyond its edges go into the border cells."""
    cells = int(np.ceil(size_m / CELL_M))
    box = np.where(objects["shape"] <= _HIP, 1.0, 0.0)
    across = np.where(box > 0, objects["half_y"], objects["half_x"])
    reach_x = np.where(box > 0, abs(objects["cos"]) * objects["half_x"] + abs(objects["sin"]) * across, across)
    reach_y = np.where(box > 0, abs(objects["sin"]) * objects["half_x"] + abs(objects["cos"]) * across, across)
    low_i, high_i = (np.clip((objects["x"] + sign * reach_x) // CELL_M, 0, cells - 1).astype(int) for sign in (-1, 1))
    low_j, high_j = (np.clip((objects["y"] + sign * reach_y) // CELL_M, 0, cells - 1).astype(int) for sign in (-1, 1))
    members: list[list[int]] = [[] for _ in range(cells * cells)]
    for k in range(len(objects)):
        for j in range(low_j[k], high_j[k] + 1):
            for i in range(low_i[k], high_i[k] + 1):
                members[j * cells + i].append(k)
    first = np.concatenate([[0], np.cumsum([len(m) for m in members])]).astype(np.int64)
    return Grid(cells, first, np.array([k for m in members for k in m], np.int64))


def cast(
    objects: npt.NDArray[np.void],
    grid: Grid,
    views: int,
    x: float,
    y: float,
    height_m: float,
    azimuths_rad: Float64,
    elevations_rad: Float64,
    far_m: float,
) -> Hits:
    """What a camera at (x, y, height_m) sees along each azimuth (W,) and elevation (H,).

    Elevations are evenly spaced and fall from row to row; `views` says whose objects are there.
    """
    shape = (len(elevations_rad), len(azimuths_rad))
    hits = Hits(np.empty(shape, np.int32), np.zeros(shape, np.int8), np.empty(shape))
    _cast(
        objects,
        grid.cells,
        grid.first,
        grid.items,
        views,
        x,
        y,
        height_m,
        azimuths_rad,
        elevations_rad,
        far_m,
        hits.objects,
        hits.faces,
        hits.distance_m,
    )
    return hits


@njit(cache=True)
def _cast(objects, cells, first, items, views, x, y, h, azimuths, elevations, far, ids, faces, distances):
    rows = len(elevations)
    slopes = np.tan(elevations)
    row_step = (elevations[0] - elevations[-1]) / (rows - 1) if rows > 1 else 1.0
    seen = np.full(len(objects), -1, np.int64)  # last column that tested the solid
    depth = np.empty(rows)
    who = np.empty(rows, np.int32)
    side = np.empty(rows, np.int8)
    plane_a = np.empty(5)  # half-planes a·t + z ≤ c of roofs and tops
    plane_c = np.empty(5)
    plane_face = np.empty(5, np.int8)
    for column in range(len(azimuths)):
        ux, uy = np.sin(azimuths[column]), np.cos(azimuths[column])
        for r in range(rows):
            side[r] = 0
            if slopes[r] < 0:
                depth[r] = -h / slopes[r]
                who[r] = FLOOR
                if depth[r] > far:
                    depth[r] = np.inf
                    who[r] = SKY
            else:
                depth[r] = np.inf
                who[r] = SKY
        # Walk over the grid cells along (ux, uy).
        i, j = int(x // CELL_M), int(y // CELL_M)
        step_i, step_j = (1 if ux >= 0 else -1), (1 if uy >= 0 else -1)
        gap_i = CELL_M / abs(ux) if ux != 0 else np.inf
        gap_j = CELL_M / abs(uy) if uy != 0 else np.inf
        next_i = ((i + (step_i > 0)) * CELL_M - x) / ux if ux != 0 else np.inf
        next_j = ((j + (step_j > 0)) * CELL_M - y) / uy if uy != 0 else np.inf
        t = 0.0
        while 0 <= i < cells and 0 <= j < cells and t < far:
            cell = j * cells + i
            for k in range(first[cell], first[cell + 1]):
                n = items[k]
                if seen[n] == column:
                    continue
                seen[n] = column
                o = objects[n]
                if o.views & views == 0:
                    continue
                dx, dy = o.x - x, o.y - y
                along = dx * ux + dy * uy  # of the centre
                miss = -dx * uy + dy * ux
                # The slice through the solid's footprint: from near to out.
                enter_face = ROUND
                lx, ly = 0.0, 0.0
                px, py = 0.0, 0.0
                if o.shape <= _HIP:
                    lx, ly = ux * o.cos + uy * o.sin, -ux * o.sin + uy * o.cos
                    px, py = -(dx * o.cos + dy * o.sin), -(-dx * o.sin + dy * o.cos)
                    near, out = -np.inf, np.inf
                    if lx != 0:
                        a, b = (-o.half_x - px) / lx, (o.half_x - px) / lx
                        if a > b:
                            a, b = b, a
                        near, out = a, b
                        enter_face = MINUS_X if lx > 0 else PLUS_X
                    elif abs(px) > o.half_x:
                        continue
                    if ly != 0:
                        a, b = (-o.half_y - py) / ly, (o.half_y - py) / ly
                        if a > b:
                            a, b = b, a
                        if a > near:
                            near = a
                            enter_face = MINUS_Y if ly > 0 else PLUS_Y
                        out = min(out, b)
                    elif abs(py) > o.half_y:
                        continue
                else:
                    if abs(miss) >= o.half_x:
                        continue
                    chord = np.sqrt(o.half_x * o.half_x - miss * miss)
                    near, out = along - chord, along + chord
                if out <= NEAR_M or near >= out or near > far:
                    continue
                start = max(near, NEAR_M)
                peak = o.top + o.rise - h
                foot = o.bottom - h
                highest = peak / start if peak > 0 else peak / out
                lowest = foot / out if foot > 0 else foot / start
                row_top = max(0, int(np.floor((elevations[0] - np.arctan(highest)) / row_step)))
                row_end = min(rows, int(np.ceil((elevations[0] - np.arctan(lowest)) / row_step)) + 1)
                if o.shape <= _HIP or o.shape == _CYLINDER:
                    planes = 1
                    if o.shape == _GABLE or o.shape == _HIP:
                        pitch = o.rise / o.half_y
                        planes = 2
                        plane_a[0], plane_c[0], plane_face[0] = pitch * ly, o.top + o.rise - pitch * py, SLOPE_PLUS_Y
                        plane_a[1], plane_c[1], plane_face[1] = -pitch * ly, o.top + o.rise + pitch * py, SLOPE_MINUS_Y
                        if o.shape == _HIP:
                            planes = 4
                            ceiling = o.top + pitch * o.half_x
                            plane_a[2], plane_c[2], plane_face[2] = pitch * lx, ceiling - pitch * px, SLOPE_PLUS_X
                            plane_a[3], plane_c[3], plane_face[3] = -pitch * lx, ceiling + pitch * px, SLOPE_MINUS_X
                    else:
                        plane_a[0], plane_c[0], plane_face[0] = 0.0, o.top, TOP
                    for r in range(row_top, row_end):
                        s = slopes[r]
                        a, b, face = near, out, enter_face
                        # Bottom: h + s·t ≥ bottom.
                        if s > 0:
                            at = foot / s
                            if at > a:
                                a, face = at, BOTTOM
                        elif s < 0:
                            b = min(b, foot / s)
                        elif foot > 0:
                            continue
                        for p in range(planes):
                            rate, rest = plane_a[p] + s, plane_c[p] - h
                            if rate > 0:
                                b = min(b, rest / rate)
                            elif rate < 0:
                                at = rest / rate
                                if at > a:
                                    a, face = at, plane_face[p]
                            elif rest < 0:
                                b = -np.inf
                        if a < b and b > NEAR_M:
                            at = max(a, NEAR_M)
                            if at < depth[r]:
                                depth[r], who[r], side[r] = at, n, face
                elif o.shape == _ELLIPSOID:
                    radius, half = o.half_x, (o.top - o.bottom) / 2
                    up = h - (o.top + o.bottom) / 2
                    for r in range(row_top, row_end):
                        s = slopes[r]
                        qa = 1 / (radius * radius) + s * s / (half * half)
                        qb = -along / (radius * radius) + s * up / (half * half)
                        qc = (along * along + miss * miss) / (radius * radius) + up * up / (half * half) - 1
                        root = qb * qb - qa * qc
                        if root > 0:
                            root = np.sqrt(root)
                            if (-qb + root) / qa > NEAR_M:
                                at = max((-qb - root) / qa, NEAR_M)
                                if at < depth[r]:
                                    depth[r], who[r], side[r] = at, n, ROUND
                else:  # cone
                    narrow = o.half_x / (o.top - o.bottom)
                    k2 = narrow * narrow
                    up = h - o.top
                    for r in range(row_top, row_end):
                        s = slopes[r]
                        qa = 1 - k2 * s * s
                        qb = -along - k2 * s * up
                        qc = along * along + miss * miss - k2 * up * up
                        root = qb * qb - qa * qc
                        if root <= 0 or abs(qa) < 1e-12:
                            continue
                        root = np.sqrt(root)
                        if qa > 0:
                            a, b = (-qb - root) / qa, (-qb + root) / qa
                        elif s > 0:  # steeper than the cone: below the point on the near side
                            a, b = -np.inf, (-qb + root) / qa
                        else:
                            a, b = (-qb - root) / qa, np.inf
                        if qa > 0 and up + s * (a + b) / 2 > 0:
                            continue  # the other nappe
                        face = ROUND
                        if s > 0:
                            at = foot / s
                            if at > a:
                                a, face = at, BOTTOM
                            b = min(b, -up / s)
                        elif s < 0:
                            b = min(b, foot / s)
                            at = -up / s
                            if at > a:
                                a = at
                        elif foot > 0 or up > 0:
                            continue
                        if a < b and b > NEAR_M:
                            at = max(a, NEAR_M)
                            if at < depth[r]:
                                depth[r], who[r], side[r] = at, n, face
            if next_i < next_j:
                t = next_i
                next_i += gap_i
                i += step_i
            else:
                t = next_j
                next_j += gap_j
                j += step_j
        for r in range(rows):
            distances[r, column], ids[r, column], faces[r, column] = depth[r], who[r], side[r]
