"""The pose between images and map → odom: prediction, smoothness, and what becomes of them when the track is lost."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.motion.increments import MotionNoise, motion_between
from unifygeo_ros.motion.samples import ODOM_FRAME, BufferLimits, MotionBuffer, OdometrySample
from unifygeo_ros.tracking.belief import Belief, uniform
from unifygeo_ros.tracking.clusters import Cluster
from unifygeo_ros.tracking.dead_reckoning import DeadReckoning
from unifygeo_ros.tracking.filter import predict
from unifygeo_ros.tracking.map_to_odom import MapToOdom, MapToOdomConfig
from unifygeo_ros.tracking.region import Region
from unifygeo_ros.tracking.track import TrackState, TrackStatus

SECOND = 1_000_000_000
LIMITS = BufferLimits(age=30 * SECOND, gap=SECOND // 2, extrapolation=SECOND // 5, time_jump=SECOND)
NOISE = MotionNoise()
CENTRES = np.stack(np.meshgrid(np.arange(0.0, 1000.0, 100.0), np.arange(0.0, 500.0, 100.0)), -1).reshape(-1, 2)
REGION = Region(frame=None, area_m2=500_000.0, tile_side_m=100.0, centres_m=CENTRES)
START = Pose2(100.0, 50.0, 0.7)  # of the odometry's frame in the map: what map → odom should become
RATE_HZ = 20


def truth(time_s: float, speed_m_s: float = 8.0, turn_rad_s: float = 0.2) -> Pose2:
    """Pose of base_link in the odometry's frame on a circle, from its formula."""
    radius, angle = speed_m_s / turn_rad_s, turn_rad_s * time_s
    return Pose2(radius * math.sin(angle), radius * (1 - math.cos(angle)), angle)


def odometry(time_s: float, scale: float = 1.0, pose: Pose2 | None = None) -> OdometrySample:
    """The odometry of that circle, which under-reports distances by `scale`."""
    pose = truth(time_s) if pose is None else pose
    stamp = 1000 * SECOND + round(time_s * SECOND)
    return OdometrySample(stamp, ODOM_FRAME, pose.x_m / scale, pose.y_m / scale, pose.yaw_rad, 8.0 / scale, 0.0, 0.2)


def stamp(time_s: float) -> int:
    return odometry(time_s).stamp_ns


def status(pose: Pose2 | None, state: TrackState = TrackState.TRACKING, scale=0.0, sigma_m=0.3, belief=None):
    place = None
    if pose is not None:
        mean = np.array([pose.x_m, pose.y_m, pose.yaw_rad, scale])
        covariance = np.diag([sigma_m**2, sigma_m**2, 1e-4, 1e-6])
        place = Cluster(np.array([0]), 1.0, mean, covariance, 5.0, 0)
    return TrackStatus(state, state.value, 1, 0.0, 1.0, 1, 1, None, place, uniform() if belief is None else belief)


def follower(**settings) -> MapToOdom:
    return MapToOdom(MapToOdomConfig(**settings), LIMITS, NOISE, REGION)


def drive(follow: MapToOdom, seconds: tuple[float, float], scale: float = 1.0) -> list:
    """Odometry over a stretch of time; what was given for each sample."""
    first, last = (round(second * RATE_HZ) for second in seconds)
    return [follow.odometry(odometry(tick / RATE_HZ, scale)) for tick in range(first, last)]


def apart(first: Pose2, second: Pose2) -> float:
    return math.hypot(first.x_m - second.x_m, first.y_m - second.y_m)


def test_map_to_odom_gives_nothing_before_the_first_fix():
    follow = follower()
    assert not any(drive(follow, (0.0, 1.0)))
    follow.image(stamp(0.9), fixed=False, track=status(START.compose(truth(0.9))))
    assert not any(drive(follow, (1.0, 2.0)))
    assert follow.status().state == "no fix yet"


def test_late_fix_gives_present_pose_and_map_to_odom():
    """The image is of 0.5 s, its fix arrives at 1 s. The truth is the circle's formula."""
    follow = follower()
    drive(follow, (0.0, 1.0))
    follow.image(stamp(0.5), fixed=True, track=status(START.compose(truth(0.5))))
    given = drive(follow, (1.0, 3.0))
    assert all(given)
    for tick, now in enumerate(given):
        time_s = 1.0 + tick / RATE_HZ
        expected = START.compose(truth(time_s))
        assert now.stamp_ns == stamp(time_s)
        assert apart(now.pose, expected) < 1e-9
        assert now.pose.yaw_rad == pytest.approx(expected.yaw_rad)
        assert apart(now.map_to_odom, START) < 1e-9
        assert now.map_to_odom.yaw_rad == pytest.approx(START.yaw_rad)


def test_scale_that_the_tracker_found_corrects_the_motion_between_images():
    """Wheels that under-report by 10% are 8 m short after 10 s at 8 m/s: the pose must not be."""
    follow = follower()
    drive(follow, (0.0, 1.0), scale=1.1)
    follow.image(stamp(0.5), fixed=True, track=status(START.compose(truth(0.5)), scale=0.1))
    now = drive(follow, (1.0, 3.0), scale=1.1)[-1]
    assert apart(now.pose, START.compose(truth(3.0 - 1 / RATE_HZ))) < 0.02


@pytest.mark.parametrize(("smoothing_s", "largest_step_m"), [(0.2, 0.2213), (1.0, 0.0488), (0.0, 1.0001)])
def test_correction_of_one_metre_is_faded_in(smoothing_s, largest_step_m):
    """From sample to sample, map → base_link moves as the odometry does, and by no more than that share of the metre:
    1 − exp(−0.05 / τ)."""
    follow = follower(smoothing_s=smoothing_s)
    drive(follow, (0.0, 1.0))
    follow.image(stamp(0.5), fixed=True, track=status(START.compose(truth(0.5))))
    before = drive(follow, (1.0, 2.0))[-1]
    moved = Pose2(START.x_m + 1.0, START.y_m, START.yaw_rad)
    follow.image(stamp(1.5), fixed=True, track=status(moved.compose(truth(1.5))))
    given = [before, *drive(follow, (2.0, 2.0 + 6 * max(smoothing_s, 0.1)))]
    steps = []
    for tick, (first, second) in enumerate(itertools.pairwise(given)):
        here = truth(2.0 + tick / RATE_HZ)  # one place seen through both transforms: the odometry's own motion cancels
        steps.append(apart(first.map_to_odom.compose(here), second.map_to_odom.compose(here)))
    assert max(steps) <= largest_step_m
    assert sum(steps) == pytest.approx(1.0, abs=0.05)
    assert apart(given[-1].map_to_odom.compose(truth(2.0)), moved.compose(truth(2.0))) < 0.01
    # ~/pose is the best estimate, and that is corrected at once.
    assert apart(given[1].pose, moved.compose(truth(2.0))) < 1e-6
    assert follow.status().jumps == 0


def test_correction_that_no_vehicle_drives_is_made_at_once():
    follow = follower(jump_m=5.0)
    drive(follow, (0.0, 1.0))
    follow.image(stamp(0.5), fixed=True, track=status(START.compose(truth(0.5))))
    drive(follow, (1.0, 2.0))
    moved = Pose2(START.x_m + 40.0, START.y_m, START.yaw_rad)
    follow.image(stamp(1.5), fixed=True, track=status(moved.compose(truth(1.5))))
    assert apart(drive(follow, (2.0, 2.1))[0].map_to_odom, moved) < 1e-6
    assert follow.status().jumps == 1


def test_covariance_grows_between_images_as_the_trackers_own_prediction():
    follow = follower(lost_after_s=60.0)
    drive(follow, (0.0, 1.0))
    fixed = status(START.compose(truth(0.5)))
    follow.image(stamp(0.5), fixed=True, track=fixed)
    given = drive(follow, (1.0, 20.0))
    buffer = MotionBuffer(LIMITS)
    for tick in range(20 * RATE_HZ):
        buffer.add(odometry(tick / RATE_HZ))
    for now in given[:: RATE_HZ * 3]:
        one = Belief(
            np.ones(1), fixed.cluster.mean[None], fixed.cluster.covariance[None], np.ones(1), np.zeros(1, int), 0.0
        )
        expected = predict(one, motion_between(buffer, stamp(0.5), now.stamp_ns, NOISE), NOISE)
        np.testing.assert_allclose(now.covariance, expected.covariances[0, :3, :3], rtol=1e-9, atol=1e-12)
    assert np.linalg.eigvalsh(given[-1].covariance[:2, :2])[1] > 4 * 0.3**2


def lost_after_two_seconds(**settings):
    """A follower whose track was lost at 2 s: half of the belief is 100 m east of the track, the rest anywhere."""
    follow = follower(**settings)
    drive(follow, (0.0, 1.0))
    follow.image(stamp(0.5), fixed=True, track=status(START.compose(truth(0.5))))
    tracked = drive(follow, (1.0, 2.0))[-1]
    at = START.compose(truth(1.9))
    means = np.array([[at.x_m + 100.0, at.y_m, at.yaw_rad, 0.0]])
    belief = Belief(np.array([0.5]), means, np.eye(4)[None] * 1e-4, np.zeros(1), np.zeros(1, int), 0.5)
    follow.image(stamp(1.9), fixed=False, track=status(None, TrackState.LOST, belief=belief))
    return follow, tracked


def test_map_to_odom_when_lost_hold_follows_the_odometry():
    follow, tracked = lost_after_two_seconds(when_lost="hold")
    now = drive(follow, (2.0, 3.0))[-1]
    assert follow.status().state == "lost"
    assert apart(now.pose, START.compose(truth(3.0 - 1 / RATE_HZ))) < 1e-9
    assert now.covariance[0, 0] < tracked.covariance[0, 0] + 1.0


def test_map_to_odom_when_lost_widen_has_the_covariance_of_the_belief():
    """Half is 100 m east, half anywhere in a rectangle of 1000 m × 500 m: second moments by hand."""
    follow, _ = lost_after_two_seconds(when_lost="widen")
    now = drive(follow, (2.0, 2.05))[-1]
    here = START.compose(truth(2.0))
    assert apart(now.pose, here) < 1e-9
    middle = np.array([450.0, 200.0])  # the tiles' squares reach from −50 to 950 and from −50 to 450
    variances = np.array([1000.0**2, 500.0**2]) / 12 + (middle - [here.x_m, here.y_m]) ** 2
    expected = 0.5 * np.array([100.0**2, 0.0]) + 0.5 * variances
    np.testing.assert_allclose(np.diag(now.covariance)[:2], expected, rtol=0.005)
    assert now.covariance[2, 2] == pytest.approx(0.5 * math.pi**2 / 3, rel=0.01)


def test_map_to_odom_when_lost_stop_ends_until_next_fix():
    follow, _ = lost_after_two_seconds(when_lost="stop")
    assert not any(drive(follow, (2.0, 3.0)))
    moved = Pose2(START.x_m + 1.0, START.y_m, START.yaw_rad)
    follow.image(stamp(2.9), fixed=True, track=status(moved.compose(truth(2.9))))
    assert apart(drive(follow, (3.0, 3.1))[0].map_to_odom, moved) < 1e-9


def test_track_without_a_fix_for_long_counts_as_lost():
    follow = follower(lost_after_s=3.0)
    drive(follow, (0.0, 1.0))
    follow.image(stamp(0.5), fixed=True, track=status(START.compose(truth(0.5))))
    drive(follow, (1.0, 3.4))
    assert follow.status().state == "tracking"
    drive(follow, (3.4, 4.0))
    assert follow.status().state == "lost"
    assert "lost_after_s is 3" in follow.status().reason


def test_restarted_odometry_moves_neither_pose_nor_map_to_base():
    """Its driver was restarted between two samples: the pose is 0 again, the stamps go on."""
    follow = follower()
    drive(follow, (0.0, 1.0))
    follow.image(stamp(0.5), fixed=True, track=status(START.compose(truth(0.5))))
    before = drive(follow, (1.0, 10.0))[-1]
    after = follow.odometry(odometry(10.0, pose=Pose2(0.0, 0.0, 0.0)))
    assert apart(after.pose, before.pose) < 0.2
    assert apart(after.map_to_odom, before.pose) < 0.2  # base_link is at the origin of the odometry's new frame


def test_time_that_goes_back_forgets_the_drive():
    follow = follower()
    drive(follow, (10.0, 11.0))
    follow.image(stamp(10.5), fixed=True, track=status(START.compose(truth(10.5))))
    assert all(drive(follow, (11.0, 12.0)))
    assert not any(drive(follow, (0.0, 1.0)))
    assert follow.status().state == "no fix yet"
    follow.image(stamp(0.5), fixed=True, track=status(START.compose(truth(0.5))))
    assert all(drive(follow, (1.0, 2.0)))


def test_fix_from_before_a_reset_starts_nothing():
    follow = follower()
    drive(follow, (0.0, 1.0))
    follow.reset()
    drive(follow, (1.0, 2.0))
    follow.image(stamp(0.5), fixed=True, track=status(START.compose(truth(0.5))))
    assert not any(drive(follow, (2.0, 3.0)))


def test_dead_reckoning_gives_each_sample_once_with_rising_stamps():
    """TF warns of equal stamps. The image is 0.1 s ahead of the newest sample, which extrapolation_s allows."""
    follow = follower()
    drive(follow, (0.0, 1.0))
    follow.image(stamp(1.08), fixed=True, track=status(START.compose(truth(1.08))))
    given = [now for now in drive(follow, (1.0, 2.0)) if now]
    stamps = [now.stamp_ns for now in given]
    assert stamps == sorted(set(stamps))
    assert apart(given[-1].map_to_odom, START) < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_dead_reckoning_equals_the_trackers_motion_between_two_stamps(seed):
    """Random odometry with gaps and a restart, against `motion_between`, which the tracker uses."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.choice([0.05, 0.1, 0.9], 200, p=[0.5, 0.47, 0.03]))
    poses = np.cumsum(random.normal(0.0, 0.4, (200, 3)) * [1.0, 1.0, 0.2], axis=0)
    poses[120:] -= 500.0
    samples = [odometry(t, pose=Pose2(x, y, yaw)) for t, (x, y, yaw) in zip(times, poses, strict=True)]
    buffer, start = MotionBuffer(LIMITS), samples[30].stamp_ns + 20_000_000
    reckoning = DeadReckoning(buffer, NOISE)
    belief = Belief(np.ones(1), np.zeros((1, 4)), np.eye(4)[None] * 0.01, np.ones(1), np.zeros(1, int), 0.0)
    for number, sample in enumerate(samples):
        buffer.add(sample)
        reckoning.follow(sample)
        if number == 60:
            assert reckoning.start(start, belief) == (buffer.at(start) is not None)
            if buffer.at(start) is None:
                pytest.skip("the stamp lies in a gap")
    motion = motion_between(buffer, start, samples[-1].stamp_ns, NOISE)
    expected = predict(belief, dataclasses.replace(motion, duration_s=0.0), NOISE)
    np.testing.assert_allclose(reckoning.belief().means, expected.means, atol=1e-9)
    np.testing.assert_allclose(reckoning.belief().covariances, expected.covariances, rtol=1e-9, atol=1e-12)
