"""The session's rules, with a localizer that is a stand-in: it records the queries and gives prepared answers.

Only the session is under test here; the real localizer has its own tests.
"""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Callable

import cv2
import numpy as np
import pytest

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.records import (
    ALL_SEEN,
    CameraImage,
    Fix,
    Heading,
    HeadingSource,
    Prior,
    Query,
    Rejection,
    RejectionReason,
)
from unifygeo_ros.images.files import decode_image
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import MAP_FRAME, ODOM_FRAME, ImuSample, InitialPose, OdometrySample
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.factory import make_session, settings_without_effect
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.sessions.single import SingleImageSession
from unifygeo_ros.tracking.config import TrackerConfig

SECOND = 1_000_000_000


def fix(stamp_ns: int, east: float = 10.0, north: float = 20.0, yaw: float = 0.0) -> Fix:
    return Fix(stamp_ns, east, north, 48.0, 9.0, np.eye(2), yaw, 0.01, 3, 1.0, 0.0, ())


class StandInLocalizer:
    """Not a localizer: keeps its calls and answers with what `answer` says."""

    def __init__(self, answer: Callable[[CameraImage], Fix | Rejection] | None = None) -> None:
        self.config, self.mount = LocalizerConfig(), CameraMount()
        self.answer = answer or (lambda image: fix(image.stamp_ns))
        self.calls: list[tuple[CameraImage, Prior | None, Heading | None]] = []

    def observe(self, image: CameraImage, query: Query) -> SimpleNamespace | Rejection:
        """What holds the fix stands for the observation that it would be decided from."""
        self.calls.append((image, query.prior, query.heading))
        answer = self.answer(image)
        return answer if isinstance(answer, Rejection) else SimpleNamespace(fix=answer, distances=None, seen=ALL_SEEN)

    def decide(self, observation: SimpleNamespace, query: Query) -> Fix:
        return observation.fix

    @property
    def prior(self) -> Prior | None:
        return self.calls[-1][1]

    @property
    def heading(self) -> Heading | None:
        return self.calls[-1][2]


def image(time_s: float, seed: int | None = None) -> CameraImage:
    stamp = round(time_s * SECOND)
    pixels = np.random.default_rng(stamp if seed is None else seed).integers(0, 256, (64, 128, 3), np.uint8)
    return CameraImage(pixels, stamp)


def odometry(
    time_s: float, x: float = 0.0, y: float = 0.0, yaw: float = 0.0, frame: str = ODOM_FRAME
) -> OdometrySample:
    return OdometrySample(round(time_s * SECOND), frame, x, y, yaw, covariance=0.04 * np.eye(3))


def imu(time_s: float, roll: float = 0.0, pitch: float = 0.0, yaw: float = 0.0) -> ImuSample:
    return ImuSample(round(time_s * SECOND), roll, pitch, yaw)


def make(  # type: ignore[no-untyped-def]
    answer: Callable[[CameraImage], Fix | Rejection] | None = None, noise: MotionNoise | None = None, **settings: object
):
    localizer = StandInLocalizer(answer)
    config = SessionConfig(**{"mode": "single", "camera_check_images": 0, **settings})  # type: ignore[arg-type]
    return localizer, SingleImageSession(localizer, config, noise or MotionNoise())


def reason(outcome: Outcome) -> RejectionReason:
    result = outcome.result
    assert isinstance(result, Rejection), result
    return result.reason


def test_session_without_sources_passes_the_image_alone() -> None:
    localizer, session = make()
    assert isinstance(session.locate(image(1.0)).result, Fix)
    assert localizer.prior is None
    assert localizer.heading is None
    assert localizer.calls[0][0].roll_rad is None


def test_map_odometry_gives_prior_and_heading_at_the_images_stamp() -> None:
    localizer, session = make(prior_source="odometry", heading_source="odometry", prior_sigma_m=3.0)
    session.add_odometry(odometry(1.0, 100, 200, 0.5, MAP_FRAME))
    session.add_odometry(odometry(1.2, 104, 200, 0.7, MAP_FRAME))
    session.locate(image(1.05))
    assert (localizer.prior.east_m, localizer.prior.north_m) == pytest.approx((101, 200))
    np.testing.assert_allclose(localizer.prior.covariance_m2, (0.04 + 9.0) * np.eye(2))
    assert localizer.heading.yaw_rad == pytest.approx(0.55)
    assert localizer.heading.variance_rad2 == pytest.approx(0.04)
    assert localizer.heading.source is HeadingSource.ODOMETRY


def test_drifting_odometry_is_neither_prior_nor_heading() -> None:
    localizer, session = make(prior_source="odometry", heading_source="odometry")
    session.add_odometry(odometry(1.0, 100, 200, 0.5))
    session.locate(image(1.0))
    assert localizer.prior is None
    assert localizer.heading is None


def test_imu_gives_heading_with_its_offset_and_tilt() -> None:
    localizer, session = make(heading_source="imu", imu_yaw_offset_rad=0.2)
    session.add_imu(imu(1.0, 0.01, 0.03, math.pi - 0.1))
    session.add_imu(imu(1.2, 0.03, 0.01, math.pi - 0.1))
    session.locate(image(1.1))
    assert localizer.heading.yaw_rad == pytest.approx(-math.pi + 0.1)
    assert localizer.heading.variance_rad2 == LocalizerConfig().heading_sigma_rad ** 2
    shown = localizer.calls[0][0]
    assert (shown.roll_rad, shown.pitch_rad) == pytest.approx((0.02, 0.02))


def test_gap_in_the_imu_means_no_heading_and_no_tilt() -> None:
    localizer, session = make(heading_source="imu", sample_gap_s=0.3, extrapolation_s=0.1)
    session.add_imu(imu(1.0))
    session.add_imu(imu(1.5))
    session.locate(image(1.2))
    assert localizer.heading is None
    assert localizer.calls[-1][0].roll_rad is None
    session.locate(image(1.59))
    assert localizer.heading is not None
    session.locate(image(1.61))
    assert localizer.heading is None


def test_constant_heading() -> None:
    localizer, session = make(heading_source="constant", heading_constant_rad=1.0)
    session.locate(image(1.0))
    assert localizer.heading == Heading(1.0, LocalizerConfig().heading_sigma_rad ** 2, HeadingSource.CONSTANT)


def test_last_fix_is_carried_on_by_odometry_turned_into_the_map() -> None:
    # The odometry frame is turned by 90° to the map: what it calls +x is north.
    localizer, session = make(
        lambda im: fix(im.stamp_ns, 10, 20, yaw=math.pi / 2),
        noise=MotionNoise(scale=0.2, walk=0.1, yaw_walk=0.0),
        prior_source="last_fix",
    )
    for step in range(21):
        session.add_odometry(odometry(1 + step * 0.1, x=step * 0.5))
    session.locate(image(1.0))
    assert localizer.prior is None
    session.locate(image(3.0))
    assert (localizer.prior.east_m, localizer.prior.north_m) == pytest.approx((10, 30))
    # East is across the way: the fix's 1 m², the odometry's walk 0.1²·10, the yaw's 10²·0.01. North is along it: the
    # fix's, the walk's, the scale's (0.2·10)².
    np.testing.assert_allclose(localizer.prior.covariance_m2, np.diag([1 + 0.1 + 1, 1 + 0.1 + 4]), atol=1e-9)


def test_last_fix_prior_after_rejections_and_an_odometry_gap() -> None:
    noise = MotionNoise(scale=0.2, walk=0.1, yaw_walk=0.0, turn_scale=0.0, turn_rad_s=0.0, speed_m_s=3.0)
    localizer, session = make(lambda im: fix(im.stamp_ns, 0, 0), noise=noise, prior_source="last_fix")
    for step in range(61):
        if not 20 < step < 40:  # no odometry from 3 s to 5 s; 5 m/s along a curve of 0.1 rad/s before and after
            angle = min(step, 20) * 0.01 + max(step - 40, 0) * 0.01
            session.add_odometry(
                odometry(1 + step * 0.1, x=50 * math.sin(angle), y=50 * (1 - math.cos(angle)), yaw=angle)
            )
    session.locate(image(1.0))
    localizer.answer = lambda im: Rejection(im.stamp_ns, RejectionReason.LOW_SCORE, "")
    session.locate(image(2.0))
    session.locate(image(6.0))
    session.locate(image(7.0))
    end = 50 * np.array([math.sin(0.4), 1 - math.cos(0.4)])
    assert (localizer.prior.east_m, localizer.prior.north_m) == pytest.approx(tuple(end), abs=1e-6)
    # The scale's error is one for the whole way, so it grows with the distance between the ends and not with its root;
    # in the gap, 2 s at 3 m/s = 6 m in any direction; the fix's yaw turns the whole way about its beginning.
    across = np.array([-end[1], end[0]])
    length = 2 * 20 * 2 * 50 * math.sin(0.005)
    expected = (
        (1 + 0.1**2 * length + 6.0**2) * np.eye(2) + 0.2**2 * np.outer(end, end) + 0.01 * np.outer(across, across)
    )
    np.testing.assert_allclose(localizer.prior.covariance_m2, expected, rtol=0.01)


def test_last_fix_without_odometry_spreads_with_time_and_ends() -> None:
    localizer, session = make(noise=MotionNoise(speed_m_s=2.0), prior_source="last_fix", last_fix_age_s=5.0)
    session.locate(image(1.0))
    session.locate(image(4.0))
    np.testing.assert_allclose(localizer.prior.covariance_m2, (1 + 36) * np.eye(2))
    localizer.answer = lambda im: Rejection(im.stamp_ns, RejectionReason.LOW_SCORE, "")
    session.locate(image(8.9))
    assert localizer.prior is not None
    session.locate(image(9.1))
    assert localizer.prior is None


def test_last_fix_prior_ends_after_consecutive_rejections() -> None:
    localizer, session = make(prior_source="last_fix", last_fix_failures=2)
    session.locate(image(1.0))
    localizer.answer = lambda im: Rejection(im.stamp_ns, RejectionReason.PRIOR_CONFLICT, "")
    for time_s, expected in ((1.1, True), (1.2, True), (1.3, False), (1.4, False)):
        session.locate(image(time_s))
        assert (localizer.prior is not None) is expected


def test_initial_pose_starts_the_last_fix_prior() -> None:
    localizer, session = make(prior_source="last_fix")
    assert session.set_initial_pose(InitialPose(0, 7.0, 8.0, 0.0, np.diag([4.0, 9.0, 0.1]))) is None
    session.locate(image(1.0))
    assert (localizer.prior.east_m, localizer.prior.north_m) == (7.0, 8.0)
    np.testing.assert_allclose(localizer.prior.covariance_m2, np.diag([4.0, 9.0]))


def test_initial_pose_is_refused_where_it_has_no_use_or_is_bad() -> None:
    _, session = make()
    assert "prior_source none" in session.set_initial_pose(InitialPose(0, 7.0, 8.0, 0.0, np.eye(3)))
    _, session = make(prior_source="last_fix")
    assert session.set_initial_pose(InitialPose(0, math.nan, 8.0, 0.0, np.eye(3))) == "not finite"
    assert session.status().refused == {"initial pose: not finite": 1}


def test_stamps_must_rise_and_a_small_step_back_is_dropped() -> None:
    localizer, session = make()
    session.locate(image(10.0))
    for stamp_s, words in (
        (10.0, "stamp the same as the last image's; it is dropped"),
        (9.5, "stamp 0.500 s before the last image's; it is dropped"),
        (10.0 - 4e-7, "stamp 400 ns before the last image's; it is dropped"),
    ):
        result = session.locate(CameraImage(image(1).pixels, round(stamp_s * 1e9))).result
        assert isinstance(result, Rejection)
        assert (result.reason, result.detail) == (RejectionReason.BAD_STAMP, words)
    assert reason(session.locate(CameraImage(image(1).pixels, 0))) is RejectionReason.BAD_STAMP
    assert len(localizer.calls) == 1
    assert isinstance(session.locate(image(10.1)).result, Fix)


def test_fix_stamps_rise_except_after_a_time_jump() -> None:
    _, session = make(time_jump_s=1.0)
    stamps = []
    for time_s in (5.0, 5.5, 5.2, 4.6, 6.0, 5.9, 7.0):
        result = session.locate(image(time_s)).result
        if isinstance(result, Fix):
            stamps.append(result.stamp_ns)
    assert stamps == sorted(stamps)
    assert len(stamps) == 4


def test_time_jump_restarts_and_keeps_newer_samples() -> None:
    localizer, session = make(prior_source="last_fix", heading_source="imu")
    session.add_odometry(odometry(100.0))
    session.locate(image(100.0))
    session.add_imu(imu(5.0, yaw=0.5))  # the IMU's messages of the new round arrive before its first image
    result = session.locate(image(5.0)).result
    assert isinstance(result, Fix)
    assert localizer.prior is None
    assert localizer.heading.yaw_rad == pytest.approx(0.5)
    assert session.status().resets == 1
    assert session.status().odometry_ns is None


def test_stamp_offset_moves_exposure_and_fix() -> None:
    localizer, session = make(heading_source="imu", stamp_offset_s=-0.25)
    session.add_imu(imu(1.0, yaw=0.0))
    session.add_imu(imu(1.5, yaw=1.0))
    result = session.locate(image(1.5)).result
    assert result.stamp_ns == round(1.25 * SECOND)
    assert localizer.heading.yaw_rad == pytest.approx(0.5)


def test_images_too_close_are_passed_over_and_the_interval_is_live() -> None:
    localizer, session = make(minimum_interval_s=0.5)
    session.locate(image(1.0))
    assert reason(session.locate(image(1.3))) is RejectionReason.RATE_LIMIT
    session.locate(image(1.5))
    session.reconfigure(SessionConfig(mode="single", minimum_interval_s=0.0, camera_check_images=0))
    session.locate(image(1.6))
    assert [call[0].stamp_ns for call in localizer.calls] == [SECOND, 1_500_000_000, 1_600_000_000]
    with pytest.raises(ValueError, match="heading_source"):
        session.reconfigure(SessionConfig(mode="single", heading_source="imu", camera_check_images=0))


def test_repeated_image_is_frozen_only_if_the_vehicle_moved() -> None:
    _, session = make(frozen_distance_m=0.5)
    for step in range(40):
        session.add_odometry(odometry(1 + step * 0.1, x=max(0, step - 20) * 0.1))
    assert isinstance(session.locate(image(1.0, seed=7)).result, Fix)
    assert isinstance(session.locate(image(2.0, seed=7)).result, Fix)  # standing: the same image is the truth
    assert isinstance(session.locate(image(3.3, seed=7)).result, Fix)  # 0.3 m: within the limit
    assert reason(session.locate(image(3.8, seed=7))) is RejectionReason.FROZEN_IMAGE
    assert isinstance(session.locate(image(3.9, seed=8)).result, Fix)


@pytest.mark.parametrize("least_width", [None, 256])
def test_repeated_jpeg_is_frozen_and_noisy_jpeg_is_not(least_width: int | None) -> None:
    """Decoded at its full size and at a quarter, where each pixel is the mean of 16: that evens the noise out."""
    rng = np.random.default_rng(3)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (512, 1024, 3), np.uint8), (0, 0), 3.0)

    def shown(time_s: float, noise: int) -> CameraImage:
        noisy = scene + np.random.default_rng(noise).normal(0.0, 1.5, scene.shape)
        encoded = cv2.imencode(".jpg", np.clip(noisy, 0, 255).astype(np.uint8))[1].tobytes()
        return CameraImage(decode_image(encoded, "camera", least_width), round(time_s * 1e9))

    _, session = make(frozen_repeats=1)
    session.locate(shown(1.0, noise=1))
    assert isinstance(session.locate(shown(2.0, noise=2)).result, Fix)
    assert reason(session.locate(shown(3.0, noise=2))) is RejectionReason.FROZEN_IMAGE


def test_without_odometry_repetitions_are_counted() -> None:
    _, session = make(frozen_repeats=2)
    results = [session.locate(image(1.0 + k, seed=7)).result for k in range(4)]
    assert [isinstance(r, Fix) for r in results] == [True, True, False, False]
    assert "3 times in a row, limit 2" in results[2].detail  # type: ignore[union-attr]


def test_bad_samples_are_counted_and_ignored() -> None:
    localizer, session = make(prior_source="odometry", heading_source="imu")
    session.add_odometry(odometry(1.0, 5, 5, frame=MAP_FRAME))
    session.add_imu(imu(1.0, yaw=1.0))
    assert session.add_odometry(odometry(1.05, math.nan, 5, frame=MAP_FRAME)) == "not finite"
    assert session.add_odometry(odometry(1.06, 5, 5, frame="camera")) == "unknown frame"
    assert session.add_imu(imu(1.05, math.inf)) == "not finite"
    assert session.add_imu(imu(1.05, math.nan, math.nan, math.nan)) == "no orientation"
    session.locate(image(1.05))
    assert localizer.prior.east_m == 5
    assert localizer.heading.yaw_rad == 1.0
    assert session.status().refused == {
        "odometry: not finite": 1,
        "odometry: unknown frame": 1,
        "imu: not finite": 1,
        "imu: no orientation": 1,
    }
    assert session.status().outcomes == {"fix": 1}


def test_outcome_holds_what_was_asked_and_seen() -> None:
    _, session = make(heading_source="imu", stamp_offset_s=0.25, minimum_interval_s=0.5, camera_check_images=0)
    session.add_imu(imu(1.0, roll=0.01, pitch=0.02, yaw=0.5))
    session.add_imu(imu(1.25, roll=0.01, pitch=0.02, yaw=0.5))
    outcome = session.locate(image(1.0))
    assert outcome.image.stamp_ns == outcome.result.stamp_ns == round(1.25 * SECOND)
    assert (outcome.image.roll_rad, outcome.image.pitch_rad) == pytest.approx((0.01, 0.02))
    assert outcome.query is not None
    assert outcome.query.prior is None
    assert outcome.query.heading == Heading(0.5, LocalizerConfig().heading_sigma_rad ** 2, HeadingSource.IMU)
    assert outcome.observation.fix is outcome.result  # of the stand-in
    assert outcome.track is None
    refused = session.locate(image(1.1))
    assert reason(refused) is RejectionReason.RATE_LIMIT
    assert (refused.query, refused.observation) == (None, None)


def test_recall_updates_the_session_as_locate_does() -> None:
    first, session = make(prior_source="last_fix")
    second, again = make(prior_source="last_fix")
    known = session.locate(image(1.0)).result
    assert again.recall(image(1.0), known).result is known
    assert second.calls == []
    for one in (session, again):
        one.locate(image(2.0))
    np.testing.assert_array_equal(first.prior.covariance_m2, second.prior.covariance_m2)
    assert session.status().outcomes == again.status().outcomes == {"fix": 2}


def test_settings_without_effect_names_those_of_the_other_mode() -> None:
    tracker, noise = TrackerConfig(keep_ambiguity=0.2, outlier=0.2), MotionNoise(walk=0.1)
    changed = SessionConfig(mode="sequence", prior_sigma_m=7.0, time_jump_s=2.0)
    assert settings_without_effect(changed, tracker, noise) == (
        "session.prior_sigma_m is set, but acts in mode single only; session.mode is sequence",
    )
    kept = "tracker.keep_ambiguity is set, but acts in mode sequence only; session.mode is single"
    assert settings_without_effect(SessionConfig(mode="single", prior_sigma_m=7.0), tracker, noise) == (
        kept,
        "odometry.walk is set, but acts in mode sequence or with prior_source last_fix only; session.mode is single, "
        "session.prior_source none",
    )
    assert settings_without_effect(SessionConfig(mode="single", prior_source="last_fix"), tracker, noise) == (kept,)
    assert settings_without_effect(SessionConfig(), TrackerConfig(), MotionNoise()) == ()


def test_make_session_warns_of_settings_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    session = make_session(StandInLocalizer(), SessionConfig(mode="single"), TrackerConfig(keep_ambiguity=0.2))
    assert isinstance(session, SingleImageSession)
    assert [record.getMessage() for record in caplog.records] == [
        "tracker.keep_ambiguity is set, but acts in mode sequence only; session.mode is single"
    ]


def test_reset_forgets_and_drops_the_result_in_flight() -> None:
    started, finish = threading.Event(), threading.Event()

    def slow(im: CameraImage) -> Fix:
        started.set()
        assert finish.wait(10)
        return fix(im.stamp_ns)

    localizer, session = make(slow, prior_source="last_fix")
    results: list[Outcome] = []
    worker = threading.Thread(target=lambda: results.append(session.locate(image(1.0))))
    worker.start()
    assert started.wait(10)
    session.reset()  # returns while the image is being localized
    finish.set()
    worker.join(10)
    assert reason(results[0]) is RejectionReason.RESET
    assert (results[0].query, results[0].observation, results[0].track) == (None, None, None)
    session.locate(image(1.1))
    assert localizer.prior is None


def test_after_a_reset_older_images_are_accepted() -> None:
    _, session = make()
    session.locate(image(10.0))
    session.reset()
    assert isinstance(session.locate(image(9.9)).result, Fix)


def test_single_images_are_compared_with_each_other_without_the_imagery_error() -> None:
    localizer, session = make()
    localizer.config = LocalizerConfig(imagery_sigma_m=0.5)
    outcome = Outcome(fix(SECOND), image(1.0))  # its covariance, the unit matrix, holds the imagery's 0.25 m²
    place = session._place_seen(outcome)
    assert place is not None
    assert np.allclose(place.covariance_m2, 0.75 * np.eye(2))


def test_same_calls_same_results() -> None:
    def drive() -> list[object]:
        localizer, session = make(prior_source="last_fix", heading_source="imu")
        for step in range(100):
            session.add_odometry(odometry(1 + step * 0.05, step * 0.5, math.sin(step), step * 0.01))
            session.add_imu(imu(1 + step * 0.05, 0.01 * math.sin(step), 0.0, step * 0.01))
            if step % 5 == 0:
                session.locate(image(1 + step * 0.05 - 0.02))
        return [
            (None if prior is None else (prior.east_m, prior.north_m, prior.covariance_m2.tolist()), heading)
            for _, prior, heading in localizer.calls
        ]

    assert drive() == drive()


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="heading_source"):
        SessionConfig(heading_source="gps")
    with pytest.raises(ConfigurationError, match="minimum_interval_s"):
        SessionConfig(minimum_interval_s=-1.0)
