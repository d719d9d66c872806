"""Motion samples: checks, interpolation against hand-worked cases, buffers that stay bounded."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifygeo_ros.motion.samples import (
    MAP_FRAME,
    ODOM_FRAME,
    BufferLimits,
    ImuSample,
    InitialPose,
    MotionBuffer,
    OdometrySample,
    roll_pitch_yaw,
)

SECOND = 1_000_000_000
LIMITS = BufferLimits(age=10 * SECOND, gap=SECOND // 2, extrapolation=SECOND // 5, time_jump=SECOND)


def odometry(time_s: float, x: float = 0.0, y: float = 0.0, yaw: float = 0.0, **more: object) -> OdometrySample:
    return OdometrySample(round(time_s * SECOND), ODOM_FRAME, x, y, yaw, **more)  # type: ignore[arg-type]


def filled(*samples: OdometrySample) -> MotionBuffer[OdometrySample]:
    buffer: MotionBuffer[OdometrySample] = MotionBuffer(LIMITS)
    for sample in samples:
        assert buffer.add(sample) is None
    return buffer


def test_interpolation_is_linear_and_turns_the_short_way() -> None:
    buffer = filled(odometry(1.0, 0, 0, math.radians(170)), odometry(1.4, 4, -2, math.radians(-170)))
    middle = buffer.at(round(1.1 * SECOND))
    assert middle is not None
    assert (middle.x_m, middle.y_m) == pytest.approx((1.0, -0.5))
    assert math.degrees(middle.yaw_rad) == pytest.approx(175)
    assert math.degrees(buffer.at(round(1.3 * SECOND)).yaw_rad) == pytest.approx(-175)  # type: ignore[union-attr]


def test_interpolation_takes_the_wider_covariance() -> None:
    buffer = filled(odometry(1.0, covariance=np.eye(3)), odometry(1.4, covariance=4 * np.eye(3)))
    middle = buffer.at(round(1.1 * SECOND))
    assert middle is not None
    np.testing.assert_array_equal(middle.covariance, 4 * np.eye(3))


def test_extrapolation_follows_the_velocity_and_ends_at_its_limit() -> None:
    # Facing north, 10 m/s forward and 1 m/s to the left: 0.1 s later 1 m north and 0.1 m west.
    buffer = filled(odometry(1.0, 5, 5, math.pi / 2, forward_m_s=10.0, left_m_s=1.0))
    ahead = buffer.at(round(1.1 * SECOND))
    assert ahead is not None
    assert (ahead.x_m, ahead.y_m) == pytest.approx((4.9, 6.0))
    assert buffer.at(round(1.2 * SECOND)) is not None
    assert buffer.at(round(1.2 * SECOND) + 1) is None


def test_extrapolated_turn_agrees_with_fine_integration() -> None:
    speed, rate, time_s = 10.0, 0.8, 0.2
    buffer = filled(odometry(1.0, 0, 0, 0.3, forward_m_s=speed, yaw_rate_rad_s=rate))
    ahead = buffer.at(round((1.0 + time_s) * SECOND))
    assert ahead is not None
    steps = (np.arange(100_000) + 0.5) / 100_000 * time_s
    exact = [np.mean(speed * time_s * f(0.3 + rate * steps)) for f in (np.cos, np.sin)]
    assert (ahead.x_m, ahead.y_m) == pytest.approx(exact, abs=0.01)


def test_pose_at_is_none_before_the_first_sample_and_in_a_gap() -> None:
    buffer = filled(odometry(1.0), odometry(1.5), odometry(2.2), odometry(2.6))
    assert buffer.at(round(0.99 * SECOND)) is None
    assert buffer.at(round(1.25 * SECOND)) is not None
    assert buffer.at(round(1.8 * SECOND)) is None
    assert [s.stamp_ns for s in buffer.span(SECOND, round(1.5 * SECOND))] == [SECOND, round(1.5 * SECOND)]
    assert buffer.span(SECOND, round(2.4 * SECOND)) == []
    assert len(buffer.span(round(2.3 * SECOND), round(2.7 * SECOND))) == 3
    assert buffer.span(round(2.4 * SECOND), round(2.3 * SECOND)) == []


@pytest.mark.parametrize(
    "fault",
    [
        {"x_m": math.nan},
        {"y_m": math.inf},
        {"yaw_rad": math.nan},
        {"forward_m_s": -math.inf},
        {"covariance": np.full((3, 3), math.nan)},
        {"covariance": -np.eye(3)},
        {"covariance": np.array([[1.0, 5, 0], [0, 1, 0], [0, 0, 1]])},
        {"covariance": np.eye(2)},
        {"x_m": 1e200},
        {"y_m": -1.001e8},
        {"forward_m_s": 2e4},
        {"left_m_s": -1e155},
        {"yaw_rad": 1e300},
        {"yaw_rate_rad_s": -1e9},
        {"frame": "base_link"},
        {"stamp_ns": 0},
        {"stamp_ns": -5},
    ],
)
def test_bad_sample_is_refused_and_leaves_no_trace(fault: dict[str, object]) -> None:
    buffer = filled(odometry(1.0, 1.0), odometry(1.2, 2.0))
    before = buffer.at(round(1.1 * SECOND))
    assert buffer.add(dataclasses.replace(odometry(1.4, 3.0), **fault)) is not None  # type: ignore[arg-type]
    assert len(buffer) == 2
    after = buffer.at(round(1.1 * SECOND))
    assert before is not None
    assert after is not None
    np.testing.assert_equal(dataclasses.asdict(after), dataclasses.asdict(before))


def test_late_samples_are_refused_and_a_clock_set_back_restarts() -> None:
    buffer = filled(odometry(100.0), odometry(100.1))
    assert buffer.add(odometry(100.1)) is not None
    assert buffer.add(odometry(99.2)) is not None
    assert len(buffer) == 2
    assert buffer.add(odometry(5.0)) is None
    assert len(buffer) == 1


def test_motion_buffer_is_bounded_by_its_age() -> None:
    buffer: MotionBuffer[OdometrySample] = MotionBuffer(LIMITS)
    for step in range(20_000):
        buffer.add(odometry(1 + step * 0.02))
        assert len(buffer) <= 2 * 501 + 1
    newest = 1 + 19_999 * 0.02
    assert buffer.at(round((newest - 9.99) * SECOND)) is not None


def test_imu_and_initial_pose_checks() -> None:
    assert ImuSample(SECOND, 0.1, 0.0, 3.0).fault() is None
    assert ImuSample(SECOND, math.nan, math.nan, math.nan).fault() == "no orientation"
    assert ImuSample(SECOND, 0.1, 0.0, math.nan).fault() == "not finite"
    assert ImuSample(SECOND, 0.1, 0.0, 1.0, -1.0).fault() == "bad covariance"
    assert InitialPose(0, 1.0, 2.0, 0.5, np.eye(3)).fault() is None
    assert InitialPose(0, 1.0, math.nan, 0.5, np.eye(3)).fault() == "not finite"
    assert InitialPose(0, 1.0, 2.0, 0.5, np.zeros((3, 3))).fault() == "bad covariance"
    assert ImuSample(SECOND, 0.1, 0.0, 1e7).fault() == "angle beyond 1e+06 rad"
    assert InitialPose(0, 1.0, -1e9, 0.5, np.eye(3)).fault() == "position beyond 1e+08 m"
    assert InitialPose(0, 1.0, 2.0, 1e9, np.eye(3)).fault() == "yaw beyond 1e+06 rad"


def test_reason_for_an_absurd_sample_names_the_limit() -> None:
    assert odometry(1.0, x=1e160).fault() == "position beyond 1e+08 m"
    assert odometry(1.0, forward_m_s=1e5).fault() == "speed above 10000 m/s"
    assert odometry(1.0, yaw=-1e7).fault() == "yaw or yaw rate beyond 1e+06 rad"
    # What real drivers send is let pass: UTM coordinates, turns that are not wrapped, "unknown" as a large covariance.
    assert odometry(1.0, 5e5, 5.4e6, 400.0, covariance=1e10 * np.eye(3)).fault() is None


@given(st.floats(-3.1, 3.1), st.floats(-1.5, 1.5), st.floats(-3.1, 3.1), st.floats(0.1, 10.0))
def test_quaternion_angles_rebuild_the_rotation(roll: float, pitch: float, yaw: float, length: float) -> None:
    def about(axis: int, angle: float) -> np.ndarray:
        q = np.zeros(4)
        q[3], q[axis] = math.cos(angle / 2), math.sin(angle / 2)
        return q

    def times(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        vector = p[3] * q[:3] + q[3] * p[:3] + np.cross(p[:3], q[:3])
        return np.append(vector, p[3] * q[3] - p[:3] @ q[:3])

    q = length * times(about(2, yaw), times(about(1, pitch), about(0, roll)))
    assert roll_pitch_yaw(*q) == pytest.approx((roll, pitch, yaw), abs=1e-6)


def test_zero_quaternion_gives_no_orientation() -> None:
    assert all(map(math.isnan, roll_pitch_yaw(0.0, 0.0, 0.0, 0.0)))
    assert all(map(math.isnan, roll_pitch_yaw(math.nan, 0.0, 0.0, 1.0)))


def test_odometry_in_the_map_frame_is_accepted() -> None:
    assert OdometrySample(1, MAP_FRAME, 0.0, 0.0, 0.0).fault() is None
