"""Late stamps: the filter that finds them, against simulated drives whose truth is known; what a session does."""

from __future__ import annotations

import itertools
import logging
import math
from types import SimpleNamespace
from typing import Callable

import numpy as np
import numpy.typing as npt
import pytest

from unifygeo_ros.core.records import ALL_SEEN, CameraImage, Fix, Query
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.fixes import with_stamp_error
from unifygeo_ros.motion.increments import MotionNoise, motion_between
from unifygeo_ros.motion.samples import ODOM_FRAME, BufferLimits, MotionBuffer, OdometrySample
from unifygeo_ros.motion.stamp_error import Place, StampError, StampErrorFilter, mean_velocity
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.single import SingleImageSession

SECOND = 1_000_000_000
START_S = 1000.0
SIGMA_M = 0.5
DURATION_S = 40.0

Profile = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

SPEEDS: dict[str, Profile] = {
    "town": lambda t: 7 + 5 * np.sin(t / 3),
    "stop and go": lambda t: np.maximum(0.0, 8 * np.sin(t / 4)),
    "reversing": lambda t: 6 * np.sin(t / 4),
    "steady": lambda t: np.full_like(t, 8.0),
    "standing": lambda t: np.zeros_like(t),
}
TURN_RATES: dict[str, Profile] = {
    "straight": lambda t: np.zeros_like(t),
    "corners": lambda t: np.where(np.mod(t, 10) > 6, 0.4, 0.0),
}


class Drive:
    """Truth integrated in steps of 10 ms, by its own formulas; odometry of 20 Hz with an error of scale."""

    def __init__(self, speed: str, turns: str, seed: int, scale: float = 1.0, odometry_late_s: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.ahead_m = 0.0  # how much further ahead the camera is than configured
        self.time_s = np.arange(-2.0, DURATION_S, 0.01)
        yaw = 0.3 + np.cumsum(TURN_RATES[turns](self.time_s)) * 0.01
        way = SPEEDS[speed](self.time_s) * 0.01
        self.truth = np.stack([np.cumsum(way * np.cos(yaw)), np.cumsum(way * np.sin(yaw)), yaw])
        self.odometry = [
            OdometrySample(
                round((START_S + time_s + odometry_late_s) * SECOND),
                ODOM_FRAME,
                scale * x,
                scale * y,
                angle,
            )
            for time_s, x, y, angle in zip(self.time_s[::5], *self.truth[:, ::5], strict=True)
        ]

    def pose(self, time_s: float) -> npt.NDArray[np.float64]:
        """East, north, yaw."""
        return np.array([np.interp(time_s, self.time_s, row) for row in self.truth])

    def shown(self, exposed_s: float) -> npt.NDArray[np.float64]:
        """Where an image shows base_link."""
        east, north, yaw = self.pose(exposed_s)
        ahead = self.ahead_m * np.array([math.cos(yaw), math.sin(yaw)])
        place: npt.NDArray[np.float64] = np.array([east, north]) + ahead + self.rng.normal(0, SIGMA_M, 2)
        return place


def estimated(drive: Drive, late_s: float, images: int = 60) -> tuple[StampError, int | None]:
    """The estimate at the end, and the number of the image at which it was beyond doubt."""
    noise = MotionNoise()
    found = StampErrorFilter(noise, (0.0, 0.0))
    limits = BufferLimits(1000 * SECOND, SECOND, SECOND, SECOND)
    buffer: MotionBuffer[OdometrySample] = MotionBuffer(limits)
    for sample in drive.odometry:
        assert buffer.add(sample) is None
    first, last_ns = None, None
    for number in range(images):
        exposed_s = 0.5 + 0.6 * number
        stamp_ns = round((START_S + exposed_s + late_s) * SECOND)
        if last_ns is not None:
            found.move(motion_between(buffer, last_ns, stamp_ns, noise))
        last_ns = stamp_ns
        yaw = drive.pose(exposed_s)[2] + drive.rng.normal(0, 0.01)
        place = Place(*drive.shown(exposed_s), SIGMA_M**2 * np.eye(2), yaw, 0.01**2)
        found.see(place, mean_velocity(buffer.span(stamp_ns - SECOND // 5, stamp_ns)))
        if first is None and found.estimate.significant:
            first = number
    return found.estimate, first


@pytest.mark.parametrize(
    ("speed", "turns"),
    [
        ("town", "straight"),
        ("town", "corners"),
        ("stop and go", "corners"),
        ("reversing", "straight"),
        ("steady", "corners"),
    ],
)
@pytest.mark.parametrize("late_s", [0.0, 0.25, -0.15])
def test_estimate_agrees_with_the_error_within_its_own_sigma(speed: str, turns: str, late_s: float) -> None:
    errors = []
    for seed in range(5):
        scale = float(np.random.default_rng(100 + seed).normal(1, 0.02))
        estimate, _ = estimated(Drive(speed, turns, seed, scale), late_s)
        errors.append((estimate.late_s - late_s) / estimate.sigma_s)
        assert estimate.sigma_s < 0.06
    assert math.sqrt(np.mean(np.square(errors))) < 1.9  # 99.9% of χ² with 5 degrees of freedom: 2.02


def test_images_a_quarter_second_late_are_named_within_thirty() -> None:
    for seed in range(5):
        _, first = estimated(Drive("town", "corners", seed), 0.25)
        assert first is not None
        assert first <= 30


def test_right_stamps_are_never_named() -> None:
    for seed in range(3):
        for speed in SPEEDS:
            assert estimated(Drive(speed, "corners", seed), 0.0)[1] is None


@pytest.mark.parametrize("speed", ["steady", "standing"])
def test_velocity_that_stays_the_same_shows_nothing(speed: str) -> None:
    estimate, first = estimated(Drive(speed, "straight", 1), 0.25)
    assert first is None
    assert estimate.sigma_s > 0.2  # of the 0.3 before the first image


def test_odometry_that_is_late_as_well_hides_the_error() -> None:
    estimate, first = estimated(Drive("town", "corners", 3, odometry_late_s=0.2), 0.2)
    assert first is None
    assert estimate.late_s == pytest.approx(0.0, abs=3 * estimate.sigma_s)


@pytest.mark.parametrize("forward_m", [1.0, -1.0])
def test_camera_position_that_is_wrong_by_a_metre_is_not_taken_for_a_late_stamp(forward_m: float) -> None:
    """With a prior of 0.1 m for the camera's position (`PriorSigmas.camera_m`) both are named after 50 images."""
    for seed in range(2):
        drive = Drive("stop and go", "corners", seed)
        drive.ahead_m = forward_m
        assert estimated(drive, 0.0)[1] is None


def test_gap_of_the_odometry_loses_the_pose_and_keeps_the_estimate() -> None:
    drive = Drive("town", "corners", 2)
    kept = [sample for sample in drive.odometry if not 20.0 < sample.stamp_ns / SECOND - START_S < 23.0]
    drive.odometry = kept
    noise = MotionNoise()
    buffer: MotionBuffer[OdometrySample] = MotionBuffer(BufferLimits(1000 * SECOND, SECOND, SECOND, SECOND))
    for sample in drive.odometry:
        buffer.add(sample)
    found = StampErrorFilter(noise, (0.0, 0.0))
    sigmas = []
    for number in range(60):
        stamp_ns = round((START_S + 0.5 + 0.6 * number) * SECOND)
        if number:
            found.move(motion_between(buffer, stamp_ns - round(0.6 * SECOND), stamp_ns, noise))
        samples = buffer.span(stamp_ns - SECOND // 5, stamp_ns)
        if samples:
            east_m, north_m = drive.shown(0.5 + 0.6 * number)
            found.see(Place(east_m, north_m, SIGMA_M**2 * np.eye(2), drive.pose(0.5 + 0.6 * number)[2], 0.02**2),
                      mean_velocity(samples))  # fmt: skip
        sigmas.append(found.estimate.sigma_s)
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(sigmas[1:]))
    assert abs(found.estimate.late_s) < 3 * found.estimate.sigma_s


def test_false_places_are_not_used() -> None:
    estimate, _ = estimated(Drive("town", "corners", 4), 0.0)
    drive = Drive("town", "corners", 4)
    honest = drive.shown
    drive.shown = lambda exposed_s: honest(exposed_s) + (200.0 if 10 < exposed_s < 11.5 else 0.0)  # type: ignore[method-assign]
    disturbed, first = estimated(drive, 0.0)
    assert first is None
    assert disturbed.late_s == pytest.approx(estimate.late_s, abs=2 * estimate.sigma_s)


def test_velocity_comes_from_poses_and_not_from_the_twist() -> None:
    # A quarter circle of radius 10 m in 2 s: speed 5π/2, which at its middle points straight ahead.
    arc = [
        OdometrySample(round((1 + time_s) * SECOND), ODOM_FRAME, 10 * math.sin(a), 10 - 10 * math.cos(a), a)
        for time_s in np.linspace(0, 2, 41)
        for a in [time_s * math.pi / 4]
    ]
    velocity = mean_velocity(arc)
    chord = 10 * math.sqrt(2) / 2
    np.testing.assert_allclose(velocity.vector, [chord, 0.0, math.pi / 4], atol=1e-9)


def test_second_moment_is_that_of_assumption_and_estimate_together() -> None:
    # Numerically: the product of N(0, 0.05) and N(0.1, 0.03), integrated.
    late = np.linspace(-1, 1, 200_001)
    density = np.exp(-0.5 * (late / 0.05) ** 2 - 0.5 * ((late - 0.1) / 0.03) ** 2)
    expected = float((density * late**2).sum() / density.sum())
    assert StampError(0.1, 0.03, 20).second_moment_s2(0.05) == pytest.approx(expected, rel=1e-6)
    assert StampError(0.0, math.inf, 0).second_moment_s2(0.05) == pytest.approx(0.05**2)
    assert StampError(0.1, 0.03, 20).second_moment_s2(0.0) == 0.0


@pytest.mark.parametrize(("late_s", "words"), [(0.25, "0.25 ± 0.02 s late"), (-0.1, "0.10 ± 0.02 s early")])
def test_warning_names_error_and_remedy(late_s: float, words: str) -> None:
    text = StampError(late_s, 0.02, 20).warning(-0.05)
    assert text is not None
    assert words in text
    assert f"session.stamp_offset_s: {-0.05 - late_s:.2f}" in text
    assert StampError(late_s, 0.02, 5).warning(0.0) is None
    assert StampError(0.07, 0.02, 50).warning(0.0) is None
    assert StampError(0.06, 0.01, 500).warning(0.0) is None  # sure, but within what fixes allow for


# -- the session ------------------------------------------------------------------------------------------------------


class Shown:
    """Answers with a fix where the drive was `late_s` before the stamp."""

    def __init__(self, drive: Drive, late_s: float) -> None:
        self.config, self.mount = LocalizerConfig(), CameraMount()
        self.drive, self.late_s = drive, late_s
        self.queries: list[Query] = []

    def observe(self, image: CameraImage, query: Query) -> SimpleNamespace:
        self.queries.append(query)
        return SimpleNamespace(stamp_ns=image.stamp_ns, distances=None, seen=ALL_SEEN)

    def decide(self, observation: SimpleNamespace, query: Query) -> Fix:
        exposed_s = observation.stamp_ns / SECOND - START_S - self.late_s
        east_m, north_m = self.drive.shown(exposed_s)
        yaw = float(self.drive.pose(exposed_s)[2])
        covariance, _ = with_stamp_error(SIGMA_M**2 * np.eye(2), 1e-4, query.stamp_covariance, yaw)
        return Fix(observation.stamp_ns, east_m, north_m, 48.0, 9.0, covariance, yaw, 1e-4, 3, 1.0, 0.0, ())


def played(late_s: float, **settings: object) -> tuple[list[int], SingleImageSession, Shown]:
    """The images with a warning, the session and its localizer."""
    drive = Drive("town", "corners", 7)
    localizer = Shown(drive, late_s)
    session = SingleImageSession(localizer, SessionConfig(buffer_age_s=600.0, **settings), MotionNoise())  # type: ignore[arg-type]
    for sample in drive.odometry:
        session.add_odometry(sample)
    warned = []
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 64, 3), np.uint8)
        outcome = session.locate(CameraImage(pixels, round((START_S + 0.5 + 0.6 * number) * SECOND)))
        if outcome.warnings:
            warned.append(number)
    return warned, session, localizer


def test_session_warns_of_late_images_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warned, session, localizer = played(0.25)
    assert warned[0] <= 30
    assert warned[-1] == 59
    assert len([record for record in caplog.records if "stamp_offset_s" in record.message]) == 1
    assert "s late" in session.status().warnings[0]
    # What is known by now about the stamps is in the covariance: about a quarter of a second of driving.
    velocity = localizer.queries[-1].stamp_covariance
    assert velocity is not None
    speed = SPEEDS["town"](np.array([0.5 + 0.6 * 59 - 0.1]))[0]
    assert math.sqrt(velocity[0, 0]) == pytest.approx(0.25 * speed, rel=0.35)
    session.reset()
    assert session.status().warnings == ()


def test_session_logs_each_new_warning_whichever_stands_first(caplog: pytest.LogCaptureFixture) -> None:
    """The camera's warning is there first; the stamps' comes later and is listed before it. Then the camera is said to
    be mounted in another way."""
    localizer = Shown(Drive("town", "corners", 7), 0.25)
    session = SingleImageSession(localizer, SessionConfig(), MotionNoise())  # type: ignore[arg-type]
    kinds = [{}, {"camera mirrored": "M 1"}, {"stamps late": "L 1", "camera mirrored": "M 2"}]
    kinds += [{"stamps late": "L 2", "camera upside down": "U 1"}, {}, {"stamps late": "L 3"}]
    made = iter(kinds)
    session._warnings_now = lambda config: next(made)  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        for number in range(len(kinds)):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 64, 3), np.uint8)
            outcome = session.locate(CameraImage(pixels, round((START_S + 1 + number) * SECOND)))
            assert outcome.warnings == tuple(kinds[number].values())
    assert [record.message for record in caplog.records if len(record.message) == 3] == ["M 1", "L 1", "U 1"]


def test_what_is_assumed_of_the_stamps_does_not_slow_what_is_learnt_about_them() -> None:
    """The assumption is in the covariance of every fix; the estimate is made without it."""
    (warned, careful, _), (_, bold, _) = played(0.25, stamp_sigma_s=0.3), played(0.25, stamp_sigma_s=0.0)
    estimates = [session._stamp_error.estimate for session in (careful, bold)]
    assert estimates[0].late_s == pytest.approx(estimates[1].late_s, abs=1e-9)
    assert estimates[0].sigma_s == pytest.approx(estimates[1].sigma_s, rel=1e-9)
    assert warned[0] <= 30


def test_session_with_the_offset_set_does_not_warn() -> None:
    # The stand-in knows the stamps after the offset only: with it set, exposure and stamp agree.
    warned, _, localizer = played(0.0, stamp_offset_s=-0.25)
    assert warned == []
    covariance = localizer.queries[20].stamp_covariance
    assert covariance is not None
    speed = SPEEDS["town"](np.array([0.5 + 0.6 * 20 - 0.25 - 0.1]))[0]
    assert 0.2 * SessionConfig().stamp_sigma_s * speed < math.sqrt(covariance[0, 0])
    assert math.sqrt(covariance[0, 0]) < 1.2 * SessionConfig().stamp_sigma_s * speed
    first = localizer.queries[0].stamp_covariance
    assert first is not None
    speed = SPEEDS["town"](np.array([0.5 - 0.25 - 0.1]))[0]
    assert math.sqrt(first[0, 0]) == pytest.approx(SessionConfig().stamp_sigma_s * speed, rel=0.02)


def test_without_odometry_the_speed_is_assumed() -> None:
    localizer = Shown(Drive("town", "corners", 7), 0.0)
    session = SingleImageSession(localizer, SessionConfig(stamp_sigma_s=0.1), MotionNoise(speed_m_s=20.0))  # type: ignore[arg-type]
    session.locate(CameraImage(np.zeros((32, 64, 3), np.uint8), round((START_S + 1) * SECOND)))
    np.testing.assert_allclose(localizer.queries[0].stamp_covariance, np.diag([4.0, 4.0, (0.1 * 0.3) ** 2]))
