"""Delay of the images, place and yaw of the camera, scale of the odometry: weighted least squares over a whole drive.

Image i was exposed τ before its stamp sᵢ. Unknown are the pose xᵢ = (east, north, yaw) of base_link at each exposure
and seven numbers that hold for the drive. The image shows the camera's place and heading,

    zᵢ = pᵢ + R(ψᵢ) l,        θᵢ = ψᵢ + κ,                                                                        (M1)

and the odometry, which has its own clock, shows the motion between two exposures,

    xᵢ⁻¹ xᵢ₊₁ = (1 + s) · Dᵢ(τ),   turned by (1 + k) · turn + b · time,   Dᵢ(τ) = O(sᵢ − τ)⁻¹ O(sᵢ₊₁ − τ).        (M2)

l is the camera's place on base_link, κ its yaw, s the odometry's error of scale, k that of its turns, b the bias of its
yaw rate. O is interpolated, so that M2 holds for any delay. Driving straight at one speed, l and τ only move the
trajectory: what the drive cannot tell keeps the wide standard deviation that it starts with.

Outliers get Tukey's weights. The standard deviations of the measurements are estimated with the rest, group by group
(variance components: S. Kotz and W. Förstner, Helmert's method), so that χ² of each group is what it should be. Errors
of neighbouring images that agree make the result less certain by their effective number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import linalg as sparse_linalg

from unifygeo_ros.core.arrays import Bool, Float64, Int64
from unifygeo_ros.core.covariance import symmetric
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.robust import TUKEY, tukey_weights
from unifygeo_ros.core.se2 import rotate, rotation_derivative, rotation_matrix
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.evaluation.metrics.definitions import effective_sample_size
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import MotionBuffer, OdometrySample

GLOBALS = ("late_s", "x_m", "y_m", "yaw_rad", "scale", "turn_scale", "yaw_rate_rad_s")
"""τ, l, κ, s, k, b."""
LATE, LEVER, CAMERA_YAW, SCALE, TURN_SCALE, YAW_RATE = 0, slice(1, 3), 3, 4, 5, 6

PRIOR_SIGMAS = np.array([1.0, 2.0, 2.0, 0.5, 0.1, 0.02, 0.01])
"""About the configured values, before the drive: wide, but for the scale of turns, whose own is `MotionNoise`'s. On a
straight drive all turns of the odometry are noise, and a wide one would explain them away."""

MARGIN_S = 1.0
"""Odometry must reach this far before and after an image."""

LONGEST_STEP_S = 60.0
"""Images further apart are not connected."""

PLACE_SIGMA_M, YAW_SIGMA_RAD = 0.5, math.radians(2.0)
"""Of the images' places and headings at first."""

GROUPS = ("image place", "image heading", "odometry way", "odometry turn")
PLACE, HEADING, WAY, TURN = range(4)
SIGMA_BOUNDS = np.array([[0.02, 3.0], [math.radians(0.03), 0.2], [0.1, 30.0], [0.1, 30.0]])
"""Standard deviations of the first two groups, and factors on those of the odometry, that are believed."""

PLAIN_STEPS, STEPS = 4, 24
"""Steps of Gauss-Newton: first without, then with weights."""

VARIANCE_STEPS = (6, 8, 10, 12)
"""After these the standard deviations of the groups are estimated."""

CONVERGED = np.array([1e-4, 1e-3, 1e-3, 1e-5, 1e-5, 1e-4, 1e-5])
"""Smaller steps are the last, in the units of `GLOBALS`."""

VELOCITY_SPAN_S = 0.25
"""Velocities are differences over twice this time. Over less, the noise of the odometry looks like changes of speed,
and a delay is found where a steady drive shows none."""


@dataclass(frozen=True)
class CameraSight:
    """Where one image shows its camera."""

    stamp_ns: int
    east_m: float
    north_m: float
    camera_yaw_rad: float | None
    """Of the image's centre column in the map; None: not known."""
    vehicle_yaw_rad: float
    """Of base_link, where the fit begins."""
    measured: bool = True
    """Whether the image shows its place. If not, place and yaw are only where the fit begins, and the odometry says
    where the vehicle was."""


@dataclass(frozen=True)
class DriveFit:
    """The result. Arrays of n sights that had odometry, in order."""

    sights: tuple[CameraSight, ...]
    values: Float64
    """float64 (7,), as `GLOBALS` says."""
    covariance: Float64
    """float64 (7, 7)."""
    poses: Float64
    """float64 (n, 3): east, north, yaw of base_link at the exposures."""
    mean_yaw_sigma_rad: float
    """Standard deviation of the mean of the yaws of `poses`."""
    weights: Float64
    """float64 (n,), 0 … 1: how much each image's place counted."""
    sigmas: Float64
    """float64 (4,), of the `GROUPS`: place (m), heading (rad), and factors on the odometry's own."""
    inflation: float
    """Images for each independent one."""

    @property
    def stamps_s(self) -> Float64:
        """Exposures in the odometry's clock, seconds after the first stamp."""
        first = self.sights[0].stamp_ns
        stamps_s = [s_from_ns(sight.stamp_ns - first) for sight in self.sights]
        return np.array(stamps_s) - float(self.values[LATE])

    def sigma(self, place: int) -> float:
        """Of one of the values."""
        return math.sqrt(float(self.covariance[place, place]))


@dataclass(frozen=True)
class _Run:
    """Odometry without a gap."""

    time_s: Float64
    poses: Float64
    """float64 (n, 3), the yaw unwrapped."""

    def at(self, time_s: Float64) -> Float64:
        """float64 (n, 3)."""
        return np.stack([np.interp(time_s, self.time_s, column) for column in self.poses.T], axis=-1)


@dataclass(frozen=True)
class _Problem:
    """What does not change from step to step. m steps between sights i and i + 1 = `first` + 1."""

    stamps_s: Float64
    runs: tuple[_Run, ...]
    run_of: Int64
    """(n,)."""
    first: Int64
    """(m,)."""
    places_m: Float64
    """(n, 2)."""
    measured: Bool
    """(n,)."""
    headings_rad: Float64
    """(n,), NaN where not known."""
    prior: Float64
    """(7,)."""
    noise: MotionNoise

    def odometry(self, late_s: float) -> Float64:
        """O(s − τ): float64 (n, 3)."""
        poses = np.empty((len(self.stamps_s), 3))
        for number, run in enumerate(self.runs):
            mine = self.run_of == number
            poses[mine] = run.at(self.stamps_s[mine] - late_s)
        return poses

    def steps(self, late_s: float) -> Float64:
        """D(τ): float64 (m, 3), forward, left, turn."""
        poses = self.odometry(late_s)
        here, there = poses[self.first], poses[self.first + 1]
        way = rotate(-here[:, 2], *(there - here)[:, :2].T)
        return np.column_stack([way, there[:, 2] - here[:, 2]])


def fit_drive(
    sights: Sequence[CameraSight],
    odometry: MotionBuffer[OdometrySample],
    camera_m: tuple[float, float],
    camera_yaw_rad: float,
    noise: MotionNoise,
) -> DriveFit | None:
    """Fit M1 and M2.

    Args:
        sights: rising in time.
        odometry: of the whole drive, in a frame that drifts and does not jump.
        camera_m: place of the camera on base_link as configured, forward and left.
        camera_yaw_rad: its yaw as configured.
        noise: of the odometry, at first.

    Returns:
        None where fewer than three images have odometry about them.
    """
    kept, problem = _problem(sights, odometry, np.array([0.0, *camera_m, camera_yaw_rad, 0.0, 0.0, 0.0]), noise)
    if problem is None:
        return None
    count = len(kept)
    yaws = np.array([sight.vehicle_yaw_rad for sight in kept])
    poses = np.column_stack([problem.places_m - rotate(yaws, *problem.prior[LEVER]), yaws])
    state = np.concatenate([problem.prior, poses.ravel()])
    sigmas = np.array([PLACE_SIGMA_M, YAW_SIGMA_RAD, 1.0, 1.0])
    weights = [np.ones(count), np.ones(count), np.ones(len(problem.first)), np.ones(len(problem.first))]
    prior_weights = 1 / np.where(np.arange(len(GLOBALS)) == TURN_SCALE, max(noise.turn_scale, 1e-6), PRIOR_SIGMAS) ** 2
    for number in range(STEPS):
        residuals, jacobian, group, units = _residuals(problem, state)
        scaled = residuals / (units * sigmas[group])
        if number >= PLAIN_STEPS:
            weights = _weights(scaled, group, count)
        row_weights = np.concatenate(
            [np.repeat(weights[PLACE], 2), weights[HEADING], np.repeat(weights[WAY], 2), weights[TURN]]
        )
        row_weights = row_weights * np.isfinite(residuals)
        scaled = np.nan_to_num(scaled)
        whitened = sparse.csr_matrix(jacobian * (np.sqrt(row_weights) / (units * sigmas[group]))[:, None])
        gradient = whitened.T @ (np.sqrt(row_weights) * -scaled)
        gradient[: len(prior_weights)] += prior_weights * (problem.prior - state[: len(prior_weights)])
        prior = sparse.diags(np.concatenate([prior_weights, np.full(3 * count, 1e-12)]))
        normal = (whitened.T @ whitened + prior).tocsc()
        solver = sparse_linalg.splu(normal)
        step = solver.solve(gradient)
        step[LATE] = np.clip(step[LATE], -0.5, 0.5)
        state = state + step
        state[LATE] = np.clip(state[LATE], -MARGIN_S, MARGIN_S)
        if number in VARIANCE_STEPS:
            dense = whitened.toarray()
            leverages = (dense @ np.linalg.inv(normal.toarray()) * dense).sum(axis=1)
            sigmas = _variance_components(sigmas, scaled, row_weights, leverages, group)
        elif number > VARIANCE_STEPS[-1] and np.all(np.abs(step[: len(GLOBALS)]) < CONVERGED):
            break
    inflation = _inflation(scaled, group, count, state[7:].reshape(-1, 3)[:, 2], weights[PLACE] > 0)
    mean_yaw = np.zeros(len(state))
    mean_yaw[9::3] = 1 / count
    wanted = np.column_stack([np.eye(len(state), len(GLOBALS)), mean_yaw])
    covariance = symmetric(wanted.T @ solver.solve(wanted)) * inflation
    found = state[7:].reshape(-1, 3).copy()
    found[:, 2] = wrap_angle(found[:, 2])
    return DriveFit(
        tuple(kept),
        np.array([*state[:3], wrap_angle(float(state[3])), *state[4:7]]),
        covariance[:-1, :-1],
        found,
        math.sqrt(float(covariance[-1, -1])),
        weights[PLACE],
        sigmas,
        inflation,
    )


def _problem(
    sights: Sequence[CameraSight], odometry: MotionBuffer[OdometrySample], prior: Float64, noise: MotionNoise
) -> tuple[list[CameraSight], _Problem | None]:
    if not len(odometry) or not sights:
        return [], None
    newest = odometry.newest
    assert newest is not None
    origin_ns = sights[0].stamp_ns
    runs = []
    for samples in odometry.runs(0, newest.stamp_ns):
        times_s = np.array([s_from_ns(sample.stamp_ns - origin_ns) for sample in samples])
        yaw = np.unwrap([sample.yaw_rad for sample in samples])
        runs.append(_Run(times_s, np.column_stack([[s.x_m for s in samples], [s.y_m for s in samples], yaw])))
    kept, run_of = [], []
    for sight in sights:
        time_s = s_from_ns(sight.stamp_ns - origin_ns)
        for number, run in enumerate(runs):
            if run.time_s[0] <= time_s - MARGIN_S and time_s + MARGIN_S <= run.time_s[-1]:
                kept.append(sight)
                run_of.append(number)
    if len(kept) < 3:
        return [], None
    # `DriveFit.stamps_s` counts from the first sight that is kept.
    shift_s = s_from_ns(kept[0].stamp_ns - origin_ns)
    runs = [_Run(run.time_s - shift_s, run.poses) for run in runs]
    stamps_s = np.array([s_from_ns(sight.stamp_ns - kept[0].stamp_ns) for sight in kept])
    numbers = np.array(run_of)
    connected = (np.diff(numbers) == 0) & (np.diff(stamps_s) <= LONGEST_STEP_S)
    headings = np.array([s.camera_yaw_rad if s.measured and s.camera_yaw_rad is not None else math.nan for s in kept])
    measured = np.array([sight.measured for sight in kept])
    places = np.array([[sight.east_m, sight.north_m] for sight in kept])
    first = np.flatnonzero(connected)
    return kept, _Problem(stamps_s, tuple(runs), numbers, first, places, measured, headings, prior, noise)


def _residuals(problem: _Problem, state: Float64) -> tuple[Float64, Float64, Int64, Float64]:
    """Residuals (model minus measurement; NaN: not measured), their Jacobian, their group, their unit."""
    late_s, lever, camera_yaw = float(state[LATE]), state[LEVER], float(state[CAMERA_YAW])
    scale, turn_scale, rate = state[SCALE : YAW_RATE + 1].tolist()
    poses = state[7:].reshape(-1, 3)
    n, first = len(poses), problem.first
    m = len(first)
    jacobian = np.zeros((3 * n + 3 * m, len(state)))
    at = 7 + 3 * np.arange(n)

    offset = rotate(poses[:, 2], *lever)
    place = np.where(problem.measured[:, None], poses[:, :2] + offset - problem.places_m, np.nan)
    rows = 2 * np.arange(n)
    turned, by_yaw = rotation_matrix(poses[:, 2]), rotation_derivative(offset)
    for axis in range(2):
        jacobian[rows + axis, at + axis] = 1.0
        jacobian[rows + axis, at + 2] = by_yaw[:, axis]
        jacobian[rows + axis, 1:3] = turned[:, axis]
    heading = wrap_angle(poses[:, 2] + camera_yaw - problem.headings_rad)
    rows = 2 * n + np.arange(n)
    jacobian[rows, at + 2] = 1.0
    jacobian[rows, CAMERA_YAW] = 1.0

    steps = problem.steps(late_s)
    by_late = (problem.steps(late_s + VELOCITY_SPAN_S) - problem.steps(late_s - VELOCITY_SPAN_S)) / (
        2 * VELOCITY_SPAN_S
    )
    time_s = np.diff(problem.stamps_s)[first]
    here, there = poses[first], poses[first + 1]
    moved = rotate(-here[:, 2], *(there - here)[:, :2].T)
    # The chord turns by half of what is added to the turn.
    added = turn_scale * steps[:, 2] + rate * time_s
    chord = rotate(added / 2, *steps[:, :2].T)
    way = moved - (1 + scale) * chord
    turn = wrap_angle(there[:, 2] - here[:, 2] - steps[:, 2] - added)
    back, by_angle = rotation_matrix(-here[:, 2]), (1 + scale) / 2 * rotation_derivative(chord)
    by_late_chord = rotate(added / 2, *by_late[:, :2].T)
    rows = 3 * n + 2 * np.arange(m)
    for axis in range(2):
        for column in range(2):
            jacobian[rows + axis, at[first] + column] = -back[:, axis, column]
            jacobian[rows + axis, at[first + 1] + column] = back[:, axis, column]
        jacobian[rows + axis, at[first] + 2] = -rotation_derivative(moved)[:, axis]
        jacobian[rows + axis, LATE] = (
            -(1 + scale) * by_late_chord[:, axis] - by_angle[:, axis] * turn_scale * by_late[:, 2]
        )
        jacobian[rows + axis, SCALE] = -chord[:, axis]
        jacobian[rows + axis, TURN_SCALE] = -by_angle[:, axis] * steps[:, 2]
        jacobian[rows + axis, YAW_RATE] = -by_angle[:, axis] * time_s
    rows = 3 * n + 2 * m + np.arange(m)
    jacobian[rows, at[first + 1] + 2] = 1.0
    jacobian[rows, at[first] + 2] = -1.0
    jacobian[rows, LATE] = -(1 + turn_scale) * by_late[:, 2]
    jacobian[rows, TURN_SCALE] = -steps[:, 2]
    jacobian[rows, YAW_RATE] = -time_s

    noise = problem.noise
    way_m = np.hypot(*steps[:, :2].T)
    way_unit = np.sqrt(noise.walk**2 * way_m + 0.005**2)
    turn_unit = np.sqrt(noise.yaw_walk**2 * way_m + 0.0005**2)
    residuals = np.concatenate([place.ravel(), heading, way.ravel(), turn])
    group = np.repeat(np.arange(4), [2 * n, n, 2 * m, m])
    units = np.concatenate([np.ones(3 * n), np.repeat(way_unit, 2), turn_unit])
    return residuals, jacobian, group, units


def _weights(scaled: Float64, group: Int64, count: int) -> list[Float64]:
    """Of each image's place and heading, of each step's way and turn."""
    place = np.linalg.norm(scaled[group == PLACE].reshape(count, 2), axis=1) / math.sqrt(2)
    heading = scaled[group == HEADING]
    unknown = np.isnan(place)
    # A place that is wrong comes with a heading that is.
    sight = np.where(unknown, 0.0, tukey_weights(np.nan_to_num(np.fmax(place, np.abs(heading)))))
    way = np.linalg.norm(scaled[group == WAY].reshape(-1, 2), axis=1) / math.sqrt(2)
    turn = np.abs(scaled[group == TURN])
    limit = TUKEY / 2
    return [sight, sight, *(np.minimum(1.0, limit / np.maximum(part, 1e-9)) for part in (way, turn))]


def _variance_components(
    sigmas: Float64, scaled: Float64, weights: Float64, leverages: Float64, group: Int64
) -> Float64:
    """The groups' standard deviations at which χ² of each is its number of redundant measurements."""
    found: Float64 = sigmas.copy()
    for number in range(len(GROUPS)):
        mine = (group == number) & (weights > 0)
        redundancy = float(weights[mine].sum() - leverages[mine].sum())
        if redundancy < 3:
            continue
        factor = math.sqrt(float(weights[mine] @ scaled[mine] ** 2) / redundancy)
        least, most = SIGMA_BOUNDS[number].tolist()
        found[number] = min(max(float(sigmas[number]) * min(max(factor, 0.5), 2.0), least), most)
    return found


def _inflation(scaled: Float64, group: Int64, count: int, yaws: Float64, used: Bool) -> float:
    """Images for each independent one, by the correlation of their residuals in the vehicle's axes; at least 1."""
    place = scaled[group == PLACE].reshape(count, 2)
    series = [*rotate(-yaws, *place.T)[used].T, scaled[group == HEADING][used]]
    shares = [len(values) / effective_sample_size(values) for values in series if values.any()]
    return max([1.0, *shares])
