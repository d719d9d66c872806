"""What one image says of where the camera is, as a mixture of Gaussians over the whole region.

The network gives D_t(x), a distribution of the camera inside tile t, for a few tiles, and a re-ranking score s_t for
the candidates. With w_t = softmax(s_t / tile temperature) over the candidates and the *open share* b (below),

    p(x | image) = b / A + (1 − b) · Σ_t w_t D_t(x),        A: area of the index.                                   (1)

**Overlapping tiles** do not count twice. "The tile the image belongs to" is a latent variable, uniform among the tiles
that cover the camera, of which there are equally many everywhere inside the region (four at half overlap). Then (1) is
the law of total probability: two tiles that see the same place with half the belief each add up to one place with all
of it. Adding is right; multiplying would be counting twice.

**The open share** b is the belief that no candidate is the right tile: the outlier share everywhere, and, when the
search was limited to a gate, outside the gate also the share of the tiles there. Their scores are not known, but how
much Σ exp(s/T) all wrong tiles together usually reach is, from the searches of the whole region made along the way: the
*rival evidence* R, which takes its place in the softmax's denominator. So a vehicle that is carried away while it
searches only its gate sees its gate's tiles drown in R, and the belief leave the gate.

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

from unifygeo_ros.core.records import Observation, TileDistribution
from unifygeo_ros.inference.bundle import Calibration
from unifygeo_ros.localization.decision import position_covariance_m2
from unifygeo_ros.motion.increments import UNIFORM_YAW_VARIANCE

Float64 = npt.NDArray[np.float64]

MIN_YAW_VARIANCE = 1e-6
"""0.06°: no heading is better than that."""

SEARCHED_YAW_VARIANCE = math.radians(8.0) ** 2
"""Of a searched heading about its own peak: the search's rolls are 15° to 36° apart and refined between them. What its
variance has beyond that is the belief in other peaks."""

LEAST_HEADING_SHARE = 0.05
"""Least belief in the peak of a search that found nothing."""


@dataclass(frozen=True)
class EvidenceSettings:
    """outlier: belief that the true tile is not among the candidates. searched_outlier: the same when the heading was
    searched. low_score_outlier: the same when the best score is below the bundle's minimum. sigma_scale: factor on the
    standard deviations of D's modes. mode_radius_m: pixels within this distance of a peak of D belong to its mode.
    modes: modes taken out of one D. mode_share: smallest share of a D that is made a mode of its own."""

    outlier: float = 0.15
    searched_outlier: float = 0.5
    low_score_outlier: float = 0.8
    sigma_scale: float = 1.0
    mode_radius_m: float = 5.0
    modes: int = 4
    mode_share: float = 0.02


@dataclass(frozen=True)
class Evidence:
    """p(camera at x | image) = open_share / A + Σ_j weights[j] · N(x; means[j], covariances[j]), in the map frame.

    weights: float64 (M,); open_share + their sum = 1, where the gate is small against the region. near_share: takes the
    open share's place inside the gate; without a gate it is the same. means_m: float64 (M, 2). covariances_m2: float64
    (M, 2, 2). yaw_rad, yaw_variance_rad2: float64 (M,), yaw of base_link. measures_yaw: it was found in the image, and
    the components are densities of the yaw, too; else it was given. tile_ids: int64 (M,). assumed_yaw_rad: where the
    heading was but a guess of the tracker's, that: the image tells of poses that face about there, and of no others.
    """

    weights: Float64
    means_m: Float64
    covariances_m2: Float64
    yaw_rad: Float64
    yaw_variance_rad2: Float64
    measures_yaw: bool
    tile_ids: npt.NDArray[np.int64]
    open_share: float
    near_share: float
    assumed_yaw_rad: float | None = None

    def __len__(self) -> int:
        return len(self.weights)


def tile_weights(scores: npt.ArrayLike, temperature: float, log_rivals: float = -math.inf) -> tuple[Float64, float]:
    """Softmax of scores / temperature in which everything not looked at takes part with exp(log_rivals).

    scores: (k,). Returns float64 (k,) and the share of what was not looked at; together they sum to 1.
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


def modes_of(distribution: TileDistribution, settings: EvidenceSettings) -> tuple[Float64, Float64, Float64]:
    """The Gaussians of one D: weights float64 (m,) with sum 1, means float64 (m, 2), covariances float64 (m, 2, 2), map
    frame. Covariances hold the pixel's own extent (size² / 12)."""
    probability = distribution.probability.astype(np.float64)
    size, scale = probability.shape[0], distribution.metres_per_pixel
    powers, disc = _pixel_powers(size, scale), _disc(settings.mode_radius_m, scale)
    reach = len(disc) // 2
    whole = powers.T @ probability @ powers
    left = 1.0
    parts: list[Float64] = []
    for _ in range(settings.modes):
        row, column = divmod(int(probability.argmax()), size)
        top, low = max(row - reach, 0), min(row + reach + 1, size)
        west, east = max(column - reach, 0), min(column + reach + 1, size)
        window = probability[top:low, west:east]
        mode = window * disc[top - row + reach : low - row + reach, west - column + reach : east - column + reach]
        moments = powers[top:low].T @ mode @ powers[west:east]
        share = float(moments[0, 0])
        if share < settings.mode_share:
            break
        window -= mode
        parts.append(moments)
        left -= share
        if left < settings.mode_share:
            break
    rest = whole - np.sum(parts, axis=0)
    if rest[0, 0] > 1e-6:
        parts.append(rest)
    shares, means, covariances = _gaussians(np.array(parts))
    centre = np.array([distribution.centre_east_m, distribution.centre_north_m])
    return shares, means + centre, covariances + scale**2 / 12 * np.eye(2)


@functools.lru_cache(maxsize=8)
def _pixel_powers(size: int, metres_per_pixel: float) -> Float64:
    """1, x and x² for x the metres from the tile's centre along a row or down a column of pixels: float64 (size, 3), so
    that powersᵀ · D · powers holds D's moments."""
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
    """Shares (m,), means (m, 2) and covariances (m, 2, 2) from the moments float64 (m, 3, 3): sums of p · xⁱ · yʲ, x
    down the rows (south) and y along the columns (east)."""
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
    settings: EvidenceSettings,
    *,
    tile_side_m: float,
    tile_centres_m: Float64,
    log_rivals: float = -math.inf,
    searched_heading: bool = False,
    assumed_heading: bool = False,
    new_share: float = 1.0,
) -> Evidence:
    """Eq. 1 for one observation.

    tile_centres_m: float64 (n, 2), all tiles of the index. log_rivals: logarithm of R where the search was limited to a
    gate, −inf where it was not. searched_heading: the headings in the observation were found in the image and measure
    yaw; otherwise they were given, and the image says nothing of yaw. assumed_heading: given by the tracker itself.
    new_share: how much of D's error is new.
    """
    matches = observation.matches
    tile_ids = np.asarray(matches.tile_ids, np.int64)
    weights, outside = tile_weights(matches.scores, calibration.tile_temperature, log_rivals)
    decoded = {d.tile_id: d for d in observation.distributions}
    # Of a tile that was not decoded nothing is known but the tile: the moments of a uniform square, and no heading.
    whole_weights = weights.copy()
    parts: list[tuple[Float64, Float64, Float64]] = []
    labels: list[tuple[float, float, int]] = []  # of each component: yaw, its variance, tile
    for place, tile_id in enumerate(tile_ids.tolist()):
        if tile_id not in decoded:
            continue
        shares, means, covariances = modes_of(decoded[tile_id], settings)
        heading = decoded[tile_id].heading or observation.heading
        variance = heading.variance_rad2
        whole_weights[place] = 0.0
        if searched_heading:
            # The heading that D was decoded with is right or it is not, and then D says nothing but the tile.
            right = min(max(1 - variance / UNIFORM_YAW_VARIANCE, LEAST_HEADING_SHARE), 1.0)
            shares = right * shares
            whole_weights[place] = (1 - right) * weights[place]
            variance = min(variance, SEARCHED_YAW_VARIANCE)
        covariances = position_covariance_m2(covariances, variance, calibration)
        parts.append((weights[place] * shares, means, settings.sigma_scale**2 / new_share * covariances))
        labels += [(heading.yaw_rad, variance, tile_id)] * len(shares)
    whole = np.flatnonzero(whole_weights)
    if len(whole):
        square = (tile_side_m**2 / 12 + calibration.position_floor_m**2) * np.eye(2)
        centres = np.asarray(tile_centres_m[tile_ids[whole]], np.float64)
        parts.append((whole_weights[whole], centres, np.broadcast_to(square, (len(whole), 2, 2))))
        given = observation.heading
        variance = UNIFORM_YAW_VARIANCE if searched_heading else given.variance_rad2
        labels += [(given.yaw_rad, variance, tile_id) for tile_id in tile_ids[whole].tolist()]
    yaws, variances, tiles = zip(*labels, strict=True)
    confident = float(np.max(matches.scores)) >= calibration.minimum_score
    outlier = settings.searched_outlier if searched_heading else settings.outlier
    outlier = outlier if confident else max(outlier, settings.low_score_outlier)
    inside = 1 - outlier
    return Evidence(
        weights=inside * np.concatenate([p[0] for p in parts]),
        means_m=np.concatenate([p[1] for p in parts]),
        covariances_m2=np.concatenate([p[2] for p in parts]),
        yaw_rad=np.array(yaws, np.float64),
        yaw_variance_rad2=np.clip(variances, MIN_YAW_VARIANCE, UNIFORM_YAW_VARIANCE),
        measures_yaw=searched_heading,
        tile_ids=np.array(tiles, np.int64),
        open_share=outlier + inside * outside,
        near_share=outlier,
        assumed_yaw_rad=observation.heading.yaw_rad if assumed_heading else None,
    )
