"""Ground truth: where base_link was at the moment of an exposure, and how well that is known.

A recording (topic or file) is brought into the index's map frame once and then interpolated at the images' stamps.
Between two samples that lie too far apart there is a gap, and so there is before the first and after the last: nothing
is ever extrapolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

import numpy as np
import pyproj

from unifygeo_ros.core.arrays import Float64, Int64
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame, wrap_angle
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.time import ns_from_s

COURSE_WINDOW_S = 1.0
"""The course is the direction between the positions half of this before and after."""
COURSE_MINIMUM_M = 0.5
"""Under this displacement within the window the vehicle stands and has no course."""


@dataclass(frozen=True)
class Recording:
    """Ground truth as it was recorded."""

    stamps_ns: Int64
    """int64 (n,), any order."""
    positions: Float64
    """float64 (n, 2), latitude and longitude in degrees if `geodetic`, else x and y of a plane frame in metres."""
    geodetic: bool
    yaw_rad: Float64
    """float64 (n,), counter-clockwise from x (from east if geodetic), NaN where not known."""
    covariances_m2: Float64
    """float64 (n, 2, 2) of x and y (east and north if geodetic), NaN where not known."""
    source: str
    """Topic or file, for messages."""


@dataclass(frozen=True)
class TruthPose:
    """Pose of base_link in the map frame at one stamp."""

    east_m: float
    north_m: float
    covariance_m2: Float64
    """float64 (2, 2), zero where the truth is taken as exact."""
    yaw_rad: float | None
    """Orientation, None if the recording has none."""
    course_rad: float | None
    """Direction of travel, counter-clockwise from east, None while standing."""


PlaneToMap = Callable[[Float64], Float64]


def plane_to_map(frame: str, index_frame: LocalFrame) -> PlaneToMap:
    """Conversion of plane coordinates (n, 2) into the index's map frame.

    frame: "map" (they are the index's map coordinates), "LAT,LON" or "LAT,LON,HEIGHT" (east and north about another
    datum), or a projected coordinate system such as "EPSG:32632". Raises ConfigurationError.
    """
    if frame == "map":
        return lambda points: points
    parts = frame.split(",")
    if len(parts) in (2, 3):
        try:
            numbers = [float(part) for part in parts]
        except ValueError as error:
            raise ConfigurationError(f"truth frame {frame!r}: not numbers; give LAT,LON in degrees") from error
        other = LocalFrame(Datum(*numbers))

        def from_other_datum(points: Float64) -> Float64:
            geodetic = other.geodetic_from_map(points[:, 0], points[:, 1])
            return index_frame.map_from_geodetic(geodetic[:, 0], geodetic[:, 1])

        return from_other_datum
    try:
        system = pyproj.CRS.from_user_input(frame)
    except pyproj.exceptions.CRSError as error:
        raise ConfigurationError(
            f"truth frame {frame!r} is not known; give 'map', a datum LAT,LON, or a projected system such as EPSG:32632"
        ) from error
    if not system.is_projected:
        raise ConfigurationError(
            f"truth frame {frame!r} is not a projected system in metres; give for example EPSG:32632"
        )
    transformer = pyproj.Transformer.from_crs(system, "EPSG:4326", always_xy=True)

    def from_projection(points: Float64) -> Float64:
        longitude, latitude = transformer.transform(points[:, 0], points[:, 1])
        return index_frame.map_from_geodetic(latitude, longitude)

    return from_projection


class Truth:
    """A recording in the map frame, ready to be asked for any stamp.

    max_gap_s: longest time between two samples that is bridged. Between them the path is taken as straight and evenly
    travelled, which is wrong by at most a·Δt²/8: 0.4 m at 1 Hz and 3 m/s². default_sigma_m: standard deviation of
    samples that bring none; 0 takes them as exact. lever_arm_m: the truth's reference point (antenna) in base_link,
    forward and left.
    """

    def __init__(
        self,
        recording: Recording,
        index_frame: LocalFrame,
        *,
        plane_frame: str = "map",
        max_gap_s: float = 1.5,
        default_sigma_m: float = 0.0,
        lever_arm_m: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        if not len(recording.stamps_ns):
            raise InputError(f"{recording.source}: no usable ground truth sample; give another topic or file")
        # Of samples with the same stamp the last one recorded counts: it is the correction.
        stamps, place_from_end = np.unique(recording.stamps_ns[::-1], return_index=True)
        order = len(recording.stamps_ns) - 1 - place_from_end
        points = recording.positions[order]
        if recording.geodetic:
            positions = index_frame.map_from_geodetic(points[:, 0], points[:, 1])
            jacobians = np.broadcast_to(np.eye(2), (len(points), 2, 2))
        else:
            convert = plane_to_map(plane_frame, index_frame)
            positions = convert(points)
            jacobians = _jacobians(convert, points)
        nearest = float(np.min(np.hypot(positions[:, 0], positions[:, 1])))
        if not nearest <= index_frame.range_m:
            raise InputError(
                f"{recording.source}: the ground truth comes no nearer than {nearest / 1000:.0f} km to the index's "
                "datum; choose the index of the place, or say by --truth-frame what its coordinates are"
            )
        unknown = np.isnan(recording.covariances_m2[order]).any(axis=(1, 2))
        covariances = jacobians @ recording.covariances_m2[order] @ jacobians.transpose(0, 2, 1)
        covariances[unknown] = np.eye(2) * default_sigma_m**2
        yaw = recording.yaw_rad[order]
        forward = np.einsum("nij,nj->ni", jacobians, np.stack([np.cos(yaw), np.sin(yaw)], axis=-1))
        self.source = recording.source
        self.stamps_ns: Int64 = stamps.astype(np.int64)
        self.positions_m: Float64 = positions
        self.covariances_m2: Float64 = covariances
        self.yaw_rad: Float64 = np.arctan2(forward[:, 1], forward[:, 0])
        self.max_gap_ns = ns_from_s(max_gap_s)
        self._lever_arm_m = lever_arm_m

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def at(self, stamp_ns: int) -> TruthPose | None:
        """The pose at a stamp.

        None in a gap, and where the lever arm cannot be applied because no direction is known.
        """
        bracket = self._bracket(stamp_ns)
        if bracket is None:
            return None
        before, after, weight = bracket
        east, north = self._between(self.positions_m, before, after, weight)
        # The errors of neighbouring samples of a GNSS receiver are nearly the same error, so they do not average out:
        # the mean of the covariances bounds that of the interpolated point for any correlation.
        covariance = self._between(self.covariances_m2, before, after, weight)
        turn = wrap_angle(float(self.yaw_rad[after] - self.yaw_rad[before]))
        yaw = wrap_angle(float(self.yaw_rad[before]) + weight * turn)
        course = self._course(stamp_ns)
        direction = course if math.isnan(yaw) else yaw
        forward, left = self._lever_arm_m
        if forward or left:
            if direction is None:
                return None
            east, north = Pose2(float(east), float(north), direction).apply(-forward, -left)
        return TruthPose(float(east), float(north), covariance, None if math.isnan(yaw) else yaw, course)

    def _bracket(self, stamp_ns: int) -> tuple[int, int, float] | None:
        after = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if after < len(self) and self.stamps_ns[after] == stamp_ns:
            return after, after, 0.0
        if after in (0, len(self)):
            return None
        before = after - 1
        gap = int(self.stamps_ns[after] - self.stamps_ns[before])
        if gap > self.max_gap_ns:
            return None
        return before, after, (stamp_ns - int(self.stamps_ns[before])) / gap

    @staticmethod
    def _between(values: Float64, before: int, after: int, weight: float) -> Float64:
        return np.asarray((1 - weight) * values[before] + weight * values[after])

    def _course(self, stamp_ns: int) -> float | None:
        half = ns_from_s(COURSE_WINDOW_S / 2)
        ends = []
        for stamp in (stamp_ns - half, stamp_ns + half):
            # At the edge of a gap the window is cut short there.
            bracket = self._bracket(stamp) or self._bracket(stamp_ns)
            if bracket is None:
                return None
            ends.append(self._between(self.positions_m, *bracket))
        east, north = ends[1] - ends[0]
        return math.atan2(north, east) if math.hypot(east, north) >= COURSE_MINIMUM_M else None


def _jacobians(convert: PlaneToMap, points: Float64) -> Float64:
    """∂map/∂plane by central differences over ±1 m: float64 (n, 2, 2).

    They turn yaws and covariances, grid convergence included.
    """
    columns = [
        (convert(points + step) - convert(points - step)) / 2 for step in (np.array([1.0, 0]), np.array([0, 1.0]))
    ]
    return np.stack(columns, axis=-1)
