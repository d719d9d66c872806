"""Ground truth: interpolation, gaps, uncertainty and frames, against pyproj and cases worked by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyproj
import pytest
from rosbags.highlevel import AnyReader

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.evaluation.recordings.truth import Recording, Truth
from unifygeo_ros.evaluation.recordings.truth_sources import (
    TRUTH_TYPES,
    read_truth_file,
    recording_of_samples,
    sample_of_navsatfix,
    sample_of_pose_with_covariance,
)

SECOND = 1_000_000_000
FRAME = LocalFrame(Datum(48.5, 9.05, 0.0))
BAG = Path(__file__).parents[2] / "shared/data/bags/robot_localization_test1.bag"


def recording(stamps_s, positions, *, yaw=None, sigma=None, geodetic=False):
    count = len(stamps_s)
    covariances = np.full((count, 2, 2), np.nan)
    if sigma is not None:
        covariances = np.array([np.eye(2) * s**2 for s in sigma])
    return Recording(
        stamps_ns=np.round(np.array(stamps_s) * SECOND).astype(np.int64),
        positions=np.array(positions, float),
        geodetic=geodetic,
        yaw_rad=np.full(count, np.nan) if yaw is None else np.array(yaw, float),
        covariances_m2=covariances,
        source="test",
    )


def test_interpolates_position_yaw_and_uncertainty():
    truth = Truth(recording([1, 2], [(0, 0), (4, 8)], yaw=[3.0, -3.0], sigma=[1, 3]), FRAME)
    pose = truth.at(round(1.25 * SECOND))
    assert (pose.east_m, pose.north_m) == (pytest.approx(1.0), pytest.approx(2.0))
    # The short way from 3 to −3 rad leads over π: 3 + 0.25 · (2π − 6).
    assert pose.yaw_rad == pytest.approx(3.0 + 0.25 * (2 * math.pi - 6))
    np.testing.assert_allclose(pose.covariance_m2, np.eye(2) * (0.75 * 1 + 0.25 * 9))
    assert pose.course_rad == pytest.approx(math.atan2(8, 4))


def test_truth_is_none_in_gaps_and_outside_the_recording():
    truth = Truth(recording([0, 1, 4, 5], [(0, 0), (1, 0), (4, 0), (5, 0)]), FRAME, max_gap_s=2.0)
    at = [
        None if pose is None else pose.east_m for pose in (truth.at(round(t * SECOND)) for t in np.arange(-0.5, 6, 0.5))
    ]
    assert at == [None, 0, 0.5, 1, None, None, None, None, None, 4, 4.5, 5, None]


def test_gap_of_exactly_the_limit_is_bridged():
    assert Truth(recording([0, 2], [(0, 0), (2, 0)]), FRAME, max_gap_s=2.0).at(SECOND).east_m == 1.0


def test_samples_out_of_order_and_repeated():
    truth = Truth(recording([2, 0, 1, 1], [(2, 0), (0, 0), (7, 7), (1, 0)]), FRAME)
    assert len(truth) == 3
    assert (truth.at(SECOND).east_m, truth.at(SECOND).north_m) == (1.0, 0.0)


def test_unknown_uncertainty_takes_the_stated_one():
    samples = recording([0, 1], [(0, 0), (1, 0)])
    np.testing.assert_array_equal(Truth(samples, FRAME).at(0).covariance_m2, np.zeros((2, 2)))
    np.testing.assert_allclose(Truth(samples, FRAME, default_sigma_m=2.0).at(0).covariance_m2, np.eye(2) * 4)


def test_course_is_the_direction_of_travel_and_none_when_standing():
    times = np.arange(0, 10, 0.1)
    moving = np.clip(times - 5, 0, None) * 3
    truth = Truth(recording(times, np.stack([0 * moving, -moving], axis=1)), FRAME)
    assert truth.at(2 * SECOND).course_rad is None
    assert truth.at(8 * SECOND).course_rad == pytest.approx(-math.pi / 2)
    # The window is cut at the ends of the recording.
    assert truth.at(round(9.9 * SECOND)).course_rad == pytest.approx(-math.pi / 2)


def test_lever_arm_is_taken_off_along_the_heading():
    # The antenna sits 2 m ahead and 1 m left of base_link; the vehicle faces north.
    samples = recording([0, 1], [(10, 20), (10, 20)], yaw=[math.pi / 2] * 2)
    pose = Truth(samples, FRAME, lever_arm_m=(2.0, 1.0)).at(SECOND // 2)
    assert (pose.east_m, pose.north_m) == (pytest.approx(11.0), pytest.approx(18.0))


def test_lever_arm_without_any_direction_is_a_gap():
    assert Truth(recording([0, 1], [(0, 0), (0, 0)]), FRAME, lever_arm_m=(2.0, 0.0)).at(0) is None


def test_geodetic_positions_go_through_the_map_frame():
    truth = Truth(recording([0, 1], [(48.5, 9.05), (48.501, 9.05)], geodetic=True), FRAME)
    pose = truth.at(SECOND)
    # Independent: geodesic length on the ellipsoid, 0.001° of a meridian.
    _, _, distance = pyproj.Geod(ellps="WGS84").inv(9.05, 48.5, 9.05, 48.501)
    assert pose.north_m == pytest.approx(distance, abs=1e-3)
    assert pose.east_m == pytest.approx(0, abs=1e-6)


def test_projected_coordinates_turn_by_the_grid_convergence():
    # Far from the central meridian 9°E, so that grid north is 2.2° off.
    latitude, longitude = 48.5, 12.0
    frame = LocalFrame(Datum(latitude, longitude))
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32632", always_xy=True).transform(longitude, latitude)
    truth = Truth(
        recording([0, 1], [(x, y), (x, y + 100)], yaw=[math.pi / 2] * 2, sigma=[1, 1]), frame, plane_frame="EPSG:32632"
    )
    pose = truth.at(0)
    convergence = math.radians(pyproj.Proj("EPSG:32632").get_factors(longitude, latitude).meridian_convergence)
    assert abs(convergence) > 0.035
    # Grid north lies east of true north there (positive convergence), so the azimuth of a grid-north yaw is +γ.
    assert pose.yaw_rad == pytest.approx(math.pi / 2 - convergence, abs=1e-5)
    assert (pose.east_m, pose.north_m) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))
    np.testing.assert_allclose(pose.covariance_m2, np.eye(2), atol=2e-3)


def test_another_datum_and_unknown_frames():
    other = LocalFrame(Datum(48.501, 9.05))
    truth = Truth(recording([0, 1], [(0, 0), (5, 0)]), FRAME, plane_frame="48.501,9.05")
    expected = FRAME.map_from_geodetic(*other.geodetic_from_map(5.0, 0.0))
    np.testing.assert_allclose([truth.at(SECOND).east_m, truth.at(SECOND).north_m], expected, atol=1e-6)
    for text in ("north,9", "EPSG:4326", "somewhere"):
        with pytest.raises(ConfigurationError, match="truth frame"):
            Truth(recording([0, 1], [(0, 0), (5, 0)]), FRAME, plane_frame=text)


def test_truth_far_from_the_datum_is_refused():
    with pytest.raises(InputError, match="--truth-frame"):
        Truth(recording([0, 1], [(37.4, -122.1)] * 2, geodetic=True), FRAME)


def test_empty_recording_is_refused():
    with pytest.raises(InputError, match="no usable ground truth"):
        Truth(recording_of_samples([], geodetic=False, source="x"), FRAME)


def header(stamp_s=1.5):
    seconds, nanoseconds = divmod(round(stamp_s * SECOND), SECOND)
    return SimpleNamespace(stamp=SimpleNamespace(sec=seconds, nanosec=nanoseconds), frame_id="gps")


def navsatfix(status=0, latitude=48.5, covariance=(4, 1, 0, 1, 9, 0, 0, 0, 25), covariance_type=3):
    return SimpleNamespace(
        header=header(),
        status=SimpleNamespace(status=status),
        latitude=latitude,
        longitude=9.05,
        position_covariance=np.array(covariance, float),
        position_covariance_type=covariance_type,
    )


def test_navsatfix_status_and_covariance():
    sample = sample_of_navsatfix(navsatfix())
    assert sample.stamp_ns == round(1.5 * SECOND)
    np.testing.assert_array_equal(sample.covariance_m2, [[4, 1], [1, 9]])
    assert sample_of_navsatfix(navsatfix(status=-1)) is None
    assert sample_of_navsatfix(navsatfix(latitude=math.nan)) is None
    assert np.isnan(sample_of_navsatfix(navsatfix(covariance_type=0)).covariance_m2).all()
    assert np.isnan(sample_of_navsatfix(navsatfix(covariance=[0] * 9)).covariance_m2).all()


def test_tum_file(tmp_path):
    file = tmp_path / "truth.tum"
    file.write_text("# time x y z q\n1700000000.123456789 1 2 0 0 0 0.6 0.8\n1700000001.5 3 4 0 0 0 0 1\n")
    read = read_truth_file(file)
    np.testing.assert_array_equal(read.stamps_ns, [1700000000123456789, 1700000001500000000])
    np.testing.assert_array_equal(read.positions, [[1, 2], [3, 4]])
    np.testing.assert_allclose(read.yaw_rad, [2 * math.atan2(0.6, 0.8), 0])
    assert not read.geodetic


def test_csv_file(tmp_path):
    file = tmp_path / "truth.csv"
    file.write_text("stamp_ns,longitude_deg,latitude_deg,sigma_m\n1700000000123456789,9.05,48.5,0.5\n2,9.0,48.0,\n")
    read = read_truth_file(file)
    assert read.geodetic
    assert read.stamps_ns[0] == 1700000000123456789
    np.testing.assert_array_equal(read.positions, [[48.5, 9.05], [48.0, 9.0]])
    np.testing.assert_array_equal(read.covariances_m2[0], np.eye(2) * 0.25)
    assert np.isnan(read.covariances_m2[1]).all()
    assert np.isnan(read.yaw_rad).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line"),
        ("1 2 3\n", r"truth:1: 3 fields"),
        ("# c\n1 2 3 4 5 6 7 x\n", r"truth:2: 'x'"),
        ("1 nan 3 4 0 0 0 1\n", "'nan'"),
        ("time,x,y\n1,2,3\n", "needed are stamp_ns"),
        ("stamp_s,east_m,north_m\n1,2,3\n1,2\n", r"truth:3: 2 fields"),
        ("stamp_s,east_m,north_m\nnoon,2,3\n", "'noon' is not a time"),
    ],
)
def test_broken_files_are_refused_by_line(tmp_path, text, words):
    file = tmp_path / "truth"
    file.write_text(text)
    with pytest.raises(InputError, match=words):
        read_truth_file(file)


@pytest.mark.skipif(not BAG.exists(), reason=f"{BAG} is not there")
def test_real_rosbag1_navsatfix_and_odometry():
    samples = {}
    with AnyReader([BAG]) as reader:
        for connection in (c for c in reader.connections if c.msgtype in TRUTH_TYPES):
            convert = TRUTH_TYPES[connection.msgtype]
            found = [
                convert(reader.deserialize(data, connection.msgtype)) for _, _, data in reader.messages([connection])
            ]
            samples[connection.msgtype] = [sample for sample in found if sample is not None]
    fixes, odometry = samples["sensor_msgs/msg/NavSatFix"], samples["nav_msgs/msg/Odometry"]
    assert len(odometry) == 3952
    assert 0 < len(fixes) <= 989
    geodetic = recording_of_samples(fixes, geodetic=True, source="gps")
    start = fixes[0]
    truth = Truth(geodetic, LocalFrame(Datum(start.first, start.second)))
    # Path lengths of two independent sensors on the same drive: wheels against GNSS.
    gnss = np.array([truth.at(int(s)) for s in truth.stamps_ns], object)
    path = np.array([(p.east_m, p.north_m) for p in gnss])
    wheels = np.array([(s.first, s.second) for s in odometry])
    assert np.hypot(*np.ptp(path, axis=0)) == pytest.approx(np.hypot(*np.ptp(wheels, axis=0)), rel=0.15)
    assert sample_of_pose_with_covariance is TRUTH_TYPES["nav_msgs/msg/Odometry"]
