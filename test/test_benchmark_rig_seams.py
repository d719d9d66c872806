"""The benchmark of seams: its triangulation, worked by hand, and the cameras of PandaSet where the data are present."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.rig.composer import STANDING
from unifygeo_ros.rig.description import read_rig
from unifygeo_ros.rig.lenses import Pinhole
from unifygeo_ros.rig.rig import Rig, RigCamera, rotation_from_mount
from unifygeo_ros.rig.seams import Seam

ROOT = Path(__file__).parents[1]
PANDASET = ROOT.parent / "shared/data/rigs/pandaset_002"
DISTANCE_M = 30.0


@pytest.fixture(scope="module")
def benchmark_seams() -> ModuleType:
    path = ROOT / "benchmarks" / "rig_seams.py"
    spec = importlib.util.spec_from_file_location("benchmark_rig_seams", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rig() -> Rig:
    lens = Pinhole(640, 480, 320.0, 320.0, 320.0, 240.0)
    forward = rotation_from_mount(0.0, 0.0, 0.0)
    cameras = (
        RigCamera("a", lens, forward, np.array([0.5, 0.4, 1.6])),
        RigCamera("b", lens, forward, np.array([0.3, -0.5, 1.5])),
    )
    return Rig(cameras, -1000.0, DISTANCE_M)  # the ground far below: every ray ends at distance_m


def placed(point: np.ndarray, camera: np.ndarray, centre: np.ndarray) -> tuple[float, float]:
    """Azimuth and elevation (degrees) at which a panorama shows a camera's view of a point: where its ray meets the
    sphere of DISTANCE_M around the centre."""
    ray = (point - camera) / np.linalg.norm(point - camera)
    start = camera - centre
    along = -start @ ray + math.sqrt((start @ ray) ** 2 - start @ start + DISTANCE_M**2)
    x, y, z = (start + along * ray) / DISTANCE_M
    return -math.degrees(math.atan2(y, x)), math.degrees(math.asin(z))


@pytest.mark.parametrize("motion", [STANDING, Pose2(0.4, 0.05, 0.03)], ids=["one instant", "b exposed earlier"])
@pytest.mark.parametrize("distance_m", [6.0, 15.0, 60.0])
def test_a_match_is_triangulated_to_its_distance_and_what_no_distance_explains_is_across(
    benchmark_seams, distance_m, motion
) -> None:
    cameras = rig()
    a, b = (camera.position_m for camera in cameras.cameras)
    # motion: base_link now in base_link at the exposure, so that b was then at R⁻¹ (b − t) in base_link now.
    cos, sin = math.cos(motion.yaw_rad), math.sin(motion.yaw_rad)
    dx, dy = b[0] - motion.x_m, b[1] - motion.y_m
    b_then = np.array([cos * dx + sin * dy, -sin * dx + cos * dy, b[2]])
    point = a + distance_m * np.array([0.9, 0.1, math.sqrt(1 - 0.81 - 0.01)])
    azimuth_a, elevation_a = placed(point, a, cameras.centre_m)
    azimuth_b, elevation_b = placed(point, b_then, cameras.centre_m)
    right = (azimuth_b - azimuth_a) * math.cos(math.radians(elevation_a))
    values = (np.array([value]) for value in (azimuth_a, elevation_a, right, elevation_b - elevation_a))
    found = benchmark_seams.judge(Seam("a", "b", *values), cameras, {"a": STANDING, "b": motion})
    assert found.distance_m[0] == pytest.approx(distance_m, rel=0.01)
    assert found.across_deg[0] < 0.01
    # b looks 0.3° too high: beside the plane of the two cameras and the point, so no other distance explains it.
    values = (np.array([value]) for value in (azimuth_a, elevation_a, right, elevation_b - elevation_a + 0.3))
    wrong = benchmark_seams.judge(Seam("a", "b", *values), cameras, {"a": STANDING, "b": motion})
    assert 0.2 < wrong.across_deg[0] < 0.31


@pytest.mark.skipif(not PANDASET.is_dir(), reason="PandaSet's sequence 002 is not here")
def test_pandasets_cameras_fit_together_to_0_4_degrees_beyond_15_m_but_for_parallax(benchmark_seams) -> None:
    pandaset = read_rig(ROOT / "config/rigs/six_pinholes.yaml").rig()
    sequence = benchmark_seams.Sequence(PANDASET, pandaset)
    found = benchmark_seams.judge_frames(sequence, pandaset, [38], True, 2048)
    judged = {seam: j.across_deg[j.distance_m >= 15] for seam, j in found.items()}
    judged = {seam: across for seam, across in judged.items() if len(across) >= 8}
    assert len(judged) >= 3  # with 2048 columns, half of the benchmark's, which is quicker but finds fewer features
    for seam, across in judged.items():
        assert np.median(across) <= 0.4, seam
