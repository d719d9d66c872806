"""The belief in a pose of base_link over the whole region, and the steps of its Bayes filter.

    p(x, y, yaw, scale) = elsewhere · p(scale)/(2πA)  +  Σ_i weights[i] · N(· ; means[i], covariances[i])         (2)

The Gaussians are the hypotheses; `elsewhere` is the belief that none of them holds, spread evenly over the region of
area A. The fourth coordinate is the odometry's error of scale: base_link moves 1 + scale times as far as the odometry
says. It stays the same for a long way (a wheel's radius, a camera's height), so that a filter that took it for noise
would be too sure of itself on the drives where it is large and too careful on the others. Every step is a free function
from belief to belief, and its cost does not depend on A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.motion.increments import UNIFORM_YAW_VARIANCE, Motion, MotionNoise
from unifygeo_ros.tracking.evidence import Evidence

Float64 = npt.NDArray[np.float64]

SUPPORT, CONFIRMING = 10.0, 100.0
"""An image supports a place if it is this many times likelier from there than from anywhere, and confirms it if it is
that many times. From the right place it is by thousands, from a wrong one about as likely as from anywhere, unless the
two look alike, and then rarely by more than hundreds."""

TINY = 1e-300
"""Keeps 0 / 0 away."""


@dataclass(frozen=True)
class Belief:
    """Eq. 2. weights: float64 (N,); their sum + elsewhere = 1. means: float64 (N, 4): east (m), north (m), yaw (rad) of
    base_link in the map, the odometry's error of scale (metres per metre). covariances: float64 (N, 4, 4). support:
    float64 (N,), how many independent images have confirmed each hypothesis since it arose. tile_ids: int64 (N,), the
    tile of the last one, −1: none."""

    weights: Float64
    means: Float64
    covariances: Float64
    support: Float64
    tile_ids: npt.NDArray[np.int64]
    elsewhere: float

    def __len__(self) -> int:
        return len(self.weights)

    def select(self, chosen: npt.NDArray[np.generic]) -> Belief:
        """The chosen hypotheses (mask or indices). What the others weighed is lost: see `keep`."""
        return Belief(
            self.weights[chosen],
            self.means[chosen],
            self.covariances[chosen],
            self.support[chosen],
            self.tile_ids[chosen],
            self.elsewhere,
        )

    def keep(self, chosen: npt.NDArray[np.generic]) -> Belief:
        """The chosen hypotheses; the belief in the others goes elsewhere: what is forgotten is not refuted."""
        forgotten = np.ones(len(self), bool)
        forgotten[chosen] = False
        return replace(self.select(chosen), elsewhere=self.elsewhere + float(self.weights[forgotten].sum()))

    def normalised(self) -> Belief:
        total = float(self.weights.sum()) + self.elsewhere
        return replace(self, weights=self.weights / total, elsewhere=self.elsewhere / total)


def unknown() -> Belief:
    """Anywhere in the region."""
    return Belief(np.zeros(0), np.zeros((0, 4)), np.zeros((0, 4, 4)), np.zeros(0), np.zeros(0, np.int64), 1.0)


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


def with_scale(poses: Float64, covariances: Float64, scale_sigma: float) -> tuple[Float64, Float64]:
    """Means (N, 4) and covariances (N, 4, 4) for those of poses, (N, 3) and (N, 3, 3), while the scale is not known."""
    means, whole = np.zeros((len(poses), 4)), np.zeros((len(poses), 4, 4))
    means[:, :3], whole[:, :3, :3], whole[:, 3, 3] = poses, covariances, scale_sigma**2
    return means, whole


def predict(belief: Belief, motion: Motion, noise: MotionNoise) -> Belief:
    """Move every hypothesis by its own yaw and scale (first order in their errors). The scale is a Gauss–Markov process
    along the way: its standard deviation stays noise.scale, its correlation falls to 1/e in noise.scale_persistence_m.
    """
    if len(belief) == 0:
        return belief
    yaw = belief.means[:, 2]
    by_motion = np.zeros((len(belief), 4, 3))
    by_motion[:, 0, 0] = by_motion[:, 1, 1] = np.cos(yaw)
    by_motion[:, 1, 0] = np.sin(yaw)
    by_motion[:, 0, 1] = -by_motion[:, 1, 0]
    by_motion[:, 2, 2] = 1.0
    by_scale = by_motion[:, :2] @ np.array([motion.forward_m, motion.left_m, 0.0])
    step = (1 + belief.means[:, 3, None]) * by_scale
    lasting = math.exp(-motion.distance_m / noise.scale_persistence_m)
    means = belief.means.copy()
    means[:, :2] += step
    means[:, 2] = wrap_angle(yaw + motion.turn_rad)
    means[:, 3] *= lasting
    by_state = np.zeros_like(belief.covariances)
    by_state[:, [0, 1, 2, 3], [0, 1, 2, 3]] = 1.0, 1.0, 1.0, lasting
    by_state[:, 0, 2], by_state[:, 1, 2] = -step[:, 1], step[:, 0]
    by_state[:, :2, 3] = by_scale
    covariances = by_state @ belief.covariances @ by_state.transpose(0, 2, 1)
    covariances += by_motion @ motion.covariance @ by_motion.transpose(0, 2, 1)
    covariances[:, 3, 3] += (1 - lasting**2) * noise.scale**2
    # No yaw is less certain than not at all. Its covariances shrink with it, else the matrix would be none any more.
    shrink = np.sqrt(np.minimum(UNIFORM_YAW_VARIANCE / np.maximum(covariances[:, 2, 2], TINY), 1.0))
    covariances[:, 2] *= shrink[:, None]
    covariances[:, :, 2] *= shrink[:, None]
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
    wider = copies.covariances + np.diag([sigma_m**2, sigma_m**2, 0.0, 0.0])
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


def observe(
    belief: Belief,
    evidence: Evidence,
    *,
    area_m2: float,
    exponent: float,
    near: npt.NDArray[np.bool_],
    lever_m: tuple[float, float],
    scale_sigma: float,
    prune: float,
    limit: int,
) -> tuple[Belief, Float64]:
    """Bayes' rule with an image of which the share `exponent`, β, is new.

    near: bool (N,), hypotheses inside the search's gate. lever_m: camera in base_link, forward and left. scale_sigma:
    standard deviation of new hypotheses' scale. At most `limit` hypotheses of at least `prune` remain. Also returns
    each hypothesis' likelihood, float64 (N,): how much likelier the image is from there than from anywhere, nothing
    tempered.

    With L(x) = b + A Σ_j weights[j] N(x; component j), b the open share, hypothesis i as a whole is worth

        weights[i] ← weights[i] · (∫ p_i(x) L(x) dx)^β,      ∫ p_i L = b + Σ_j l_ij,                                 (3)

    and so is `elsewhere`, whose ∫ is 1: an image is as likely as any if the vehicle may be anywhere. Of the new weight
    b^β goes on as it was (the image was an outlier, or from somewhere not looked at), the rest agrees with the
    components in proportion to l_ij; every component may also be a new hypothesis, out of `elsewhere`. β = 1 is Bayes'
    rule itself. Where the heading was assumed, L is that with the probability that the pose faces about there, else 1.
    """
    lever = _turned(belief.means[:, 2], *lever_m)
    sideways = np.stack([-lever[:, 1], lever[:, 0]], axis=-1)
    # P Hᵀ and H P Hᵀ for H = ∂(camera's place, and yaw where it was measured) / ∂(state)
    cross = belief.covariances[:, :, :2] + belief.covariances[:, :, 2:3] * sideways[:, None, :]
    images = cross[:, :2] + sideways[:, :, None] * cross[:, 2:3]
    places, spreads = evidence.means_m, evidence.covariances_m2
    innovation = places - (belief.means[:, :2] + lever)[:, None]
    uniform = area_m2 / (2 * math.pi)  # A / (2π)^(D/2); with yaw 2π A / (2π)^(D/2)
    if evidence.measures_yaw:
        with_yaw = belief.covariances[:, :3, :3].copy()
        with_yaw[:, :2, :2] = images
        with_yaw[:, :2, 2] = with_yaw[:, 2, :2] = cross[:, 2]
        images = with_yaw
        cross = np.concatenate([cross, belief.covariances[:, :, 2:3]], axis=2)
        turn = wrap_angle(evidence.yaw_rad - belief.means[:, 2, None])
        innovation = np.concatenate([innovation, turn[..., None]], axis=-1)
        spreads = _with_yaw(evidence)
        uniform = area_m2 / math.sqrt(2 * math.pi)
    total = images[:, None] + spreads
    distance2, determinant = mahalanobis2(innovation, total)
    agreement = evidence.weights * uniform / np.sqrt(determinant) * np.exp(-0.5 * distance2)  # l_ij, (N, M)
    floor = np.where(near, evidence.near_share, evidence.open_share)
    told, told_elsewhere = _told(belief, evidence.assumed_yaw_rad)
    agreement *= told[:, None]
    floor = 1 - told * (1 - floor)
    agreements = agreement.sum(axis=1)
    likelihoods = floor + agreements
    if exponent <= 0:
        return belief, likelihoods

    went_on = belief.weights * floor**exponent
    rise = belief.weights * likelihoods**exponent - went_on
    agreed = agreement * np.divide(rise, agreements, out=np.zeros_like(rise), where=agreements > 0)[:, None]
    # What is as good as even over a hypothesis (a whole tile over a narrow one) leaves it as it was.
    extent = images[:, 0, 0] + images[:, 1, 1]
    even = extent[:, None] < EVEN * (spreads[:, 0, 0] + spreads[:, 1, 1])
    went_on += (agreed * even).sum(axis=1)
    agreed[even] = 0.0
    open_share = (1 - told_elsewhere * (1 - evidence.open_share)) ** exponent
    newborn = belief.elsewhere * (1 - open_share) * evidence.weights / max(float(evidence.weights.sum()), TINY)
    elsewhere = belief.elsewhere * open_share

    weights = np.concatenate([went_on, agreed.ravel(), newborn])
    enough = weights > prune * (float(weights.sum()) + elsewhere)
    kept = np.flatnonzero(enough)
    if len(kept) > limit:
        kept = kept[np.argsort(-weights[kept], kind="stable")[:limit]]
        enough[:] = False
        enough[kept] = True
    forgotten = float(weights[~enough].sum())
    n, m = agreement.shape
    old, new = kept[kept < n], kept[kept >= n + n * m] - n - n * m
    of, component = np.divmod(kept[(kept >= n) & (kept < n + n * m)] - n, max(m, 1))

    gain = cross[of] @ np.linalg.inv(total[of, component])
    means = belief.means[of] + (gain @ innovation[of, component][:, :, None])[:, :, 0]
    means[:, 2] = wrap_angle(means[:, 2])
    covariances = _symmetric(belief.covariances[of] - gain @ cross[of].transpose(0, 2, 1))
    supported = belief.support[of] + exponent * (floor[of] + agreement[of, component] >= CONFIRMING)
    agreeing = Belief(agreed[of, component], means, covariances, supported, evidence.tile_ids[component], 0.0)
    posterior = joined(
        replace(belief, weights=went_on).select(old),
        agreeing,
        _born(evidence, new, newborn[new], spreads, uniform, lever_m, scale_sigma, exponent),
        elsewhere=elsewhere + forgotten,
    )
    return posterior.normalised(), likelihoods


EVEN = 1e-3
"""A component is even over a hypothesis whose variances are smaller by this factor: within two of its own standard
deviations it would move it by less than 0.07 of the hypothesis'."""

ASSUMED_REACH_RAD = math.radians(12.0)
"""An image encoded under an assumed heading tells of poses that face within about this of it (one standard deviation of
a bell): D hardly suffers from 10°, and the search for a heading finds nothing at 30°."""


def _told(belief: Belief, assumed_yaw_rad: float | None) -> tuple[Float64, float]:
    """The probability that an image tells of each hypothesis, (N,), and of elsewhere."""
    if assumed_yaw_rad is None:
        return np.ones(len(belief)), 1.0
    total = ASSUMED_REACH_RAD**2 + belief.covariances[:, 2, 2]
    apart = wrap_angle(assumed_yaw_rad - belief.means[:, 2])
    faces = np.exp(-0.5 * apart**2 / total) * ASSUMED_REACH_RAD / np.sqrt(total)
    return faces, ASSUMED_REACH_RAD / math.sqrt(2 * math.pi)


def _born(
    evidence: Evidence,
    chosen: npt.NDArray[np.intp],
    weights: Float64,
    spreads: Float64,
    uniform: float,
    lever_m: tuple[float, float],
    scale_sigma: float,
    exponent: float,
) -> Belief:
    """Hypotheses made of evidence alone: the camera's position moved to base_link by the component's yaw."""
    yaw = evidence.yaw_rad[chosen]
    yaw_variance = np.minimum(evidence.yaw_variance_rad2[chosen], UNIFORM_YAW_VARIANCE)
    lever = _turned(yaw, *lever_m)
    poses = np.concatenate([evidence.means_m[chosen] - lever, yaw[:, None]], axis=1)
    by_yaw = np.stack([lever[:, 1], -lever[:, 0], np.ones_like(yaw)], axis=-1)  # ∂(base_link) / ∂yaw
    covariances = yaw_variance[:, None, None] * by_yaw[:, :, None] * by_yaw[:, None, :]
    covariances[:, :2, :2] += evidence.covariances_m2[chosen]
    means, covariances = with_scale(poses, covariances, scale_sigma)
    peaks = evidence.weights[chosen] * uniform / np.sqrt(np.linalg.det(spreads[chosen]))
    return Belief(weights, means, covariances, exponent * (peaks >= CONFIRMING), evidence.tile_ids[chosen], 0.0)


def _with_yaw(evidence: Evidence) -> Float64:
    """Covariances of the components with their yaw, float64 (M, 3, 3)."""
    spreads = np.zeros((len(evidence), 3, 3))
    spreads[:, :2, :2] = evidence.covariances_m2
    spreads[:, 2, 2] = evidence.yaw_variance_rad2
    return spreads


def _turned(yaw_rad: Float64, forward_m: float, left_m: float) -> Float64:
    """A vector of base_link in the map for each yaw (N,): float64 (N, 2), east and north."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.stack([cos * forward_m - sin * left_m, sin * forward_m + cos * left_m], axis=-1)


def reduce(belief: Belief, *, merge_distance2: float, limit: int) -> Belief:
    """Merge hypotheses that say the same, keeping weight, mean and covariance; at most `limit` remain.

    Two say the same when each pose is within √merge_distance2 standard deviations of the other's and the volumes of
    their ellipsoids differ by less than e: a wide hypothesis around a narrow one is another statement. Where that
    leaves too many, the lighter ones are merged more and more coarsely: a search in a town makes dozens of hypotheses
    an image, the right one may be among the lightest at first, and variants of the heaviest must not crowd it out.
    """
    if len(belief) == 0:
        return belief
    belief = _merged(belief, merge_distance2, log_volume=1.0)
    heavy = limit // 2
    for coarser in COARSER:
        if len(belief) <= limit:
            break
        places = np.arange(len(belief))
        light = _merged(belief.select(places[heavy:]), merge_distance2 * coarser, log_volume=math.sqrt(coarser))
        belief = joined(belief.select(places[:heavy]), light, elsewhere=belief.elsewhere)
    return belief.keep(np.argsort(-belief.weights, kind="stable")[:limit]).normalised()


COARSER = (4.0, 16.0, 64.0, 256.0)
"""Factors on the squared distance at which light hypotheses are merged where there are too many."""


def _merged(belief: Belief, distance2: float, log_volume: float) -> Belief:
    """The hypotheses that say the same made one, heaviest first; weights are not normalised."""
    belief = belief.select(np.argsort(-belief.weights, kind="stable"))
    poses, spreads = belief.means[:, :3].T, belief.covariances[:, :3, :3]
    apart = poses[:, None, :] - poses[:, :, None]  # (3, N, N): each coordinate lies together
    apart[2] -= 2 * np.pi * np.rint(apart[2] / (2 * np.pi))
    away2, determinant = mahalanobis2(np.moveaxis(apart, 0, -1), spreads[:, None])
    volume = 0.5 * np.log(determinant)
    alike = np.maximum(away2, away2.T) < distance2
    alike &= np.abs(volume - volume.T) < log_volume
    # Each joins the heaviest that is alike and has not itself joined another.
    head = list(range(len(belief)))
    for one, other in np.argwhere(np.triu(alike, 1)).tolist():
        if head[one] == one and head[other] == other:
            head[other] = one
    heads, group = np.unique(head, return_inverse=True)
    groups = len(heads)
    if groups == len(belief):
        return belief
    member = np.zeros((groups, len(belief)))
    member[group, np.arange(len(belief))] = belief.weights
    weights = member.sum(1)
    share = member / weights[:, None]
    # Moments about the heaviest member, so that yaw does not wrap.
    offset = belief.means - belief.means[heads][group]
    offset[:, 2] = wrap_angle(offset[:, 2])
    shift = share @ offset
    second = belief.covariances + offset[:, :, None] * offset[:, None, :]
    covariances = (share @ second.reshape(len(belief), 16)).reshape(groups, 4, 4)
    covariances -= shift[:, :, None] * shift[:, None, :]
    means = belief.means[heads] + shift
    means[:, 2] = wrap_angle(means[:, 2])
    tiles = belief.tile_ids[heads]
    merged = Belief(weights, means, _symmetric(covariances), share @ belief.support, tiles, belief.elsewhere)
    return merged.select(np.argsort(-weights, kind="stable"))


def mahalanobis2(difference: Float64, covariance: Float64) -> tuple[Float64, Float64]:
    """Squared Mahalanobis lengths and determinants, float64 (...), written out for D = 2 and 3.

    difference: float64 (..., D). covariance: float64 (..., D, D), symmetric; the leading axes broadcast. For D = 3 the
    last coordinate is eliminated first (a step of Cholesky's factorisation), which is as stable as the inverse and
    costs no call for each matrix.
    """
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    x, y = difference[..., 0], difference[..., 1]
    if covariance.shape[-1] == 2:
        determinant = a * c - b * b
        return (c * x * x - 2 * b * x * y + a * y * y) / determinant, determinant
    d, e, f = covariance[..., 0, 2], covariance[..., 1, 2], covariance[..., 2, 2]
    p, q, z = d / f, e / f, difference[..., 2]
    a, b, c = a - p * d, b - p * e, c - q * e
    x, y = x - p * z, y - q * z
    determinant = a * c - b * b
    return (c * x * x - 2 * b * x * y + a * y * y) / determinant + z * z / f, determinant * f


def _symmetric(matrices: Float64) -> Float64:
    symmetric: Float64 = 0.5 * (matrices + matrices.transpose(0, 2, 1))
    return symmetric
