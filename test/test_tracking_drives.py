"""Drives through a simulated town (simulated_town.py says what that is): the filter finds, keeps, doubts, recovers.

All drives have known seeds; the limits asserted leave room above what was measured, and none is met by a filter that
does nothing: without fixes there is no availability, with wrong ones there are false fixes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated_town import SECOND, Drive, ObservationModel, Run, SimulatedLocalizer, make_drive, run_drive

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import (
    CameraImage,
    Fix,
    Heading,
    HeadingSource,
    Observation,
    Query,
    Rejection,
    RejectionReason,
)
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.motion.increments import Motion
from unifygeo_ros.motion.samples import ODOM_FRAME, ImuSample, InitialPose, OdometrySample
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.factory import make_session
from unifygeo_ros.sessions.sequence import SequenceSession
from unifygeo_ros.tracking.belief import hypothesis
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.region import region_of
from unifygeo_ros.tracking.track import TrackState
from unifygeo_ros.tracking.tracker import Plan, Tracker

PLAIN = ObservationModel()
CONSISTENT = TrackerConfig(accuracy_correlation_m=PLAIN.error_m)
"""Where covariances are judged: the simulated D's errors last longer than those of a network."""
ALIASED = ObservationModel(aliases=((300.0, 100.0), (-200.0, 200.0)), alias_m=120.0)


def moved(first: Drive, second: Drive) -> Drive:
    """The second drive after the first, in another place, without the odometry noticing."""
    step = first.time_s[1] - first.time_s[0]
    end, start = first.odometry[-1], second.odometry[0]
    turn = wrap_angle(float(end[2] - start[2]))
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    odometry = second.odometry.copy()
    odometry[:, :2] = (odometry[:, :2] - start[:2]) @ rotation.T + end[:2]
    odometry[:, 2] = wrap_angle(odometry[:, 2] + turn)
    shift = first.time_s[-1] + step - second.time_s[0]
    return Drive(
        np.concatenate([first.time_s, second.time_s + shift]),
        np.concatenate([first.pose, second.pose]),
        np.concatenate([first.odometry, odometry]),
    )


@pytest.mark.parametrize("heading", ["imu", "none"])
def test_drive_is_found_and_kept_without_a_false_fix(heading: str) -> None:
    for seed in (0, 1):
        run, session, localizer = run_drive(make_drive(seed, 60), PLAIN, seed, heading=heading)
        assert run.first_fix_s(after_s=1.0) < 12
        assert run.false_fixes(5.0) == 0.0
        shown = [
            isinstance(result, Fix)
            for time_s, result in zip(run.time_s, run.results, strict=True)
            if time_s > 15.0 and result.stamp_ns not in localizer.outliers
        ]
        assert np.mean(shown) > (0.95 if heading == "imu" else 0.85)  # a searched heading may be a wrong one
        yaws = [
            wrap_angle(result.yaw_rad - localizer._truth[result.stamp_ns][2])
            for result in run.results
            if isinstance(result, Fix)
        ]
        assert np.abs(yaws).max() < math.radians(12)
        gated = [request for request in localizer.requests if request.prior is not None]
        assert len(gated) > 0.4 * len(localizer.requests)  # a tracking vehicle searches little
        assert session.status().track.hypotheses <= TrackerConfig().hypotheses


@pytest.mark.parametrize("right", [True, False])
def test_leading_place_is_looked_at_under_its_own_heading_until_an_image_does_not_support_it(right: bool) -> None:
    drive = make_drive(0, 10)
    stamps = drive.stamps()
    localizer = SimulatedLocalizer(dict(zip(stamps, drive.pose, strict=True)), ObservationModel(outliers=0.0), 0)
    tracker = Tracker(region_of(localizer.index), localizer.bundle.manifest.calibration, TrackerConfig())
    east, north, yaw = drive.pose[100].tolist()
    place = Pose2(east if right else east + 200.0, north, yaw)
    motion = Motion(4.0, 0.0, 0.0, 4.0, 0.01 * np.eye(3), duration_s=0.5)
    back = place.compose(motion.pose.inverse())

    def planned(doubt: float) -> Plan:
        tracker._belief = hypothesis(back, np.diag([1.0, 1.0, 0.01]), 0.02, doubt)
        return tracker.plan(motion, None, LocalizerConfig())

    assert planned(0.15).query == Query(None, None, 5, 20)  # no place leads: the heading is searched
    plan = planned(0.05)
    assert plan.query.prior is None
    assert plan.query.heading is not None
    assert plan.query.heading.source is HeadingSource.TRACK
    assert plan.query.heading.yaw_rad == pytest.approx(yaw)
    given = Heading(1.0, 0.01, HeadingSource.IMU)
    assert tracker.plan(motion, given, LocalizerConfig()).query.heading == given
    observation = localizer.observe(CameraImage(np.full((2, 4, 3), 9, np.uint8), stamps[100]), plan.query)
    assert isinstance(observation, Observation)
    tracker.update(plan, observation)
    assert (planned(0.05).query.heading is not None) == right
    searched = localizer.observe(CameraImage(np.full((2, 4, 3), 9, np.uint8), stamps[100]), Query(None, None, 5, 20))
    assert isinstance(searched, Observation)
    tracker.update(planned(0.05), searched)
    assert planned(0.05).query.heading is not None  # the next one under its heading again


@pytest.mark.parametrize("heading", ["imu", "none"])
def test_ambiguous_places_are_resolved_while_driving(heading: str) -> None:
    """For 120 m two other places look exactly like the true one: no fix before that ends but the true one's."""
    run, _, _ = run_drive(make_drive(1, 60), ALIASED, 1, heading=heading)
    assert run.false_fixes(5.0) == 0.0
    assert run.availability(first_s=40.0) > 0.6
    early = [state for t, state in zip(run.time_s, run.states, strict=True) if t < 8.0]
    assert "tracking" not in early
    assert "ambiguous" in early


@pytest.mark.parametrize("heading", ["imu", "none"])
def test_kidnapped_vehicle_is_found_again(heading: str) -> None:
    for seed in (1, 2):
        drive = moved(make_drive(seed, 30), make_drive(seed + 50, 30))
        run, _, _ = run_drive(drive, PLAIN, seed, heading=heading)
        late = [e for t, e in zip(run.time_s, run.error_m, strict=True) if t > 31.0]
        wrong = sum(e > 10 for e in late)
        assert wrong == 0  # not even until it is noticed: no image supports the track
        # Another place than the odometry leads to takes five independent images, about 50 m.
        assert sum(e < 5 for e in late) > 12
        assert "lost" in run.states


def test_single_outlier_image_gives_no_fix_and_keeps_the_track() -> None:
    drive = make_drive(0, 30)

    def prepare(session: SequenceSession, time_s: float) -> None:
        if time_s == 20.0:
            truth = session._localizer._truth
            stamp = round(time_s * SECOND)
            truth[stamp] = truth[stamp] + np.array([250.0, -180.0, 0.0])

    run, _, _ = run_drive(drive, PLAIN, 0, prepare=prepare)
    odd = run.time_s.index(20.0)
    before, at, after = run.results[odd - 1 : odd + 2]
    assert isinstance(before, Fix)
    assert isinstance(at, Rejection)
    assert at.reason is RejectionReason.UNCERTAIN
    assert isinstance(after, Fix)
    assert run.states[odd] == "tracking"


def test_wrong_initial_pose_is_overcome_and_gives_no_fix() -> None:
    drive = make_drive(2, 40)
    east, north, yaw = drive.pose[0]
    wrong = InitialPose(0, east + 250.0, north - 150.0, yaw, np.diag([4.0, 4.0, 0.01]))

    def prepare(session: SequenceSession, time_s: float) -> None:
        if time_s == 1.0:
            assert session.set_initial_pose(wrong) is None

    run, _, _ = run_drive(drive, PLAIN, 2, prepare=prepare)
    assert run.false_fixes(10.0) == 0.0
    assert run.first_fix_s(after_s=1.0) < 20


def test_right_initial_pose_speeds_the_first_fix_up() -> None:
    drive = make_drive(1, 25)
    east, north, yaw = drive.pose[0]

    def prepare(session: SequenceSession, time_s: float) -> None:
        if time_s == 1.0:
            session.set_initial_pose(InitialPose(0, east + 2.0, north, yaw, np.diag([9.0, 9.0, 0.02])))

    with_pose, _, _ = run_drive(drive, ALIASED, 1, prepare=prepare)
    without, _, _ = run_drive(drive, ALIASED, 1)
    assert with_pose.first_fix_s(1.0) < without.first_fix_s(1.0)
    assert with_pose.false_fixes() == 0.0


def test_slip_of_the_wheels_is_overcome() -> None:
    drive = make_drive(0, 40)
    slipped = drive.odometry.copy()
    slipped[20 * 20 :, 0] += 10.0
    run, _, _ = run_drive(Drive(drive.time_s, drive.pose, slipped), PLAIN, 0)
    after = [e for t, e in zip(run.time_s, run.error_m, strict=True) if t > 28.0]
    assert np.nanmedian(after) < 3.0
    assert np.isfinite(after).mean() > 0.5
    assert run.false_fixes(15.0) == 0.0


def test_gap_in_the_odometry_widens_the_belief_and_is_overcome() -> None:
    run, _, _ = run_drive(make_drive(0, 45), PLAIN, 0, odometry_gap=(20.0, 26.0), config=CONSISTENT)
    after = [e for t, e in zip(run.time_s, run.error_m, strict=True) if t > 32.0]
    assert np.nanmedian(after) < 3.0
    assert np.isfinite(after).mean() > 0.5
    assert np.mean(run.inside) > 0.9


def test_stretch_without_usable_images_gives_no_fix_and_is_bridged() -> None:
    run, _, localizer = run_drive(make_drive(1, 50), PLAIN, 1, black=(20.0, 32.0))
    for t, result in zip(run.time_s, run.results, strict=True):
        if 20.0 <= t < 32.0:
            assert isinstance(result, Rejection)
            assert result.reason in (RejectionReason.BLACK_IMAGE, RejectionReason.FROZEN_IMAGE)
    results = [(t, r) for t, r in zip(run.time_s, run.results, strict=True) if t >= 32.0]
    usable_s = next(t for t, r in results if r.stamp_ns not in localizer.outliers)
    resumed_s = next(t for t, r in results if isinstance(r, Fix))
    assert resumed_s < usable_s + 4.0
    assert run.false_fixes(8.0) == 0.0


def test_camera_gap_longer_than_the_buffer_loses_no_motion() -> None:
    """40 s without any image, buffers of 10 s: the way driven meanwhile is still in the belief."""
    drive = make_drive(1, 80)
    stamps = drive.stamps()

    localizer = SimulatedLocalizer(dict(zip(stamps, drive.pose, strict=True)), PLAIN, 1)
    config = SessionConfig(mode="sequence", heading_source="imu", buffer_age_s=10.0, camera_check_images=0)
    session = make_session(localizer, config)
    rng = np.random.default_rng(0)
    from unifygeo_ros.core.records import CameraImage

    for step, stamp in enumerate(stamps):
        x, y, yaw = drive.odometry[step]
        session.add_odometry(OdometrySample(stamp, ODOM_FRAME, float(x), float(y), float(yaw)))
        session.add_imu(ImuSample(stamp, 0.0, 0.0, float(drive.pose[step, 2]), 0.001))
        time_s = drive.time_s[step]
        if step % 10 == 0 and not 25.0 <= time_s < 65.0:
            result = session.locate(CameraImage(rng.integers(0, 255, (16, 32, 3), np.uint8), stamp)).result
            if time_s == 65.0:
                break
    place = session.tracker.cluster
    assert place is not None
    error = place.mean[:2] - drive.pose[step, :2]
    assert np.hypot(*error) < 15.0  # 320 m with 2% drift
    assert place.weight > 0.9
    assert isinstance(result, (Fix, Rejection))


def test_standing_vehicle_does_not_gain_certainty() -> None:
    """A hundred images from one place count as one image: no first fix before the vehicle drives."""
    run, _, _ = run_drive(make_drive(3, 60, standing=30.0), ALIASED, 3)
    assert run.first_fix_s(1.0) > 30.0
    assert run.availability(first_s=45.0) > 0.3


def test_parked_vehicle_keeps_its_place() -> None:
    """Four minutes at rest in the middle of a drive: tracking before, throughout, and after."""
    drive = make_drive(0, 30)
    middle, rest = 20 * 20, 240 * 20
    parked = np.concatenate([np.arange(middle), np.full(rest, middle), np.arange(middle, len(drive.pose))])
    times = 1.0 + np.arange(len(parked)) / 20
    run, _, _ = run_drive(Drive(times, drive.pose[parked], drive.odometry[parked]), PLAIN, 0)
    standing = [state for t, state in zip(run.time_s, run.states, strict=True) if 22.0 < t < 260.0]
    assert set(standing) == {"tracking"}
    assert run.availability(first_s=22.0) > 0.9
    assert run.false_fixes(5.0) == 0.0


def test_bad_inputs_leave_the_belief_finite() -> None:
    drive = make_drive(0, 30)
    nan = math.nan

    def prepare(session: SequenceSession, time_s: float) -> None:
        stamp = round(time_s * SECOND) + 1000
        assert session.add_odometry(OdometrySample(stamp, ODOM_FRAME, nan, 0.0, 0.0))
        assert session.add_odometry(OdometrySample(stamp, ODOM_FRAME, 0.0, math.inf, 0.0))
        assert session.add_odometry(OdometrySample(stamp, ODOM_FRAME, 1e200, 0.0, 0.0))
        assert session.add_odometry(OdometrySample(stamp, ODOM_FRAME, 0.0, -1e160, 0.0))
        assert session.add_odometry(OdometrySample(stamp, ODOM_FRAME, 0, 0, 0, covariance=np.full((3, 3), nan)))
        assert session.add_imu(ImuSample(stamp, nan, 0.0, 0.0))
        assert session.set_initial_pose(InitialPose(0, nan, 0.0, 0.0, np.eye(3)))
        assert session.set_initial_pose(InitialPose(0, 0.0, 0.0, 0.0, -np.eye(3)))

    disturbed, session, _ = run_drive(drive, PLAIN, 0, prepare=prepare)
    quiet, _, _ = run_drive(drive, PLAIN, 0)
    np.testing.assert_array_equal(disturbed.error_m, quiet.error_m)
    belief = session.tracker.belief
    assert np.isfinite(belief.means).all()
    assert np.linalg.eigvalsh(belief.covariances).min() > 0
    assert belief.weights.sum() + belief.uniform_weight == pytest.approx(1.0)


def test_same_drive_gives_the_same_track() -> None:
    runs = [run_drive(make_drive(1, 20), PLAIN, 1, heading="none")[0] for _ in range(2)]
    for one, other in zip(runs[0].results, runs[1].results, strict=True):
        if isinstance(one, Fix) and isinstance(other, Fix):
            assert (one.east_m, one.north_m, one.yaw_rad) == (other.east_m, other.north_m, other.yaw_rad)
            np.testing.assert_array_equal(one.covariance_m2, other.covariance_m2)
            assert one.hypotheses == other.hypotheses
        else:
            assert one == other


def pooled(config: TrackerConfig | None = None) -> Run:
    whole = Run()
    for seed in range(3):
        run, _, _ = run_drive(make_drive(seed, 60), PLAIN, seed, config=config)
        whole.nees += run.nees
        whole.error_m += run.error_m
        whole.inside += run.inside
        whole.integrity += run.integrity
    return whole


def test_covariances_and_integrity_are_calibrated() -> None:
    """ANEES not above one beyond its spread (errors of neighbouring fixes are correlated: some 30 independent ones),
    ellipses that hold at least what their integrity promises."""
    run = pooled(CONSISTENT)
    assert 0.2 < run.anees() < 1.4
    assert np.mean(run.inside) > np.mean(run.integrity) - 0.03


def test_imagery_error_is_not_averaged_out_over_the_images() -> None:
    """Imagery that lies 4 m off, 2.8 m in each axis: the track is the same, and its fixes say so."""
    shift_m, sigma_m = np.array([2.4, -3.2]), 4 / math.sqrt(2)

    def stated(session: SequenceSession, _: float) -> None:
        session._localizer.config = LocalizerConfig(imagery_sigma_m=sigma_m)  # type: ignore[misc]

    def anees(run: Run) -> float:
        nees = []
        for result, drawn_m in zip(run.results, drive.pose[::10], strict=True):
            if isinstance(result, Fix):
                error = np.array([result.east_m, result.north_m]) + shift_m - drawn_m[:2]
                nees.append(error @ np.linalg.solve(result.covariance_m2, error))
        return float(np.mean(nees)) / 2

    drive = make_drive(0, 60)
    exact, _, _ = run_drive(drive, PLAIN, 0, config=CONSISTENT)
    run, _, _ = run_drive(drive, PLAIN, 0, config=CONSISTENT, prepare=stated)
    added = []
    for result, before in zip(run.results, exact.results, strict=True):
        if isinstance(before, Fix):
            assert isinstance(result, Fix)
            assert (result.east_m, result.north_m, result.integrity) == (
                before.east_m,
                before.north_m,
                before.integrity,
            )
            added.append(result.covariance_m2 - before.covariance_m2)
        else:
            assert result == before
    assert len(added) > 80
    assert np.allclose(added, sigma_m**2 * np.eye(2))
    assert anees(exact) > 3.0
    assert 0.5 < anees(run) < 1.5


@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_odometry_scale_is_estimated_and_in_the_status(drift: float) -> None:
    """Wheels that are off by two and a half of the expected standard deviations all the way cost no accuracy."""
    for seed in (0, 2):
        drive = make_drive(seed, 60, drift=drift)
        run, session, _ = run_drive(drive, PLAIN, seed, config=CONSISTENT)
        way, told = (float(np.hypot(*np.diff(track[:, :2], axis=0).T).sum()) for track in (drive.pose, drive.odometry))
        scale, sigma = session.status().track.odometry_scale
        assert sigma < 0.01
        assert scale == pytest.approx(way / told, abs=3 * sigma)
        assert run.anees() < 1.5
        assert np.mean(run.inside) > 0.9


def test_image_only_fixes_exclude_the_odometrys_information() -> None:
    """They are less certain than the posterior, since only the new part of an image counts: a filter that takes in all
    of them must not take their common error for many. The track still keeps wrong places out."""
    drive = make_drive(0, 60)
    posterior, _, _ = run_drive(drive, PLAIN, 0)
    image, _, _ = run_drive(drive, PLAIN, 0, config=TrackerConfig(fix_from="image"))
    assert image.false_fixes(10.0) == 0.0
    assert 0.02 < image.anees() < 1.0

    def area(run: Run) -> float:
        return float(np.median([np.linalg.det(r.covariance_m2) for r in run.results if isinstance(r, Fix)]))

    assert area(image) > area(posterior)


def test_sequence_carries_its_own_prior() -> None:
    with pytest.raises(ConfigurationError, match="prior_source"):
        SessionConfig(mode="sequence", prior_source="odometry")


def test_reset_clears_the_published_track_even_while_an_image_is_localized() -> None:
    drive = make_drive(0, 20)
    tracks = []

    def prepare(session: SequenceSession, time_s: float) -> None:
        if time_s == 15.0:
            assert session.status().track.state is TrackState.TRACKING
            session.reset()
            tracks.append(session.status().track)
        elif time_s == 18.0:
            observe = session._localizer.observe

            def reset_meanwhile(image: CameraImage, query: Query) -> Observation | Rejection:
                session.reset()
                return observe(image, query)

            session._localizer.observe = reset_meanwhile
        elif time_s == 18.5:
            tracks.append(session.status().track)
            del session._localizer.observe

    run, session, _ = run_drive(drive, PLAIN, 0, prepare=prepare)
    assert tracks == [None, None]
    assert session.status().track is not None  # of the images after
    reset = run.results[run.time_s.index(18.0)]
    assert isinstance(reset, Rejection)
    assert reset.reason is RejectionReason.RESET


def test_tracker_plan_changes_no_state() -> None:
    """Plans that are not followed by an update change nothing: the same fixes with three plans for each image."""
    drive = make_drive(1, 15)

    def played(plans: int) -> list[Fix | Rejection]:
        plan = Tracker.plan

        def repeated(tracker: Tracker, *args: object) -> Plan:
            for _ in range(plans - 1):
                plan(tracker, *args)  # type: ignore[arg-type]
            return plan(tracker, *args)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tracker, "plan", repeated)
            return run_drive(drive, PLAIN, 1)[0].results

    for one, other in zip(played(1), played(3), strict=True):
        assert type(one) is type(other)
        if isinstance(one, Fix) and isinstance(other, Fix):
            assert (one.east_m, one.north_m, one.integrity) == (other.east_m, other.north_m, other.integrity)
