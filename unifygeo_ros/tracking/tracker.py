"""From image to image: what to look for, what was seen, what is known.

    motion, heading ─► plan ─► (the localizer observes plan.query) ─► update ─► fix | rejection

`plan` predicts and remembers nothing; `update` takes in the image and is the only step, with `skip`, that changes the
tracker. The filter is in `filter` and `evidence`, the state machine in `track`, the making of fixes in `decision`; the
reasons are in docs/explanation/sequences.md. A tracker has no clock, no randomness and no threads: the same calls give
the same fixes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import semi_major_sigma
from unifygeo_ros.core.records import (
    Fix,
    Heading,
    HeadingSource,
    Matches,
    Observation,
    Prior,
    Query,
    Rejection,
    RejectionReason,
)
from unifygeo_ros.core.se2 import rotate
from unifygeo_ros.inference.bundle import Calibration
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.decision import clues_of, unfamiliar
from unifygeo_ros.motion.increments import Motion, MotionNoise, share_new
from unifygeo_ros.motion.samples import InitialPose
from unifygeo_ros.motion.stamp_error import Place, StampDoubt
from unifygeo_ros.tracking import on_map as on_map_filter
from unifygeo_ros.tracking.belief import Belief, hypothesis, uniform
from unifygeo_ros.tracking.clusters import Cluster, dominant_cluster
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.decision import camera_position, decide, measured_by_image, published_hypotheses
from unifygeo_ros.tracking.evidence import Evidence, evidence_of, log_evidence_of_all
from unifygeo_ros.tracking.filter import (
    CONFIRMING,
    HEADING_OUTLIER,
    SUPPORT,
    SearchedPart,
    by_states,
    doubted,
    observe,
    observe_yaw,
    predict,
)
from unifygeo_ros.tracking.reduction import MERGE_DISTANCE2, reduce
from unifygeo_ros.tracking.region import Region
from unifygeo_ros.tracking.smoothing import Recorder, Step
from unifygeo_ros.tracking.stamp_lag import fresh_lag, lag_after_image
from unifygeo_ros.tracking.track import LEAST_NEW, Track, TrackState, TrackStatus

PRUNE = 1e-7
"""Hypotheses with less weight are pruned; their weight moves to the uniform component."""

DOUBT_IMAGES = 3
"""After so many images in a row that do not support the track, its heading is used for every other image at most: it
may be wrong, and an image encoded under a wrong heading finds nothing."""

LEADING_WEIGHT = 0.9
"""While no track is followed, an image is looked at under the heading of a place with so much of the belief, instead of
searching the heading: the right place shows itself much more clearly that way, and a wrong one does not. With 0.5 it
was tried on so many wrong places that the search lost more images than it won."""

ELSEWHERE_M = 30.0
"""A place is elsewhere than where the odometry leads if it is farther away than this, and three standard deviations."""

TRACK_DISTRIBUTIONS = 1
"""Tiles whose distribution is decoded near the track: only the best, since each takes another run of the decoder."""

TRACK_HEADING_SIGMA_RAD = 0.2
"""A yaw known this well is given to the localizer instead of searched for; D tolerates about 10°."""

INITIAL_POSE_DOUBT = 0.1
"""The share of the belief that stays in the uniform component when an operator sets an initial pose: a click on the map
is now and then in the wrong street, and the first images then still find the right one."""

UNMEASURED_SPEED_M_S = 1.0
"""Without odometry, the distance that counts for how new an image is: a vehicle that stands must not become certain."""


@dataclass(frozen=True)
class Plan:
    """What is known and to be asked before an image is looked at."""

    query: Query
    """For the localizer; its prior is set where the search is limited to the track's gate."""
    belief: Belief
    """At the image's stamp, without the image."""
    cluster: Cluster | None
    """The dominant one of that belief."""
    on_map: float
    """P(the vehicle is where the index holds imagery), at the image's stamp, without the image."""
    gates: LocalizerConfig
    travelled_m: float
    """Distance travelled since the last image that was used."""
    unchecked_m: float
    """Distance travelled since the last search of the whole region."""
    motion: Motion
    """Since the last image."""
    doubt: float
    """Share of the way since the last image that counts for restarts and slips."""
    heading: Heading | None
    """From a sensor."""
    stamp: StampDoubt | None
    """None: the stamp is exact."""
    lag: Float64 | None
    """`stamp_lag` of the cluster's heaviest hypothesis, without the image, float64 (4,); None: not known."""


def near_query(gate: Prior, heading: Heading | None, config: TrackerConfig) -> Query:
    """What to ask of an image near a place."""
    return Query(gate, heading, TRACK_DISTRIBUTIONS, config.track_candidates)


class Tracker:
    """A Bayes filter over the whole region; one image at a time, from one thread."""

    def __init__(
        self,
        region: Region,
        calibration: Calibration,
        config: TrackerConfig,
        lever_m: tuple[float, float] = (0.0, 0.0),
        noise: MotionNoise | None = None,
    ) -> None:
        """Start with nothing known.

        Args:
            region: that the index covers.
            calibration: of the bundle.
            config: of the filter.
            lever_m: camera in base_link, forward and left.
            noise: of the odometry; None: the defaults.
        """
        self.config = config
        self.noise = noise or MotionNoise()
        self._region = region
        self._calibration = calibration
        self._lever_m = lever_m
        self._images = self._whole_searches = 0
        self._record: Recorder | None = None
        self.reset()

    def record_to(self, record: Recorder) -> None:
        """Have `record` called with what each image changed, for `smoothing.smooth`."""
        self._record = record

    def reset(self) -> None:
        """Know nothing."""
        self._belief = uniform()
        self._track = Track()
        self._cluster: Cluster | None = None  # dominant one after the last image
        self._on_map = 1.0  # as in `Plan`; of no weight before the first image, which is infinitely far
        self._travelled_m = self._unchecked_m = math.inf  # as in `Plan`
        self._log_rivals = -math.inf  # log R of evidence.py
        self._lag: Float64 | None = None  # as in `Plan`, after the last image
        self._measured: Place | None = None
        self._lost: Belief | None = None  # where the odometry leads from the place of the last track, once it is lost
        self._must_search = False  # the last image did not support the place whose heading it was encoded under
        self._starts = True  # the next image continues nothing

    @property
    def measured(self) -> Place | None:
        """Where the last image alone showed base_link, near the track.

        None without a track, and where the image does not say where it was taken.
        """
        return self._measured

    @property
    def belief(self) -> Belief:
        """After the last image."""
        return self._belief

    @property
    def cluster(self) -> Cluster | None:
        """The dominant one after the last image."""
        return self._cluster

    @property
    def status(self) -> TrackStatus:
        cluster, scale = self._cluster if self._track.tracking else None, None
        if cluster is not None:
            scale = 1 + float(cluster.mean[3]), math.sqrt(max(float(cluster.covariance[3, 3]), 0.0))
        return TrackStatus(
            state=self._track.state,
            reason=self._track.reason,
            hypotheses=len(self._belief),
            uniform_weight=self._belief.uniform_weight,
            on_map=self._on_map,
            images=self._images,
            whole_searches=self._whole_searches,
            odometry_scale=scale,
            cluster=cluster,
            belief=self._belief,
        )

    def set_initial_pose(self, pose: InitialPose) -> None:
        """Believe an operator, but not blindly: INITIAL_POSE_DOUBT stays in the uniform component."""
        self._belief = hypothesis(pose.pose, pose.covariance, self.noise.scale, INITIAL_POSE_DOUBT)
        self._track = Track(TrackState.AMBIGUOUS, "initial pose, not yet confirmed by images")
        self._lost = self._lag = None
        self._starts = True
        self._travelled_m = self._unchecked_m = math.inf

    def plan(
        self,
        motion: Motion,
        heading: Heading | None,
        gates: LocalizerConfig,
        stamp: StampDoubt | None = None,
    ) -> Plan:
        """What to ask of the next image: near the track while there is one, else in the whole region.

        Args:
            motion: since the last image that was planned for and taken in by `update` or `skip`.
            heading: from a sensor, at the image's stamp.
            gates: answer_radius_m, prior_gate_sigma, gate_sigma_m, imagery_sigma_m and on_map_prior are used.
            stamp: how far the image's stamp may be wrong; None: it is exact.
        """
        config = self.config
        way_m = motion.distance_m
        if not motion.measured:
            way_m += UNMEASURED_SPEED_M_S * motion.duration_s
        travelled_m, unchecked_m = self._travelled_m + way_m, self._unchecked_m + way_m
        belief = predict(self._belief, motion, self.noise)
        # Doubt grows with distance, as the images' evidence against it does: a parked vehicle keeps its place.
        doubt = share_new(way_m, config.correlation_m)
        belief = doubted(belief, doubt, config.restart_probability)
        if heading is not None:
            novelty = share_new(travelled_m, config.correlation_m)
            belief = observe_yaw(belief, heading.yaw_rad, heading.variance_rad2, HEADING_OUTLIER, novelty)
        cluster = dominant_cluster(belief, gates.answer_radius_m)
        stamp_covariance = None if stamp is None else stamp.covariance
        query = replace(self._query(cluster, heading, unchecked_m), stamp_covariance=stamp_covariance)
        lag = None
        if self._lag is not None and self._cluster is not None:
            lag = by_states(self._cluster.mean[None], motion, self.noise)[0] @ self._lag
        on_map = on_map_filter.after_way(self._on_map, travelled_m, gates.on_map_prior, self._region.border_rate_per_m)
        return Plan(query, belief, cluster, on_map, gates, travelled_m, unchecked_m, motion, doubt, heading, stamp, lag)

    def update(self, plan: Plan, observation: Observation) -> Fix | Rejection:
        """Take in what was observed with `plan.query` and say where base_link is.

        An image for which the calibration does not hold says nothing: it is skipped.
        """
        config = self.config
        problem = unfamiliar(observation.distances, self._calibration)
        if problem is not None:
            return self.skip(plan, Rejection(observation.stamp_ns, RejectionReason.UNFAMILIAR, problem))
        searched = observation.heading.source is HeadingSource.SEARCH
        novelty = share_new(plan.travelled_m, config.correlation_m)
        # Where the heading is searched, D's error comes from the heading's and lasts as long as that.
        error_m = config.correlation_m if searched else min(config.accuracy_correlation_m, config.correlation_m)
        new_share = max(share_new(plan.travelled_m, error_m), LEAST_NEW)
        image_share = max(share_new(plan.travelled_m, max(error_m, config.image_correlation_m)), LEAST_NEW)
        outside_ratio = self._outside_ratio(observation, plan.gates, near=plan.query.prior is not None)
        evidence = evidence_of(
            observation,
            self._calibration,
            config,
            self._region,
            log_rivals=-math.inf if plan.query.prior is None else self._log_rivals,
            new_share=new_share,
            outside_ratio=outside_ratio,
            stamp_covariance=plan.query.stamp_covariance,
        )
        searched_part = self._searched_part(plan)
        near = np.ones(len(plan.belief), bool) if searched_part is None else searched_part.holds(plan.belief)
        belief, ratios = observe(
            plan.belief,
            evidence,
            area_m2=self._region.area_m2,
            exponent=novelty,
            near=near,
            lever_m=self._lever_m,
            scale_sigma=self.noise.scale,
            prune=PRUNE,
            limit=2 * config.hypotheses,
        )
        belief = reduce(belief, merge_distance2=MERGE_DISTANCE2, limit=config.hypotheses)
        before, cluster = plan.cluster, dominant_cluster(belief, plan.gates.answer_radius_m)
        track, own_heading = self._track, observation.heading.source is HeadingSource.TRACK
        # An image under the heading of a place in doubt that looks off the map speaks against the heading, not the map.
        tests_heading = own_heading and self._in_doubt
        # Under a wrong heading a place may fit by chance, but the image does not look as if it were there; and where
        # each image may choose its heading, many streets look alike.
        may_confirm = not searched and not (own_heading and outside_ratio > 1)
        if before is not None:
            weights = plan.belief.weights[before.members]
            ratio = float(weights @ ratios[before.members]) / before.weight
            track = track.after_image(ratio, novelty, observation.seen, may_confirm=may_confirm)
            if track.tracking and may_confirm:
                outside_ratio *= track.outside_ratio
        self._must_search = own_heading and track.likelihood_ratio < SUPPORT
        moved = before is not None and cluster is not None and _moved(before, cluster, plan.gates.answer_radius_m)
        if moved:
            track = replace(track, unsupported=0)  # it was the other place that was not supported
        acquiring = not track.tracking
        on_map = plan.on_map if tests_heading else on_map_filter.after_image(plan.on_map, outside_ratio, novelty)
        needed = self._confirm_images(cluster, guided=not (searched or own_heading))
        track = track.after_belief(cluster, belief.uniform_weight, config, moved=moved, confirm_images=needed)
        track = track.after_on_map(on_map, config)
        confirmed = may_confirm and track.likelihood_ratio >= CONFIRMING
        if acquiring and track.tracking and (searched or own_heading) and not confirmed:
            # Acquired with searched headings; require one confirmation with the track's own heading.
            track = replace(track, unsupported=max(track.unsupported, 1))
        self._follow_lost(plan, track)
        self._lag = self._lag_after(plan, belief, cluster, moved=moved, measures_yaw=evidence.measures_yaw)
        self._belief, self._cluster, self._track, self._on_map = belief, cluster, track, on_map
        self._measured = None
        if track.tracking and cluster is not None:
            measured = measured_by_image(evidence, cluster, self._lever_m, inflation=new_share, at_exposure=True)
            if measured is not None:
                (east_m, north_m, yaw_rad, _), covariance = measured[0].tolist(), measured[1]
                self._measured = Place(east_m, north_m, covariance[:2, :2], yaw_rad, float(covariance[2, 2]))
        self._images += 1
        self._recorded(plan, observation.stamp_ns, evidence, searched_part)
        self._travelled_m, self._unchecked_m = 0.0, plan.unchecked_m
        if plan.query.prior is None:
            self._whole_searches += 1
            self._unchecked_m = 0.0
            if track.tracking and cluster is not None:
                self._remember_rivals(observation.matches, cluster)
        return decide(
            observation,
            evidence,
            belief,
            cluster,
            track,
            on_map=on_map,
            gates=plan.gates,
            config=config,
            region=self._region,
            lever_m=self._lever_m,
            inflation=new_share / image_share,
            stamp_covariance=self._stamp_covariance(plan),
        )

    def skip(self, plan: Plan, rejection: Rejection) -> Rejection:
        """An image could not be used: the belief stays as predicted.

        If the gate held no tile, the track has left the region or is wrong: the whole region is searched next time.
        """
        off_map = rejection.reason is RejectionReason.OFF_MAP
        needed = self._confirm_images(plan.cluster, guided=plan.heading is not None)
        track = self._track.after_belief(plan.cluster, plan.belief.uniform_weight, self.config, confirm_images=needed)
        self._follow_lost(plan, track)
        self._belief, self._cluster, self._track = plan.belief, plan.cluster, track
        self._measured, self._lag = None, plan.lag
        self._images += 1
        self._recorded(plan, rejection.stamp_ns, None, None)
        self._travelled_m, self._unchecked_m = plan.travelled_m, math.inf if off_map else plan.unchecked_m
        hypotheses = published_hypotheses(plan.belief, plan.gates.answer_radius_m, self._lever_m)
        return replace(rejection, hypotheses=hypotheses)

    @property
    def _in_doubt(self) -> bool:
        """Whether there is no track, or one that the last images did not support."""
        return not self._track.tracking or self._track.unsupported >= DOUBT_IMAGES

    def _query(self, cluster: Cluster | None, heading: Heading | None, unchecked_m: float) -> Query:
        config = self.config
        if heading is None and cluster is not None and self._uses_heading_of(cluster):
            heading = Heading(float(cluster.mean[2]), float(cluster.covariance[2, 2]), HeadingSource.TRACK)
        if cluster is None or self._in_doubt or self._track.unsupported:
            return Query(None, heading, config.search_distributions, config.search_candidates)
        if unchecked_m >= config.check_distance_m:
            # One more than near the track: in the whole region the right tile is not as often the best.
            return Query(None, heading, TRACK_DISTRIBUTIONS + 1, config.search_candidates)
        gate = Prior(float(cluster.mean[0]), float(cluster.mean[1]), cluster.covariance[:2, :2])
        return near_query(gate, heading, config)

    def _uses_heading_of(self, cluster: Cluster) -> bool:
        """Whether the next image is looked at under the heading of a place, where none is given.

        While in doubt, images under the heading of a leading place take turns with searches of the heading, until they
        support it.
        """
        if cluster.covariance[2, 2] >= TRACK_HEADING_SIGMA_RAD**2:
            return False
        return not self._in_doubt or (cluster.weight >= LEADING_WEIGHT and not self._must_search)

    def _confirm_images(self, cluster: Cluster | None, *, guided: bool) -> float:
        """Independent images that must confirm a place for a track. guided: a sensor gives the heading."""
        needed = self.config.confirm_images
        if not guided:
            needed *= self.config.confirm_unguided
        if self._lost is not None and cluster is not None:
            spread_m2 = self._lost.covariances[0, :2, :2] + cluster.covariance[:2, :2]
            reach_m = ELSEWHERE_M + 3 * semi_major_sigma(spread_m2)
            if np.hypot(*(cluster.mean[:2] - self._lost.means[0, :2])) > reach_m:
                needed = max(needed, self.config.confirm_images * self.config.confirm_elsewhere)
        return needed

    def _follow_lost(self, plan: Plan, track: Track) -> None:
        """Keep where the odometry leads from the place of a track that is lost. track: after the image."""
        if track.tracking:
            self._lost = None
        elif self._track.tracking and plan.cluster is not None:
            self._lost = plan.belief.select(np.array([plan.cluster.heaviest(plan.belief)]))
        elif self._lost is not None:
            led = predict(self._lost, plan.motion, self.noise)
            self._lost = led if len(led) else None  # odometry that says nothing leads nowhere

    def _lag_after(
        self, plan: Plan, belief: Belief, cluster: Cluster | None, *, moved: bool, measures_yaw: bool
    ) -> Float64 | None:
        """`stamp_lag` of the place after an image; None where the velocity is not known."""
        if plan.stamp is None or plan.stamp.velocity is None or cluster is None:
            return None
        fresh = fresh_lag(float(cluster.mean[2]), plan.stamp.velocity, measures_yaw=measures_yaw)
        if plan.lag is None or plan.cluster is None or moved:
            return fresh
        before = plan.belief.covariances[plan.cluster.heaviest(plan.belief)]
        return lag_after_image(plan.lag, fresh, before, belief.covariances[cluster.heaviest(belief)])

    def _stamp_covariance(self, plan: Plan) -> Float64 | None:
        """What the doubt about the stamps adds to a fix, as `Query.stamp_covariance`."""
        if plan.stamp is None or self._lag is None or self._cluster is None or self.config.fix_from == "image":
            return plan.query.stamp_covariance
        lag = np.append(rotate(-self._cluster.mean[2], *self._lag[:2]), self._lag[2])
        return plan.stamp.second_moment_s2 * np.outer(lag, lag)

    def _searched_part(self, plan: Plan) -> SearchedPart | None:
        """Where a limited search would have found a hypothesis: within the gate and half a tile."""
        gate = plan.query.prior
        if gate is None:
            return None
        reach = plan.gates.prior_gate_sigma * semi_major_sigma(gate.covariance_m2) + self._region.tile_side_m / 2
        return SearchedPart(gate.east_m, gate.north_m, reach)

    def _recorded(
        self, plan: Plan, stamp_ns: int, evidence: Evidence | None, searched_part: SearchedPart | None
    ) -> None:
        starts, self._starts = self._starts, False
        if self._record is not None:
            novelty = share_new(plan.travelled_m, self.config.correlation_m)
            self._record(
                Step(
                    stamp_ns=stamp_ns,
                    first=starts,
                    motion=plan.motion,
                    doubt=plan.doubt,
                    heading=plan.heading,
                    novelty=novelty,
                    evidence=evidence,
                    searched=searched_part,
                    posterior=self._belief,
                    on_map=self._on_map,
                )
            )

    def _outside_ratio(self, observation: Observation, gates: LocalizerConfig, *, near: bool) -> float:
        """How much likelier an image like this is off the map than on it, judged as a single image."""
        centres_m = self._region.centres_m[observation.matches.tile_ids]
        clues, *_ = clues_of(observation, centres_m, self._region.tile_side_m, gates, self._calibration)
        searched = observation.heading.source is HeadingSource.SEARCH
        return self._calibration.outside_ratio(clues, searched=searched, near=near)

    def _remember_rivals(self, matches: Matches, cluster: Cluster) -> None:
        """log R of evidence.py from a search of the whole region, where the place is known."""
        logits = matches.scores.astype(np.float64) / self._calibration.tile_temperature
        camera = np.array(camera_position(cluster.mean, self._lever_m))
        away = np.abs(self._region.centres_m[matches.tile_ids] - camera)
        wrong = logits[(away > self._region.tile_side_m / 2).any(1)]
        seen = log_evidence_of_all(wrong, len(self._region.centres_m))
        # Half of what was remembered and half of what was seen: the rivals change with the scenery.
        both = np.logaddexp(self._log_rivals, seen) - math.log(2) if self._log_rivals > -math.inf else seen
        self._log_rivals = float(both)


def _moved(before: Cluster, after: Cluster, radius_m: float) -> bool:
    """True if the dominant cluster has changed."""
    distance_m = float(np.hypot(*(after.mean[:2] - before.mean[:2])))
    spread_m = math.sqrt(float(before.covariance[0, 0] + before.covariance[1, 1]))
    return distance_m > radius_m + 4 * spread_m
