"""Mode sequence on the real path: session, tracker, localizer, engines, index, in a world made of random colours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from colour_region import write_colour_region

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.geodesy import azimuth_from_yaw
from unifygeo_ros.core.records import CameraImage, Fix
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.motion.samples import ODOM_FRAME, ImuSample, OdometrySample
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.factory import make_session
from unifygeo_ros.sessions.sequence import SequenceSession
from unifygeo_ros.tracking.config import TrackerConfig

SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence")
    world, bundle = write_colour_region(folder), load_bundle(folder / "bundle")
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        yield world, bundle, engines, open_index(folder / "index", bundle=bundle)


def drive(setting, heading_source: str) -> tuple[list[tuple[object, np.ndarray]], SequenceSession]:
    """Eighteen images along a bend, 4 m apart, odometry 2% too long, camera 1 m ahead of base_link."""
    world, bundle, engines, index = setting
    mount = CameraMount(x_m=1.0)
    localizer = Localizer(index, bundle, engines, LocalizerConfig(), mount)
    # A network that was not trained does not tell a mount from its mirror image.
    config = SessionConfig(mode="sequence", heading_source=heading_source, camera_check_images=0)
    session = make_session(localizer, config, TrackerConfig(check_distance_m=20.0))
    x, y, yaw, odometry, results = -35.0, -25.0, 0.3, np.zeros(2), []
    for step in range(18 * 10):
        stamp = SECOND + step * SECOND // 20
        yaw += 0.003
        x, y = x + 0.4 * math.cos(yaw), y + 0.4 * math.sin(yaw)
        odometry = odometry + 1.02 * 0.4 * np.array([math.cos(yaw), math.sin(yaw)])
        session.add_odometry(OdometrySample(stamp, ODOM_FRAME, float(odometry[0]), float(odometry[1]), yaw))
        session.add_imu(ImuSample(stamp, 0.0, 0.0, yaw, 0.001))
        if step % 10 == 9:
            camera = (x + math.cos(yaw), y + math.sin(yaw))
            pixels = world.panorama(*camera, float(azimuth_from_yaw(yaw)))
            results.append((session.locate(CameraImage(pixels, stamp)).result, world.in_map(index.frame, x, y)))
    return results, session


@pytest.mark.parametrize("heading_source", ["imu", "none"])
def test_drive_through_the_real_localizer_is_tracked(setting, heading_source: str) -> None:
    results, session = drive(setting, heading_source)
    errors = [math.dist((r.east_m, r.north_m), truth) for r, truth in results if isinstance(r, Fix)]
    assert len(errors) >= 8
    assert max(errors) < 5.0
    assert np.median(errors) < 2.0
    assert session.status().track.state.value == "tracking"
    assert "tracker" in results[-1][0].timings_ms
    assert 0.5 < next(r for r, _ in results if isinstance(r, Fix)).integrity <= 1.0
