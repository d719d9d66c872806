"""`apply_estimates`: what a session corrects by itself, on simulated drives whose truth is known.

The drives and their odometry are those of `test_stamp_error`, integrated by their own formulas. Here an image is
exposed `late_s` before its stamp, whatever the session makes of the stamp.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import test_stamp_error
from test_stamp_error import SECOND, SIGMA_M, START_S, Drive

from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import ALL_SEEN, CameraImage, Fix, Query, Rejection, RejectionReason
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.fixes import with_stamp_error
from unifygeo_ros.motion.imu_offset import UNKNOWN_OFFSET, ImuOffset, ImuOffsetEstimator
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import ImuSample
from unifygeo_ros.motion.stamp_error import UNKNOWN, StampError
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.corrections import NO_CORRECTIONS, Corrections
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.sessions.single import SingleImageSession


class Camera:
    """A localizer whose fixes are where the vehicle was at the exposure, some decimetres off."""

    def __init__(self, drive: Drive) -> None:
        self.config, self.mount, self.drive = LocalizerConfig(), CameraMount(), drive
        self.exposed_s = 0.0
        self.queries: list[Query] = []

    def observe(self, image: CameraImage, query: Query) -> SimpleNamespace:
        self.queries.append(query)
        return SimpleNamespace(stamp_ns=image.stamp_ns, distances=None, seen=ALL_SEEN)

    def decide(self, observation: SimpleNamespace, query: Query) -> Fix:
        east_m, north_m = self.drive.shown(self.exposed_s)
        yaw = query.heading.yaw_rad if query.heading else float(self.drive.pose(self.exposed_s)[2])
        covariance, _ = with_stamp_error(SIGMA_M**2 * np.eye(2), 1e-4, query.stamp_covariance, yaw)
        return Fix(observation.stamp_ns, east_m, north_m, 48.0, 9.0, covariance, yaw, 1e-4, 3, 1.0, 0.0, ())


class Driven:
    """A drive through a session."""

    def __init__(
        self, *, late_s: float = 0.0, imu_error_rad: float = 0.0, speed: str = "town", turns: str = "corners",
        apply: bool = True, seed: int = 7, wander_rad: float = 0.0, **settings: object,
    ) -> None:  # fmt: skip
        self.drive, self.late_s, self.number = Drive(speed, turns, seed), late_s, 0
        self.camera = Camera(self.drive)
        config = SessionConfig(mode="single", camera_check_images=0, buffer_age_s=600.0, **settings)  # type: ignore[arg-type]
        self.session = SingleImageSession(self.camera, config, MotionNoise())  # type: ignore[arg-type]
        self.session.apply_estimates = apply
        for sample in self.drive.odometry:
            self.session.add_odometry(sample)
        with_imu = settings.get("heading_source") == "imu"
        for time_s, yaw in zip(self.drive.time_s[::5], self.drive.truth[2, ::5], strict=True) if with_imu else ():
            # Iron in the vehicle: an error that depends on the heading.
            yaw = wrap_angle(yaw + imu_error_rad + wander_rad * math.sin(yaw))
            self.session.add_imu(ImuSample(round((START_S + time_s) * SECOND), 0.0, 0.0, yaw))
        self.outcomes: list[Outcome] = []

    def on(self, images: int = 60, period_s: float = 0.6) -> Driven:
        """Drive on for some images."""
        for _ in range(images):
            self.camera.exposed_s = 0.5 + period_s * self.number
            pixels = np.random.default_rng(self.number).integers(0, 256, (32, 64, 3), np.uint8)
            stamp_ns = round((START_S + self.camera.exposed_s + self.late_s) * SECOND)
            self.outcomes.append(self.session.locate(CameraImage(pixels, stamp_ns)))
            self.number += 1
        return self

    @property
    def corrections(self) -> Corrections:
        """For the next image."""
        return self.session._corrections


def changes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "from now on" in record.getMessage()]


def test_apply_estimates_corrects_late_stamps_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        driven = Driven(late_s=0.27).on()
    corrected = [number for number, outcome in enumerate(driven.outcomes) if outcome.corrections.stamp_offset_s]
    assert 20 <= corrected[0] <= 50
    assert driven.corrections.stamp_offset_s == pytest.approx(-0.27, abs=0.05)
    assert driven.outcomes[-1].corrections == driven.corrections
    # Fixes carry the stamp of the exposure: that of the image, plus the offset in use.
    exposed_ns = round((START_S + driven.camera.exposed_s) * SECOND)
    assert abs(driven.outcomes[-1].result.stamp_ns - exposed_ns) < 0.05 * SECOND
    # What is left is little, and is known no worse than before.
    before, after = driven.outcomes[corrected[0] - 1].stamp_error, driven.outcomes[-1].stamp_error
    assert abs(after.late_s) < 0.05
    assert after.sigma_s <= before.sigma_s
    assert driven.outcomes[corrected[0] - 2].warnings  # it was named first
    assert driven.outcomes[-1].warnings == ()
    said = changes(caplog)
    assert len(said) == 1
    assert f"session.stamp_offset_s is {driven.corrections.stamp_offset_s:.3f} from now on, was 0.000" in said[0]
    assert "parameter still says 0.000" in said[0]


def test_apply_estimates_is_off_by_default(caplog: pytest.LogCaptureFixture) -> None:
    camera = Camera(Drive("town", "corners", 7))
    assert SingleImageSession(camera, SessionConfig(), MotionNoise()).apply_estimates is False  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO):
        driven = Driven(late_s=0.27, apply=False).on()
    assert driven.corrections == NO_CORRECTIONS
    assert driven.outcomes[-1].warnings
    assert changes(caplog) == []


@pytest.mark.parametrize(
    ("late_s", "speed", "why"),
    [
        (0.0, "town", "right stamps"),
        (0.0, "stop and go", "right stamps"),
        (0.27, "steady", "a speed that stays the same shows nothing"),
        (-0.3, "town", "early images mean late odometry"),
    ],
)
def test_apply_estimates_leaves_stamps_alone(late_s: float, speed: str, why: str) -> None:
    turns = "straight" if speed == "steady" else "corners"
    assert Driven(late_s=late_s, speed=speed, turns=turns).on().corrections == NO_CORRECTIONS, why


@pytest.mark.parametrize("forward_m", [1.0, -1.0])
def test_camera_position_that_is_wrong_by_a_metre_moves_no_stamps(forward_m: float) -> None:
    driven = Driven(speed="stop and go")
    driven.drive.ahead_m = forward_m
    assert driven.on().corrections == NO_CORRECTIONS


def test_correction_follows_a_driver_that_starts_again_with_right_stamps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(test_stamp_error, "DURATION_S", 120.0)
    driven = Driven(late_s=0.3).on(70)
    assert driven.corrections.stamp_offset_s == pytest.approx(-0.3, abs=0.05)
    driven.late_s = 0.0
    driven.on(110)
    assert driven.corrections.stamp_offset_s == pytest.approx(0.0, abs=0.05)
    assert len(changes(caplog)) <= 4


def test_corrected_stamps_of_a_fast_camera_stay_in_order() -> None:
    """At 10 Hz the next three images were exposed before the stamp that the last one got."""
    driven = Driven(late_s=0.27).on(380, 0.1)
    corrected = next(number for number, outcome in enumerate(driven.outcomes) if outcome.corrections.stamp_offset_s)
    left_out = driven.outcomes[corrected : corrected + 2]
    for outcome in left_out:
        assert isinstance(outcome.result, Rejection)
        assert outcome.result.reason is RejectionReason.RATE_LIMIT
    fixes = [outcome.result.stamp_ns for outcome in driven.outcomes if isinstance(outcome.result, Fix)]
    assert fixes == sorted(set(fixes))
    rejected = [outcome.result for outcome in driven.outcomes if isinstance(outcome.result, Rejection)]
    assert 2 <= len(rejected) <= 4


def test_pose_that_is_carried_on_gets_the_corrected_time() -> None:
    """The prior of the first image after the correction is the last fix, moved as the vehicle moved between the two
    exposures. By the uncorrected time of the last image it would lack 0.27 s of the way, 0.7 m."""
    driven = Driven(late_s=0.27, prior_source="last_fix")
    fix = None
    while not driven.corrections.stamp_offset_s:
        exposed_s = 0.5 + 0.6 * driven.number
        fix = driven.on(1).outcomes[-1].result
    assert isinstance(fix, Fix)
    driven.on(1)
    prior = driven.camera.queries[-1].prior
    assert prior is not None
    moved = driven.drive.pose(driven.camera.exposed_s) - driven.drive.pose(exposed_s)
    assert math.hypot(moved[0], moved[1]) > 1.0
    assert math.hypot(prior.east_m - fix.east_m - moved[0], prior.north_m - fix.north_m - moved[1]) < 0.3


def test_reset_and_time_that_goes_back_take_the_corrections_back() -> None:
    driven = Driven(late_s=0.27).on()
    assert driven.corrections != NO_CORRECTIONS
    driven.session.reset()
    outcome = driven.on(1).outcomes[-1]
    assert outcome.corrections == NO_CORRECTIONS
    assert outcome.result.stamp_ns == round((START_S + driven.camera.exposed_s + 0.27) * SECOND)
    again = Driven(late_s=0.27).on()
    again.number = 0
    assert again.on(1).outcomes[-1].corrections == NO_CORRECTIONS


def test_apply_estimates_set_to_false_while_driving_goes_back_to_the_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driven = Driven(late_s=0.27).on(55)
    assert driven.corrections.stamp_offset_s < -0.2
    driven.session.apply_estimates = False
    caplog.clear()
    with caplog.at_level(logging.INFO):
        driven.on(2)
    assert driven.corrections == NO_CORRECTIONS
    assert driven.outcomes[-1].result.stamp_ns == round((START_S + driven.camera.exposed_s + 0.27) * SECOND)
    assert driven.outcomes[-1].stamp_error.late_s == pytest.approx(0.27, abs=0.06)
    assert "apply_estimates is false" in changes(caplog)[0]


def test_corrections_of_stamps_are_bounded_and_need_certainty() -> None:
    config = SessionConfig()

    def after(late: StampError, before: Corrections = NO_CORRECTIONS) -> float:
        return before.after(late, UNKNOWN_OFFSET, config).stamp_offset_s

    assert after(StampError(0.3, 0.02, 40)) == -0.3
    assert after(StampError(0.3, 0.06, 40)) == 0.0  # 5 standard deviations, but wide
    assert after(StampError(0.3, 0.02, 10)) == 0.0  # few images
    assert after(StampError(0.09, 0.005, 40)) == 0.0  # a wrong camera.x_m looks like it
    assert after(StampError(1.1, 0.02, 40)) == 0.0  # beyond what is believed
    assert after(StampError(0.3, 0.02, 40), Corrections(-0.8)) == -0.8  # in all
    assert after(StampError(-0.2, 0.02, 40), Corrections(-0.3)) == pytest.approx(-0.1)  # it was too much
    assert after(StampError(-0.5, 0.02, 40), Corrections(-0.3)) == 0.0  # never later than configured
    # Near the parameter's own limit.
    assert Corrections(-0.5).applied_to(SessionConfig(stamp_offset_s=-9.8)).stamp_offset_s == -10.0


def test_corrections_of_the_imu_are_bounded_and_need_certainty() -> None:
    def after(offset_deg: float, sigma_deg: float, images: int, configured_deg: float = 0.0) -> float:
        imu = ImuOffset(math.radians(offset_deg), math.radians(sigma_deg), images)
        config = SessionConfig(heading_source="imu", imu_yaw_offset_rad=math.radians(configured_deg))
        return math.degrees(NO_CORRECTIONS.after(UNKNOWN, imu, config).imu_yaw_offset_rad)

    assert after(5.0, 0.5, 40) == pytest.approx(5.0, abs=0.01)
    assert after(5.0, 2.0, 40) == 0.0
    assert after(5.0, 0.5, 10) == 0.0
    assert after(1.4, 0.1, 40) == 0.0
    assert after(21.0, 0.5, 40) == 0.0
    assert after(-178.0, 0.5, 40, configured_deg=178.0) == pytest.approx(4.0, abs=0.01)  # across the wrap


@pytest.mark.parametrize("error_deg", [4.0, -7.0])
def test_apply_estimates_corrects_the_imu_offset(error_deg: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        driven = Driven(imu_error_rad=math.radians(error_deg), heading_source="imu").on()
    assert math.degrees(driven.corrections.imu_yaw_offset_rad) == pytest.approx(-error_deg, abs=1.0)
    estimate = driven.outcomes[-1].imu_offset
    assert math.degrees(estimate.offset_rad) == pytest.approx(-error_deg, abs=0.5)
    assert abs(estimate.offset_rad + math.radians(error_deg)) < 3 * estimate.sigma_rad
    named = Driven(imu_error_rad=math.radians(error_deg), heading_source="imu", apply=False).on()
    assert any("IMU's yaw is off by" in warning for warning in named.outcomes[-1].warnings)
    assert driven.outcomes[-1].warnings == ()
    heading = driven.camera.queries[-1].heading
    assert heading is not None
    assert wrap_angle(heading.yaw_rad - driven.drive.pose(driven.camera.exposed_s)[2]) == pytest.approx(0, abs=0.02)
    assert len([line for line in changes(caplog) if "imu_yaw_offset_rad" in line]) == 1
    assert driven.corrections.stamp_offset_s == 0.0


def test_apply_estimates_corrects_both_at_once() -> None:
    driven = Driven(late_s=0.27, imu_error_rad=math.radians(6), heading_source="imu").on(100, 0.35)
    assert driven.corrections.stamp_offset_s == pytest.approx(-0.27, abs=0.1)
    assert math.degrees(driven.corrections.imu_yaw_offset_rad) == pytest.approx(-6, abs=1.0)


def test_apply_estimates_leaves_a_right_imu_alone() -> None:
    for seed in range(2):
        driven = Driven(heading_source="imu", seed=seed).on()
        assert driven.corrections == NO_CORRECTIONS
        assert driven.outcomes[-1].warnings == ()
        estimate = driven.outcomes[-1].imu_offset
        assert abs(estimate.offset_rad) < 3 * estimate.sigma_rad
        assert math.degrees(estimate.sigma_rad) < 1.0


def test_imu_that_wanders_with_the_heading_is_less_certain() -> None:
    steady = Driven(heading_source="imu").on().outcomes[-1].imu_offset
    wandering = Driven(heading_source="imu", wander_rad=math.radians(5)).on().outcomes[-1].imu_offset
    assert wandering.sigma_rad > 1.5 * steady.sigma_rad


def test_imu_offset_is_estimated_across_the_wrap_and_despite_outliers() -> None:
    rng = np.random.default_rng(3)
    found = ImuOffsetEstimator()
    for number in range(60):
        wrong = math.pi / 2 if number % 10 == 5 else 0.0
        found.see(wrap_angle(rng.normal(math.pi, 0.01) + wrong), 0.01, 0.02, 5.0 * number)
    assert found.estimate.images == 60
    assert abs(wrap_angle(found.estimate.offset_rad - (math.pi - 0.02))) < 0.005
    found.see(0.0, math.radians(2), 0.0, 300.0)  # the drive itself does not know its yaw
    assert found.estimate.images == 60


def test_warning_of_the_imu_names_error_and_remedy() -> None:
    found = ImuOffset(math.radians(-3), math.radians(0.4), 40)
    text = found.warning(0.0)
    assert text is not None
    assert "off by 3.0 ± 0.4°" in text
    assert "session.imu_yaw_offset_rad: -0.052" in text
    assert found.warning(math.radians(-2.5)) is None
    assert dataclasses.replace(found, images=5).warning(0.0) is None
