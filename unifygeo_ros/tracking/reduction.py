"""Merging of hypotheses, so that their number stays bounded."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from unifygeo_ros.core.covariance import mahalanobis2, symmetric
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.tracking.belief import Belief

MERGE_DISTANCE2 = 0.5
"""Hypotheses whose means are closer, in squared standard deviations, are merged."""

COARSER = (4.0, 16.0, 64.0, 256.0)
"""Factors on the squared distance at which light hypotheses are merged where there are too many."""


def reduce(belief: Belief, *, merge_distance2: float, limit: int) -> Belief:
    """Merge similar hypotheses, keeping weight, mean and covariance; at most `limit` remain.

    Two hypotheses are similar when each pose is within √merge_distance2 standard deviations of the other's and the
    volumes of their ellipsoids differ by less than a factor e: a wide hypothesis around a narrow one says something
    else. Where too many are left, the lighter half is merged more and more coarsely. A search in a town makes dozens
    of hypotheses for each image, and the right one may be among the lightest at first; variants of the heaviest must
    not displace it.
    """
    if len(belief) == 0:
        return belief
    belief = _merged(belief, merge_distance2, log_volume=1.0)
    heavy = limit // 2
    for coarser in COARSER:
        if len(belief) <= limit:
            break
        order = np.arange(len(belief))
        light = _merged(belief.select(order[heavy:]), merge_distance2 * coarser, log_volume=math.sqrt(coarser))
        belief = belief.select(order[:heavy]).extended(light)
    return belief.keep(np.argsort(-belief.weights, kind="stable")[:limit]).normalised()


def _merged(belief: Belief, distance2: float, log_volume: float) -> Belief:
    """Each group of similar hypotheses made one, heaviest first; weights are not normalised."""
    belief = belief.select(np.argsort(-belief.weights, kind="stable"))
    poses, pose_covariances = belief.means[:, :3].T, belief.covariances[:, :3, :3]
    difference = poses[:, None, :] - poses[:, :, None]  # (3, N, N): each coordinate is contiguous
    difference[2] -= 2 * np.pi * np.rint(difference[2] / (2 * np.pi))
    lengths2, determinant = mahalanobis2(np.moveaxis(difference, 0, -1), pose_covariances[:, None])
    volume = 0.5 * np.log(determinant)
    similar = np.maximum(lengths2, lengths2.T) < distance2
    similar &= np.abs(volume - volume.T) < log_volume
    # Each joins the heaviest similar one that has not itself joined another.
    head = list(range(len(belief)))
    for one, other in np.argwhere(np.triu(similar, 1)).tolist():
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
    merged = replace(
        belief,
        weights=weights,
        means=means,
        covariances=symmetric(covariances),
        support=share @ belief.support,
        tile_ids=belief.tile_ids[heads],
    )
    return merged.select(np.argsort(-weights, kind="stable"))
