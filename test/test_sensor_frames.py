"""IMU and odometry in other frames than base_link: what base_link does, from what the sensor says.

The oracle is homogeneous matrices of poses on a simulated drive; the code under test works with quaternions and levers.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from unifygeo_ros.conversions.from_messages import imu_sample, odometry_sample
from unifygeo_ros.conversions.sensor_frames import SensorPose
from unifygeo_ros.core.errors import InputError

MOUNTS = {
    "upside down": (math.pi, 0.0, 0.0),
    "turned to the left": (0.0, 0.0, math.pi / 2),
    "on its side": (math.pi / 2, 0.0, 0.3),
    "any": (0.4, -0.7, 2.1),
}
POSITION_M = (1.2, -0.4, 0.8)


def fields(**values):
    return SimpleNamespace(**values)


def quaternion(rotation):
    x, y, z, w = rotation.as_quat()
    return fields(x=x, y=y, z=z, w=w)


def vector(values):
    return fields(x=values[0], y=values[1], z=values[2])


def rotation(roll, pitch, yaw):
    return Rotation.from_euler("ZYX", [yaw, pitch, roll])


def mounted(angles, position_m=POSITION_M):
    turn = rotation(*angles)
    return SensorPose.from_transform(fields(rotation=quaternion(turn), translation=vector(position_m))), turn


def header(frame="odom"):
    return fields(stamp=fields(sec=7, nanosec=0), frame_id=frame)


@pytest.mark.parametrize("angles", MOUNTS.values(), ids=MOUNTS)
@pytest.mark.parametrize("vehicle", [(0.0, 0.0, 1.0), (0.1, -0.2, -2.5)])
def test_imu_gives_the_angles_of_base_link_however_it_is_mounted(angles, vehicle):
    sensor, turn = mounted(angles)
    message = fields(
        header=header("imu_link"),
        orientation=quaternion(rotation(*vehicle) * turn),  # of the sensor, as REP-145 has it
        orientation_covariance=[0.0] * 8 + [0.02],
    )
    sample = imu_sample(message, sensor)
    assert (sample.roll_rad, sample.pitch_rad, sample.yaw_rad) == pytest.approx(vehicle)
    assert sample.yaw_variance_rad2 == 0.02
    wrong = imu_sample(message)
    assert (wrong.roll_rad, wrong.pitch_rad, wrong.yaw_rad) != pytest.approx(vehicle, abs=0.1)


def matrix(turn, position_m):
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn.as_matrix(), position_m
    return pose


@pytest.mark.parametrize("angles", MOUNTS.values(), ids=MOUNTS)
def test_odometry_of_another_frame_gives_pose_and_velocity_of_base_link(angles):
    """A vehicle on a circle; the sensor's velocity is the difference of its own poses a microsecond apart."""
    sensor, turn = mounted(angles)
    mount = matrix(turn, POSITION_M)
    speed, turn_rate, step_s = 6.0, 0.5, 1e-6

    def base_pose(time_s):
        yaw = 0.4 + turn_rate * time_s
        place = [speed / turn_rate * math.sin(yaw), -speed / turn_rate * math.cos(yaw), 0.0]
        return matrix(rotation(0.0, 0.0, yaw), place)

    now, later = base_pose(2.0) @ mount, base_pose(2.0 + step_s) @ mount
    velocity = now[:3, :3].T @ (later[:3, 3] - now[:3, 3]) / step_s
    rate = now[:3, :3].T @ np.array([0.0, 0.0, turn_rate])
    message = fields(
        header=header(),
        child_frame_id="sensor",
        pose=fields(
            pose=fields(position=vector(now[:3, 3]), orientation=quaternion(Rotation.from_matrix(now[:3, :3]))),
            covariance=np.zeros(36),
        ),
        twist=fields(twist=fields(linear=vector(velocity), angular=vector(rate))),
    )
    sample = odometry_sample(message, "map", sensor)
    truth = base_pose(2.0)
    assert (sample.x_m, sample.y_m) == pytest.approx(tuple(truth[:2, 3]), abs=1e-9)
    assert sample.yaw_rad == pytest.approx(0.4 + turn_rate * 2.0)
    assert (sample.forward_m_s, sample.left_m_s, sample.yaw_rate_rad_s) == pytest.approx(
        (speed, 0.0, turn_rate), abs=1e-4
    )


def test_yaw_error_of_the_sensor_moves_base_link_sideways():
    """2 m behind the sensor, the lateral error of base_link is that of the sensor minus 2 m times the yaw's."""
    sensor, _ = mounted((0.0, 0.0, 0.0), (2.0, 0.0, 0.0))
    covariance = np.diag([0.5, 0.3, 0.0, 0.0, 0.0, 0.01])
    message = fields(
        header=header(),
        child_frame_id="sensor",
        pose=fields(
            pose=fields(position=vector((0.0, 0.0, 0.0)), orientation=quaternion(rotation(0.0, 0.0, 0.0))),
            covariance=covariance.ravel(),
        ),
        twist=fields(twist=fields(linear=vector((0.0, 0.0, 0.0)), angular=vector((0.0, 0.0, 0.0)))),
    )
    sample = odometry_sample(message, "map", sensor)
    assert (sample.x_m, sample.y_m) == (-2.0, 0.0)
    # y = y_sensor − 2 sin(yaw): variance 0.3 + 4 · 0.01, covariance with yaw −2 · 0.01.
    np.testing.assert_allclose(sample.covariance, [[0.5, 0.0, 0.0], [0.0, 0.34, -0.02], [0.0, -0.02, 0.01]], atol=1e-12)


def test_same_frame_needs_no_pose():
    assert mounted((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))[0] is None


@pytest.mark.parametrize("broken", [{"x": math.nan}, {"x": 0.0, "y": 0.0, "z": 0.0, "w": 0.0}])
def test_invalid_transform_is_refused(broken):
    turn = fields(**{"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0, **broken})
    with pytest.raises(InputError, match="are not a valid transform"):
        SensorPose.from_transform(fields(rotation=turn, translation=vector(POSITION_M)))


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_invalid_orientation_is_left_to_the_samples_check(value):
    sensor, _ = mounted(MOUNTS["any"])
    message = fields(
        header=header(), orientation=fields(x=value, y=value, z=value, w=value), orientation_covariance=[0.0] * 9
    )
    assert imu_sample(message, sensor).fault() == "no orientation"
