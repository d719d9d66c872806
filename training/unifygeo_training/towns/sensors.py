"""Wheel odometry and an IMU simulated from the true motion, with noise of the declared size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_training.towns.trajectory import Drive

GRAVITY_M_S2 = 9.81


@dataclass(frozen=True)
class OdometryNoise:
    """Standard deviations of the errors of wheel odometry."""

    scale: float = 0.02
    """One standard deviation of the wheel radius' error, drawn once a drive."""
    yaw_rate_bias_rad_s: float = np.radians(0.06)
    """One standard deviation of the bias, drawn once a drive."""
    speed_m_s: float = 0.03
    """White noise of each sample."""
    yaw_rate_rad_s: float = np.radians(0.4)
    """White noise of each sample."""


@dataclass(frozen=True)
class ImuNoise:
    """Standard deviations of the errors of an IMU."""

    yaw_bias_rad: float = np.radians(1.0)
    """Standard deviation at the start."""
    yaw_walk_rad_sqrt_s: float = np.radians(0.06)
    """Its random walk."""
    yaw_rad: float = np.radians(0.3)
    """White."""
    tilt_rad: float = np.radians(0.15)
    """White."""
    gyro_bias_rad_s: float = np.radians(0.05)
    """Of rates and accelerations."""
    gyro_rad_s: float = np.radians(0.2)
    """Of rates and accelerations."""
    accelerometer_bias_m_s2: float = 0.05
    """Of rates and accelerations."""
    accelerometer_m_s2: float = 0.12
    """Of rates and accelerations."""


@dataclass(frozen=True)
class Odometry:
    """Dead reckoning in the odom frame, whose origin is base_link at time 0; arrays (n,)."""

    time_s: Float64
    x_m: Float64
    y_m: Float64
    yaw_rad: Float64
    speed_m_s: Float64
    """Measured, the mean over the interval that ends at the sample; sample k is sample k − 1 moved along the arc that
    they describe."""
    yaw_rate_rad_s: Float64
    """See `speed_m_s`."""


@dataclass(frozen=True)
class Imu:
    """IMU samples in base_link; arrays of n samples."""

    time_s: Float64
    roll_rad: Float64
    pitch_rad: Float64
    yaw_rad: Float64
    """REP-103, in the frame of the true yaw."""
    rates: Float64
    """(n, 3) rad/s."""
    accelerations: Float64
    """(n, 3) m/s², gravity included, in base_link."""


def dead_reckon(speed_m_s: Float64, yaw_rate_rad_s: Float64, interval_s: float) -> tuple[Float64, Float64, Float64]:
    """x, y, yaw (n,) after each sample, from the origin, along circular arcs: exact for constant twists.

    The first sample belongs to the start and moves nothing.
    """
    turn = np.concatenate([[0], yaw_rate_rad_s[1:] * interval_s])
    yaw = np.cumsum(turn)
    # Chord of an arc: length · sinc(turn/2), along the mean yaw.
    chord = np.concatenate([[0], speed_m_s[1:] * interval_s]) * np.sinc(turn / (2 * np.pi))
    return np.cumsum(chord * np.cos(yaw - turn / 2)), np.cumsum(chord * np.sin(yaw - turn / 2)), yaw


def wheel_odometry(rng: np.random.Generator, drive: Drive, rate_hz: float, noise: OdometryNoise) -> Odometry:
    """Wheel odometry of a drive, one sample each 1/rate_hz from time 0."""
    time = np.arange(0, drive.duration_s, 1 / rate_hz)
    # Mean speed and yaw rate over each interval, from the motion itself.
    fine = drive.at(np.linspace(0, time[-1], (len(time) - 1) * 10 + 1))
    distance = np.concatenate([[0], np.cumsum(np.hypot(np.diff(fine.x_m), np.diff(fine.y_m)))])[::10]
    speed = np.concatenate([[fine.speed_m_s[0]], np.diff(distance) * rate_hz])
    yaw_rate = np.concatenate([[fine.yaw_rate_rad_s[0]], np.diff(fine.yaw_rad[::10]) * rate_hz])
    n = len(time)
    measured = speed * (1 + rng.normal(0, noise.scale)) + rng.normal(0, noise.speed_m_s, n)
    turned = yaw_rate + rng.normal(0, noise.yaw_rate_bias_rad_s) + rng.normal(0, noise.yaw_rate_rad_s, n)
    return Odometry(time, *dead_reckon(measured, turned, 1 / rate_hz), measured, turned)


def imu(rng: np.random.Generator, drive: Drive, rate_hz: float, noise: ImuNoise) -> Imu:
    """An IMU in base_link on flat ground, one sample each 1/rate_hz from time 0."""
    time = np.arange(0, drive.duration_s, 1 / rate_hz)
    motion = drive.at(time)
    n = len(time)
    walk = np.cumsum(rng.normal(0, noise.yaw_walk_rad_sqrt_s / np.sqrt(rate_hz), n))
    yaw = motion.yaw_rad + rng.normal(0, noise.yaw_bias_rad) + walk + rng.normal(0, noise.yaw_rad, n)
    rates = rng.normal(0, noise.gyro_rad_s, (n, 3)) + rng.normal(0, noise.gyro_bias_rad_s, 3)
    rates[:, 2] += motion.yaw_rate_rad_s
    forces = rng.normal(0, noise.accelerometer_m_s2, (n, 3)) + rng.normal(0, noise.accelerometer_bias_m_s2, 3)
    forces[:, 0] += motion.acceleration_m_s2
    forces[:, 1] += motion.speed_m_s * motion.yaw_rate_rad_s
    forces[:, 2] += GRAVITY_M_S2
    return Imu(time, *rng.normal(0, noise.tilt_rad, (2, n)), yaw, rates, forces)
