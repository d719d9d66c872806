"""Ground truth out of ROS messages and trajectory files, still in the coordinates it was recorded in."""

from __future__ import annotations

import csv
import math
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple

import numpy as np

from unifygeo_ros.conversions.from_messages import stamp_ns
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import covariance_problem, symmetric
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.recordings.truth import Recording
from unifygeo_ros.motion.samples import roll_pitch_yaw

_UNKNOWN = np.full((2, 2), np.nan)
_NO_FIX = -1
"""sensor_msgs/NavSatStatus: STATUS_NO_FIX."""
_COVARIANCE_UNKNOWN = 0
"""sensor_msgs/NavSatFix: COVARIANCE_TYPE_UNKNOWN."""


class Sample(NamedTuple):
    """One recorded pose: latitude and longitude in degrees, or x and y in metres. Yaw and covariance NaN: not known."""

    stamp_ns: int
    first: float
    second: float
    yaw_rad: float
    covariance_m2: Float64


def sample_of_navsatfix(message: Any) -> Sample | None:
    """sensor_msgs/NavSatFix. None while the receiver has no fix."""
    if message.status.status <= _NO_FIX:
        return None
    matrix = np.asarray(message.position_covariance, np.float64).reshape(3, 3)[:2, :2]
    covariance = _UNKNOWN if message.position_covariance_type == _COVARIANCE_UNKNOWN else _usable_covariance(matrix)
    return _checked(Sample(stamp_ns(message.header), message.latitude, message.longitude, math.nan, covariance))


def sample_of_pose_with_covariance(message: Any) -> Sample | None:
    """nav_msgs/Odometry and geometry_msgs/PoseWithCovarianceStamped."""
    covariance = np.asarray(message.pose.covariance, np.float64).reshape(6, 6)[:2, :2]
    return _sample_of_pose(message.header, message.pose.pose, _usable_covariance(covariance))


def sample_of_pose(message: Any) -> Sample | None:
    """geometry_msgs/PoseStamped."""
    return _sample_of_pose(message.header, message.pose, _UNKNOWN)


TRUTH_TYPES: Mapping[str, Callable[[Any], Sample | None]] = {
    "sensor_msgs/msg/NavSatFix": sample_of_navsatfix,
    "nav_msgs/msg/Odometry": sample_of_pose_with_covariance,
    "geometry_msgs/msg/PoseWithCovarianceStamped": sample_of_pose_with_covariance,
    "geometry_msgs/msg/PoseStamped": sample_of_pose,
}
GEODETIC_TYPE = "sensor_msgs/msg/NavSatFix"


def recording_of_samples(samples: Iterable[Sample], *, geodetic: bool, source: str) -> Recording:
    """Gather samples into arrays."""
    gathered = list(samples)
    return Recording(
        stamps_ns=np.array([s.stamp_ns for s in gathered], np.int64),
        positions=np.array([(s.first, s.second) for s in gathered], np.float64).reshape(-1, 2),
        geodetic=geodetic,
        yaw_rad=np.array([s.yaw_rad for s in gathered], np.float64),
        covariances_m2=np.array([s.covariance_m2 for s in gathered], np.float64).reshape(-1, 2, 2),
        source=source,
    )


def read_truth_file(path: Path) -> Recording:
    """A trajectory file: TUM (`stamp x y z qx qy qz qw`, blanks between, # for comments) or CSV with a header.

    CSV columns: `stamp_ns` or `stamp_s`; `latitude_deg` and `longitude_deg` or `east_m` and `north_m`; optionally
    `yaw_rad` and `sigma_m`. An empty yaw or sigma is not known. Raises InputError naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a TUM or CSV trajectory") from error
    content = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not content:
        raise InputError(f"{path}: holds no line of a trajectory; give a TUM or CSV trajectory")
    return _read_csv(path, content) if "," in content[0][1] else _read_tum(path, content)


def _read_tum(path: Path, content: list[tuple[int, str]]) -> Recording:
    samples = []
    for number, line in content:
        fields = line.split()
        if len(fields) != 8:
            raise InputError(f"{path}:{number}: {len(fields)} fields, a TUM line has 8: stamp x y z qx qy qz qw")
        x, y, _z, *quaternion = (_number(path, number, field) for field in fields[1:])
        _roll, _pitch, yaw = roll_pitch_yaw(*quaternion)
        samples.append(Sample(_nanoseconds(path, number, fields[0], 9), x, y, yaw, _UNKNOWN))
    return recording_of_samples(samples, geodetic=False, source=str(path))


def _read_csv(path: Path, content: list[tuple[int, str]]) -> Recording:
    names, *rows = csv.reader(line for _, line in content)
    column = {name.strip(): number for number, name in enumerate(names)}
    stamp_name = next((name for name in ("stamp_ns", "stamp_s") if name in column), None)
    geodetic = {"latitude_deg", "longitude_deg"} <= column.keys()
    position_names = ("latitude_deg", "longitude_deg") if geodetic else ("east_m", "north_m")
    if stamp_name is None or not set(position_names) <= column.keys():
        raise InputError(
            f"{path}:{content[0][0]}: columns {', '.join(column)}; needed are stamp_ns or stamp_s, and latitude_deg "
            "and longitude_deg or east_m and north_m (optional: yaw_rad, sigma_m)"
        )
    samples = []
    for (number, _), row in zip(content[1:], rows, strict=True):
        if len(row) != len(names):
            raise InputError(f"{path}:{number}: {len(row)} fields under a header of {len(names)}")

        def value(name: str, row: list[str] = row, number: int = number) -> float:
            text = row[column[name]].strip() if name in column else ""
            return _number(path, number, text) if text else math.nan

        first, second = (_number(path, number, row[column[name]]) for name in position_names)
        sigma = value("sigma_m")
        stamp = _nanoseconds(path, number, row[column[stamp_name]], 0 if stamp_name == "stamp_ns" else 9)
        samples.append(Sample(stamp, first, second, value("yaw_rad"), np.eye(2) * sigma**2 + 0 * sigma))
    return recording_of_samples(samples, geodetic=geodetic, source=str(path))


def _number(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}:{line}: {text.strip()!r} is not a finite number; correct or remove the line")
    return value


def _nanoseconds(path: Path, line: int, text: str, shift: int) -> int:
    """Exact, since a float64 of today's seconds resolves only 0.2 µs."""
    try:
        return int(Decimal(text.strip()).scaleb(shift).to_integral_value())
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise InputError(f"{path}:{line}: {text.strip()!r} is not a time; correct or remove the line") from error


def _sample_of_pose(header: Any, pose: Any, covariance: Float64) -> Sample | None:
    q = pose.orientation
    _roll, _pitch, yaw = roll_pitch_yaw(q.x, q.y, q.z, q.w)
    return _checked(Sample(stamp_ns(header), pose.position.x, pose.position.y, yaw, covariance))


def _checked(sample: Sample) -> Sample | None:
    usable = sample.stamp_ns > 0 and math.isfinite(sample.first) and math.isfinite(sample.second)
    return sample if usable else None


def _usable_covariance(matrix: Float64) -> Float64:
    """The matrix if it says something: all zero is how drivers leave it empty, and a negative one marks "unknown"."""
    matrix = symmetric(matrix)
    return matrix if covariance_problem(matrix, 2) is None else _UNKNOWN
