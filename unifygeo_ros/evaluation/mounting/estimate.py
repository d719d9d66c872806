"""What a drive says of its own set-up: delay, mount, IMU, odometry, with standard deviations.

Three stages. The session that the node runs finds where the images were taken, to some decimetres
(`collect`). Each image's ground is aligned with the imagery, to some centimetres and tenths of a degree
(`unifygeo_ros.localization.ground_alignment`); that also shows the camera's tilt. The whole drive is fitted to these
places and to the odometry (`drive_fit`). Alignment and fit are done twice, the second time from the first one's result.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Callable, Iterator, Protocol, Sequence

import numpy as np

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.core.robust import robust_mean, spread
from unifygeo_ros.core.se2 import rotate, rotation_matrix
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.evaluation.metrics.definitions import effective_sample_size
from unifygeo_ros.evaluation.mounting.drive_fit import (
    CAMERA_YAW,
    LATE,
    LEVER,
    SCALE,
    CameraSight,
    DriveFit,
    fit_drive,
)
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.ground_alignment import TILT, Alignment, CameraGuess, align
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import BufferLimits, ImuSample, MotionBuffer, OdometrySample
from unifygeo_ros.motion.stamp_error import Place

MOST_IMAGES = 150
"""That are aligned, by default: more cost time and hardly make a kilometre's estimate more certain."""

LEAST_IMAGES = 20
"""Images that must show their place."""

LEAST_ALIGNED = 8
"""Aligned images that must agree on the camera's tilt."""

LEAST_WAY_M = 30.0
"""A vehicle that moved less tells nothing."""

LEAST_STEP_M = 0.5
"""Of the images of a vehicle that stands, one is used."""

HEIGHTS_M = (0.8, 1.5, 2.6)
"""Of the camera above the ground: where the search for it begins."""

HEIGHT_IMAGES = 10
"""Images that the height is searched with."""

LEAST_CORRELATION = 0.7
"""Of image and imagery, of alignments that are believed."""

LARGEST_TILT_DIFFERENCE_RAD = math.radians(3.0)
"""Alignments whose tilt differs more from the drive's are not believed."""

WHOLE_DRIVE_NS = 2**62


@dataclass(frozen=True)
class SeenImage:
    """An image of which the session knows the place."""

    number: int
    """Of the drive's images."""
    stamp_ns: int
    """With `session.stamp_offset_s`."""
    place: Place
    """Of base_link, by this image alone, as configured."""
    roll_rad: float | None
    """The vehicle's, as the panorama was levelled with."""
    pitch_rad: float | None


@dataclass(frozen=True)
class CollectedDrive:
    """What the session saw."""

    images: int
    """All of the drive."""
    seen: tuple[SeenImage, ...]
    odometry: MotionBuffer[OdometrySample]
    """All of it that drifts and does not jump."""
    imu: MotionBuffer[ImuSample]
    warnings: tuple[str, ...] = ()
    """The session's."""


class DriveImages(Protocol):
    """Decodes images of the drive once more."""

    def __call__(self, numbers: Sequence[int]) -> Iterator[CameraImage | None]:
        """One for each number, in rising order; None: it cannot be read."""
        ...


@dataclass(frozen=True)
class Value:
    """An estimate."""

    value: float
    sigma: float


@dataclass(frozen=True)
class DriveEstimate:
    """What a drive says. Angles in radians; None: nothing."""

    late: Value
    """Stamps minus exposures by the odometry's clock, s, beyond `session.stamp_offset_s`."""
    x: Value
    """The camera's place on base_link, m."""
    y: Value
    yaw: Value | None
    """The camera's, on base_link."""
    pitch: Value | None
    roll: Value | None
    height: Value | None
    """Of the camera above the ground, m."""
    imu_offset: Value | None
    """What must be added to the IMU's yaw."""
    scale: Value
    """True metres for each metre of odometry."""
    images: int
    """Of the drive."""
    placed: int
    """Images that showed their place."""
    aligned: int
    """Images whose ground was found in the imagery, of `used`."""
    used: int
    way_m: float
    """Between the first and the last of them, along the way."""
    turned_rad: float
    """All turns of that way, without their signs."""
    place_sigma_m: float
    """Scatter of the images' places about the fitted drive."""
    independent: float
    """How many images they are worth."""
    warnings: tuple[str, ...]
    """What the session warned of, and what could not be read."""


def whole_drive(limits: BufferLimits) -> BufferLimits:
    """The session's limits for a buffer that forgets nothing."""
    return dataclasses.replace(limits, age=WHOLE_DRIVE_NS)


def estimate_drive(
    drive: CollectedDrive,
    images: DriveImages,
    index: MapIndex,
    mount: CameraMount,
    noise: MotionNoise,
    *,
    most_images: int = MOST_IMAGES,
    progress: Callable[[], None] = lambda: None,
) -> DriveEstimate:
    """Estimate from what the session saw.

    Args:
        drive: what `collect` gave.
        images: gives the drive's pictures.
        index: of the region.
        mount: as configured; its height, mask and elevations are used as they are.
        noise: of the odometry, as configured.
        most_images: that are aligned; evenly spread over the way.
        progress: called after each alignment.

    Raises:
        InputError: The drive has no odometry, no places, or no motion.
    """
    if not len(drive.odometry):
        raise InputError(
            "the drive has no odometry in a frame that drifts; the images are compared with it: name its topic by "
            "--odometry-topic"
        )
    if len(drive.seen) < LEAST_IMAGES:
        raise InputError(
            f"{len(drive.seen)} of {drive.images} images show where they were taken, at least {LEAST_IMAGES} are "
            "needed; check index, heading and mount with `unifygeo replay --report`"
        )
    chosen = _chosen(drive, most_images)
    if len(chosen) < LEAST_IMAGES:
        raise InputError(
            f"the vehicle moved for only {len(chosen)} images that show where they were taken, at least "
            f"{LEAST_IMAGES} at different places are needed; record a drive of some hundred metres with turns"
        )
    pictures = list(zip(chosen, images([seen.number for seen in chosen]), strict=True))
    work = _Work(pictures, index, mount, progress)
    starts = [_sight(seen, mount) for seen in chosen]
    camera_m = mount.x_m, mount.y_m

    def fitted(sights: list[CameraSight], yaw_rad: float) -> DriveFit:
        fit = fit_drive(sights, drive.odometry, camera_m, yaw_rad, noise)
        if fit is None:
            raise InputError("the odometry does not reach the images' stamps; check both clocks")
        return fit

    height_m = work.search_height(starts)
    tilt: _Tilt | None = None
    fit: DriveFit | None = None
    for _ in range(2):
        base, at = starts, mount
        if fit is not None and tilt is not None:
            base, height_m = _predicted(starts, fit), tilt.height_m.value
            pitch, roll, _ = tilt.mean.tolist()
            at = dataclasses.replace(mount, yaw_rad=float(fit.values[CAMERA_YAW]), pitch_rad=pitch, roll_rad=roll)
        found = work.aligned(base, at, height_m, close=fit is not None)
        agreed = _tilt_of(found, [start.vehicle_yaw_rad for start in base], height_m)
        if agreed is None:
            break
        tilt = agreed
        sights = [
            dataclasses.replace(start, measured=False) if alignment is None else _aligned_sight(start, alignment, tilt)
            for start, alignment in zip(base, tilt.believed, strict=True)
        ]
        fit = fitted(sights, at.yaw_rad)
    # Without alignments the session's places serve.
    return _estimate(drive, fit or fitted(starts, mount.yaw_rad), tilt, len(chosen))


# -- the images -------------------------------------------------------------------------------------------------------


def _chosen(drive: CollectedDrive, most: int) -> list[SeenImage]:
    """Images between which the vehicle moved, evenly spread."""
    moved = [drive.seen[0]]
    for seen in drive.seen[1:]:
        span = drive.odometry.span(moved[-1].stamp_ns, seen.stamp_ns)
        if not span or math.hypot(span[-1].x_m - span[0].x_m, span[-1].y_m - span[0].y_m) > LEAST_STEP_M:
            moved.append(seen)
    if len(moved) <= most:
        return moved
    return [moved[round(place)] for place in np.linspace(0, len(moved) - 1, most)]


def _sight(seen: SeenImage, mount: CameraMount) -> CameraSight:
    east, north = rotate(seen.place.yaw_rad, mount.x_m, mount.y_m)
    return CameraSight(
        seen.stamp_ns, seen.place.east_m + float(east), seen.place.north_m + float(north), None, seen.place.yaw_rad
    )


def _predicted(starts: list[CameraSight], fit: DriveFit) -> list[CameraSight]:
    """The sights where the fit expects them; those without odometry stay as they are."""
    places = fit.poses[:, :2] + rotate(fit.poses[:, 2], *fit.values[LEVER])
    by_stamp = {
        sight.stamp_ns: CameraSight(sight.stamp_ns, float(place[0]), float(place[1]), None, float(pose[2]))
        for sight, place, pose in zip(fit.sights, places, fit.poses, strict=True)
    }
    return [by_stamp.get(start.stamp_ns, start) for start in starts]


@dataclass(frozen=True)
class _Work:
    """The pictures, and what aligns them."""

    pictures: list[tuple[SeenImage, CameraImage | None]]
    index: MapIndex
    mount: CameraMount
    progress: Callable[[], None]

    def search_height(self, starts: list[CameraSight]) -> float:
        """The height at which the most images agree with the imagery."""
        places = np.unique(np.linspace(0, len(starts) - 1, HEIGHT_IMAGES).round().astype(int))
        best, best_score = HEIGHTS_M[0], -math.inf
        for height_m in HEIGHTS_M:
            found = [self._align(place, starts[place], self.mount, height_m, close=False) for place in places]
            good = [a for a in found if a is not None and a.correlation > 0]
            score = sum(alignment.correlation for alignment in good)
            if score > best_score:
                heights = [a.height_m for a in good if a.correlation >= LEAST_CORRELATION]
                best, best_score = float(np.median(heights)) if heights else height_m, score
        return best

    def aligned(
        self, starts: list[CameraSight], mount: CameraMount, height_m: float, *, close: bool
    ) -> list[Alignment | None]:
        """Of each picture."""
        found = []
        for place, start in enumerate(starts):
            found.append(self._align(place, start, mount, height_m, close=close))
            self.progress()
        return found

    def _align(
        self, place: int, start: CameraSight, mount: CameraMount, height_m: float, *, close: bool
    ) -> Alignment | None:
        seen, picture = self.pictures[place]
        if picture is None:
            return None
        picture = dataclasses.replace(picture, roll_rad=seen.roll_rad, pitch_rad=seen.pitch_rad)
        guess = CameraGuess(start.east_m, start.north_m, start.vehicle_yaw_rad, height_m)
        return align(picture, mount, self.index, guess, close=close)


@dataclass(frozen=True)
class _Tilt:
    """Pitch, roll and log height (over the start's) of a drive."""

    mean: Float64
    """float64 (3,)."""
    sigma: Float64
    """float64 (3,)."""
    believed: list[Alignment | None]
    """The alignments that agree with it, one for each image."""
    start_height_m: float
    by_tilt: Float64
    """∂(place forward, left, yaw) / ∂tilt in the vehicle's axes, float64 (3, 3): mean of the alignments'."""

    @property
    def height_m(self) -> Value:
        """Of the camera above the ground."""
        return Value(self.start_height_m * math.exp(float(self.mean[2])), self.start_height_m * float(self.sigma[2]))


def _tilt_of(alignments: Sequence[Alignment | None], yaws_rad: Sequence[float], start_height_m: float) -> _Tilt | None:
    """The tilt that most alignments agree on; None where too few do. yaws_rad: of base_link at each."""
    good = [a if a is not None and a.correlation >= LEAST_CORRELATION else None for a in alignments]
    tilts = np.array([alignment.state[TILT] for alignment in good if alignment is not None]).reshape(-1, 3)
    if len(tilts) < LEAST_ALIGNED:
        return None
    centre = np.array([robust_mean(column)[0] for column in tilts.T])

    def agrees(alignment: Alignment | None) -> bool:
        away = None if alignment is None else np.abs(alignment.state[TILT] - centre)
        return away is not None and bool(np.all(away[:2] < LARGEST_TILT_DIFFERENCE_RAD) and away[2] < 0.15)

    believed = [alignment if agrees(alignment) else None for alignment in good]
    tilts = np.array([alignment.state[TILT] for alignment in believed if alignment is not None]).reshape(-1, 3)
    if len(tilts) < LEAST_ALIGNED:
        return None
    values = [_mean_of(column) for column in tilts.T]
    shifts = []
    for alignment, yaw_rad in zip(believed, yaws_rad, strict=True):
        if alignment is not None:
            to_vehicle = np.eye(3)
            to_vehicle[:2, :2] = rotation_matrix(-yaw_rad)
            shifts.append(to_vehicle @ alignment.by_tilt)
    mean, sigma = np.array([[v.value, v.sigma] for v in values]).T
    return _Tilt(mean, sigma, believed, start_height_m, np.mean(shifts, axis=0))


def _mean_of(series: Float64) -> Value:
    """Robust mean of what is constant over a drive, with the standard deviation that its scatter gives."""
    mean, weights = robust_mean(series)
    inside = series[weights > 0]
    return Value(mean, spread(inside) / math.sqrt(0.9 * effective_sample_size(inside)))


def _aligned_sight(start: CameraSight, alignment: Alignment, tilt: _Tilt) -> CameraSight:
    east, north, yaw = alignment.pose_with_tilt(tilt.mean).tolist()
    return CameraSight(start.stamp_ns, east, north, wrap_angle(start.vehicle_yaw_rad + yaw), start.vehicle_yaw_rad)


# -- the result -------------------------------------------------------------------------------------------------------


def _estimate(drive: CollectedDrive, fit: DriveFit, tilt: _Tilt | None, used: int) -> DriveEstimate:
    covariance = fit.covariance.copy()
    aligned = [] if tilt is None else [a for a in tilt.believed if a is not None]
    if tilt is not None:
        # An error of the tilt moves all places in the same way in the vehicle's axes.
        moved = tilt.by_tilt @ np.diag(tilt.sigma**2) @ tilt.by_tilt.T
        covariance[LEVER.start : CAMERA_YAW + 1, LEVER.start : CAMERA_YAW + 1] += moved

    def value(place: int, offset: float = 0.0) -> Value:
        return Value(offset + float(fit.values[place]), math.sqrt(float(covariance[place, place])))

    steps = [
        (math.hypot(b.x_m - a.x_m, b.y_m - a.y_m), abs(wrap_angle(b.yaw_rad - a.yaw_rad)))
        for run in drive.odometry.runs(fit.sights[0].stamp_ns, fit.sights[-1].stamp_ns)
        for a, b in itertools.pairwise(run[::5] if len(run) > 10 else run)
    ]
    way_m, turned_rad = np.array(steps).reshape(-1, 2).sum(axis=0).tolist()
    if way_m < LEAST_WAY_M:
        raise InputError(f"the vehicle moved {way_m:.0f} m by its odometry, at least {LEAST_WAY_M:.0f} m are needed")
    pitch: Value | None = None
    roll: Value | None = None
    if tilt is not None:
        pitch, roll, _ = (Value(*pair) for pair in zip(tilt.mean.tolist(), tilt.sigma.tolist(), strict=True))
    return DriveEstimate(
        late=value(LATE),
        x=value(LEVER.start),
        y=value(LEVER.start + 1),
        yaw=None if tilt is None else value(CAMERA_YAW),
        pitch=pitch,
        roll=roll,
        height=None if tilt is None else tilt.height_m,
        imu_offset=_imu_offset(drive, fit),
        scale=value(SCALE, 1.0),
        images=drive.images,
        placed=len(drive.seen),
        aligned=len(aligned),
        used=used,
        way_m=way_m,
        turned_rad=turned_rad,
        place_sigma_m=float(fit.sigmas[0]),
        independent=sum(sight.measured for sight in fit.sights) / fit.inflation,
        warnings=drive.warnings,
    )


def _imu_offset(drive: CollectedDrive, fit: DriveFit) -> Value | None:
    """Yaw of base_link minus the IMU's, at the exposures by the odometry's clock."""
    late_ns = ns_from_s(float(fit.values[LATE]))
    differences = []
    for sight, pose in zip(fit.sights, fit.poses, strict=True):
        sample = drive.imu.at(sight.stamp_ns - late_ns)
        if sample is not None:
            differences.append(pose[2] - sample.yaw_rad)
    if len(differences) < LEAST_IMAGES:
        return None
    middle = math.atan2(np.sin(differences).mean(), np.cos(differences).mean())
    mean = _mean_of(wrap_angle(np.array(differences) - middle))
    return Value(wrap_angle(middle + mean.value), math.hypot(mean.sigma, fit.mean_yaw_sigma_rad))
