"""The belief in a pose of base_link over the whole region, and the steps of its Bayes filter.

    p(x, y, yaw) = elsewhere · 1/(2πA)  +  Σ_i weights[i] · N(· ; means[i], covariances[i])              (2)

The Gaussians are the hypotheses; `elsewhere` is the belief that none of them holds, spread evenly over the region of
area A. Every step is a free function from belief to belief, and its cost does not depend on A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unifygeo_ros.geodesy import wrap_angle
from unifygeo_ros.tracking.evidence import Evidence
from unifygeo_ros.tracking.motion_model import UNIFORM_YAW_VARIANCE, Motion

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Belief:
    """Eq. 2. weights: float64 (N,); their sum + elsewhere = 1. means: float64 (N, 3): east (m), north (m), yaw (rad) of
    base_link in the map. covariances: float64 (N, 3, 3). support: float64 (N,), how many independent images each
    hypothesis has agreed with since it arose. tile_ids: int64 (N,), the tile of the last one, −1: none."""

    weights: Float64
    means: Float64
    covariances: Float64
    support: Float64
    tile_ids: npt.NDArray[np.int64]
    elsewhere: float

    def __len__(self) -> int:
        return len(self.weights)

    def select(self, chosen: npt.NDArray[np.generic]) -> Belief:
        """The chosen hypotheses (mask or indices); what the others weighed is lost until `normalised`."""
        return Belief(
            self.weights[chosen],
            self.means[chosen],
            self.covariances[chosen],
            self.support[chosen],
            self.tile_ids[chosen],
            self.elsewhere,
        )

    def normalised(self) -> Belief:
        total = float(self.weights.sum()) + self.elsewhere
        return replace(self, weights=self.weights / total, elsewhere=self.elsewhere / total)


def unknown() -> Belief:
    """Anywhere in the region."""
    return Belief(np.zeros(0), np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros(0), np.zeros(0, np.int64), 1.0)


def joined(*beliefs: Belief, elsewhere: float) -> Belief:
    """The hypotheses of several beliefs, their weights as they are."""
    return Belief(
        np.concatenate([b.weights for b in beliefs]),
        np.concatenate([b.means for b in beliefs]),
        np.concatenate([b.covariances for b in beliefs]),
        np.concatenate([b.support for b in beliefs]),
        np.concatenate([b.tile_ids for b in beliefs]),
        elsewhere,
    )


def predict(belief: Belief, motion: Motion) -> Belief:
    """Move every hypothesis by its own yaw (first order in the yaw's error)."""
    if len(belief) == 0:
        return belief
    yaw = belief.means[:, 2]
    cos, sin = np.cos(yaw), np.sin(yaw)
    east = cos * motion.forward_m - sin * motion.left_m
    north = sin * motion.forward_m + cos * motion.left_m
    means = belief.means + np.stack([east, north, np.full_like(yaw, motion.turn_rad)], axis=-1)
    means[:, 2] = wrap_angle(means[:, 2])
    by_pose = np.tile(np.eye(3), (len(belief), 1, 1))
    by_pose[:, 0, 2], by_pose[:, 1, 2] = -north, east
    by_motion = np.zeros((len(belief), 3, 3))
    by_motion[:, 0, 0], by_motion[:, 0, 1] = cos, -sin
    by_motion[:, 1, 0], by_motion[:, 1, 1] = sin, cos
    by_motion[:, 2, 2] = 1.0
    covariances = by_pose @ belief.covariances @ by_pose.transpose(0, 2, 1)
    covariances += by_motion @ motion.covariance @ by_motion.transpose(0, 2, 1)
    covariances[:, 2, 2] = np.minimum(covariances[:, 2, 2], UNIFORM_YAW_VARIANCE)
    return replace(belief, means=means, covariances=covariances)


def restart(belief: Belief, probability: float) -> Belief:
    """The vehicle may have been carried anywhere: that share of every hypothesis goes elsewhere."""
    kept = 1 - probability
    return replace(belief, weights=kept * belief.weights, elsewhere=kept * belief.elsewhere + probability)


def slip(belief: Belief, probability: float, sigma_m: float, heaviest: int = 4) -> Belief:
    """The odometry may have slipped: the heaviest hypotheses each leave that share to a wider copy of themselves."""
    chosen = np.argsort(-belief.weights, kind="stable")[:heaviest]
    weights = belief.weights.copy()
    copies = belief.select(chosen)
    weights[chosen] *= 1 - probability
    wider = copies.covariances + np.diag([sigma_m**2, sigma_m**2, 0.0])
    copies = replace(copies, weights=probability * copies.weights, covariances=wider)
    return joined(replace(belief, weights=weights), copies, elsewhere=belief.elsewhere)


def observe_yaw(belief: Belief, yaw_rad: float, variance_rad2: float, outlier: float, exponent: float) -> Belief:
    """A heading that was given (IMU, odometry in the map frame), wrong altogether with probability `outlier`.

    Its error lasts from image to image (a compass's deviation, a gyro's bias), so it never makes a hypothesis more
    certain than it is itself: yaw variances stop at its own. Agreeing with it is no merit, since wherever the vehicle
    is its heading is as well known; disagreeing costs up to the factor `outlier`, raised to `exponent`, the share of
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
    covariances = _symmetric(belief.covariances - removed)
    return replace(
        belief, weights=belief.weights * likelihood**exponent, means=means, covariances=covariances
    ).normalised()


@dataclass(frozen=True)
class TemperedEvidence:
    """(A · p(x | image))^β as floor + Σ_j heights[j] · exp(−½ d_j²), with d_j² = (x − z_j)ᵀ spreads[j]⁻¹ (x − z_j).

    near_floor: the floor inside the search's gate. positions: float64 (M, D), D = 2: east, north of the camera, or 3:
    with yaw. spreads: float64 (M, D, D).
    """

    floor: float
    near_floor: float
    heights: Float64
    positions: Float64
    spreads: Float64


def temper(evidence: Evidence, area_m2: float, exponent: float) -> TemperedEvidence:
    """Raise the evidence to a power 0 … 1: consecutive images err alike, so each counts only as much as it is new.

    With b the floor (of the gate, where the components are) and g the whole density at a component's peak, relative to
    uniform, the tempered peak is h = (b + g)^β − b^β above the tempered floor, exactly; the component's share of it is
    its share of g; and the width is the one that keeps the tempered peak's volume. With q = ½ d² in D dimensions

        spread = R · w,   w^(D/2) = 1 / (h Γ(D/2)) · ∫ q^(D/2 − 1) [(b + g e^(−q))^β − b^β] dq.                      (3)

    β = 1 gives the evidence back (w = 1), β → 0 says nothing (h → 0).
    """
    beta, floor = exponent, evidence.near_share
    positions, spreads = evidence.means_m, evidence.covariances_m2
    unit = area_m2 / (2 * np.pi)
    if evidence.measures_yaw:
        positions = np.concatenate([positions, evidence.yaw_rad[:, None]], axis=1)
        spreads = np.zeros((len(evidence), 3, 3))
        spreads[:, :2, :2] = evidence.covariances_m2
        spreads[:, 2, 2] = evidence.yaw_variance_rad2
        unit = area_m2 / math.sqrt(2 * np.pi)  # A · 2π / (2π)^(3/2)
    peaks = evidence.weights * unit / np.sqrt(np.linalg.det(spreads))
    apart = positions - positions[:, None]  # (of l, at j)
    if evidence.measures_yaw:
        apart[..., 2] = wrap_angle(apart[..., 2])
    whole = peaks @ np.exp(-0.5 * _mahalanobis2(apart, _inverse(spreads)))
    rise = (floor + whole) ** beta - floor**beta
    heights = rise * np.divide(peaks, whole, out=np.zeros_like(peaks), where=whole > 0)
    widen = _widening(whole, rise, floor, beta, positions.shape[1])
    return TemperedEvidence(evidence.open_share**beta, floor**beta, heights, positions, spreads * widen[:, None, None])


def _widening(peak: Float64, rise: Float64, floor: float, exponent: float, dimensions: int) -> Float64:
    """w of Eq. 3 for each peak, by Gauss-Legendre quadrature over q up to where the peak is e⁻⁸ of the floor."""
    end = np.log1p(peak / floor) + 8.0
    root = end[:, None] ** 0.5 * _NODES  # over √q, which takes the singularity of D = 1, 3 away
    excess = (floor + peak[:, None] * np.exp(-(root**2))) ** exponent - floor**exponent
    volume = 2 * end**0.5 * ((root ** (dimensions - 1) * excess) @ _WEIGHTS) / math.gamma(dimensions / 2)
    share: Float64 = np.divide(volume, rise, out=np.ones_like(rise), where=rise > 0)
    return share ** (2 / dimensions)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1), 0.5 * _WEIGHTS  # on 0 … 1


def observe(
    belief: Belief,
    evidence: Evidence,
    *,
    area_m2: float,
    exponent: float,
    near: npt.NDArray[np.bool_],
    lever_m: tuple[float, float],
    prune: float,
    limit: int,
) -> tuple[Belief, float]:
    """Bayes' rule with an image, tempered by `exponent`; at most `limit` hypotheses of at least `prune` remain. Also
    returns the norm: the tempered likelihood of the image under the whole belief, relative to uniform evidence.

    near: bool (N,), hypotheses inside the search's gate. lever_m: camera in base_link, forward and left.

    Each hypothesis goes on as it was (the image was an outlier, or from somewhere not looked at) and once with each
    component of the evidence that is near; every component may also be a new hypothesis, out of `elsewhere`.
    """
    if exponent <= 0 or len(evidence) == 0:
        return belief, 1.0
    z = temper(evidence, area_m2, exponent)
    dimensions = z.positions.shape[1]
    # ∫ height · exp(−½ d²) over the region, relative to uniform
    volumes = z.heights * (2 * np.pi) ** (dimensions / 2) * np.sqrt(np.linalg.det(z.spreads))
    newborn = belief.elsewhere * volumes / (area_m2 * (2 * np.pi if evidence.measures_yaw else 1.0))
    went_on = np.where(near, z.near_floor, z.floor) * belief.weights

    # Pairs that are not hopelessly apart: d² ≥ |Δ|² / trace(S).
    yaw = belief.means[:, 2]
    cos, sin = np.cos(yaw), np.sin(yaw)
    forward, left = lever_m
    east, north = cos * forward - sin * left, sin * forward + cos * left
    predicted = belief.means[:, :2] + np.stack([east, north], axis=-1)
    jacobian = np.zeros((len(belief), dimensions, 3))
    jacobian[:, 0, 0] = jacobian[:, 1, 1] = 1.0
    jacobian[:, 0, 2], jacobian[:, 1, 2] = -north, east
    if evidence.measures_yaw:
        predicted = np.concatenate([predicted, yaw[:, None]], axis=1)
        jacobian[:, 2, 2] = 1.0
    images = jacobian @ belief.covariances @ jacobian.transpose(0, 2, 1)  # H P Hᵀ
    gap = z.positions[None, :, :2] - predicted[:, None, :2]
    reach = np.trace(images[:, :2, :2], axis1=1, axis2=2)[:, None] + np.trace(z.spreads[:, :2, :2], axis1=1, axis2=2)
    hypothesis, component = np.nonzero((gap**2).sum(-1) < 50.0 * reach)
    innovation = z.positions[component] - predicted[hypothesis]
    if evidence.measures_yaw:
        innovation[:, 2] = wrap_angle(innovation[:, 2])
    total = images[hypothesis] + z.spreads[component]
    inverse = _inverse(total)
    distance2 = _mahalanobis2(innovation[:, None], inverse)[:, 0]
    # weight · height · ∫ exp(−½ d_j²) N(x; hypothesis) dx = weight · height · √(|spread| / |S|) · exp(−½ d²)
    shrink = np.sqrt(np.linalg.det(z.spreads)[component] / np.linalg.det(total))
    agreed = belief.weights[hypothesis] * z.heights[component] * shrink * np.exp(-0.5 * distance2)

    elsewhere = z.floor * belief.elsewhere
    weights = np.concatenate([went_on, agreed, newborn])
    norm = float(weights.sum()) + elsewhere
    keep = np.flatnonzero(weights > prune * norm)
    if len(keep) > limit:
        keep = keep[np.argsort(-weights[keep], kind="stable")[:limit]]
    n, p = len(went_on), len(agreed)
    old, pair, new = keep[keep < n], keep[(keep >= n) & (keep < n + p)] - n, keep[keep >= n + p] - n - p

    of = hypothesis[pair]
    cross = belief.covariances[of] @ jacobian[of].transpose(0, 2, 1)
    gain = cross @ inverse[pair]
    means = belief.means[of] + (gain @ innovation[pair][:, :, None])[:, :, 0]
    means[:, 2] = wrap_angle(means[:, 2])
    covariances = _symmetric(belief.covariances[of] - gain @ cross.transpose(0, 2, 1))
    tiles = evidence.tile_ids[component[pair]]
    agreeing = Belief(agreed[pair], means, covariances, belief.support[of] + exponent, tiles, 0.0)
    posterior = joined(
        replace(belief, weights=went_on).select(old),
        agreeing,
        _born(z, evidence, new, newborn[new], lever_m, exponent),
        elsewhere=elsewhere,
    )
    return posterior.normalised(), norm


def _born(
    z: TemperedEvidence,
    evidence: Evidence,
    chosen: npt.NDArray[np.intp],
    weights: Float64,
    lever_m: tuple[float, float],
    support: float,
) -> Belief:
    """Hypotheses made of evidence alone: the camera's position moved to base_link by the component's yaw."""
    yaw, yaw_variance = evidence.yaw_rad[chosen], evidence.yaw_variance_rad2[chosen]
    if z.spreads.shape[1] == 3:
        yaw_variance = z.spreads[chosen, 2, 2]
    yaw_variance = np.minimum(yaw_variance, UNIFORM_YAW_VARIANCE)
    forward, left = lever_m
    east = np.cos(yaw) * forward - np.sin(yaw) * left
    north = np.sin(yaw) * forward + np.cos(yaw) * left
    means = np.stack([z.positions[chosen, 0] - east, z.positions[chosen, 1] - north, yaw], axis=-1)
    covariances = np.zeros((len(chosen), 3, 3))
    covariances[:, :2, :2] = z.spreads[chosen, :2, :2]
    lever = np.stack([north, -east, np.ones_like(yaw)], axis=-1)  # ∂(base_link) / ∂yaw
    covariances += yaw_variance[:, None, None] * lever[:, :, None] * lever[:, None, :]
    return Belief(weights, means, covariances, np.full(len(chosen), support), evidence.tile_ids[chosen], 0.0)


def reduce(belief: Belief, *, merge_distance2: float, limit: int) -> Belief:
    """Merge hypotheses that say the same, keeping weight, mean and covariance; then keep the heaviest.

    Two say the same when each mean is within √merge_distance2 standard deviations of the other's and the volumes of
    their ellipsoids differ by less than e: a wide hypothesis around a narrow one is another statement.
    """
    if len(belief) == 0:
        return belief
    order = np.argsort(-belief.weights, kind="stable")[: 2 * limit]
    belief = belief.select(order)
    apart = belief.means - belief.means[:, None]
    apart[..., 2] = wrap_angle(apart[..., 2])
    distance2 = _mahalanobis2(apart, _inverse(belief.covariances))
    volume = 0.5 * np.log(np.linalg.det(belief.covariances))
    alike = np.maximum(distance2, distance2.T) < merge_distance2
    alike &= np.abs(volume[:, None] - volume[None]) < 1.0
    group = np.full(len(belief), -1)
    groups = 0
    for seed in range(len(belief)):
        if group[seed] < 0:
            group[alike[seed] & (group < 0)] = groups
            group[seed] = groups
            groups += 1
    if groups == len(belief):
        return belief.select(np.arange(min(limit, groups))).normalised()
    heads = np.searchsorted(np.maximum.accumulate(group), np.arange(groups))  # the heaviest of each group
    member = np.zeros((groups, len(belief)))
    member[group, np.arange(len(belief))] = belief.weights
    weights = member.sum(1)
    share = member / weights[:, None]
    # Moments about the heaviest member, so that yaw does not wrap.
    offset = belief.means - belief.means[heads][group]
    offset[:, 2] = wrap_angle(offset[:, 2])
    shift = share @ offset
    second = belief.covariances + offset[:, :, None] * offset[:, None, :]
    covariances = (share @ second.reshape(len(belief), 9)).reshape(groups, 3, 3)
    covariances -= shift[:, :, None] * shift[:, None, :]
    means = belief.means[heads] + shift
    means[:, 2] = wrap_angle(means[:, 2])
    tiles = belief.tile_ids[heads]
    merged = Belief(weights, means, _symmetric(covariances), share @ belief.support, tiles, belief.elsewhere)
    return merged.select(np.argsort(-weights, kind="stable")[:limit]).normalised()


def _mahalanobis2(apart: Float64, inverses: Float64) -> Float64:
    """apart: (N, M, D), M differences for each of N inverse covariances (N, D, D). Returns (N, M)."""
    squared: Float64 = ((apart @ inverses) * apart).sum(-1)
    return squared


def _inverse(matrices: Float64) -> Float64:
    return np.asarray(np.linalg.inv(matrices), np.float64)


def _symmetric(matrices: Float64) -> Float64:
    symmetric: Float64 = 0.5 * (matrices + matrices.transpose(0, 2, 1))
    return symmetric
