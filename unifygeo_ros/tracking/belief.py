"""The belief in the pose of base_link over the whole region: a mixture of Gaussians and a uniform component.

    p(x, y, yaw, scale) = uniform_weight · p(scale)/(2πA)  +  Σ_i weights[i] · N(· ; means[i], covariances[i])     (B1)

The Gaussians are the hypotheses. The uniform component is the probability that no hypothesis holds, spread evenly over
the region of area A. The fourth coordinate is the odometry's error of scale: base_link moves 1 + scale times as far as
the odometry says. It stays the same for a long way (a wheel's radius, a camera's height); a filter that took it for
white noise would be overconfident on drives where it is large and conservative on the others.

The steps of the filter are in `filter`, the reduction of the mixture in `reduction`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unifygeo_ros.core.arrays import Array, Float64, Int64
from unifygeo_ros.core.covariance import mahalanobis2
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.se2 import Pose2

MAX_SPREAD_M = 1e7
"""A hypothesis with a larger standard deviation of its position says nothing, and float64 can no longer tell whether
its covariance is positive definite."""


@dataclass(frozen=True)
class Belief:
    """Equation B1 with N hypotheses; the weights and `uniform_weight` sum to 1."""

    weights: Float64
    """float64 (N,)."""
    means: Float64
    """float64 (N, 4): east (m), north (m), yaw (rad) of base_link in the map, the odometry's error of scale (m/m)."""
    covariances: Float64
    """float64 (N, 4, 4)."""
    support: Float64
    """float64 (N,): how many independent images have confirmed each hypothesis since it was created."""
    tile_ids: Int64
    """int64 (N,): the tile of the last image that updated each hypothesis; −1: none."""
    uniform_weight: float

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def total(self) -> float:
        """Sum of all weights: 1, except between the steps of an update."""
        return float(self.weights.sum()) + self.uniform_weight

    def select(self, chosen: Array) -> Belief:
        """The chosen hypotheses (mask or indices). The weight of the others is lost; `keep` does not lose it."""
        return replace(
            self,
            weights=self.weights[chosen],
            means=self.means[chosen],
            covariances=self.covariances[chosen],
            support=self.support[chosen],
            tile_ids=self.tile_ids[chosen],
        )

    def keep(self, chosen: Array) -> Belief:
        """The chosen hypotheses. The others' weight moves to the uniform component: they were not contradicted."""
        pruned = np.ones(len(self), bool)
        pruned[chosen] = False
        return replace(self.select(chosen), uniform_weight=self.uniform_weight + float(self.weights[pruned].sum()))

    def extended(self, *others: Belief) -> Belief:
        """These hypotheses followed by those of other beliefs, with their weights.

        The uniform component is this belief's.
        """
        parts = (self, *others)
        return replace(
            self,
            weights=np.concatenate([part.weights for part in parts]),
            means=np.concatenate([part.means for part in parts]),
            covariances=np.concatenate([part.covariances for part in parts]),
            support=np.concatenate([part.support for part in parts]),
            tile_ids=np.concatenate([part.tile_ids for part in parts]),
        )

    def normalised(self) -> Belief:
        """All weights divided by their sum."""
        total = self.total
        return replace(self, weights=self.weights / total, uniform_weight=self.uniform_weight / total)

    def without_degenerate(self) -> Belief:
        """Without hypotheses of no use; their weight moves to the uniform component.

        Of no use are those wider than the Earth, not finite, or with a pose covariance that is not positive definite to
        float64.
        """
        with np.errstate(all="ignore"):
            determinant = mahalanobis2(np.zeros((len(self), 3)), self.covariances[:, :3, :3])[1]
            spread2 = self.covariances[:, 0, 0] + self.covariances[:, 1, 1]
            usable = (determinant > 0) & (spread2 < MAX_SPREAD_M**2)  # False for NaN
            usable &= np.isfinite(self.means).all(1) & np.isfinite(self.covariances).all((1, 2))
        return self if usable.all() else self.keep(usable)


def uniform() -> Belief:
    """No hypotheses: base_link may be anywhere in the region."""
    return Belief(np.zeros(0), np.zeros((0, 4)), np.zeros((0, 4, 4)), np.zeros(0), np.zeros(0, np.int64), 1.0)


def hypothesis(pose: Pose2, covariance: Float64, scale_sigma: float, doubt: float = 0.0) -> Belief:
    """One hypothesis, while the odometry's scale is not known.

    Args:
        pose: of base_link in the map.
        covariance: float64 (3, 3) of east (m), north (m), yaw (rad).
        scale_sigma: standard deviation of the error of scale.
        doubt: what stays in the uniform component.
    """
    mean = np.array([[pose.x_m, pose.y_m, wrap_angle(pose.yaw_rad)]])
    means, covariances = with_scale(mean, np.asarray(covariance, np.float64)[None], scale_sigma)
    return Belief(np.array([1 - doubt]), means, covariances, np.zeros(1), np.array([-1]), doubt)


def with_scale(poses: Float64, covariances: Float64, scale_sigma: float) -> tuple[Float64, Float64]:
    """Means and covariances of hypotheses from those of poses, while the odometry's scale is not known.

    Args:
        poses: float64 (N, 3).
        covariances: float64 (N, 3, 3).
        scale_sigma: standard deviation of the error of scale.

    Returns:
        float64 (N, 4) and (N, 4, 4).
    """
    means, whole = np.zeros((len(poses), 4)), np.zeros((len(poses), 4, 4))
    means[:, :3], whole[:, :3, :3], whole[:, 3, 3] = poses, covariances, scale_sigma**2
    return means, whole
