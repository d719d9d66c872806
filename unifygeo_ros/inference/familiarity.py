"""How far a picture is from those that a model was calibrated on, measured in the model's own features.

A network gives features for any picture, also for one of a kind that it never saw, and there they say nothing. What
tells such pictures apart is the mean of the matching features: of a panorama over its azimuth sectors (f⁰), of a tile
over its positions and the sectors of each (the match map). What stands where is averaged away, and how the picture
looks is left. Both means are vectors of C_0 / columns numbers.

The distance is Mahalanobis', with the mean and the covariance of the calibration's pictures, in units in which 99 of
100 of them lie nearer than 1. Panoramas and tiles have their own statistics.
"""

from __future__ import annotations

import base64
import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Array, Float64
from unifygeo_ros.core.errors import BundleError, ConfigurationError

SHRINKAGE = 0.2
"""Of the correlations towards 0, since some hundred pictures do not determine them all."""

USUAL_QUANTILE = 0.99
"""Share of the calibration's pictures that lie nearer than a distance of 1."""

_DRAWN = 20_000


@dataclass(frozen=True)
class UsualFeatures:
    """What the mean features of one view, panorama or tile, are like. Arrays are base64 of little-endian float32."""

    mean: str
    """Float32 (C,)."""
    whitening: str
    """Float32 (C, C), row by row: distance = |whitening · (features − mean)|."""

    def __post_init__(self) -> None:
        try:
            size = self._mean.size
            good = size > 0 and self._whitening.shape == (size, size)
            good = good and bool(np.isfinite(self._mean).all() and np.isfinite(self._whitening).all())
        except (ValueError, TypeError) as error:
            raise BundleError(f"familiarity: no base64 of float32 ({error}); calibrate again") from error
        if not good:
            raise BundleError("familiarity: mean and whitening do not belong together; calibrate again")

    @functools.cached_property
    def _mean(self) -> Float64:
        return _decoded(self.mean)

    @functools.cached_property
    def _whitening(self) -> Float64:
        values = _decoded(self.whitening)
        return values.reshape(math.isqrt(values.size), -1)

    @property
    def size(self) -> int:
        """C."""
        return int(self._mean.size)

    def distances(self, features: Float64) -> Float64:
        """Distances of mean features (n, C): float64 (n,)."""
        return np.asarray(np.linalg.norm((features - self._mean) @ self._whitening.T, axis=-1))


@dataclass(frozen=True)
class Familiarity:
    """What the pictures of the calibration were like, and how far from them the calibration holds."""

    ground: UsualFeatures
    """Of panoramas."""
    aerial: UsualFeatures
    """Of tiles."""
    ground_limit: float
    """Distance of a panorama beyond which the calibration had no right answers to speak of; no fix is given there."""
    aerial_limit: float
    """The same for the best tile."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(limit) and limit >= 1 for limit in (self.ground_limit, self.aerial_limit)):
            raise BundleError(
                f"familiarity: limits {self.ground_limit} and {self.aerial_limit} must be finite and at least 1; "
                "calibrate again"
            )


def panorama_features(f0: npt.ArrayLike, columns: int) -> Float64:
    """Mean features of panoramas. f0: (n, C_0). Returns float64 (n, C_0 / columns)."""
    values = np.asarray(f0, np.float64)
    means: Float64 = values.reshape(len(values), columns, -1).mean(axis=1)
    return means


def tile_features(match_maps: Array, columns: int) -> Float64:
    """Mean features of tiles. match_maps: (n, S, S, C_0). Returns float64 (n, C_0 / columns)."""
    n = len(match_maps)
    over_positions = np.asarray(match_maps, np.float64).reshape(n, -1, match_maps.shape[-1]).mean(axis=1)
    means: Float64 = over_positions.reshape(n, columns, -1).mean(axis=1)
    return means


def usual_features(groups: list[Float64]) -> UsualFeatures:
    """The statistics of a calibration's pictures.

    Args:
        groups: mean features (n, C) of each town or part of a city. With two or more of them the unit of distance
            comes from pictures of places that did not take part in the statistics: each group is measured by the
            others.
    """
    mean, whitening = _fitted(np.concatenate(groups))
    distances = []
    for held, group in enumerate(groups):
        rest = [other for place, other in enumerate(groups) if place != held] or groups
        other_mean, other_whitening = _fitted(np.concatenate(rest))
        distances.append(np.linalg.norm((group - other_mean) @ other_whitening.T, axis=-1))
    unit = float(np.quantile(np.concatenate(distances), USUAL_QUANTILE))
    return UsualFeatures(_encoded(mean), _encoded(whitening / unit))


def joined_familiarity(first: Familiarity, second: Familiarity) -> Familiarity:
    """What is familiar to either: equally many pictures of both kinds. The limits are those of the second.

    For weights that changed little from the first to the second, so that both measure nearly the same features.

    Raises:
        ConfigurationError: they are of networks of other sizes.
    """
    sizes = [(known.ground.size, known.aerial.size) for known in (first, second)]
    if sizes[0] != sizes[1]:
        raise ConfigurationError(
            f"what the bundles know has {sizes[0]} and {sizes[1]} features; one must be fine-tuned from the other"
        )
    ground, aerial = _joined(first.ground, second.ground), _joined(first.aerial, second.aerial)
    return Familiarity(ground, aerial, second.ground_limit, second.aerial_limit)


def _joined(first: UsualFeatures, second: UsualFeatures) -> UsualFeatures:
    """The statistics of Gaussian pictures of both, of which 99 of 100 lie nearer than 1 to their own mean."""
    drawn = np.random.default_rng(0).standard_normal((_DRAWN, first.size))
    drawn /= np.quantile(np.linalg.norm(drawn, axis=-1), USUAL_QUANTILE)
    pictures = np.concatenate([usual._mean + np.linalg.solve(usual._whitening, drawn.T).T for usual in (first, second)])
    mean: Float64 = pictures.mean(axis=0)
    whitening = np.linalg.inv(np.linalg.cholesky(np.cov(pictures.T)))
    unit = float(np.quantile(np.linalg.norm((pictures - mean) @ whitening.T, axis=-1), USUAL_QUANTILE))
    return UsualFeatures(_encoded(mean), _encoded(np.asarray(whitening / unit, np.float64)))


def _fitted(features: Float64) -> tuple[Float64, Float64]:
    mean = features.mean(axis=0)
    sigma = np.maximum(features.std(axis=0), 1e-6)
    normal = (features - mean) / sigma
    correlation = (1 - SHRINKAGE) * normal.T @ normal / len(features) + SHRINKAGE * np.eye(len(mean))
    # correlation⁻¹ = Lᵀ L for the inverse L of its Cholesky factor.
    return mean, np.linalg.inv(np.linalg.cholesky(correlation)) / sigma


def _encoded(values: Float64) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _decoded(text: str) -> Float64:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float64)
