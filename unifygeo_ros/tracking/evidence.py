"""What one image says about where the camera is, as a mixture of Gaussians over the whole region.

The network gives D_t(x), a distribution of the camera inside tile t, for a few tiles, and a re-ranking score s_t for
the candidates. With w_t = softmax(s_t / tile temperature) over the candidates and the *open share* b (below),

    p(x | image) = b / A + (1 − b) · Σ_t w_t D_t(x),        A: area of the index.                                  (E1)

**Overlapping tiles** do not count twice. "The tile the image belongs to" is a latent variable, uniform among the tiles
that cover the camera, of which there are equally many everywhere inside the region (four at half overlap). Then (E1) is
the law of total probability: two tiles that see the same place with half the belief each add up to one place with all
of it. Adding is right; multiplying would count the same evidence twice.

**The open share** b is the probability that no candidate is the right tile: the outlier share everywhere and, when the
search was limited to a gate, outside the gate also the share of the tiles there. Their scores are not known. What is
known is how much Σ exp(s/T) all wrong tiles together usually reach, from the searches of the whole region made along
the way: the *rival evidence* R, which takes its place in the softmax's denominator. So when a vehicle is carried away
while it searches only its gate, the gated tiles become insignificant relative to R, and the belief leaves the gate.

**D becomes Gaussians** by taking out its modes one after another, with the moments of each neighbourhood; what is left
becomes one broad component. The mixture keeps D's mass, mean and covariance exactly. The covariances are then
calibrated as those of single fixes are, and divided by the share of D's error that is new: an error that lasts from
image to image must not be averaged away.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64, Int64
from unifygeo_ros.core.records import HeadingSource, Observation, TileDistribution
from unifygeo_ros.inference.bundle import Calibration
from unifygeo_ros.localization.decision import position_covariance_m2
from unifygeo_ros.localization.fixes import with_stamp_error
from unifygeo_ros.motion.increments import UNIFORM_YAW_VARIANCE
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.on_map import RATIO_LIMIT
from unifygeo_ros.tracking.region import Region

MIN_YAW_VARIANCE = 1e-6
"""0.06°: no heading is better than that."""

SEARCHED_YAW_VARIANCE = math.radians(8.0) ** 2
"""Of a searched heading about its own peak: the search's rolls are 15° to 36° apart and refined between them. What its
variance has beyond that is the belief in other peaks."""

LEAST_HEADING_SHARE = 0.05
"""Least belief in the peak of a search that found nothing."""

LOW_SCORE_OUTLIER = 0.8
"""Probability that the true tile is not among the candidates when the best score is below the bundle's minimum."""

MODE_RADIUS_M = 5.0
"""Pixels within this distance of a peak of D belong to its mode."""

MODES = 4
"""Modes taken out of one D."""

MODE_SHARE = 0.02
"""Smallest share of a D that becomes a mode of its own."""


@dataclass(frozen=True)
class Evidence:
    """p(camera at x | image) = open_share / A + Σ_j weights[j] · N(x; means[j], covariances[j]), in the map frame."""

    weights: Float64
    """float64 (M,). Their sum and open_share add up to 1 where the gate is small against the region."""
    means_m: Float64
    """float64 (M, 2)."""
    covariances_m2: Float64
    """float64 (M, 2, 2)."""
    yaw_rad: Float64
    """float64 (M,), yaw of base_link."""
    yaw_variance_rad2: Float64
    """float64 (M,)."""
    measures_yaw: bool
    """Whether the yaw was found in the image, so that the components are densities of the yaw, too; else it was
    given."""
    tile_ids: Int64
    """int64 (M,)."""
    open_share: float
    """Probability that no component holds."""
    near_share: float
    """The same inside the gate; without a gate it is open_share."""
    assumed_yaw_rad: float | None = None
    """Yaw assumed by the tracker, if any. The evidence then applies only to poses with a similar yaw."""
    heading_fit: float = 1.0
    """How much likelier an image that looks like this is under the right heading than under a wrong one, at most 1:
    a factor on the likelihood of the poses with the assumed yaw."""
    stamp_error_m2: Float64 | None = None
    """float64 (M, 2, 2): what of the covariances is the uncertainty of the image's stamp; None: nothing."""

    def __len__(self) -> int:
        return len(self.weights)


def tile_weights(scores: npt.ArrayLike, temperature: float, log_rivals: float = -math.inf) -> tuple[Float64, float]:
    """Softmax of scores / temperature in which all tiles that were not searched take part with exp(log_rivals).

    Args:
        scores: (k,).
        temperature: of the calibration.
        log_rivals: logarithm of the rival evidence; −∞ where the whole region was searched.

    Returns:
        float64 (k,) and the share of the tiles that were not searched; together they sum to 1.
    """
    logits = np.asarray(scores, np.float64) / temperature
    top = max(float(logits.max(initial=-math.inf)), log_rivals)
    if top == -math.inf:
        return np.zeros(len(logits)), 1.0
    weights = np.exp(logits - top)
    rivals = math.exp(log_rivals - top)
    total = float(weights.sum()) + rivals
    return weights / total, rivals / total


def log_evidence_of_all(logits: Float64, tiles: int) -> float:
    """log Σ exp(score / T) over all wrong tiles, from the logits (score / T) of the best few of them.

    The scores of many wrong tiles fall off exponentially with their rank's logarithm: with the k best known and
    λ = mean(logits − smallest) (Hill's estimator), the i-th is smallest − λ log(i / k), and the sum over i = k … n is
    exp(smallest) · k · ∫ u^(−λ) du over u = 1 … n / k.
    """
    k = len(logits)
    if k == 0:
        return -math.inf
    smallest = float(logits.min())
    decay = float(np.mean(logits - smallest))
    ratio = max(tiles / k, 1.0)
    integral = math.log(ratio) if abs(decay - 1) < 1e-6 else (ratio ** (1 - decay) - 1) / (1 - decay)
    best = float(np.logaddexp.reduce(logits))
    return best if integral <= 0 else float(np.logaddexp(best, smallest + math.log(k * integral)))


def modes_of(distribution: TileDistribution, mode_radius_m: float = MODE_RADIUS_M) -> tuple[Float64, Float64, Float64]:
    """The Gaussians of one D.

    Returns:
        Weights float64 (m,) with sum 1, means float64 (m, 2) and covariances float64 (m, 2, 2) in the map frame. The
        covariances hold the pixel's own extent (size² / 12).
    """
    probability = distribution.probability.astype(np.float64)
    size, scale = probability.shape[0], distribution.metres_per_pixel
    powers, disc = _pixel_powers(size, scale), _disc(mode_radius_m, scale)
    reach = len(disc) // 2
    whole = powers.T @ probability @ powers
    left = 1.0
    parts: list[Float64] = []
    for _ in range(MODES):
        row, column = divmod(int(probability.argmax()), size)
        top, low = max(row - reach, 0), min(row + reach + 1, size)
        west, east = max(column - reach, 0), min(column + reach + 1, size)
        window = probability[top:low, west:east]
        mode = window * disc[top - row + reach : low - row + reach, west - column + reach : east - column + reach]
        moments = powers[top:low].T @ mode @ powers[west:east]
        share = float(moments[0, 0])
        if share < MODE_SHARE:
            break
        window -= mode
        parts.append(moments)
        left -= share
        if left < MODE_SHARE:
            break
    rest = whole - np.sum(parts, axis=0)
    if rest[0, 0] > 1e-6:
        parts.append(rest)
    shares, means, covariances = _gaussians(np.array(parts))
    centre = np.array([distribution.centre_east_m, distribution.centre_north_m])
    return shares, means + centre, covariances + scale**2 / 12 * np.eye(2)


@functools.lru_cache(maxsize=8)
def _pixel_powers(size: int, metres_per_pixel: float) -> Float64:
    """1, x and x² of the pixels of a row or column, x in metres from the tile's centre: float64 (size, 3).

    So powersᵀ · D · powers holds D's moments.
    """
    along = (np.arange(size) - (size - 1) / 2) * metres_per_pixel
    powers = np.stack([np.ones(size), along, along**2], axis=-1)
    powers.setflags(write=False)
    return powers


@functools.lru_cache(maxsize=8)
def _disc(radius_m: float, metres_per_pixel: float) -> Float64:
    """Square of an odd number of pixels: 1 within the radius of the middle one, 0 beyond."""
    reach = math.ceil(radius_m / metres_per_pixel)
    away2 = ((np.arange(2 * reach + 1) - reach) * metres_per_pixel) ** 2
    disc: Float64 = (away2[:, None] + away2 <= radius_m**2).astype(np.float64)
    disc.setflags(write=False)
    return disc


def _gaussians(moments: Float64) -> tuple[Float64, Float64, Float64]:
    """Shares (m,), means (m, 2) and covariances (m, 2, 2) from moments.

    The moments are float64 (m, 3, 3), sums of p · xⁱ · yʲ: x down the rows (south) and y along the columns (east).
    """
    mass = moments[:, 0, 0]
    south, east = moments[:, 1, 0] / mass, moments[:, 0, 1] / mass
    across = moments[:, 0, 2] / mass - east**2
    down = moments[:, 2, 0] / mass - south**2
    cross = east * south - moments[:, 1, 1] / mass
    # Rounding may leave a single pixel with a variance just below zero.
    least = 0.5 * (across + down) - np.hypot(0.5 * (across - down), cross)
    lift = np.maximum(0.0, -least)
    covariances = np.empty((len(moments), 2, 2))
    covariances[:, 0, 0], covariances[:, 1, 1] = across + lift, down + lift
    covariances[:, 0, 1] = covariances[:, 1, 0] = cross
    return mass / mass.sum(), np.stack([east, -south], axis=-1), covariances


def evidence_of(
    observation: Observation,
    calibration: Calibration,
    config: TrackerConfig,
    region: Region,
    *,
    log_rivals: float = -math.inf,
    new_share: float = 1.0,
    outside_ratio: float = 1.0,
    stamp_covariance: Float64 | None = None,
) -> Evidence:
    """Equation E1 for one observation.

    A heading found by the search measures the yaw; any other was given, and the image says nothing about the yaw.

    Args:
        observation: with at least one distribution.
        calibration: of the bundle.
        config: its outlier shares are used.
        region: that the index covers.
        log_rivals: logarithm of R where the search was limited to a gate, −∞ where it was not.
        new_share: how much of D's error is new.
        outside_ratio: how much likelier such an image is off the map than on it, as in `Calibration.outside_ratio`. An
            image under a wrong heading is as unlike its place as one off the map.
        stamp_covariance: as in `Query`.
    """
    matches = observation.matches
    searched = observation.heading.source is HeadingSource.SEARCH
    tile_ids = np.asarray(matches.tile_ids, np.int64)
    weights, outside = tile_weights(matches.scores, calibration.tile_temperature, log_rivals)
    decoded = {d.tile_id: d for d in observation.distributions}
    # Of a tile that was not decoded nothing is known but the tile: the moments of a uniform square, and no heading.
    whole_weights = weights.copy()
    # Of each: weights, means, covariances, and what of the covariances is the uncertainty of the stamp.
    parts: list[tuple[Float64, Float64, Float64, Float64]] = []
    labels: list[tuple[float, float, int]] = []  # of each component: yaw, its variance, tile
    for rank, tile_id in enumerate(tile_ids.tolist()):
        if tile_id not in decoded:
            continue
        shares, means, covariances = modes_of(decoded[tile_id])
        heading = decoded[tile_id].heading or observation.heading
        variance = heading.variance_rad2
        whole_weights[rank] = 0.0
        if searched:
            # If the heading that D was decoded with is wrong, D does not say where in the tile the camera is.
            right = min(max(1 - variance / UNIFORM_YAW_VARIANCE, LEAST_HEADING_SHARE), 1.0)
            shares = right * shares
            whole_weights[rank] = (1 - right) * weights[rank]
            variance = min(variance, SEARCHED_YAW_VARIANCE)
        covariances = position_covariance_m2(covariances, variance, calibration, observation.seen)
        covariances *= 1 / new_share
        exact = covariances
        covariances, variance = with_stamp_error(covariances, variance, stamp_covariance, heading.yaw_rad)
        parts.append((weights[rank] * shares, means, covariances, covariances - exact))
        labels += [(heading.yaw_rad, variance, tile_id)] * len(shares)
    whole = np.flatnonzero(whole_weights)
    if len(whole):
        square = (region.tile_side_m**2 / 12 + calibration.position_floor_m**2) * np.eye(2)
        centres = np.asarray(region.centres_m[tile_ids[whole]], np.float64)
        squares = np.broadcast_to(square, (len(whole), 2, 2))
        parts.append((whole_weights[whole], centres, squares, np.zeros_like(squares)))
        given = observation.heading
        variance = UNIFORM_YAW_VARIANCE if searched else given.variance_rad2
        labels += [(given.yaw_rad, variance, tile_id) for tile_id in tile_ids[whole].tolist()]
    yaws, variances, tiles = zip(*labels, strict=True)
    confident = float(np.max(matches.scores)) >= calibration.minimum_score
    outlier = config.searched_outlier if searched else config.outlier
    outlier = outlier if confident else max(outlier, LOW_SCORE_OUTLIER)
    if observation.distances is not None:
        # The odds that an answer is right fall with the distance from what the model knows, as those of single images.
        confidence = calibration.searched_confidence if searched else calibration.confidence
        less = math.exp(confidence.unfamiliar_weight * observation.distances.unfamiliarity)
        outlier = outlier / (outlier + (1 - outlier) * less)
    inside = 1 - outlier
    assumed = observation.heading.source is HeadingSource.TRACK
    return Evidence(
        weights=inside * np.concatenate([p[0] for p in parts]),
        means_m=np.concatenate([p[1] for p in parts]),
        covariances_m2=np.concatenate([p[2] for p in parts]),
        yaw_rad=np.array(yaws, np.float64),
        yaw_variance_rad2=np.clip(variances, MIN_YAW_VARIANCE, UNIFORM_YAW_VARIANCE),
        measures_yaw=searched,
        tile_ids=np.array(tiles, np.int64),
        open_share=outlier + inside * outside,
        near_share=outlier,
        assumed_yaw_rad=observation.heading.yaw_rad if assumed else None,
        heading_fit=1 / min(max(outside_ratio, 1.0), RATIO_LIMIT) if assumed else 1.0,
        stamp_error_m2=np.concatenate([p[3] for p in parts]),
    )
