"""Where the vehicle was at each image, given all images of the drive: fixed-interval smoothing over hypotheses.

A two-filter smoother (Fraser and Potter, 1969; for mixtures Kitagawa, 1994). The tracker's own filter runs forward; the
same steps run backward over what it took in, with the motions reversed. At image k the forward belief knows the images
1 … k and the backward one those after k, both starting from the same prior p₀, so that

    p(x | 1 … n) ∝ p(x | 1 … k) · p(x | k+1 … n) / p₀(x).                                                          (S1)

p₀ is uniform over the region and all yaws, and N(0, σ²) in the odometry's error of scale: a stationary process, the
same in both directions. Products of Gaussians are Gaussians, so (S1) has a closed form: a hypothesis for each pair,
each hypothesis of one side alone where the other knows nothing, and a uniform rest. Nothing is linearised that the
filter does not linearise.

How much of an image is new was decided by the forward filter, from the way since the image before, and holds in both
directions: no evidence counts twice, and at the last image the smoothed belief is the filter's. The state machine of
the track has no part in it: hypotheses compete by all evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import symmetric
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import Heading
from unifygeo_ros.motion.increments import NO_MOTION, Motion, MotionNoise
from unifygeo_ros.tracking.belief import Belief, uniform
from unifygeo_ros.tracking.clusters import dominant_cluster, weight_inside_ellipse
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.evidence import Evidence
from unifygeo_ros.tracking.filter import (
    HEADING_OUTLIER,
    SearchedPart,
    doubted,
    observe,
    observe_yaw,
    predict,
)
from unifygeo_ros.tracking.reduction import MERGE_DISTANCE2, reduce

PRUNE = 1e-9
"""Pairs with less weight are dropped; their weight moves to the uniform component."""
_LEAST_SCALE_VARIANCE = 1e-14


@dataclass(frozen=True)
class Step:
    """What the filter did between the image before and this one, and with this one."""

    stamp_ns: int
    first: bool
    """Whether the filter knew nothing, or had been given a pose, before: nothing of the images before holds."""
    motion: Motion
    """Since the image before."""
    doubt: float
    """Share of the way that counts for restarts and slips."""
    heading: Heading | None
    """From a sensor."""
    novelty: float
    """Share of the image that is new."""
    evidence: Evidence | None
    """None: the image could not be used."""
    searched: SearchedPart | None
    """The part of the region that was searched; None: all of it."""
    posterior: Belief
    """After this image, knowing nothing later."""
    on_map: float
    """P(the vehicle is where the index holds imagery), knowing nothing later."""


Recorder = Callable[[Step], None]
"""Takes in the steps of a tracker (`Tracker.record_to`)."""


@dataclass(frozen=True)
class SmoothedPose:
    """Where base_link was at one image, in the map frame, knowing the whole drive."""

    stamp_ns: int
    east_m: float
    north_m: float
    yaw_rad: float
    covariance: Float64
    """float64 (3, 3), east (m), north (m), yaw (rad)."""
    integrity: float
    """Probability that base_link lies inside the 95% ellipse of the covariance."""
    weight: float
    """Belief in the place as a whole."""


def smooth(
    steps: Sequence[Step],
    *,
    area_m2: float,
    config: TrackerConfig,
    noise: MotionNoise,
    radius_m: float,
    lever_m: tuple[float, float],
    least_integrity: float = 0.0,
) -> list[SmoothedPose]:
    """The smoothed poses of a drive, rising in time, without those whose integrity is less than `least_integrity`.

    Args:
        steps: Of the whole drive, rising in time.
        area_m2: Area of the region.
        config: Of the tracker that made the steps.
        noise: Of the odometry, the same tracker's.
        radius_m: Hypotheses within this distance are one place (`answer_radius_m`).
        lever_m: Camera in base_link, forward and left.
        least_integrity: At most 0.95 for a belief in one Gaussian.
    """
    found = []
    for step, belief in smoothed_beliefs(steps, area_m2=area_m2, config=config, noise=noise, lever_m=lever_m):
        cluster = dominant_cluster(belief, radius_m)
        if cluster is None:
            continue
        integrity = weight_inside_ellipse(belief, cluster, cluster.mean, cluster.covariance) * step.on_map
        if integrity >= least_integrity:
            east, north, yaw = cluster.mean[:3].tolist()
            found.append(
                SmoothedPose(
                    step.stamp_ns, east, north, yaw, symmetric(cluster.covariance[:3, :3]), integrity, cluster.weight
                )
            )
    return found[::-1]


def smoothed_beliefs(
    steps: Sequence[Step], *, area_m2: float, config: TrackerConfig, noise: MotionNoise, lever_m: tuple[float, float]
) -> list[tuple[Step, Belief]]:
    """The beliefs of (S1), from the last step to the first."""
    found = []
    future = uniform()
    for step in reversed(steps):
        belief = combine(step.posterior, future, area_m2=area_m2, scale_sigma=noise.scale)
        found.append((step, reduce(belief, merge_distance2=MERGE_DISTANCE2, limit=config.hypotheses)))
        future = uniform() if step.first else _before(step, future, area_m2, config, noise, lever_m)
    return found


def combine(past: Belief, future: Belief, *, area_m2: float, scale_sigma: float) -> Belief:
    """(S1): past · future / p₀, normalised. scale_sigma is σ of p₀."""
    pairs = _pairs(past, future, area_m2, scale_sigma)
    parts = [
        replace(past, weights=past.weights * future.uniform_weight),
        replace(future, weights=future.weights * past.uniform_weight),
    ]
    uniform_weight = past.uniform_weight * future.uniform_weight
    whole = replace(pairs, uniform_weight=uniform_weight).extended(*parts)
    total = whole.total
    if not total > 0:  # the two contradict each other beyond float64
        return uniform()
    whole = whole.normalised()
    return whole.keep(whole.weights > PRUNE).without_degenerate()


def _before(
    step: Step, future: Belief, area_m2: float, config: TrackerConfig, noise: MotionNoise, lever_m: tuple[float, float]
) -> Belief:
    """The backward belief at the image before: the filter's steps in reverse order."""
    belief = future
    if step.evidence is not None:
        near = np.ones(len(belief), np.bool_) if step.searched is None else step.searched.holds(belief)
        belief, _ = observe(
            belief,
            step.evidence,
            area_m2=area_m2,
            exponent=step.novelty,
            near=near,
            lever_m=lever_m,
            scale_sigma=noise.scale,
            prune=PRUNE,
            limit=2 * config.hypotheses,
        )
        belief = reduce(belief, merge_distance2=MERGE_DISTANCE2, limit=config.hypotheses)
    if step.heading is not None:
        heading = step.heading
        belief = observe_yaw(belief, heading.yaw_rad, heading.variance_rad2, HEADING_OUTLIER, step.novelty)
    # The scale that belongs to the motion is that of the image before: first the scale goes back, then the pose.
    way = replace(NO_MOTION, distance_m=step.motion.distance_m)
    back = replace(step.motion.reversed(), distance_m=0.0)
    belief = predict(predict(belief, way, noise), back, noise)
    return doubted(belief, step.doubt, config.restart_probability)


def _pairs(past: Belief, future: Belief, area_m2: float, scale_sigma: float) -> Belief:
    """A hypothesis for each pair, with its weight in (S1), not normalised; its uniform weight means nothing."""
    n, m = len(past), len(future)
    i, j = (index.ravel() for index in np.indices((n, m)))
    difference = future.means[j] - past.means[i]
    difference[:, 2] = wrap_angle(difference[:, 2])
    p, q = past.covariances[i], future.covariances[j]
    total = p + q
    total[:, 3, 3] += _LEAST_SCALE_VARIANCE  # where the scale is taken as known
    gain = np.linalg.solve(total, p).transpose(0, 2, 1)
    means = past.means[i] + (gain @ difference[:, :, None])[:, :, 0]
    covariances = symmetric(p - gain @ p)
    sign, log_determinant = np.linalg.slogdet(total)
    lengths2 = np.einsum("ni,ni->n", difference, np.linalg.solve(total, difference[:, :, None])[:, :, 0])
    log_weights = -0.5 * (lengths2 + log_determinant) - 2 * math.log(2 * math.pi)
    log_weights += math.log(2 * math.pi * area_m2)  # 1 / the uniform part of p₀
    variance = scale_sigma**2
    if variance > 0:
        # Divide by N(scale; 0, σ²), which both sides contain: an update with the variance −σ².
        mean, own = means[:, 3].copy(), np.minimum(covariances[:, 3, 3], (1 - 1e-6) * variance)
        rest = variance - own
        log_weights += 0.5 * math.log(2 * math.pi) + math.log(variance) - 0.5 * np.log(rest) + 0.5 * mean**2 / rest
        along = covariances[:, :, 3]
        means = means + along * (mean / rest)[:, None]
        covariances = symmetric(covariances + along[:, :, None] * along[:, None, :] / rest[:, None, None])
    else:
        log_weights += 0.5 * math.log(2 * math.pi * _LEAST_SCALE_VARIANCE)  # the scale is 0 on both sides
    means[:, 2] = wrap_angle(means[:, 2])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weights = past.weights[i] * future.weights[j] * np.where(sign > 0, np.exp(log_weights), 0.0)
    return Belief(weights, means, covariances, past.support[i], past.tile_ids[i], 0.0)
