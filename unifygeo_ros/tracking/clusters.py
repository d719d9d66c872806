"""Clusters of hypotheses: what of the belief counts as one place on the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Bool, Float64
from unifygeo_ros.core.covariance import CHI2_95, mahalanobis2
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.tracking.belief import Belief

CENTRES = 4
"""How many of the heaviest hypotheses are tried as the centre of a cluster."""

ELLIPSE_POINTS = 128
"""Points that stand for each hypothesis' distribution in `weight_inside_ellipse`: an error of about 0.5%."""


@dataclass(frozen=True)
class Cluster:
    """The hypotheses near a heaviest one, and their common moments."""

    members: npt.NDArray[np.intp]
    """Their indices in the belief."""
    weight: float
    """Their weights' sum."""
    mean: Float64
    """float64 (4,), as in `Belief`."""
    covariance: Float64
    """float64 (4, 4)."""
    support: float
    """Mean of the members' support, by weight."""
    tile_id: int
    """Of the heaviest member."""

    def heaviest(self, belief: Belief) -> int:
        """Index of the heaviest member in the belief that the cluster is of."""
        return int(self.members[int(np.argmax(belief.weights[self.members]))])


def dominant_cluster(belief: Belief, radius_m: float, allowed: Bool | None = None) -> Cluster | None:
    """The heaviest cluster; None where there is no hypothesis.

    Args:
        belief: with N hypotheses.
        radius_m: hypotheses within this distance of the centre belong to the cluster, or within two standard
            deviations of the centre's own distribution where that is more.
        allowed: bool (N,), hypotheses to look at; None: all.
    """
    if allowed is None:
        allowed = np.ones(len(belief), bool)
    weights = np.where(allowed, belief.weights, 0.0)
    if not len(weights) or weights.max() <= 0:
        return None
    centres = np.argsort(-weights, kind="stable")[:CENTRES]
    distances2 = ((belief.means[centres, None, :2] - belief.means[:, :2]) ** 2).sum(-1)
    spread = belief.covariances[centres, 0, 0] + belief.covariances[centres, 1, 1]  # at least the long axis's
    near = distances2 <= np.maximum(radius_m**2, 4 * spread)[:, None]
    masses = near @ weights
    chosen = int(np.argmax(masses))
    weight, members = float(masses[chosen]), np.flatnonzero(near[chosen] & allowed)
    share = weights[members] / weight
    head = members[int(np.argmax(share))]
    offset = belief.means[members] - belief.means[head]
    offset[:, 2] = wrap_angle(offset[:, 2])
    shift = share @ offset
    second = belief.covariances[members] + offset[:, :, None] * offset[:, None, :]
    covariance = (share @ second.reshape(-1, 16)).reshape(4, 4) - np.outer(shift, shift)
    mean = belief.means[head] + shift
    mean[2] = wrap_angle(float(mean[2]))
    return Cluster(
        members, weight, mean, covariance, float(share @ belief.support[members]), int(belief.tile_ids[head])
    )


def heaviest_clusters(
    belief: Belief, radius_m: float, *, count: int, least_weight: float, first: Cluster | None = None
) -> list[Cluster]:
    """At most `count` clusters of at least `least_weight`, heaviest first.

    The dominant one is given as `first` where it is known.
    """
    found: list[Cluster] = []
    rest = np.ones(len(belief), bool)
    while len(found) < count and float(belief.weights[rest].sum()) >= least_weight:
        cluster = first if first is not None and not found else dominant_cluster(belief, radius_m, rest)
        if cluster is None or cluster.weight < least_weight:
            break
        found.append(cluster)
        rest[cluster.members] = False
    return found


def weight_inside_ellipse(belief: Belief, cluster: Cluster, mean: Float64, covariance: Float64) -> float:
    """The belief's weight inside the 95% ellipse of a mean and covariance (east, north first).

    From the cluster's members: each by a fixed set of points of its own distribution.
    """
    members = cluster.members
    factors = np.linalg.cholesky(belief.covariances[members, :2, :2])
    offsets = (belief.means[members, :2] - mean[:2])[:, None] + _NORMAL_POINTS @ factors.transpose(0, 2, 1)
    inside = mahalanobis2(offsets, covariance[:2, :2])[0] < CHI2_95
    return float(belief.weights[members] @ inside.mean(1))


def _normal_points(count: int) -> Float64:
    """Points spread like a standard normal distribution in the plane: rings of equal probability, golden angle."""
    step = np.arange(count)
    radius = np.sqrt(-2 * np.log1p(-(step + 0.5) / count))
    angle = step * np.pi * (3 - np.sqrt(5))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


_NORMAL_POINTS = _normal_points(ELLIPSE_POINTS)
