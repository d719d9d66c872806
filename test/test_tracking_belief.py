"""The filter's steps against exhaustive computation: Bayes' rule on a grid, motion by Monte Carlo, moments by sums."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from unifygeo_ros.core.covariance import mahalanobis2
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import TileDistribution
from unifygeo_ros.motion.increments import Motion, MotionNoise
from unifygeo_ros.tracking import filter
from unifygeo_ros.tracking.belief import Belief, uniform, with_scale
from unifygeo_ros.tracking.evidence import (
    Evidence,
    log_evidence_of_all,
    modes_of,
    tile_weights,
)
from unifygeo_ros.tracking.filter import observe_yaw, predict, restart, slip
from unifygeo_ros.tracking.reduction import reduce

SIDE = 160  # metres and cells of the grid
AREA = float(SIDE * SIDE)
EXACT = MotionNoise(scale=0.0)
"""Odometry without an error of scale."""


def hypotheses(
    weights: np.ndarray,
    poses: np.ndarray,
    covariances: np.ndarray,
    support: np.ndarray,
    tile_ids: np.ndarray,
    uniform_weight: float,
    scale_sigma: float = 0.0,
) -> Belief:
    """A belief of poses (N, 3)."""
    means, whole = with_scale(poses, covariances, scale_sigma)
    return Belief(weights, means, whole, support, tile_ids, uniform_weight)


def evidence(parts: list[tuple[float, float, float, float]], open_share: float, yaw: float = 0.0) -> Evidence:
    """parts: weight, east, north, sigma."""
    array = np.array(parts)
    count = len(parts)
    return Evidence(
        weights=array[:, 0],
        means_m=array[:, 1:3],
        covariances_m2=array[:, 3, None, None] ** 2 * np.eye(2),
        yaw_rad=np.full(count, yaw),
        yaw_variance_rad2=np.full(count, 1e-6),
        measures_yaw=False,
        tile_ids=np.arange(count),
        open_share=open_share,
        near_share=open_share,
    )


def grid_density(parts: np.ndarray, covariances: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ w N at the cells' centres, (SIDE, SIDE) as [east, north]."""
    east, north = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5, indexing="ij")
    density = np.zeros((SIDE, SIDE))
    for mean, covariance, weight in zip(parts, covariances, weights, strict=True):
        d = np.stack([east - mean[0], north - mean[1]], axis=-1)
        exponent = np.einsum("xyi,ij,xyj->xy", d, np.linalg.inv(covariance), d)
        density += weight * np.exp(-0.5 * exponent) / (2 * np.pi * math.sqrt(np.linalg.det(covariance)))
    return density


class GridFilter:
    """Bayes' rule on every square metre of a torus, heading known: the oracle."""

    def __init__(self) -> None:
        self.density = np.full((SIDE, SIDE), 1 / AREA)

    def predict(self, east: int, north: int, sigma: float, restart: float) -> None:
        moved = np.roll(self.density, (east, north), axis=(0, 1))
        moved = ndimage.gaussian_filter(moved, sigma, mode="wrap", truncate=8)
        self.density = (1 - restart) * moved + restart / AREA

    def observe(self, e: Evidence) -> None:
        self.density = self.density * (e.open_share + AREA * grid_density(e.means_m, e.covariances_m2, e.weights))
        self.density /= self.density.sum()


def observe(
    belief: Belief, e: Evidence, exponent: float = 1.0, lever_m: tuple[float, float] = (0.0, 0.0), limit: int = 400
) -> tuple[Belief, np.ndarray]:
    near = np.ones(len(belief), bool)
    return filter.observe(
        belief,
        e,
        area_m2=AREA,
        exponent=exponent,
        near=near,
        lever_m=lever_m,
        scale_sigma=0.02,
        prune=1e-9,
        limit=limit,
    )


def as_grid(belief: Belief) -> np.ndarray:
    return (
        grid_density(belief.means[:, :2], belief.covariances[:, :2, :2], belief.weights) + belief.uniform_weight / AREA
    )


def drive_both(seed: int) -> tuple[list[float], list[float], np.ndarray]:
    """Both filters over twelve images of an aliased drive. Returns, image by image, the total variation between them
    and the difference of the belief within 6 m of the truth; and the grid's last density."""
    rng = np.random.default_rng(seed)
    grid, belief = GridFilter(), uniform()
    truth = np.array([40.0, 50.0])
    alias = np.array([45.0, 20.0])
    variations, differences = [], []
    for image in range(12):
        if image:
            east, north = (4, 0) if image < 6 else (0, 4)
            truth = truth + np.array([east, north])
            grid.predict(east, north, 0.7, 0.001)
            motion = Motion(east, north, 0.0, 4.0, np.diag([0.49, 0.49, 1e-9]))
            belief = restart(predict(belief, motion, EXACT), 0.001)
        at = truth + 1.5 * rng.standard_normal(2)
        other = truth + alias + 1.5 * rng.standard_normal(2)
        weight = 0.8 * rng.dirichlet([2.0, 2.0 if image < 7 else 0.2, 1.0, 1.0])
        spurious = rng.uniform(20, 140, 2)
        e = evidence(
            [
                (weight[0], *at, 1.5),
                (weight[1], *other, 1.5),
                (weight[2], at[0] + 9.0, at[1], 2.0),
                (weight[3], *spurious, 3.0),
            ],
            open_share=0.2,
        )
        grid.observe(e)
        belief, _ = observe(belief, e)
        belief = reduce(belief, merge_distance2=0.5, limit=200)
        mine = as_grid(belief)
        variations.append(0.5 * float(np.abs(mine - grid.density).sum()))
        cells = np.arange(SIDE) + 0.5
        close = (cells[:, None] - truth[0]) ** 2 + (cells - truth[1]) ** 2 < 36
        differences.append(abs(float(mine[close].sum() - grid.density[close].sum())))
    return variations, differences, grid.density


@pytest.mark.parametrize("seed", range(3))
def test_filter_agrees_with_an_exhaustive_grid(seed: int) -> None:
    variations, differences, _ = drive_both(seed)
    assert max(variations) < 0.04
    assert max(differences) < 0.02


def test_grid_drive_is_not_trivial() -> None:
    """The oracle itself is uncertain on the way and certain at the end, else agreement would mean little."""
    _, _, density = drive_both(0)
    assert density.max() > 0.03
    assert 0.5 * np.abs(density - 1 / AREA).sum() > 0.9


def three_hypotheses() -> Belief:
    """A narrow one where the image will be, one as wide as a tile about it, one far from it; their support differs."""
    sigmas = np.array([1.0, 20.0, 1.5])
    covariances = np.zeros((3, 3, 3))
    covariances[:, 0, 0] = covariances[:, 1, 1] = sigmas**2
    covariances[:, 2, 2] = 1e-6
    means = np.array([[60.0, 60.0, 0.0], [70.0, 75.0, 0.0], [120.0, 110.0, 0.0]])
    return hypotheses(np.array([0.2, 0.3, 0.4]), means, covariances, np.array([100.0, 200.0, 300.0]), np.arange(3), 0.1)


@pytest.mark.parametrize("exponent", [0.05, 0.3, 0.7, 1.0])
def test_hypothesis_weight_is_its_likelihood_to_the_power_beta(exponent: float) -> None:
    """Eq. 3 against sums over the grid: weights, and for β = 1 the densities inside the hypotheses, too."""
    belief = three_hypotheses()
    e = evidence([(0.5, 61.0, 60.0, 1.5), (0.2, 62.0, 59.0, 2.0), (0.1, 40.0, 100.0, 5.0)], open_share=0.2)
    likelihood = e.open_share + AREA * grid_density(e.means_m, e.covariances_m2, e.weights)
    densities = [
        grid_density(belief.means[i : i + 1, :2], belief.covariances[i : i + 1, :2, :2], np.ones(1)) for i in range(3)
    ]
    whole = np.array([float((density * likelihood).sum()) for density in densities])
    worth = np.append(belief.weights, belief.uniform_weight) * np.append(whole, 1.0) ** exponent
    worth /= worth.sum()

    after, likelihoods = observe(belief, e, exponent)
    np.testing.assert_allclose(likelihoods, whole, rtol=1e-3)
    label = np.floor(after.support / 100).astype(int)  # 0: new
    shares = [after.weights[label == i].sum() for i in (1, 2, 3)]
    shares.append(after.weights[label == 0].sum() + after.uniform_weight)
    np.testing.assert_allclose(shares, worth, rtol=1e-3)
    if exponent == 1.0:
        for i in range(3):
            mine = after.select(label == i + 1)
            exact = belief.weights[i] * densities[i] * likelihood / (belief.weights @ whole + belief.uniform_weight)
            density = grid_density(mine.means[:, :2], mine.covariances[:, :2, :2], mine.weights)
            assert 0.5 * float(np.abs(density - exact).sum()) < 1e-3


def test_observe_with_novelty_zero_returns_the_belief() -> None:
    belief = three_hypotheses()
    e = evidence([(0.8, 61.0, 60.0, 1.5)], open_share=0.2)
    after, likelihoods = observe(belief, e, 0.0)
    assert after is belief
    assert likelihoods[0] > 100 * likelihoods[2]
    after, _ = observe(belief, e, 1e-6)
    np.testing.assert_allclose(after.weights[:3], belief.weights, rtol=1e-4)


def test_pruned_weight_moves_to_the_uniform_component() -> None:
    belief = one(0.0, 0.01)
    rng = np.random.default_rng(2)
    e = evidence([(0.5 / 30, *rng.uniform(60, 150, 2), 1.0) for _ in range(30)], open_share=0.5)
    everything, _ = observe(belief, e, 0.4, limit=400)
    little, _ = observe(belief, e, 0.4, limit=3)
    assert (len(everything), len(little)) == (31, 3)
    assert little.weights[0] == pytest.approx(everything.weights[0])
    assert little.uniform_weight > everything.uniform_weight
    assert little.weights.sum() + little.uniform_weight == pytest.approx(1.0)
    reduced = reduce(everything, merge_distance2=0.5, limit=10)
    assert reduced.weights[0] == pytest.approx(everything.weights[0])


def test_light_hypothesis_survives_variants_of_a_heavy_one() -> None:
    rng = np.random.default_rng(4)
    count = 100
    means = np.concatenate([rng.normal(0.0, 2.0, (count, 3)) * [1, 1, 0.01], [[500.0, 300.0, 1.0]]])
    weights = np.append(rng.dirichlet(np.ones(count)) * 0.9, 1e-5)
    covariances = np.tile(np.diag([0.1, 0.1, 1e-3]), (count + 1, 1, 1))
    belief = hypotheses(weights, means, covariances, np.zeros(count + 1), np.zeros(count + 1, int), 0.1 - 1e-5)
    reduced = reduce(belief, merge_distance2=0.5, limit=20)
    assert len(reduced) <= 20
    far = reduced.means[:, 0] > 400
    assert reduced.weights[far].sum() == pytest.approx(1e-5)
    assert reduced.uniform_weight == pytest.approx(belief.uniform_weight)  # nothing had to be forgotten


@pytest.mark.parametrize("dimensions", [2, 3])
def test_mahalanobis_lengths_equal_those_of_the_inverse(dimensions: int) -> None:
    rng = np.random.default_rng(6)
    roots = rng.standard_normal((40, dimensions, dimensions)) * np.array([20.0, 3.0, 0.01])[:dimensions, None]
    covariances = roots @ roots.transpose(0, 2, 1) + 1e-6 * np.eye(dimensions)
    apart = rng.standard_normal((25, 40, dimensions)) * np.array([30.0, 5.0, 0.1])[:dimensions]
    distance2, determinant = mahalanobis2(apart, covariances)
    expected = np.einsum("nmd,mde,nme->nm", apart, np.linalg.inv(covariances), apart)
    np.testing.assert_allclose(distance2, expected, rtol=1e-7)
    np.testing.assert_allclose(determinant, np.linalg.det(covariances), rtol=1e-7)


def test_prediction_agrees_with_monte_carlo() -> None:
    rng = np.random.default_rng(5)
    covariance = np.array(
        [[2.0, 0.3, 0.02, 0.01], [0.3, 1.0, 0.01, 0.0], [0.02, 0.01, 0.01, 0.0005], [0.01, 0.0, 0.0005, 0.0009]]
    )
    mean = np.array([10.0, 20.0, 2.0, 0.04])
    start = Belief(np.array([0.9]), mean[None], covariance[None], np.zeros(1), np.array([3]), 0.1)
    spread = np.diag([0.5, 0.2, 0.003])
    noise = MotionNoise(scale=0.03, scale_persistence_m=20.0)
    motion = Motion(8.0, 1.0, 0.4, 8.1, spread)
    after = predict(start, motion, noise)
    states = rng.multivariate_normal(mean, covariance, 200_000)
    steps = rng.multivariate_normal([0.0, 0.0, 0.4], spread, len(states))
    steps[:, :2] += (1 + states[:, 3, None]) * [8.0, 1.0]
    cos, sin = np.cos(states[:, 2]), np.sin(states[:, 2])
    states[:, 0] += cos * steps[:, 0] - sin * steps[:, 1]
    states[:, 1] += sin * steps[:, 0] + cos * steps[:, 1]
    states[:, 2] += steps[:, 2]
    lasting = math.exp(-8.1 / 20.0)
    states[:, 3] = lasting * states[:, 3] + 0.03 * math.sqrt(1 - lasting**2) * rng.standard_normal(len(states))
    np.testing.assert_allclose(after.means[0], states.mean(0), atol=0.06)  # first order: 8 m · ½ · 0.01 rad²
    np.testing.assert_allclose(after.covariances[0], np.cov(states.T), atol=0.06)
    np.testing.assert_allclose(after.covariances[0, 3], np.cov(states.T)[3], atol=2e-4)
    assert (after.weights[0], after.uniform_weight) == (0.9, 0.1)


def test_odometry_scale_is_estimated_on_the_way() -> None:
    """Odometry that says 5% too little, on a straight street and then round a corner, and positions of 1 m: the filter
    finds the scale to within its own sigma, and its positions are better than the same without the scale."""
    rng = np.random.default_rng(8)
    noise = MotionNoise(scale=0.03, scale_persistence_m=1e4, walk=0.0)
    learning = hypotheses(
        np.ones(1), np.zeros((1, 3)), np.diag([1.0, 1.0, 1e-4])[None], np.zeros(1), np.zeros(1, int), 0.0, 0.03
    )
    taken_as_is = replace(learning, covariances=learning.covariances * np.outer([1, 1, 1, 0], [1, 1, 1, 0]))
    yaw, at, worst = 0.0, np.zeros(2), 0.0
    for image in range(60):
        turn = math.pi / 2 if image == 40 else 0.0
        yaw += turn
        forward = np.array([math.cos(yaw), math.sin(yaw)])
        at = at + 5.0 * forward
        motion = Motion(
            5.0 / 1.05 * math.cos(turn), 5.0 / 1.05 * math.sin(turn), turn, 5.0, np.diag([0.01, 0.01, 1e-6])
        )
        place = evidence([(1.0, *(at + rng.standard_normal(2)), 1.0)], open_share=0.0, yaw=yaw)
        learning, _ = observe(predict(learning, motion, noise), place)
        taken_as_is, _ = observe(predict(taken_as_is, motion, EXACT), place)
        worst = max(worst, float(np.hypot(*(learning.means[0, :2] - at))))
    sigma = math.sqrt(learning.covariances[0, 3, 3])
    assert sigma < 0.01
    assert abs(learning.means[0, 3] - 0.05) < 3 * sigma
    assert np.hypot(*(learning.means[0, :2] - at)) < 0.5 < np.hypot(*(taken_as_is.means[0, :2] - at))
    assert worst < 3.0


@pytest.mark.parametrize("distance", [1e6, 1e11, 1e160, 1e200])
@pytest.mark.parametrize("scale", [0.0, 0.02])
def test_predict_moves_hypotheses_that_overflow_to_the_uniform_component(distance: float, scale: float) -> None:
    """A motion no vehicle makes: whatever remains is finite and positive definite, and no weight is lost."""
    belief = hypotheses(
        np.array([0.5, 0.3]),
        np.array([[10.0, 20.0, 0.3], [40.0, 10.0, 2.0]]),
        np.tile(np.diag([1.0, 1.0, 0.01]), (2, 1, 1)),
        np.zeros(2),
        np.zeros(2, int),
        0.2,
        scale,
    )
    with np.errstate(all="ignore"):
        after = predict(
            belief, Motion(distance, 0.0, 0.1, distance, np.diag([1.0, 1.0, 1e-4])), MotionNoise(scale=scale)
        )
        seen, ratios = observe(after, evidence([(0.8, 50.0, 50.0, 1.0)], open_share=0.2))
        reduced = reduce(seen, merge_distance2=0.5, limit=10)
    assert after.weights.sum() + after.uniform_weight == pytest.approx(1.0)
    for result in (after, seen, reduced):
        assert np.isfinite(result.means).all()
        assert np.isfinite(result.covariances).all()
        assert (np.linalg.det(result.covariances[:, :3, :3]) > 0).all()
        assert np.isfinite(result.weights).all()
        assert result.weights.sum() + result.uniform_weight == pytest.approx(1.0)
    assert np.isfinite(ratios).all()
    near = np.hypot(*(reduced.means[:, :2] - 50.0).T) < 1e-6
    assert reduced.weights[near].sum() > 0.1  # the image's place is a hypothesis: the filter goes on


def test_predict_keeps_covariance_valid_for_an_unknown_yaw() -> None:
    covariance = np.diag([0.3, 0.3, math.pi**2 / 3])
    belief = hypotheses(np.ones(1), np.zeros((1, 3)), covariance[None], np.zeros(1), np.zeros(1, int), 0.0)
    motion = Motion(5.0, 0.0, 0.1, 5.0, np.diag([0.05, 0.05, 0.5]))
    for _ in range(50):
        belief = predict(belief, motion, MotionNoise())
        eigenvalues = np.linalg.eigvalsh(belief.covariances[0])
        assert eigenvalues[0] > 0
        assert belief.covariances[0, 2, 2] == pytest.approx(math.pi**2 / 3)


def test_slip_gives_a_share_of_the_four_heaviest_to_wider_copies() -> None:
    weights = np.array([0.1, 0.3, 0.02, 0.2, 0.25])
    means = np.arange(20.0).reshape(5, 4)
    covariances = np.broadcast_to(np.diag([4.0, 9.0, 0.01, 1e-4]), (5, 4, 4)) + 0.0
    before = Belief(weights, means, covariances, np.arange(5.0), np.arange(5), 0.13)
    after = slip(before, 0.2, 3.0)
    # The lightest, at place 2, stays whole. The copies follow, the heaviest first.
    np.testing.assert_allclose(after.weights[:5], [0.08, 0.24, 0.02, 0.16, 0.2])
    np.testing.assert_allclose(after.weights[5:], [0.06, 0.05, 0.04, 0.02])
    assert after.tile_ids[5:].tolist() == [1, 4, 3, 0]
    np.testing.assert_array_equal(after.means[5:], means[[1, 4, 3, 0]])
    np.testing.assert_array_equal(after.covariances[:5], covariances)
    np.testing.assert_allclose(after.covariances[5:], np.tile(np.diag([13.0, 18.0, 0.01, 1e-4]), (4, 1, 1)))
    assert after.uniform_weight == 0.13
    assert after.total == pytest.approx(1.0)


def test_restart_moves_its_share_of_every_weight_to_the_uniform_component() -> None:
    before = replace(three_hypotheses(), weights=np.array([0.5, 0.2, 0.1]), uniform_weight=0.2)
    after = restart(before, 0.25)
    np.testing.assert_allclose(after.weights, [0.375, 0.15, 0.075])
    assert after.uniform_weight == pytest.approx(0.15 + 0.25)


def test_motions_compose_like_poses() -> None:
    first = Motion(3.0, 0.5, 0.3, 3.1, np.diag([0.1, 0.1, 0.01]))
    second = Motion(2.0, -0.2, -0.5, 2.1, np.diag([0.2, 0.1, 0.02]))
    third = Motion(1.0, 0.0, 0.2, 1.0, np.diag([0.05, 0.05, 0.005]))
    left, right = first.then(second).then(third), first.then(second.then(third))
    assert (left.forward_m, left.left_m, left.turn_rad) == pytest.approx(
        (right.forward_m, right.left_m, right.turn_rad)
    )
    np.testing.assert_allclose(left.covariance, right.covariance, atol=1e-12)
    start = hypotheses(
        np.ones(1), np.array([[1.0, 2.0, 0.7]]), 0.1 * np.eye(3)[None], np.zeros(1), np.zeros(1, int), 0.0, 0.02
    )
    lasting = MotionNoise(scale_persistence_m=1e6)
    stepwise = predict(predict(start, first, lasting), second, lasting)
    at_once = predict(start, first.then(second), lasting)
    np.testing.assert_allclose(stepwise.means, at_once.means, atol=1e-9)
    np.testing.assert_allclose(stepwise.covariances, at_once.covariances, rtol=1e-4)


def test_merging_keeps_weight_mean_and_covariance_across_the_wrap() -> None:
    rng = np.random.default_rng(1)
    means = np.array([10.0, 20.0, math.pi]) + 0.1 * rng.standard_normal((6, 3))
    weights = rng.dirichlet(np.ones(6)) * 0.8
    raw = means - np.array([0, 0, math.pi])
    mean = weights @ raw / 0.8
    second = sum(w * (np.eye(3) * 0.2 + np.outer(m - mean, m - mean)) for w, m in zip(weights, raw, strict=True)) / 0.8
    wrapped = means.copy()
    wrapped[:, 2] = wrap_angle(wrapped[:, 2])
    belief = hypotheses(weights, wrapped, np.tile(0.2 * np.eye(3), (6, 1, 1)), np.arange(6.0), np.arange(6), 0.2)
    merged = reduce(belief, merge_distance2=9.0, limit=10)
    assert len(merged) == 1
    assert merged.weights[0] == pytest.approx(0.8)
    np.testing.assert_allclose(merged.means[0, :2], mean[:2] + 0.0)
    assert wrap_angle(float(merged.means[0, 2]) - math.pi) == pytest.approx(mean[2])
    np.testing.assert_allclose(merged.covariances[0, :3, :3], second, atol=1e-12)


def test_wide_hypothesis_is_not_merged_into_a_narrow_one() -> None:
    covariances = np.stack([np.eye(3), 100 * np.eye(3)])
    belief = hypotheses(np.array([0.9, 0.1]), np.zeros((2, 3)), covariances, np.zeros(2), np.zeros(2, int), 0.0)
    assert len(reduce(belief, merge_distance2=1.0, limit=10)) == 2


def one(yaw: float, variance: float) -> Belief:
    covariance = np.diag([1.0, 1.0, variance])
    return hypotheses(
        np.array([0.5]), np.array([[0.0, 0.0, yaw]]), covariance[None], np.zeros(1), np.zeros(1, int), 0.5
    )


def test_observe_yaw_repeated_keeps_the_headings_own_variance() -> None:
    belief = one(0.0, 3.0)
    for _ in range(50):
        belief = observe_yaw(belief, 0.4, 0.01, 0.01, 1.0)
    assert belief.means[0, 2] == pytest.approx(0.4, abs=0.01)
    assert belief.covariances[0, 2, 2] == pytest.approx(0.01, rel=0.05)
    assert belief.weights[0] == pytest.approx(0.5, abs=0.01)  # agreement does not raise the weight


def test_observe_yaw_contradiction_costs_at_most_the_outlier_share() -> None:
    belief = observe_yaw(one(0.0, 0.01), 2.5, 0.01, 0.02, 1.0)
    assert belief.weights[0] == pytest.approx(0.02 / 1.02, rel=1e-3)
    assert belief.means[0, 2] == pytest.approx(0.0, abs=1e-3)


def test_assumed_heading_applies_only_to_poses_of_similar_yaw() -> None:
    """Three hypotheses at one place where the image finds nothing: one faces as assumed, one away, one may face
    anywhere."""
    covariances = np.tile(np.diag([1.0, 1.0, 0.001]), (3, 1, 1))
    covariances[2, 2, 2] = math.pi**2 / 3
    means = np.array([[50.0, 50.0, 0.3], [50.0, 50.0, 2.0], [50.0, 50.0, 0.3]])
    belief = hypotheses(np.array([0.3, 0.3, 0.3]), means, covariances, np.zeros(3), np.zeros(3, int), 0.1)
    e = replace(evidence([(0.8, 120.0, 120.0, 1.0)], open_share=0.2, yaw=0.3), assumed_yaw_rad=0.3)
    after, likelihoods = observe(belief, e)
    assert likelihoods[0] == pytest.approx(0.2, abs=0.02)
    assert likelihoods[1] == pytest.approx(1.0, abs=1e-6)
    assert 0.85 < likelihoods[2] < 0.95
    # The uniform component keeps its weight; only hypotheses with about the assumed yaw may be where the image says.
    assert after.weights[1] / (after.uniform_weight + after.weights[3]) == pytest.approx(0.3 / 0.1)
    assert 0.02 < after.weights[3] / after.uniform_weight < 0.15


def test_assumed_heading_updates_uniform_component_by_its_share() -> None:
    yaw = np.linspace(-math.pi, math.pi, 100_000, endpoint=False)
    share = float(np.mean(np.exp(-0.5 * (yaw / math.radians(12.0)) ** 2)))  # of all yaws, by an integral
    e = replace(evidence([(0.8, 120.0, 120.0, 1.0)], open_share=0.2, yaw=0.3), assumed_yaw_rad=0.3)
    after, _ = observe(uniform(), e)
    assert after.weights == pytest.approx([0.8 * share])
    assert after.uniform_weight == pytest.approx(1 - 0.8 * share)


@pytest.mark.parametrize("exponent", [0.3, 1.0])
def test_image_that_looks_wrong_speaks_against_the_assumed_heading_wherever_it_fits(exponent: float) -> None:
    """By sums over a grid of yaws: with the probability that a pose faces about there, L is a tenth of what it is."""
    spread = 0.1
    means = np.array([[50.0, 50.0, 0.3], [50.0, 50.0, 2.0], [120.0, 120.0, 0.3]])
    covariances = np.tile(np.diag([1e-4, 1e-4, spread**2]), (3, 1, 1))
    belief = hypotheses(np.array([0.3, 0.3, 0.3]), means, covariances, np.zeros(3), np.zeros(3, int), 0.1)
    e = replace(evidence([(0.8, 120.0, 120.0, 1.0)], open_share=0.2), assumed_yaw_rad=0.3, heading_fit=0.1)
    after, likelihoods = observe(belief, e, exponent=exponent)
    yaw = np.linspace(-math.pi, math.pi, 100_001)
    applies = np.exp(-0.5 * ((yaw - 0.3) / math.radians(12.0)) ** 2)
    peak = AREA / (2 * math.pi * (1.0 + 1e-4))
    expected = []
    for mean, fits in zip(means[:, 2], (0.2, 0.2, 0.2 + 0.8 * peak), strict=True):
        density = np.exp(-0.5 * ((yaw - mean) / spread) ** 2)
        expected.append(float(np.average(applies * 0.1 * fits + 1 - applies, weights=density)))
    assert likelihoods == pytest.approx(expected, rel=1e-3)
    # All that the uniform component hands over or keeps is its weight times its own likelihood.
    share = float(np.mean(applies))
    uniform_after, _ = observe(uniform(), e, exponent=exponent)
    total = (1 - share + 0.1 * share) ** exponent
    assert uniform_after.uniform_weight == pytest.approx((1 - share + 0.1 * 0.2 * share) ** exponent / total, rel=1e-4)
    # The hypothesis that faces away keeps its odds against nothing found.
    assert after.total == pytest.approx(1.0)


def test_component_wider_than_a_hypothesis_changes_only_its_weight() -> None:
    means, covariances = np.array([[50.0, 50.0, 0.0]]), np.diag([1.0, 1.0, 1e-4])[None]
    belief = hypotheses(np.array([0.5]), means, covariances, np.zeros(1), np.zeros(1, int), 0.5)
    e = evidence([(0.6, 53.0, 50.0, 40.0)], open_share=0.4)
    after, ratios = observe(belief, e)
    ratio = 0.4 + 0.6 * AREA * math.exp(-0.5 * 9 / 1601) / (2 * math.pi * 1601)
    assert ratios == pytest.approx([ratio])
    # The component is a new hypothesis; nothing is a mean of the two.
    np.testing.assert_allclose(after.weights, [0.5 * ratio / (0.5 * ratio + 0.5), 0.5 * 0.6 / (0.5 * ratio + 0.5)])
    np.testing.assert_allclose(after.means[0, :3], means[0])
    np.testing.assert_allclose(after.covariances[0, :3, :3], covariances[0])


def test_searched_headings_choose_between_hypotheses() -> None:
    """Two hypotheses at the same place, facing opposite ways; the image finds the heading of one."""
    belief = hypotheses(
        np.array([0.45, 0.45]),
        np.array([[50.0, 50.0, 0.1], [50.0, 50.0, 3.0]]),
        np.tile(np.diag([4.0, 4.0, 0.04]), (2, 1, 1)),
        np.zeros(2),
        np.zeros(2, int),
        0.1,
    )
    e = Evidence(
        np.array([0.8]),
        np.array([[51.0, 50.0]]),
        4.0 * np.eye(2)[None],
        np.array([0.0]),
        np.array([0.01]),
        True,
        np.array([7]),
        0.2,
        0.2,
    )
    after, _ = observe(belief, e)
    facing = np.abs(wrap_angle(after.means[:, 2])) < 1
    assert after.weights[facing].sum() > 0.99
    best = int(np.argmax(after.weights))
    assert after.means[best, 0] == pytest.approx(50.5)  # equal certainties: halfway
    assert after.means[best, 2] == pytest.approx(0.02)  # 0.04 against 0.01: four fifths of the way from 0.1 to 0
    assert after.tile_ids[best] == 7


def test_lever_arm_is_applied_with_each_hypothesis_own_yaw() -> None:
    """Camera 2 m ahead of base_link, which faces north: an image at (50, 52) is base_link at (50, 50)."""
    e = evidence([(0.8, 50.0, 52.0, 1.0)], open_share=0.2, yaw=math.pi / 2)
    after, _ = observe(uniform(), e, lever_m=(2.0, 0.0))
    np.testing.assert_allclose(after.means[0, :2], [50.0, 50.0], atol=1e-9)
    moved, _ = observe(after, e, lever_m=(2.0, 0.0))
    np.testing.assert_allclose(moved.means[np.argmax(moved.weights), :2], [50.0, 50.0], atol=1e-6)
    assert after.weights[0] == pytest.approx(0.8)


# -- evidence -----------------------------------------------------------------------------------------------------


def distribution(probability: np.ndarray, scale: float = 0.5) -> TileDistribution:
    return TileDistribution(4, 100.0, 200.0, scale, (probability / probability.sum()).astype(np.float32))


def test_modes_keep_the_moments_of_d() -> None:
    rng = np.random.default_rng(3)
    probability = ndimage.gaussian_filter(rng.random((64, 64)) ** 30, 2.0)
    d = distribution(probability)
    weights, means, covariances = modes_of(d)
    p = d.probability.astype(float)
    along = (np.arange(64) - 31.5) * 0.5
    east, north = 100 + along[None, :] + 0 * along[:, None], 200 - along[:, None] + 0 * along[None, :]
    mean = np.array([(p * east).sum(), (p * north).sum()])
    offsets = np.stack([east - mean[0], north - mean[1]], axis=-1)
    second = np.einsum("xy,xyi,xyj->ij", p, offsets, offsets) + 0.5**2 / 12 * np.eye(2)
    np.testing.assert_allclose(weights.sum(), 1.0)
    np.testing.assert_allclose(weights @ means, mean, atol=1e-4)
    spread = means - weights @ means
    total = np.einsum("m,mij->ij", weights, covariances + spread[:, :, None] * spread[:, None, :])
    np.testing.assert_allclose(total, second, atol=1e-3)
    assert np.linalg.eigvalsh(covariances).min() > 0


def test_two_peaks_become_two_modes() -> None:
    rows, columns = np.mgrid[:96, :96]

    def peak(row: int, column: int, sigma: float) -> np.ndarray:
        return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2)) / sigma**2

    d = distribution(0.7 * peak(20, 30, 2.0) + 0.3 * peak(70, 80, 3.0))
    weights, means, covariances = modes_of(d)
    np.testing.assert_allclose(weights[:2], [0.7, 0.3], atol=0.01)
    # Row 20 is north of the middle (47.5) by 27.5 px, column 30 west of it by 17.5 px, half a metre each.
    np.testing.assert_allclose(means[0], [100 - 8.75, 200 + 13.75], atol=0.02)
    np.testing.assert_allclose(means[1], [100 + 16.25, 200 - 11.25], atol=0.05)
    np.testing.assert_allclose(covariances[0], (1.0 + 0.25 / 12) * np.eye(2), atol=0.02)


def test_single_pixel_is_a_mode_of_its_own_size() -> None:
    probability = np.zeros((32, 32))
    probability[5, 6] = 1.0
    weights, means, covariances = modes_of(distribution(probability))
    np.testing.assert_allclose(weights, [1.0])
    np.testing.assert_allclose(means[0], [100 + (6 - 15.5) * 0.5, 200 - (5 - 15.5) * 0.5])
    np.testing.assert_allclose(covariances[0], 0.25 / 12 * np.eye(2), atol=1e-9)


def test_tile_weights_are_a_softmax_including_the_rivals() -> None:
    weights, outside = tile_weights([1.0, 0.9], 0.1)
    np.testing.assert_allclose(weights, np.array([math.e, 1.0]) / (math.e + 1))
    assert outside == 0.0
    weights, outside = tile_weights([1.0, 0.9], 0.1, log_rivals=9.0)
    np.testing.assert_allclose([*weights, outside], np.array([math.e, 1.0, 1.0]) / (math.e + 2))
    weights, outside = tile_weights([], 0.1, log_rivals=1.0)
    assert (len(weights), outside) == (0, 1.0)


@pytest.mark.parametrize("spread", [0.3, 0.8, 1.0, 1.5])
def test_rival_evidence_is_predicted_from_the_best_candidates(spread: float) -> None:
    """Exponentially falling logits, of which the best twenty of 5,000 are seen: within a factor of two, mostly."""
    rng = np.random.default_rng(8)
    errors = []
    for _ in range(200):
        logits = np.sort(rng.exponential(spread, 5000))[::-1]
        errors.append(log_evidence_of_all(logits[:20], 5000) - float(np.logaddexp.reduce(logits)))
    assert abs(float(np.median(errors))) < 0.3
    assert float(np.quantile(np.abs(errors), 0.9)) < 1.5


def test_rival_evidence_of_all_tiles_is_their_sum() -> None:
    logits = np.array([3.0, 1.0, 0.5])
    assert log_evidence_of_all(logits, 3) == pytest.approx(float(np.logaddexp.reduce(logits)))
    assert log_evidence_of_all(np.zeros(0), 3) == -math.inf
