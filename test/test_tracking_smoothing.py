"""Smoothing over hypotheses, against least squares over a whole drive and against a grid over the whole region."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats
from simulated_town import ObservationModel, make_drive, run_drive

from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.motion.increments import Motion, MotionNoise
from unifygeo_ros.tracking.belief import Belief, hypothesis, uniform
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.evidence import Evidence
from unifygeo_ros.tracking.filter import observe, predict, restart
from unifygeo_ros.tracking.reduction import reduce
from unifygeo_ros.tracking.smoothing import Step, combine, smooth, smoothed_beliefs

NO_LEVER = (0.0, 0.0)
RESTARTING = TrackerConfig(restart_probability=0.01)


def evidence(places: list[tuple[float, float, float]], sigma_m: float, open_share: float, yaw: float = 0.0) -> Evidence:
    """places: weight, east, north."""
    count = len(places)
    return Evidence(
        weights=np.array([p[0] for p in places]),
        means_m=np.array([p[1:] for p in places]).reshape(-1, 2),
        covariances_m2=np.tile(np.eye(2) * sigma_m**2, (count, 1, 1)),
        yaw_rad=np.full(count, yaw),
        yaw_variance_rad2=np.full(count, 1e-12),
        measures_yaw=False,
        tile_ids=np.zeros(count, np.int64),
        open_share=open_share,
        near_share=open_share,
    )


def filtered(
    motions: list[Motion], seen: list[Evidence | None], noise: MotionNoise, area_m2: float, doubt: float = 0.0
) -> list[Step]:
    """The tracker's filter without its rules: every image is new."""
    belief, steps = uniform(), []
    for number, (motion, image) in enumerate(zip(motions, seen, strict=True)):
        belief = predict(belief, motion, noise)
        if doubt:
            belief = restart(belief, doubt * RESTARTING.restart_probability)
        if image is not None:
            belief, _ = observe(
                belief, image, area_m2=area_m2, exponent=1.0, near=np.ones(len(belief), bool), lever_m=NO_LEVER,
                scale_sigma=noise.scale, prune=1e-12, limit=200,
            )  # fmt: skip
            belief = reduce(belief, merge_distance2=1e-6, limit=200)
        steps.append(Step(number, number == 0, motion, doubt, None, 1.0, image, None, belief, 1.0))
    return steps


def motion(forward: float, left: float, turn: float, sigma: float) -> Motion:
    return Motion(forward, left, turn, math.hypot(forward, left), np.diag([sigma**2, sigma**2, 0.0]))


def test_motion_reversed_leads_back_with_the_same_error() -> None:
    there = Motion(3.0, -1.0, 0.7, 3.2, np.array([[0.04, 0.01, 0.002], [0.01, 0.09, 0.0], [0.002, 0.0, 0.01]]))
    back = there.reversed()
    both = there.pose.compose(back.pose)
    assert (both.x_m, both.y_m, both.yaw_rad) == pytest.approx((0, 0, 0), abs=1e-12)
    # The covariance by drawing: perturb the motion there, invert each.
    rng = np.random.default_rng(0)
    drawn = rng.multivariate_normal([3.0, -1.0, 0.7], there.covariance * 1e-4, 100_000)
    inverse = [Pose2(*row).inverse() for row in drawn.tolist()]
    spread = np.cov(np.array([(p.x_m, p.y_m, p.yaw_rad) for p in inverse]).T) * 1e4
    assert back.covariance == pytest.approx(spread, abs=2e-3)


def test_one_hypothesis_is_smoothed_as_least_squares_over_the_whole_drive() -> None:
    """With known yaws the problem is linear in the positions and the odometry's scale: one system of normal equations
    over all images at once, which knows nothing of filters."""
    rng = np.random.default_rng(3)
    noise = MotionNoise(scale=0.05, scale_persistence_m=60.0)
    turns = [0.0, 0.4, -0.9, 1.2, 0.0, 0.3, -0.2, 0.5]
    motions = [motion(0, 0, 0, 0.0), *(motion(9.0, 0.5, turn, 0.3) for turn in turns)]
    measured = rng.uniform(-5, 5, (len(motions), 2)) + np.arange(len(motions))[:, None] * [6.0, 2.0]
    yaws = 0.3 + np.cumsum([m.turn_rad for m in motions])
    seen = [
        None if number in (3, 4) else evidence([(1.0, *place)], 1.0 + 0.3 * number, 0.0, float(yaw))
        for number, (place, yaw) in enumerate(zip(measured.tolist(), yaws, strict=True))
    ]
    steps = filtered(motions, seen, noise, 1e6)
    found = smooth(steps, area_m2=1e6, config=TrackerConfig(), noise=noise, radius_m=10.0, lever_m=NO_LEVER)

    count = len(motions)
    rows, values, information = [], [], []

    def equation(entries: dict[int, float], value: float, variance: float) -> None:
        row = np.zeros(3 * count)
        for column, factor in entries.items():
            row[column] = factor
        rows.append(row)
        values.append(value)
        information.append(1 / variance)

    equation({2: 1.0}, 0.0, 0.05**2)
    for n in range(1, count):
        cos, sin = math.cos(yaws[n - 1]), math.sin(yaws[n - 1])
        step = np.array([[cos, -sin], [sin, cos]]) @ [motions[n].forward_m, motions[n].left_m]
        for axis in (0, 1):  # x_n = x_{n-1} + (1 + s_{n-1}) step + noise
            equation(
                {3 * n + axis: 1.0, 3 * n - 3 + axis: -1.0, 3 * n - 1: -float(step[axis])}, float(step[axis]), 0.3**2
            )
        persistence = math.exp(-motions[n].distance_m / 60.0)
        equation({3 * n + 2: 1.0, 3 * n - 1: -persistence}, 0.0, (1 - persistence**2) * 0.05**2)
    for n, image in enumerate(seen):
        if image is not None:
            for axis in (0, 1):
                equation({3 * n + axis: 1.0}, float(measured[n, axis]), (1.0 + 0.3 * n) ** 2)
    a, b, w = np.array(rows), np.array(values), np.array(information)
    normal = a.T @ (w[:, None] * a)
    solution, covariance = np.linalg.solve(normal, a.T @ (w * b)), np.linalg.inv(normal)
    assert [pose.stamp_ns for pose in found] == list(range(count))
    for n, pose in enumerate(found):
        assert (pose.east_m, pose.north_m) == pytest.approx(solution[3 * n : 3 * n + 2], abs=0.03)
        assert pose.covariance[:2, :2] == pytest.approx(
            covariance[3 * n : 3 * n + 2, 3 * n : 3 * n + 2], rel=0.03, abs=0.01
        )
        assert pose.integrity == pytest.approx(0.95, abs=0.01)
    # And the filter alone knows less where images are missing, and the same at the end.
    alone = smooth(steps[:4], area_m2=1e6, config=TrackerConfig(), noise=noise, radius_m=10.0, lever_m=NO_LEVER)[-1]
    assert np.trace(alone.covariance[:2, :2]) > 1.5 * np.trace(found[3].covariance[:2, :2])


def test_hypotheses_are_weighed_as_on_a_grid_of_the_whole_region() -> None:
    """Two places look the same until the last images tell; one image is an outlier. A grid over a torus knows the
    exact answer: its transition is a blur, its smoothing the forward-backward algorithm."""
    side, blur = 100, 2.0  # metres, and cells of 1 m
    area = float(side * side)
    config, noise = RESTARTING, MotionNoise(scale=0.0)
    seen = [
        evidence([(0.45, 30.0, 50.0), (0.45, 70.0, 50.0)], 3.0, 0.1),
        evidence([(0.4, 32.0, 51.0), (0.4, 69.0, 50.0)], 3.0, 0.2),
        evidence([(0.8, 50.0, 20.0)], 3.0, 0.2),
        evidence([(0.3, 31.0, 52.0), (0.5, 72.0, 50.0)], 3.0, 0.2),
        evidence([(0.85, 71.0, 53.0)], 3.0, 0.15),
        evidence([(0.6, 70.0, 55.0), (0.1, 20.0, 80.0)], 3.0, 0.3),
    ]
    still = Motion(0.0, 0.0, 0.0, 0.0, np.diag([blur**2, blur**2, 0.0]))
    steps = filtered([still] * len(seen), seen, noise, area, doubt=1.0)

    axis = np.arange(side) + 0.5
    east, north = np.meshgrid(axis, axis)

    def likelihood(image: Evidence) -> np.ndarray:
        total = np.full((side, side), image.open_share)
        for weight, (x, y) in zip(image.weights, image.means_m, strict=True):
            total += weight * area / (2 * np.pi * 9.0) * np.exp(-((east - x) ** 2 + (north - y) ** 2) / 18.0)
        return total

    def moved(density: np.ndarray) -> np.ndarray:
        spread = ndimage.gaussian_filter(density, blur, mode="wrap", truncate=8.0)
        return (1 - config.restart_probability) * spread + config.restart_probability * density.sum() / area

    count = len(seen)
    forward, backward = [np.empty(0)] * count, [np.empty(0)] * count
    density = np.full((side, side), 1 / area)
    for n in range(count):
        density = moved(density) * likelihood(seen[n])
        density /= density.sum()
        forward[n] = density
    message = np.ones((side, side))
    for n in reversed(range(count)):
        backward[n] = message
        message = moved(message * likelihood(seen[n]))  # the transition is symmetric
    beliefs = {
        step.stamp_ns: b
        for step, b in smoothed_beliefs(steps, area_m2=area, config=config, noise=noise, lever_m=NO_LEVER)
    }
    for n in range(count):
        exact = forward[n] * backward[n]
        exact /= exact.sum()
        belief = beliefs[n]
        for x in (30.0, 70.0):
            inside = np.hypot(east - x, north - 51.0) < 15.0
            mass = float(exact[inside].sum())
            near = np.hypot(*(belief.means[:, :2] - [x, 51.0]).T) < 15.0
            # Hypotheses leak over the circle's border, and the uniform part fills it.
            ours = float(belief.weights[near].sum()) + belief.uniform_weight * inside.sum() / area
            assert ours == pytest.approx(mass, abs=0.02), (n, x)
            if mass > 0.3:
                mean = np.array([(exact * inside * c).sum() / mass for c in (east, north)])
                weights = belief.weights[near] / belief.weights[near].sum()
                assert weights @ belief.means[near, :2] == pytest.approx(mean, abs=0.15), (n, x)
    # The filter alone did not know at the first image; all images together do.
    first = steps[0].posterior
    assert first.weights.max() < 0.55
    assert beliefs[0].weights[beliefs[0].means[:, 0] > 60].sum() > 0.9


def recorded_drive(seed: int, **changes):
    """A simulated drive through the real tracker, with the steps that it recorded."""
    steps: list[Step] = []

    def prepare(session, time_s: float) -> None:
        session.tracker.record_to(steps.append)

    drive = make_drive(seed, 120.0, **{k: v for k, v in changes.items() if k == "standing"})
    model = ObservationModel()
    run, session, _ = run_drive(drive, model, seed, prepare=prepare)
    tracker = session.tracker
    poses = smooth(
        steps,
        area_m2=tracker._region.area_m2,
        config=tracker.config,
        noise=tracker.noise,
        radius_m=10.0,
        lever_m=tracker._lever_m,
        least_integrity=0.9,
    )
    truth = dict(zip(drive.stamps(), drive.pose, strict=True))
    return run, steps, poses, truth


def one(weight: float, east_m: float, sigma_m: float, scale_sigma: float = 0.02) -> Belief:
    """One hypothesis facing east, and the rest of the belief anywhere."""
    belief = hypothesis(Pose2(east_m, 0.0, 0.0), np.diag([sigma_m**2, sigma_m**2, 0.1**2]), scale_sigma)
    return replace(belief, weights=np.array([weight]), uniform_weight=1 - weight)


def test_two_beliefs_are_combined_as_by_hand() -> None:
    """Past · future / p₀: apart, each stands where the other knows nothing; together, they make a third."""
    area = 1e6
    apart = combine(one(0.6, 0.0, 2.0), one(0.7, 500.0, 3.0), area_m2=area, scale_sigma=0.02)
    total = 0.6 * 0.3 + 0.7 * 0.4 + 0.4 * 0.3
    found = {float(mean[0]): float(weight) for mean, weight in zip(apart.means, apart.weights, strict=True)}
    assert found == pytest.approx({0.0: 0.18 / total, 500.0: 0.28 / total})
    assert apart.uniform_weight == pytest.approx(0.12 / total)
    near = combine(one(0.6, 0.0, 2.0), one(0.7, 1.0, 3.0), area_m2=area, scale_sigma=0.02)
    density = stats.multivariate_normal.pdf([1.0, 0.0, 0.0], cov=np.diag([13.0, 13.0, 0.02]))
    pair = 0.6 * 0.7 * 2 * np.pi * area * density
    place = int(np.abs(near.means[:, 0] - 4 / 13).argmin())
    assert near.means[place, 0] == pytest.approx(4 / 13)
    assert near.covariances[place, 0, 0] == pytest.approx(36 / 13)
    assert near.covariances[place, 3, 3] == pytest.approx(0.02**2)  # neither side knows more of the scale than p₀
    assert near.weights[place] == pytest.approx(pair / (pair + total))


def test_smoothed_simulated_drive_beats_the_filter_from_its_start() -> None:
    run, steps, poses, truth = recorded_drive(1)
    assert len(steps) == len(run.results)
    first_fix_ns = next(r.stamp_ns for r in run.results if hasattr(r, "covariance_m2"))
    assert sum(pose.stamp_ns < first_fix_ns for pose in poses) > 5
    differences = np.array([(pose.east_m, pose.north_m) - truth[pose.stamp_ns][:2] for pose in poses])
    errors = np.hypot(*differences.T)
    lengths = [e @ np.linalg.solve(pose.covariance[:2, :2], e) for e, pose in zip(differences, poses, strict=True)]
    last = smooth(
        steps[-1:],
        area_m2=1e6,
        config=TrackerConfig(),
        noise=MotionNoise(),
        radius_m=10.0,
        lever_m=NO_LEVER,
        least_integrity=0.9,
    )[-1]
    assert (last.east_m, last.north_m) == pytest.approx((poses[-1].east_m, poses[-1].north_m), abs=1e-6)
    assert np.median(errors) < 0.9 * np.nanmedian(run.error_m)
    assert errors.max() < 10.0
    # As consistent as the filter, whose errors last longer here than its settings say.
    assert 0.6 < np.mean(lengths) / np.nanmean(run.nees) < 1.4


def test_standing_still_makes_no_pose_more_certain() -> None:
    """Half a minute of images from one spot is one observation, forward and backward."""
    _, steps, poses, _ = recorded_drive(4, standing=30.0)
    standing = [step for step in steps[1:] if step.motion.distance_m < 1e-6]
    assert len(standing) > 40
    sigmas = [math.sqrt(np.trace(pose.covariance[:2, :2])) for pose in poses if pose.stamp_ns < 25_000_000_000]
    assert np.ptp(sigmas) < 0.05 * np.mean(sigmas)


def test_smoothing_carries_nothing_over_a_reset() -> None:
    noise = MotionNoise()
    still = Motion(0.0, 0.0, 0.0, 0.0, np.diag([0.01, 0.01, 0.0]))
    before = filtered([still] * 2, [evidence([(0.9, 0.0, 0.0)], 1.0, 0.1)] * 2, noise, 1e6)
    after = filtered([still] * 2, [evidence([(0.9, 500.0, 0.0)], 1.0, 0.1)] * 2, noise, 1e6)
    whole = [*before, *(replace(step, stamp_ns=10 + step.stamp_ns) for step in after)]
    found = smooth(whole, area_m2=1e6, config=TrackerConfig(), noise=noise, radius_m=10.0, lever_m=NO_LEVER)
    alone = smooth(before, area_m2=1e6, config=TrackerConfig(), noise=noise, radius_m=10.0, lever_m=NO_LEVER)
    assert [(p.east_m, p.weight) for p in found[:2]] == [(p.east_m, p.weight) for p in alone]
    assert found[2].east_m == pytest.approx(500.0, abs=0.1)
