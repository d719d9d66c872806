"""From a track to a fix or a rejection."""

from __future__ import annotations

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import mahalanobis2
from unifygeo_ros.core.records import Fix, Hypothesis, Observation, Rejection, RejectionReason
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.fixes import PoseEstimate, build_fix, with_stamp_error
from unifygeo_ros.motion.increments import UNIFORM_YAW_VARIANCE
from unifygeo_ros.tracking.belief import Belief
from unifygeo_ros.tracking.clusters import Cluster, heaviest_clusters, weight_inside_ellipse
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.evidence import Evidence
from unifygeo_ros.tracking.filter import SUPPORT
from unifygeo_ros.tracking.region import Region
from unifygeo_ros.tracking.track import NEUTRAL, Track, TrackState

MAX_HYPOTHESES = 8
"""Hypotheses published with a result."""

LEAST_WEIGHT = 0.01
"""Least weight of a hypothesis that is published."""

COMPONENT_REACH2 = 16.0
"""Components of an image further than four standard deviations from the track are not measurements of it."""

REASONS = {
    TrackState.SEARCHING: RejectionReason.SEARCHING,
    TrackState.AMBIGUOUS: RejectionReason.AMBIGUOUS,
    TrackState.LOST: RejectionReason.LOST,
}


def published_hypotheses(
    belief: Belief, radius_m: float, lever_m: tuple[float, float], first: Cluster | None = None
) -> tuple[Hypothesis, ...]:
    """The heaviest clusters as camera positions. first: the dominant cluster, where it is known."""
    clusters = heaviest_clusters(belief, radius_m, count=MAX_HYPOTHESES, least_weight=LEAST_WEIGHT, first=first)
    return tuple(Hypothesis(*camera_position(c.mean, lever_m), c.weight, c.tile_id) for c in clusters)


def camera_position(pose: Float64, lever_m: tuple[float, float]) -> tuple[float, float]:
    """East and north of the camera, from the pose of base_link (east, north, yaw first) and the camera in base_link."""
    return Pose2(float(pose[0]), float(pose[1]), float(pose[2])).apply(*lever_m)


def decide(
    observation: Observation,
    evidence: Evidence,
    belief: Belief,
    cluster: Cluster | None,
    track: Track,
    *,
    on_map: float,
    gates: LocalizerConfig,
    config: TrackerConfig,
    region: Region,
    lever_m: tuple[float, float],
    inflation: float,
    stamp_covariance: Float64 | None,
) -> Fix | Rejection:
    """A fix at the tracked cluster if it passes the gates, else why not.

    Args:
        observation: the image.
        evidence: made of it.
        belief: after the image.
        cluster: the dominant one.
        track: after the image.
        on_map: P(the vehicle is where the index holds imagery), after the image.
        gates: gate_sigma_m, imagery_sigma_m and answer_radius_m are used.
        config: of the tracker.
        region: for geodetic coordinates.
        lever_m: camera in base_link, forward and left.
        inflation: factor on the covariances of fixes from the image alone.
        stamp_covariance: as in `Query`.
    """
    hypotheses = published_hypotheses(belief, gates.answer_radius_m, lever_m, cluster)

    def rejection(reason: RejectionReason, detail: str) -> Rejection:
        return Rejection(observation.stamp_ns, reason, detail, hypotheses)

    if not track.tracking or cluster is None:
        return rejection(REASONS.get(track.state, RejectionReason.SEARCHING), track.reason)
    if not track.inside:
        return rejection(
            RejectionReason.OFF_MAP,
            f"the images look {1 - on_map:.0%} likely to be off the map; fixes begin at enter_off_map_ambiguity, "
            f"{config.enter_off_map_ambiguity:.0%}, and end at off_map_ambiguity, {config.off_map_ambiguity:.0%}",
        )
    if not region.covers(cluster.mean[None, :2])[0]:
        place = f"east {cluster.mean[0]:.0f} m, north {cluster.mean[1]:.0f} m"
        return rejection(RejectionReason.OFF_MAP, f"the track is at {place}, where the index holds no tile")
    least = track.least_ratio if config.fix_from == "posterior" else SUPPORT
    if track.likelihood_ratio < least:
        return rejection(
            RejectionReason.UNCERTAIN,
            f"the image is {track.likelihood_ratio:.2g} times as likely from the track as from anywhere, which is "
            f"under {least:g} and " + ("speaks against it" if least == NEUTRAL else "does not support it"),
        )
    if track.unsupported:
        return rejection(
            RejectionReason.UNCERTAIN,
            f"{track.unsupported} more images must confirm the track after those that did not support it",
        )
    ambiguity = 1.0 - cluster.weight
    if ambiguity > config.keep_ambiguity:
        return rejection(
            RejectionReason.AMBIGUOUS,
            f"{ambiguity:.0%} of the belief left the track, keep_ambiguity is {config.keep_ambiguity:.0%}",
        )
    mean, covariance = cluster.mean, cluster.covariance
    if config.fix_from == "image":
        measured = measured_by_image(evidence, cluster, lever_m, inflation)
        if measured is None:
            return rejection(RejectionReason.UNCERTAIN, "no component of the image is near the tracked place")
        mean, covariance = measured
    yaw_variance_rad2 = min(float(covariance[2, 2]), UNIFORM_YAW_VARIANCE)
    published_m2, yaw_variance_rad2 = with_stamp_error(
        covariance[:2, :2].copy(), yaw_variance_rad2, stamp_covariance, float(mean[2])
    )
    estimate = PoseEstimate(
        east_m=float(mean[0]),
        north_m=float(mean[1]),
        covariance_m2=published_m2,
        yaw_rad=float(mean[2]),
        yaw_variance_rad2=yaw_variance_rad2,
        tile_id=int(observation.matches.tile_ids[0]),
        score=float(observation.matches.scores[0]),
        ambiguity=1.0 - cluster.weight * on_map,
        hypotheses=hypotheses,
        integrity=weight_inside_ellipse(belief, cluster, mean, covariance) * on_map,
    )
    return build_fix(observation.stamp_ns, estimate, region.frame, gates)


def measured_by_image(
    evidence: Evidence,
    cluster: Cluster,
    lever_m: tuple[float, float],
    inflation: float,
    *,
    at_exposure: bool = False,
) -> tuple[Float64, Float64] | None:
    """Mean and covariance (east, north, yaw, …) of the image's part of the tracked cluster; None: it has none there.

    Each component of the evidence is weighed by how well it fits the track, with the covariance that the image gives
    it, inflated the more the less of the image is new. The track chooses the component and adds nothing to its
    accuracy.

    at_exposure: of the pose when the image was exposed, whenever that was: without the uncertainty of its stamp.
    """
    offsets = evidence.means_m - np.array(camera_position(cluster.mean, lever_m))
    total = evidence.covariances_m2 + cluster.covariance[:2, :2]
    lengths2, determinant = mahalanobis2(offsets, total)
    weights = evidence.weights * np.exp(-0.5 * lengths2) / np.sqrt(determinant)
    weights = np.where(lengths2 < COMPONENT_REACH2, weights, 0.0)
    if weights.sum() <= 0:
        return None
    share = weights / weights.sum()
    shift = share @ offsets
    own_m2 = evidence.covariances_m2
    if at_exposure and evidence.stamp_error_m2 is not None:
        own_m2 = own_m2 - evidence.stamp_error_m2
    second = inflation * own_m2 + offsets[:, :, None] * offsets[:, None, :]
    covariance = cluster.covariance.copy()
    covariance[:2, :2] = np.einsum("m,mde->de", share, second) - np.outer(shift, shift)
    covariance[:2, 2] = covariance[2, :2] = 0.0
    mean = cluster.mean.copy()
    mean[:2] += shift
    return mean, covariance
