"""The steps of the Bayes filter: free functions from belief to belief, whose cost does not depend on the region's area.

    predict ─► restart ─► slip ─► observe_yaw ─► observe ─► reduction.reduce

`observe` is Bayes' rule with one image:

    innovations ─► likelihoods ─► split weights ─► prune ─► Kalman updates and new hypotheses
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Bool, Float64
from unifygeo_ros.core.covariance import mahalanobis2, symmetric
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.se2 import rotate, rotation_derivative, rotation_matrix
from unifygeo_ros.motion.increments import UNIFORM_YAW_VARIANCE, Motion, MotionNoise
from unifygeo_ros.tracking.belief import Belief, with_scale
from unifygeo_ros.tracking.evidence import Evidence

SUPPORT, CONFIRMING = 10.0, 100.0
"""An image supports a place if it is this many times likelier from there than from anywhere, and confirms it if it is
that many times. From the right place it is by thousands, from a wrong one about as likely as from anywhere, unless the
two look alike, and then rarely by more than hundreds."""

SLIPPING = 4
"""How many of the heaviest hypotheses may have slipped; a slip matters for the track alone."""

SLIP_PROBABILITY = 0.003
"""Of a slip of the odometry between two independent images, so about one in 3 km. A small share is enough: where the
odometry did slip, one image raises the weight of the wider copy by thousands."""

SLIP_SIGMA_M = 8.0
"""Size of a slip, standard deviation. A gated search reaches half a tile (tens of metres) beyond its gate, so it still
finds a vehicle that slipped this far."""

HEADING_OUTLIER = 0.02
"""Probability that a given heading is completely wrong. It limits what a disagreement costs a hypothesis."""

BROAD = 1e-3
"""A component is broad for a hypothesis whose variances are smaller by this factor: within two of its own standard
deviations it would move it by less than 0.07 of the hypothesis'."""

ASSUMED_HEADING_SIGMA_RAD = math.radians(12.0)
"""An image encoded under an assumed heading is evidence about poses that face within about this of it (one standard
deviation of a bell): D hardly suffers from 10°, and the search for a heading finds nothing at 30°."""

TINY = 1e-300
"""Keeps 0 / 0 away."""


@dataclass(frozen=True)
class SearchedPart:
    """The part of the region in which hypotheses would have been found: a circle in the map."""

    east_m: float
    north_m: float
    reach_m: float

    def holds(self, belief: Belief) -> Bool:
        """Which hypotheses lie in it: bool (N,)."""
        centre = np.array([self.east_m, self.north_m])
        return np.asarray(((belief.means[:, :2] - centre) ** 2).sum(1) <= self.reach_m**2)


def predict(belief: Belief, motion: Motion, noise: MotionNoise) -> Belief:
    """Move every hypothesis by its own yaw and scale (first order in their errors).

    The scale is a Gauss–Markov process along the way: its standard deviation stays noise.scale, its correlation falls
    to 1/e in noise.scale_persistence_m.
    """
    if len(belief) == 0:
        return belief
    yaw = belief.means[:, 2]
    by_motion = np.zeros((len(belief), 4, 3))
    by_motion[:, :2, :2] = rotation_matrix(yaw)
    by_motion[:, 2, 2] = 1.0
    by_state = by_states(belief.means, motion, noise)
    persistence = noise.scale_persistence(motion.distance_m)
    means = belief.means.copy()
    means[:, :2] += (1 + belief.means[:, 3, None]) * by_state[:, :2, 3]
    means[:, 2] = wrap_angle(yaw + motion.turn_rad)
    means[:, 3] *= persistence
    covariances = by_state @ belief.covariances @ by_state.transpose(0, 2, 1)
    covariances += by_motion @ motion.covariance @ by_motion.transpose(0, 2, 1)
    covariances[:, 3, 3] += (1 - persistence**2) * noise.scale**2
    # Clip the yaw variance at that of a uniform distribution, scaling its cross-covariances so that the matrix stays
    # positive semi-definite.
    shrink = np.sqrt(np.minimum(UNIFORM_YAW_VARIANCE / np.maximum(covariances[:, 2, 2], TINY), 1.0))
    covariances[:, 2] *= shrink[:, None]
    covariances[:, :, 2] *= shrink[:, None]
    return replace(belief, means=means, covariances=covariances).without_degenerate()


def by_states(means: Float64, motion: Motion, noise: MotionNoise) -> Float64:
    """∂(state after a motion) / ∂(state before it), float64 (N, 4, 4), at N states (N, 4)."""
    by_scale = rotate(means[:, 2], motion.forward_m, motion.left_m)
    by_state = np.zeros((len(means), 4, 4))
    by_state[:, [0, 1, 2, 3], [0, 1, 2, 3]] = 1.0, 1.0, 1.0, noise.scale_persistence(motion.distance_m)
    by_state[:, :2, 2] = rotation_derivative((1 + means[:, 3, None]) * by_scale)
    by_state[:, :2, 3] = by_scale
    return by_state


def restart(belief: Belief, probability: float) -> Belief:
    """The vehicle may have been carried anywhere: that share of every hypothesis moves to the uniform component."""
    kept = 1 - probability
    return replace(belief, weights=kept * belief.weights, uniform_weight=kept * belief.uniform_weight + probability)


def slip(belief: Belief, probability: float, sigma_m: float) -> Belief:
    """The odometry may have slipped: the heaviest hypotheses each give that share to a wider copy of themselves."""
    chosen = np.argsort(-belief.weights, kind="stable")[:SLIPPING]
    weights = belief.weights.copy()
    copies = belief.select(chosen)
    weights[chosen] *= 1 - probability
    wider = copies.covariances + np.diag([sigma_m**2, sigma_m**2, 0.0, 0.0])
    copies = replace(copies, weights=probability * copies.weights, covariances=wider)
    return replace(belief, weights=weights).extended(copies)


def doubted(belief: Belief, doubt: float, restart_probability: float) -> Belief:
    """After a way on which the vehicle may have been carried elsewhere, or the odometry may have slipped.

    Args:
        belief: After the motion.
        doubt: Share of an independent image that the way is worth (`share_new`); 0: nothing changes.
        restart_probability: That the vehicle was carried, between two independent images.
    """
    if doubt <= 0:
        return belief
    belief = restart(belief, doubt * restart_probability)
    return slip(belief, doubt * SLIP_PROBABILITY, SLIP_SIGMA_M)


def observe_yaw(belief: Belief, yaw_rad: float, variance_rad2: float, outlier: float, exponent: float) -> Belief:
    """A heading that was given (IMU, odometry in the map frame), wrong altogether with probability `outlier`.

    Its error lasts from image to image (a compass's deviation, a gyro's bias), so it never makes a hypothesis more
    certain than it is itself: yaw variances stop at its own. Agreement does not raise the weight: the heading is
    equally likely at every position. Disagreement costs up to the factor `outlier`, raised to `exponent`, the share of
    it that is new.
    """
    if len(belief) == 0:
        return belief
    variance = belief.covariances[:, 2, 2]
    innovation = wrap_angle(yaw_rad - belief.means[:, 2])
    total = variance + variance_rad2
    agreement = (1 - outlier) * np.exp(-0.5 * innovation**2 / total)
    likelihood = agreement + outlier
    # The share of the Kalman filter's step that leaves the variance at max(its own, the heading's); none if it is less.
    target = np.minimum(variance, np.maximum(variance * variance_rad2 / total, variance_rad2))
    gain = belief.covariances[:, :, 2] / total[:, None]
    share = np.divide(variance - target, variance**2 / total, out=np.zeros_like(variance), where=variance > 0)
    share *= agreement / likelihood  # roughly the probability that this heading is no outlier
    means = belief.means + share[:, None] * gain * innovation[:, None]
    means[:, 2] = wrap_angle(means[:, 2])
    removed = (share * total)[:, None, None] * gain[:, :, None] * gain[:, None, :]
    covariances = symmetric(belief.covariances - removed)
    return replace(
        belief, weights=belief.weights * likelihood**exponent, means=means, covariances=covariances
    ).normalised()


def observe(
    belief: Belief,
    evidence: Evidence,
    *,
    area_m2: float,
    exponent: float,
    near: Bool,
    lever_m: tuple[float, float],
    scale_sigma: float,
    prune: float,
    limit: int,
) -> tuple[Belief, Float64]:
    """Bayes' rule with an image of which the share `exponent`, β, is new.

    With L(x) = b + A Σ_j weights[j] N(x; component j), b the open share, the whole of hypothesis i becomes

        weights[i] ← weights[i] · (∫ p_i(x) L(x) dx)^β,      ∫ p_i L = b + Σ_j l_ij,                                (B2)

    and so does `uniform_weight`, whose integral is 1: an image is as likely as any if the vehicle may be anywhere. A
    share b^β of the old weight stays as it is (the image is an outlier, or from outside the searched part); the rest
    is divided among the components in proportion to l_ij. Every component may also become a new hypothesis, taken out
    of `uniform_weight`. β = 1 is Bayes' rule itself. Where the heading was assumed, L is that times
    `Evidence.heading_fit` with the probability that the pose faces about there, else 1.

    Args:
        belief: N hypotheses.
        evidence: M components.
        area_m2: A, the region's area.
        exponent: β, 0 … 1.
        near: bool (N,), hypotheses inside the gate of the search.
        lever_m: camera in base_link, forward and left.
        scale_sigma: standard deviation of the error of scale of new hypotheses.
        prune: smallest weight of a hypothesis that remains.
        limit: largest number of hypotheses that remain.

    Returns:
        The posterior; and each prior hypothesis' likelihood ratio, float64 (N,): how much likelier the image is from
        there than from anywhere, without β.
    """
    innovations = _innovations(belief, evidence, lever_m)
    likelihoods = _likelihoods(belief, evidence, innovations, near, area_m2)
    if exponent <= 0:
        return belief, likelihoods.ratios
    split = _split_weights(belief, evidence, innovations, likelihoods, exponent)
    kept = _prune(split, prune, limit)
    posterior = replace(
        belief, weights=split.unchanged, uniform_weight=split.uniform_weight + kept.pruned_weight
    ).select(kept.unchanged)
    updated = _kalman_updates(belief, evidence, innovations, likelihoods, split, kept, exponent)
    new = _new_hypotheses(belief, evidence, innovations, split, kept.new, area_m2, lever_m, scale_sigma, exponent)
    return posterior.extended(updated, new).without_degenerate().normalised(), likelihoods.ratios


# -- the steps of `observe` -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Innovations:
    """Each component minus each hypothesis' prediction of it. D is 2 (the camera's position) or 3 (and the yaw)."""

    values: Float64
    """float64 (N, M, D)."""
    cross: Float64
    """P Hᵀ, float64 (N, 4, D), with H = ∂(prediction) / ∂(state)."""
    predicted: Float64
    """H P Hᵀ, float64 (N, D, D)."""
    measured: Float64
    """Covariances of the components, float64 (M, D, D)."""

    @property
    def covariances(self) -> Float64:
        """float64 (N, M, D, D)."""
        return self.predicted[:, None] + self.measured


@dataclass(frozen=True)
class _Likelihoods:
    """How much likelier the image is from each hypothesis than from anywhere, in parts."""

    pairs: Float64
    """l_ij, float64 (N, M)."""
    open: Float64
    """The part that no component contributes, float64 (N,)."""
    uniform_open: float
    """The same for a pose drawn from the uniform component."""
    uniform_components: float
    """What all components together contribute there."""

    @property
    def components(self) -> Float64:
        """Σ_j l_ij, float64 (N,)."""
        return np.asarray(self.pairs.sum(axis=1))

    @property
    def ratios(self) -> Float64:
        """float64 (N,)."""
        return self.open + self.components


@dataclass(frozen=True)
class _SplitWeights:
    """The weights after the image, not normalised."""

    unchanged: Float64
    """float64 (N,), of hypotheses that stay as they are."""
    pairs: Float64
    """float64 (N, M), of hypotheses updated by components."""
    new: Float64
    """float64 (M,), of new hypotheses made of components."""
    uniform_weight: float


@dataclass(frozen=True)
class _Kept:
    """Indices of what remains: unchanged hypotheses, pairs (hypothesis, component), components as new hypotheses."""

    unchanged: npt.NDArray[np.intp]
    hypothesis: npt.NDArray[np.intp]
    component: npt.NDArray[np.intp]
    new: npt.NDArray[np.intp]
    pruned_weight: float


def _innovations(belief: Belief, evidence: Evidence, lever_m: tuple[float, float]) -> _Innovations:
    lever = rotate(belief.means[:, 2], *lever_m)
    by_yaw = rotation_derivative(lever)
    cross = belief.covariances[:, :, :2] + belief.covariances[:, :, 2:3] * by_yaw[:, None, :]
    predicted = cross[:, :2] + by_yaw[:, :, None] * cross[:, 2:3]
    values = evidence.means_m - (belief.means[:, :2] + lever)[:, None]
    if not evidence.measures_yaw:
        return _Innovations(values, cross, predicted, evidence.covariances_m2)
    with_yaw = belief.covariances[:, :3, :3].copy()
    with_yaw[:, :2, :2] = predicted
    with_yaw[:, :2, 2] = with_yaw[:, 2, :2] = cross[:, 2]
    turn = wrap_angle(evidence.yaw_rad - belief.means[:, 2, None])
    measured = np.zeros((len(evidence), 3, 3))
    measured[:, :2, :2] = evidence.covariances_m2
    measured[:, 2, 2] = evidence.yaw_variance_rad2
    return _Innovations(
        np.concatenate([values, turn[..., None]], axis=-1),
        np.concatenate([cross, belief.covariances[:, :, 2:3]], axis=2),
        with_yaw,
        measured,
    )


def _density_scale(evidence: Evidence, area_m2: float) -> float:
    """A / (2π)^(D/2), with yaw 2π A / (2π)^(D/2): a Gaussian's peak over the uniform density times √determinant."""
    return area_m2 / math.sqrt(2 * math.pi) if evidence.measures_yaw else area_m2 / (2 * math.pi)


def _likelihoods(
    belief: Belief, evidence: Evidence, innovations: _Innovations, near: Bool, area_m2: float
) -> _Likelihoods:
    lengths2, determinant = mahalanobis2(innovations.values, innovations.covariances)
    pairs = evidence.weights * _density_scale(evidence, area_m2) / np.sqrt(determinant) * np.exp(-0.5 * lengths2)
    open_share = np.where(near, evidence.near_share, evidence.open_share)
    applies, applies_to_uniform = _heading_consistency(belief, evidence.assumed_yaw_rad)
    fit = evidence.heading_fit
    pairs *= fit * applies[:, None]
    return _Likelihoods(
        pairs,
        1 - applies * (1 - fit * open_share),
        1 - applies_to_uniform * (1 - fit * evidence.open_share),
        applies_to_uniform * fit * (1 - evidence.open_share),
    )


def _heading_consistency(belief: Belief, assumed_yaw_rad: float | None) -> tuple[Float64, float]:
    """P(the assumed heading applies | hypothesis), float64 (N,), and the same for the uniform component."""
    if assumed_yaw_rad is None:
        return np.ones(len(belief)), 1.0
    total = ASSUMED_HEADING_SIGMA_RAD**2 + belief.covariances[:, 2, 2]
    difference = wrap_angle(assumed_yaw_rad - belief.means[:, 2])
    applies = np.exp(-0.5 * difference**2 / total) * ASSUMED_HEADING_SIGMA_RAD / np.sqrt(total)
    return applies, ASSUMED_HEADING_SIGMA_RAD / math.sqrt(2 * math.pi)


def _split_weights(
    belief: Belief, evidence: Evidence, innovations: _Innovations, likelihoods: _Likelihoods, exponent: float
) -> _SplitWeights:
    """Equation B2, divided among the unchanged hypotheses, the pairs and the new hypotheses."""
    components = likelihoods.components
    unchanged = belief.weights * likelihoods.open**exponent
    gained = belief.weights * likelihoods.ratios**exponent - unchanged
    pairs = likelihoods.pairs * np.divide(gained, components, out=np.zeros_like(gained), where=components > 0)[:, None]
    # A component much wider than a hypothesis carries no information about its position: its share stays unchanged.
    extent = innovations.predicted[:, 0, 0] + innovations.predicted[:, 1, 1]
    broad = extent[:, None] < BROAD * (innovations.measured[:, 0, 0] + innovations.measured[:, 1, 1])
    unchanged += (pairs * broad).sum(axis=1)
    pairs[broad] = 0.0
    open_share = likelihoods.uniform_open**exponent
    all_share = (likelihoods.uniform_open + likelihoods.uniform_components) ** exponent
    new = belief.uniform_weight * (all_share - open_share)
    shares = evidence.weights / max(float(evidence.weights.sum()), TINY)
    return _SplitWeights(unchanged, pairs, new * shares, belief.uniform_weight * open_share)


def _prune(split: _SplitWeights, prune: float, limit: int) -> _Kept:
    """The parts of at least the share `prune` of the total, of these the `limit` heaviest."""
    n, m = split.pairs.shape
    weights = np.concatenate([split.unchanged, split.pairs.ravel(), split.new])
    enough = weights > prune * (float(weights.sum()) + split.uniform_weight)
    kept = np.flatnonzero(enough)
    if len(kept) > limit:
        kept = kept[np.argsort(-weights[kept], kind="stable")[:limit]]
        enough[:] = False
        enough[kept] = True
    is_pair, is_new = (kept >= n) & (kept < n + n * m), kept >= n + n * m
    hypothesis, component = np.divmod(kept[is_pair] - n, max(m, 1))
    return _Kept(kept[kept < n], hypothesis, component, kept[is_new] - n - n * m, float(weights[~enough].sum()))


def _kalman_updates(
    belief: Belief,
    evidence: Evidence,
    innovations: _Innovations,
    likelihoods: _Likelihoods,
    split: _SplitWeights,
    kept: _Kept,
    exponent: float,
) -> Belief:
    """The kept pairs: each hypothesis updated by the component."""
    i, j = kept.hypothesis, kept.component
    cross = innovations.cross[i]
    gain = cross @ np.linalg.inv(innovations.predicted[i] + innovations.measured[j])
    means = belief.means[i] + (gain @ innovations.values[i, j][:, :, None])[:, :, 0]
    means[:, 2] = wrap_angle(means[:, 2])
    return replace(
        belief,
        weights=split.pairs[i, j],
        means=means,
        covariances=symmetric(belief.covariances[i] - gain @ cross.transpose(0, 2, 1)),
        support=belief.support[i] + exponent * (likelihoods.open[i] + likelihoods.pairs[i, j] >= CONFIRMING),
        tile_ids=evidence.tile_ids[j],
    )


def _new_hypotheses(
    belief: Belief,
    evidence: Evidence,
    innovations: _Innovations,
    split: _SplitWeights,
    chosen: npt.NDArray[np.intp],
    area_m2: float,
    lever_m: tuple[float, float],
    scale_sigma: float,
    exponent: float,
) -> Belief:
    """Hypotheses made of components alone: the camera's position moved to base_link by the component's yaw."""
    yaw = evidence.yaw_rad[chosen]
    yaw_variance = np.minimum(evidence.yaw_variance_rad2[chosen], UNIFORM_YAW_VARIANCE)
    lever = rotate(yaw, *lever_m)
    poses = np.concatenate([evidence.means_m[chosen] - lever, yaw[:, None]], axis=1)
    by_yaw = np.concatenate([-rotation_derivative(lever), np.ones_like(yaw)[:, None]], axis=-1)  # ∂(base_link) / ∂yaw
    covariances = yaw_variance[:, None, None] * by_yaw[:, :, None] * by_yaw[:, None, :]
    covariances[:, :2, :2] += evidence.covariances_m2[chosen]
    means, covariances = with_scale(poses, covariances, scale_sigma)
    scale = _density_scale(evidence, area_m2)
    peaks = evidence.weights[chosen] * scale / np.sqrt(np.linalg.det(innovations.measured[chosen]))
    return replace(
        belief,
        weights=split.new[chosen],
        means=means,
        covariances=covariances,
        support=exponent * (peaks >= CONFIRMING),
        tile_ids=evidence.tile_ids[chosen],
    )
