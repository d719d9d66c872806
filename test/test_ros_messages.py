"""Outgoing messages: where things lie in them, and that nothing broken leaves the node."""

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip("rclpy")

from unifygeo_ros.core.geodesy import map_from_tile
from unifygeo_ros.core.records import Fix, Hypothesis, TileDistribution
from unifygeo_ros.ros.to_messages import (
    PublicationError,
    check_fix,
    heatmap_message,
    hypotheses_message,
    jpeg_message,
    navsat_message,
    pose_message,
)

FIX = Fix(
    stamp_ns=12_000_000_345,
    east_m=3.0,
    north_m=-4.0,
    latitude_deg=48.5,
    longitude_deg=9.0,
    covariance_m2=np.array([[2.0, 0.5], [0.5, 1.0]]),
    yaw_rad=math.pi / 2,
    yaw_variance_rad2=0.01,
    tile_id=7,
    score=0.5,
    ambiguity=0.1,
    hypotheses=(Hypothesis(3.0, -4.0, 0.8, 7), Hypothesis(50.0, 60.0, 0.2, 9)),
)


def test_pose_is_laid_out_as_its_consumer_reads_it():
    check_fix(FIX, last_stamp_ns=None)
    message = pose_message(FIX, "map")
    assert message.header.frame_id == "map"
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12, 345)
    pose = message.pose.pose
    assert (pose.position.x, pose.position.y, pose.position.z) == (3.0, -4.0, 0.0)
    assert (pose.orientation.z, pose.orientation.w) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))
    covariance = message.pose.covariance.reshape(6, 6)  # x, y, z, about x, about y, about z
    assert covariance[0, 0] == 2.0
    assert covariance[1, 1] == 1.0
    assert covariance[0, 1] == covariance[1, 0] == 0.5
    assert covariance[5, 5] == 0.01
    # As docs/reference/node.md says; robot_localization warns above 1000 m².
    assert np.diag(covariance)[2:5].tolist() == [100.0, 1.0, 1.0]
    assert np.linalg.eigvalsh(covariance)[0] > 0


def test_navsat_is_one_that_navsat_transform_takes():
    message = navsat_message(FIX, "base_link", 310.0)
    assert (message.latitude, message.longitude, message.altitude) == (48.5, 9.0, 310.0)
    assert message.status.status == message.status.STATUS_FIX
    assert message.position_covariance_type == message.COVARIANCE_TYPE_KNOWN
    assert message.position_covariance.reshape(3, 3)[:2, :2].tolist() == [[2.0, 0.5], [0.5, 1.0]]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"east_m": math.nan}, "position"),
        ({"latitude_deg": math.inf}, "position"),
        ({"yaw_rad": math.nan}, "yaw"),
        ({"covariance_m2": np.array([[math.nan, 0.0], [0.0, 1.0]])}, "not finite"),
        ({"covariance_m2": np.zeros((2, 2))}, "eigenvalue 0"),
        ({"covariance_m2": np.array([[1.0, 2.0], [2.0, 1.0]])}, "eigenvalue -1"),
        ({"covariance_m2": np.array([[1.0, 0.2], [0.1, 1.0]])}, "not symmetric"),
        ({"yaw_variance_rad2": 0.0}, "eigenvalue 0"),
        ({"yaw_variance_rad2": math.inf}, "not finite"),
    ],
)
def test_check_fix_refuses_invalid_covariances_and_positions(change, why):
    with pytest.raises(PublicationError, match=why):
        check_fix(dataclasses.replace(FIX, **change), last_stamp_ns=None)


def test_check_fix_refuses_a_stamp_that_is_not_newer():
    check_fix(FIX, FIX.stamp_ns - 1)
    for last in (FIX.stamp_ns, FIX.stamp_ns + 1):
        with pytest.raises(PublicationError, match="not after"):
            check_fix(FIX, last)


def test_hypotheses_keep_their_order():
    message = hypotheses_message(FIX.hypotheses, FIX.stamp_ns, 0.0, "map")
    assert [(pose.position.x, pose.position.y) for pose in message.poses] == [(3.0, -4.0), (50.0, 60.0)]
    assert all(pose.orientation.w == 1.0 for pose in message.poses)


def test_heatmap_cells_lie_where_the_belief_is():
    size, scale = 8, 0.5
    probability = np.full((size, size), 0.001, np.float32)
    probability[1, 6] = 1.0  # near the north-east corner
    distribution = TileDistribution(0, 100.0, 200.0, scale, probability / probability.sum())
    grid = heatmap_message(distribution, 5, "map")
    cells = np.array(grid.data).reshape(grid.info.height, grid.info.width)
    row, column = np.unravel_index(cells.argmax(), cells.shape)
    centre = (
        grid.info.origin.position.x + (column + 0.5) * grid.info.resolution,
        grid.info.origin.position.y + (row + 0.5) * grid.info.resolution,
    )
    assert centre == pytest.approx(map_from_tile(1, 6, 100.0, 200.0, size, scale))
    assert cells.max() == 100
    assert cells.min() == 0


def test_jpeg_holds_the_colours():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[..., 0] = 200  # red
    from unifygeo_ros.conversions.from_messages import camera_image

    image = camera_image(jpeg_message(pixels, 5, "base_link"))
    assert image.stamp_ns == 5
    assert np.abs(image.pixels.astype(int) - pixels).max() <= 3
