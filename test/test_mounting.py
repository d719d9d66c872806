"""`unifygeo mount`: what simulated drives say of a set-up that is known, and what they cannot say."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flat_town import FlatDrive, Ground, SetUp
from test_session_rules import StandInLocalizer, image, odometry

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.evaluation.mounting.collect import SessionWithMemory
from unifygeo_ros.evaluation.mounting.drive_fit import CameraSight, fit_drive
from unifygeo_ros.evaluation.mounting.estimate import DriveEstimate, Value, estimate_drive
from unifygeo_ros.evaluation.mounting.report import findings, parameter_text, table
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.stamp_error import Place
from unifygeo_ros.parameters.files import read_settings_file
from unifygeo_ros.parameters.settings import NodeConfig, Settings
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.single import SingleImageSession

WRONG = SetUp(0.27, 0.8, -0.4, 0.05, 0.03, -0.025, -0.035, 1.03)


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground(1)


def estimated(drive: FlatDrive, ground: Ground | None = None, **sources: bool) -> DriveEstimate:
    index = ground or drive.ground
    return estimate_drive(drive.collected(**sources), drive.images, index, CameraMount(), MotionNoise())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def wrong(ground: Ground) -> DriveEstimate:
    return estimated(FlatDrive(ground, WRONG, 3))


# -- the whole estimate -----------------------------------------------------------------------------------------------


def test_all_errors_together_are_found_within_what_is_wanted(wrong: DriveEstimate) -> None:
    assert wrong.late.value == pytest.approx(WRONG.late_s, abs=0.02)
    assert wrong.x.value == pytest.approx(WRONG.x_m, abs=0.2)
    assert wrong.y.value == pytest.approx(WRONG.y_m, abs=0.2)
    assert wrong.scale.value == pytest.approx(WRONG.scale, abs=0.01)
    for found, true, limit_deg in (
        (wrong.yaw, WRONG.yaw_rad, 0.3),
        (wrong.pitch, WRONG.pitch_rad, 0.5),
        (wrong.roll, WRONG.roll_rad, 0.5),
        (wrong.imu_offset, WRONG.imu_rad, 0.5),
    ):
        assert found is not None
        assert found.value == pytest.approx(true, abs=math.radians(limit_deg))
    assert wrong.aligned > 0.8 * wrong.used


def test_all_errors_together_lie_within_their_own_sigmas(wrong: DriveEstimate) -> None:
    for name, true in (("late", 0.27), ("x", 0.8), ("y", -0.4), ("yaw", 0.05), ("pitch", 0.03), ("roll", -0.025),
                       ("imu_offset", -0.035), ("scale", 1.03)):  # fmt: skip
        value: Value = getattr(wrong, name)
        assert abs(value.value - true) < 4 * value.sigma + 1e-3, name


def test_a_right_set_up_is_confirmed(ground: Ground) -> None:
    found = findings(estimated(FlatDrive(ground, SetUp(), 5)), Settings())
    for finding in found:
        assert finding.told, finding.name
        if finding.parameter is not None:
            # 3σ: one of seven may well lie beyond the 2σ of a change. The rest is of the renderer: 3 mm, 0.06°.
            assert finding.found is not None
            assert abs(finding.change) < 3 * finding.found.sigma + (3e-3 if finding.unit == "m" else 1e-3), finding.name


# -- what users meet and the drives above do not hold ------------------------------------------------------------------


def test_a_drive_without_odometry_is_refused_with_the_remedy(ground: Ground) -> None:
    with pytest.raises(InputError, match="--odometry-topic"):
        estimated(FlatDrive(ground, SetUp(), 1), odometry=False)


def test_a_vehicle_that_stands_is_refused_with_the_remedy(ground: Ground) -> None:
    with pytest.raises(InputError, match="at different places are needed"):
        estimated(FlatDrive(ground, SetUp(), 1, motion="standing"))


def test_few_images_with_a_place_are_refused_with_their_number(ground: Ground) -> None:
    with pytest.raises(InputError, match="12 of 12 images"):
        estimated(FlatDrive(ground, SetUp(), 1, images=12))


def test_a_bag_in_which_time_goes_back_counts_from_there_on_and_says_so() -> None:
    """A clock that was set, or a bag that looped while it was recorded: two drives do not mix."""
    place = Place(1.0, 2.0, np.eye(2), 0.0, 0.01)
    session = SingleImageSession(StandInLocalizer(), SessionConfig(mode="single", camera_check_images=0), MotionNoise())
    session.tracker = SimpleNamespace(measured=place)  # type: ignore[attr-defined]
    memory = SessionWithMemory(session, Settings())  # type: ignore[arg-type]
    for start_s in (100.0, 50.0):
        for number in range(20):
            memory.add_odometry(odometry(start_s + number, 3.0 * number))
            assert memory.locate(image(start_s + number))
    drive = memory.collected()
    assert [seen.number for seen in drive.seen] == list(range(20, 40))
    newest = drive.odometry.newest
    assert len(drive.odometry) == 20
    assert newest is not None
    assert newest.stamp_ns == drive.seen[-1].stamp_ns
    assert any("time goes back at image 21 of the bag: the 20 images before" in text for text in drive.warnings)


def test_a_straight_drive_tells_angles_and_not_the_place_of_the_camera(ground: Ground) -> None:
    estimate = estimated(FlatDrive(ground, WRONG, 2, motion="straight"))
    told = {finding.name: finding.told for finding in findings(estimate, Settings())}
    assert not told["camera forward"]
    assert not told["camera left"]
    assert told["camera yaw"]
    assert told["camera pitch"]
    assert estimate.yaw is not None
    assert estimate.yaw.value == pytest.approx(WRONG.yaw_rad, abs=math.radians(0.3))
    text = parameter_text(findings(estimate, Settings()), Settings(), "drive")
    assert text is not None
    assert "x_m" not in text


def test_a_steady_straight_drive_does_not_tell_the_delay(ground: Ground, wrong: DriveEstimate) -> None:
    drive = FlatDrive(ground, WRONG, 2, motion="steady")
    fit = fit_drive(sights(drive), drive.odometry(), (0.0, 0.0), 0.0, MotionNoise())
    assert fit is not None
    estimate = dataclasses.replace(wrong, late=Value(float(fit.values[0]), fit.sigma(0)), turned_rad=0.1)
    found = findings(estimate, Settings())
    assert not found[0].told
    assert "6° of turns, too few, and the speed hardly changes" in table(found, estimate)


def test_imagery_of_another_place_tells_no_angles(ground: Ground) -> None:
    drive = FlatDrive(ground, SetUp(late_s=0.2), 4)
    estimate = estimated(drive, Ground(9), imu=False)
    assert estimate.yaw is None
    assert estimate.pitch is None
    # The session's places alone: decimetres, which still show a delay.
    assert estimate.late.value == pytest.approx(0.2, abs=4 * estimate.late.sigma)
    text = table(findings(estimate, Settings()), estimate)
    assert "camera yaw           not told" in text
    assert "IMU yaw              not told by this drive (no IMU)" in text


# -- table and file ---------------------------------------------------------------------------------------------------


def test_the_file_sets_the_parameters_and_reads_back(wrong: DriveEstimate, tmp_path: Path) -> None:
    settings = Settings(session=SessionConfig(stamp_offset_s=0.05))
    text = parameter_text(findings(wrong, settings), settings, "drive")
    assert text is not None
    path = tmp_path / "mount.yaml"
    path.write_text(text)
    read = read_settings_file(path)
    assert read.session.stamp_offset_s == pytest.approx(0.05 - 0.27, abs=0.02)
    assert read.camera.x_m == pytest.approx(0.8, abs=0.2)
    assert read.camera.yaw_rad == pytest.approx(0.05, abs=math.radians(0.3))
    assert read.session.imu_yaw_offset_rad == pytest.approx(-0.035, abs=math.radians(0.5))
    assert "session.stamp_offset_s: -0.2" in table(findings(wrong, settings), wrong)


def test_a_confirmed_value_keeps_its_digits(wrong: DriveEstimate) -> None:
    present = Settings(camera=CameraMount(x_m=0.8123456))
    near = dataclasses.replace(wrong, x=Value(0.83, 0.05))
    finding = next(f for f in findings(near, present) if f.parameter == "camera.x_m")
    assert not finding.changed
    assert finding.value == 0.8123456
    assert "x_m: 0.8123  # ± 0.05, confirmed" in str(parameter_text([finding], present, "drive"))


def test_a_mount_from_tf_is_replaced_as_a_whole(wrong: DriveEstimate, tmp_path: Path) -> None:
    settings = Settings(
        node=NodeConfig(camera_frame="camera_link"), camera=CameraMount(x_m=1.5, y_m=0.25, upside_down=True)
    )
    unknown = dataclasses.replace(wrong, y=Value(0.0, 2.0))
    path = tmp_path / "mount.yaml"
    path.write_text(str(parameter_text(findings(unknown, settings), settings, "drive")))
    read = read_settings_file(path)
    assert read.node.camera_frame == ""
    assert read.camera.y_m == 0.25
    assert read.camera.upside_down


def test_nothing_told_no_file(wrong: DriveEstimate) -> None:
    nothing = Value(0.0, 9.0)
    unknown = dataclasses.replace(
        wrong, late=nothing, x=nothing, y=nothing, yaw=None, pitch=None, roll=None, imu_offset=None
    )
    assert parameter_text(findings(unknown, Settings()), Settings(), "drive") is None


def test_an_odometry_far_out_of_its_scale_is_named(wrong: DriveEstimate) -> None:
    far = dataclasses.replace(wrong, scale=Value(1.08, 0.001))
    assert "odometry.scale: 0.080" in table(findings(far, Settings()), far)
    assert "within twice odometry.scale" in table(findings(wrong, Settings()), wrong)


# -- the fit alone ----------------------------------------------------------------------------------------------------


def sights(drive: FlatDrive, yaw_noise: float = 0.002, outliers: int = 0) -> list[CameraSight]:
    """Exact places with noise of 5 cm, some of them wrong by metres."""
    found = []
    for seen, exposed_s in zip(drive.collected().seen, drive.exposed_s, strict=True):
        east, north = drive.camera_m(exposed_s) + drive.rng.normal(0, 0.05, 2)
        yaw = float(drive.at(exposed_s)[2])
        camera_yaw = wrap_angle(yaw + drive.true.yaw_rad + float(drive.rng.normal(0, yaw_noise)))
        found.append(CameraSight(seen.stamp_ns, float(east), float(north), camera_yaw, wrap_angle(yaw + 0.02)))
    for place in range(3, 3 + 7 * outliers, 7):
        found[place] = dataclasses.replace(found[place], east_m=found[place].east_m + 3.0)
    return found


@pytest.mark.parametrize("outliers", [0, 4])
def test_errors_of_the_fit_have_its_own_sigmas(ground: Ground, outliers: int) -> None:
    true = np.array([WRONG.late_s, WRONG.x_m, WRONG.y_m, WRONG.yaw_rad, WRONG.scale - 1])
    errors = []
    for seed in range(8):
        drive = FlatDrive(ground, WRONG, seed, seconds=60.0)
        fit = fit_drive(sights(drive, outliers=outliers), drive.odometry(), (0.0, 0.0), 0.0, MotionNoise())
        assert fit is not None
        # x = p / scale of the odometry: M2 is written for the odometry's steps.
        errors.append((fit.values[:5] - true) / np.sqrt(np.diag(fit.covariance))[:5])
        assert (fit.weights == 0).sum() >= outliers
    # χ² of 8 drives, 0.05% and 99.95%: 0.36 … 1.87.
    assert np.all(np.sqrt(np.mean(np.square(errors), axis=0)) < 1.87)
    assert np.sqrt(np.mean(np.square(errors))) > 0.5


def test_the_fit_goes_on_after_a_gap_of_the_odometry(ground: Ground) -> None:
    drive = FlatDrive(ground, WRONG, 1, seconds=60.0)
    whole = drive.odometry()
    part = type(whole)(whole.limits)
    for sample in whole.after(0):
        if not 25.0 < sample.stamp_ns / 1e9 - 1000.0 < 28.0:
            part.add(sample)
    fit = fit_drive(sights(drive), part, (0.0, 0.0), 0.0, MotionNoise())
    assert fit is not None
    assert fit.values[0] == pytest.approx(WRONG.late_s, abs=4 * fit.sigma(0))
    stamps = [sight.stamp_ns for sight in fit.sights]
    assert all(a < b for a, b in itertools.pairwise(stamps))
    assert not any(24.0 < stamp / 1e9 - 1000.0 < 29.0 for stamp in stamps)


def test_odometry_of_another_clock_gives_no_fit(ground: Ground) -> None:
    drive = FlatDrive(ground, WRONG, 1)
    later = [dataclasses.replace(sight, stamp_ns=sight.stamp_ns + 10**12) for sight in sights(drive)]
    assert fit_drive(later, drive.odometry(), (0.0, 0.0), 0.0, MotionNoise()) is None
