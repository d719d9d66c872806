"""The filter's vectorised steps against the same formulas written plainly: one hypothesis, one component, one pixel at
a time, with numpy.linalg. They agree to 1e-9."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import TileDistribution
from unifygeo_ros.motion.increments import Motion, MotionNoise
from unifygeo_ros.tracking import filter
from unifygeo_ros.tracking.belief import Belief
from unifygeo_ros.tracking.evidence import Evidence, modes_of
from unifygeo_ros.tracking.filter import predict
from unifygeo_ros.tracking.reduction import reduce

AREA = 4.0e5
LEVER = (1.5, -0.4)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def random_belief(rng: np.random.Generator, count: int) -> Belief:
    roots = rng.standard_normal((count, 4, 4)) * np.array([2.0, 2.0, 0.1, 0.02])[:, None]
    covariances = roots @ roots.transpose(0, 2, 1) + np.diag([0.1, 0.1, 1e-3, 1e-4])
    yaw, scale = rng.uniform(-math.pi, math.pi, count), rng.uniform(-0.05, 0.05, count)
    means = np.stack([*rng.uniform(0, 40, (2, count)), yaw, scale], axis=-1)
    weights = rng.dirichlet(np.ones(count)) * 0.8
    return Belief(weights, means, covariances, np.zeros(count), rng.integers(0, 9, count), 0.2)


def random_evidence(rng: np.random.Generator, count: int, measures_yaw: bool) -> Evidence:
    roots = rng.standard_normal((count, 2, 2)) * np.array([0.5, 1.0])
    return Evidence(
        weights=0.7 * rng.dirichlet(np.ones(count)),
        means_m=rng.uniform(0, 40, (count, 2)),
        covariances_m2=roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(2),
        yaw_rad=rng.uniform(-math.pi, math.pi, count),
        yaw_variance_rad2=rng.uniform(0.01, 1.0, count),
        measures_yaw=measures_yaw,
        tile_ids=np.arange(count),
        open_share=0.3,
        near_share=0.1,
    )


def plain_prediction(
    mean: np.ndarray, covariance: np.ndarray, motion: Motion, noise: MotionNoise
) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = math.cos(mean[2]), math.sin(mean[2])
    east = cos * motion.forward_m - sin * motion.left_m
    north = sin * motion.forward_m + cos * motion.left_m
    factor, lasting = 1 + mean[3], math.exp(-motion.distance_m / noise.scale_persistence_m)
    by_state = np.array(
        [[1, 0, -factor * north, east], [0, 1, factor * east, north], [0, 0, 1, 0], [0, 0, 0, lasting]], float
    )
    by_motion = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    after = np.array([mean[0] + factor * east, mean[1] + factor * north, 0.0, lasting * mean[3]])
    after[2] = wrap_angle(mean[2] + motion.turn_rad)
    moved = by_state @ covariance @ by_state.T + by_motion @ motion.covariance @ by_motion.T
    moved[3, 3] += (1 - lasting**2) * noise.scale**2
    return after, moved


def test_prediction() -> None:
    rng = np.random.default_rng(0)
    belief = random_belief(rng, 20)
    roots = rng.standard_normal((3, 3))
    motion = Motion(4.0, 0.3, 0.2, 4.1, 0.01 * roots @ roots.T)
    noise = MotionNoise(scale=0.03, scale_persistence_m=50.0)
    after = predict(belief, motion, noise)
    for i in range(len(belief)):
        mean, covariance = plain_prediction(belief.means[i], belief.covariances[i], motion, noise)
        np.testing.assert_allclose(after.means[i], mean, **CLOSE)
        np.testing.assert_allclose(after.covariances[i], covariance, **CLOSE)


@pytest.mark.parametrize("measures_yaw", [False, True])
@pytest.mark.parametrize("exponent", [0.3, 1.0])
def test_bayes_rule(measures_yaw: bool, exponent: float) -> None:
    """Eq. 3 with the Kalman step of each pair, in the order: those that go on, the pairs, the new ones."""
    rng = np.random.default_rng(1)
    belief, e = random_belief(rng, 6), random_evidence(rng, 5, measures_yaw)
    near = np.arange(6) % 2 == 0
    after, likelihoods = filter.observe(
        belief, e, area_m2=AREA, exponent=exponent, near=near, lever_m=LEVER, scale_sigma=0.03, prune=0.0, limit=1000
    )
    dimensions = 3 if measures_yaw else 2
    uniform = AREA * (2 * math.pi if measures_yaw else 1.0)
    went_on, pairs = [], []
    for i in range(6):
        yaw, covariance = belief.means[i, 2], belief.covariances[i]
        lever = np.array([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]) @ LEVER
        jacobian = np.array([[1.0, 0.0, -lever[1], 0.0], [0.0, 1.0, lever[0], 0.0], [0.0, 0.0, 1.0, 0.0]])[:dimensions]
        floor = e.near_share if near[i] else e.open_share
        found = []
        for j in range(5):
            z = np.append(e.means_m[j] - belief.means[i, :2] - lever, wrap_angle(e.yaw_rad[j] - yaw))[:dimensions]
            spread = np.zeros((3, 3))
            spread[:2, :2], spread[2, 2] = e.covariances_m2[j], e.yaw_variance_rad2[j]
            total = jacobian @ covariance @ jacobian.T + spread[:dimensions, :dimensions]
            density = math.exp(-0.5 * z @ np.linalg.solve(total, z)) / math.sqrt(np.linalg.det(2 * math.pi * total))
            gain = covariance @ jacobian.T @ np.linalg.inv(total)
            mean = belief.means[i] + gain @ z
            mean[2] = wrap_angle(mean[2])
            found.append((uniform * e.weights[j] * density, mean, covariance - gain @ jacobian @ covariance))
        whole = floor + sum(found[j][0] for j in range(5))
        np.testing.assert_allclose(likelihoods[i], whole, **CLOSE)
        weight = belief.weights[i]
        went_on.append(weight * floor**exponent)
        rise = weight * (whole**exponent - floor**exponent)
        pairs += [(rise * worth / (whole - floor), mean, covariance) for worth, mean, covariance in found]
    remains = belief.uniform_weight * e.open_share**exponent
    newborn = (belief.uniform_weight - remains) * e.weights / e.weights.sum()
    weights = np.array([*went_on, *(pair[0] for pair in pairs), *newborn])
    kept = weights > 0  # an agreement may be too far for any float
    norm = weights.sum() + remains
    np.testing.assert_allclose(after.weights, weights[kept] / norm, **CLOSE)
    np.testing.assert_allclose(after.uniform_weight, remains / norm, **CLOSE)
    moved = [pair for pair, keep in zip(pairs, kept[6:36], strict=True) if keep]
    np.testing.assert_allclose(after.means[6 : 6 + len(moved)], [pair[1] for pair in moved], **CLOSE)
    np.testing.assert_allclose(after.covariances[6 : 6 + len(moved)], [p[2] for p in moved], rtol=1e-8, atol=1e-10)
    born = after.select(np.arange(6 + len(moved), len(after)))
    assert len(born) == 5
    np.testing.assert_array_equal(born.means[:, 3], 0.0)
    np.testing.assert_allclose(born.covariances[:, 3], np.tile([0.0, 0.0, 0.0, 0.03**2], (5, 1)), **CLOSE)


def test_merging() -> None:
    rng = np.random.default_rng(2)
    belief = random_belief(rng, 40)
    belief = replace(belief, means=belief.means * np.array([0.1, 0.1, 0.05, 1.0]))
    merged = reduce(belief, merge_distance2=3.0, limit=40)

    order = np.argsort(-belief.weights, kind="stable")
    groups: list[list[int]] = []
    for i in order.tolist():
        for group in groups:
            head = group[0]
            apart = belief.means[i, :3] - belief.means[head, :3]
            apart[2] = wrap_angle(apart[2])
            volumes = [math.sqrt(np.linalg.det(belief.covariances[k, :3, :3])) for k in (i, head)]
            lengths = [apart @ np.linalg.solve(belief.covariances[k, :3, :3], apart) for k in (i, head)]
            if max(lengths) < 3.0 and abs(math.log(volumes[0] / volumes[1])) < 1.0:
                group.append(i)
                break
        else:
            groups.append([i])
    assert 5 < len(groups) < 40
    weights = np.array([belief.weights[group].sum() for group in groups])
    expected = np.sort(weights)[::-1] / (weights.sum() + belief.uniform_weight)
    np.testing.assert_allclose(merged.weights, expected, **CLOSE)


def test_modes_of_d() -> None:
    rng = np.random.default_rng(3)
    size, scale, radius = 48, 0.7, 4.0
    density = ndimage.gaussian_filter(rng.random((size, size)) ** 40, 2.0)
    d = TileDistribution(1, 30.0, -20.0, scale, (density / density.sum()).astype(np.float32))
    shares, means, covariances = modes_of(d, radius)

    left = d.probability.astype(np.float64)
    rows, columns = np.indices(left.shape)
    places = np.stack([30.0 + (columns - 23.5) * scale, -20.0 - (rows - 23.5) * scale], axis=-1)
    parts = []
    for _ in range(4):
        middle = places.reshape(-1, 2)[int(left.argmax())]
        near = ((places - middle) ** 2).sum(-1) <= radius**2 + 1e-9
        if left[near].sum() < 0.02:
            break
        parts.append(np.where(near, left, 0.0))
        left = left - parts[-1]
        if left.sum() < 0.02:
            break
    parts.append(left)
    assert len(shares) == len(parts)
    for part, share, mean, covariance in zip(parts, shares, means, covariances, strict=True):
        np.testing.assert_allclose(share, part.sum() / d.probability.sum(dtype=np.float64), rtol=1e-9)
        middle = (part[..., None] * places).sum((0, 1)) / part.sum()
        apart = places - middle
        second = np.einsum("rc,rci,rcj->ij", part, apart, apart) / part.sum()
        np.testing.assert_allclose(mean, middle, rtol=1e-9)
        np.testing.assert_allclose(covariance, second + scale**2 / 12 * np.eye(2), rtol=1e-8, atol=1e-8)
