"""From image to image: what to look for, what was seen, what is known.

    motion ─► predict ─► request ─► (the localizer observes) ─► update ─► fix | rejection

The filter's equations are in belief.py and evidence.py, the reasons in docs/explanation/sequences.md. A tracker has no
randomness and no threads: the same calls give the same fixes.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unifygeo_ros.aerial.index import TileIndex
from unifygeo_ros.core.geodesy import LocalFrame, wrap_angle
from unifygeo_ros.core.records import (
    Fix,
    Heading,
    HeadingSource,
    Hypothesis,
    Matches,
    Observation,
    Prior,
    Query,
    Rejection,
    RejectionReason,
)
from unifygeo_ros.inference.bundle import Calibration
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.motion.increments import UNIFORM_YAW_VARIANCE, Motion
from unifygeo_ros.motion.samples import InitialPose
from unifygeo_ros.tracking import belief as beliefs
from unifygeo_ros.tracking.belief import CONFIRMING, SUPPORT, Belief, mahalanobis2
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.evidence import Evidence, evidence_of, log_evidence_of_all

Float64 = npt.NDArray[np.float64]

PRUNE = 1e-7
"""Hypotheses with less belief are dropped; their belief goes elsewhere."""

MERGE_DISTANCE2 = 0.5
"""Hypotheses whose means are closer, in squared standard deviations, are merged (`belief.reduce`)."""

TRACK_HEADING_SIGMA_RAD = 0.2
"""A yaw known this well is given to the localizer instead of searched for; D tolerates about 10°."""

UNMEASURED_SPEED_M_S = 1.0
"""Without odometry, the distance that counts for how new an image is: a vehicle that stands must not become certain."""

SIGMA95_2 = 5.991
"""χ² of two degrees of freedom at 95%."""

MAX_SHOWN = 8
LEAST_SHOWN = 0.01
"""Number and least belief of the hypotheses shown."""

LEAST_NEW = 0.05
"""Images of which less is new are not counted as speaking against a track: a parked vehicle's images are one."""


class TrackState(enum.Enum):
    """The value is the text of the diagnostics."""

    SEARCHING = "searching"  # no place has most of the belief
    AMBIGUOUS = "ambiguous"  # a few places have it together
    TRACKING = "tracking"
    LOST = "lost"  # was tracking; searching again


@dataclass(frozen=True)
class TrackStatus:
    """For the diagnostics. elsewhere: belief in none of the hypotheses. whole_searches, images: how many so far.
    odometry_scale: how many metres base_link moves for each that the odometry tells of, and its standard deviation;
    None while there is no track."""

    state: TrackState
    reason: str
    hypotheses: int
    elsewhere: float
    images: int
    whole_searches: int
    odometry_scale: tuple[float, float] | None


@dataclass(frozen=True)
class Region:
    """What the tracker knows of the index. area_m2: that it covers. centres_m: float64 (n, 2), of the tiles."""

    frame: LocalFrame
    area_m2: float
    tile_side_m: float
    centres_m: Float64


def region_of(index: TileIndex) -> Region:
    """Each tile adds its stride² to the area; tiles that lie as a data set has them are taken as half overlapping."""
    side_m = index.manifest.side_m
    stride_m = index.manifest.stride_m or side_m / 2
    return Region(index.frame, len(index) * stride_m**2, side_m, index.centres_m)


@dataclass(frozen=True)
class Place:
    """A neighbourhood of the belief: the hypotheses near a heaviest one, and their moments (as in `Belief`)."""

    members: npt.NDArray[np.intp]
    weight: float
    mean: Float64
    covariance: Float64
    support: float
    tile_id: int


class Tracker:
    """A Bayes filter over the whole region; one image at a time, from one thread."""

    def __init__(
        self,
        region: Region,
        calibration: Calibration,
        gates: LocalizerConfig,
        config: TrackerConfig,
        lever_m: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """gates: gate_sigma_m and answer_radius_m are used. lever_m: camera in base_link, forward and left."""
        self._region = region
        self._calibration = calibration
        self.gates = gates
        self._config = config
        self._lever_m = lever_m
        self._images = self._whole_searches = 0
        self.reset()

    def reset(self) -> None:
        """Know nothing."""
        self._belief = beliefs.unknown()
        self._state = TrackState.SEARCHING
        self._reason = "nothing seen yet"
        self._fresh_m = math.inf  # way since the last image that was used
        self._checked_m = math.inf  # way since the last search of the whole region
        self._log_rivals = -math.inf
        self._likelihood = math.inf  # of the last image from the place believed before it, relative to anywhere
        self._doubt = 0  # images that did not support that place since the last that confirmed it (`update`)
        self._yaw_given = False
        self._gate: Prior | None = None
        self._predicted: Place | None = None  # best place before the image
        self._place: Place | None = None  # best place after it

    @property
    def belief(self) -> Belief:
        return self._belief

    @property
    def _novelty(self) -> float:
        """β: how much of the next image is new."""
        return _share_new(self._fresh_m, self._config.correlation_m)

    def _new_share(self, correlation_m: float) -> float:
        """How much of the next image's error is new if errors are correlated so far."""
        return max(_share_new(self._fresh_m, correlation_m), LEAST_NEW)

    @property
    def status(self) -> TrackStatus:
        return TrackStatus(
            self._state,
            self._reason,
            len(self._belief),
            self._belief.elsewhere,
            self._images,
            self._whole_searches,
            self._odometry_scale,
        )

    @property
    def _odometry_scale(self) -> tuple[float, float] | None:
        if self._state is not TrackState.TRACKING or self._place is None:
            return None
        return 1 + float(self._place.mean[3]), math.sqrt(float(self._place.covariance[3, 3]))

    def set_initial_pose(self, pose: InitialPose) -> None:
        """Believe an operator, but not blindly: initial_pose_doubt stays elsewhere."""
        doubt = self._config.initial_pose_doubt
        means, covariances = beliefs.with_scale(
            np.array([[pose.east_m, pose.north_m, wrap_angle(pose.yaw_rad)]]),
            np.asarray(pose.covariance, np.float64)[None],
            self._config.odometry_scale,
        )
        self._belief = Belief(
            np.array([1 - doubt]),
            means,
            covariances,
            np.zeros(1),
            np.array([-1]),
            doubt,
        )
        self._state, self._reason = TrackState.AMBIGUOUS, "initial pose, not yet confirmed by images"
        self._fresh_m = self._checked_m = math.inf
        self._likelihood, self._doubt = math.inf, 0

    def predict(self, motion: Motion, time_s: float) -> None:
        """Carry the belief on. time_s: duration of the motion."""
        config = self._config
        way_m = motion.distance_m if motion.measured else motion.distance_m + UNMEASURED_SPEED_M_S * time_s
        # Doubt comes with the way, as the images' evidence against it does: a parked vehicle must not forget its place.
        doubt = _share_new(way_m, config.correlation_m)
        belief = beliefs.predict(self._belief, motion, config.noise)
        if doubt > 0:
            belief = beliefs.restart(belief, doubt * config.restart_probability)
            belief = beliefs.slip(belief, doubt * config.slip_probability, config.slip_sigma_m)
        self._belief = belief
        self._fresh_m += way_m
        self._checked_m += way_m

    def request(self, heading: Heading | None) -> Query:
        """What to observe: near the track while there is one, else in the whole region. heading: from a sensor."""
        config = self._config
        self._yaw_given, self._gate = heading is not None, None
        if heading is not None:
            self._belief = beliefs.observe_yaw(
                self._belief, heading.yaw_rad, heading.variance_rad2, config.heading_outlier, self._novelty
            )
        self._predicted = place = self._best_place()
        if self._state is not TrackState.TRACKING or place is None or self._doubt >= config.doubt_images:
            return Query(None, heading, config.search_distributions, config.search_candidates)
        if heading is None and place.covariance[2, 2] < TRACK_HEADING_SIGMA_RAD**2:
            heading = Heading(float(place.mean[2]), float(place.covariance[2, 2]), HeadingSource.TRACK)
        if self._doubt:
            return Query(None, heading, config.search_distributions, config.search_candidates)
        if self._checked_m >= config.check_distance_m:
            # One more than near the track: in the whole region the right tile is not as often the best.
            return Query(None, heading, config.track_distributions + 1, config.search_candidates)
        self._gate = Prior(float(place.mean[0]), float(place.mean[1]), place.covariance[:2, :2])
        return Query(self._gate, heading, config.track_distributions, config.track_candidates)

    def update(self, observation: Observation) -> Fix | Rejection:
        """Take in what was observed on `request` and say where base_link is."""
        start = time.perf_counter()
        config = self._config
        self._images += 1
        before = self._predicted
        assumed = observation.heading.source is HeadingSource.TRACK
        searched = not self._yaw_given and not assumed
        exponent = self._novelty
        # Where the heading is searched, D's error comes from the heading's and lasts as long as that.
        new_m = config.correlation_m if searched else min(config.accuracy_correlation_m, config.correlation_m)
        evidence = evidence_of(
            observation,
            self._calibration,
            config.evidence,
            tile_side_m=self._region.tile_side_m,
            tile_centres_m=self._region.centres_m,
            log_rivals=self._log_rivals if self._gate else -math.inf,
            searched_heading=searched,
            assumed_heading=assumed,
            new_share=self._new_share(new_m),
        )
        wider = self._new_share(new_m) / self._new_share(max(new_m, config.image_correlation_m))
        belief, likelihoods = beliefs.observe(
            self._belief,
            evidence,
            area_m2=self._region.area_m2,
            exponent=exponent,
            near=self._inside_gate(),
            lever_m=self._lever_m,
            scale_sigma=config.odometry_scale,
            prune=PRUNE,
            limit=2 * config.hypotheses,
        )
        if before is not None:
            weights = self._belief.weights[before.members]
            self._likelihood = float(weights @ likelihoods[before.members]) / before.weight
            if self._likelihood >= CONFIRMING:
                self._doubt = 0
            elif self._likelihood < SUPPORT and exponent > LEAST_NEW:
                self._doubt += 1
        self._belief = beliefs.reduce(belief, merge_distance2=MERGE_DISTANCE2, limit=config.hypotheses)
        self._fresh_m = 0.0
        place = self._best_place()
        left = before is not None and place is not None and self._apart(before, place)
        if left:
            self._doubt = 0  # it was of the other place
        found = self._state is not TrackState.TRACKING
        self._judge(place, left)
        if searched and found and self._state is TrackState.TRACKING:
            self._doubt = max(self._doubt, 1)  # found with headings of its own choice: it is looked at under its own
        if self._gate is None:
            self._whole_searches += 1
            self._checked_m = 0.0
            if self._state is TrackState.TRACKING and place is not None:
                self._remember_rivals(observation.matches, place)
        result = self._result(observation, evidence, place, wider)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        timings = {**observation.timings_ms, "tracker": elapsed_ms}
        timings["total"] = timings.get("total", 0.0) + elapsed_ms
        return dataclasses.replace(result, timings_ms=timings)

    def missed(self, rejection: Rejection) -> Rejection:
        """An image could not be used: the belief stays as predicted. If the gate held no tile, the track has left the
        region or is wrong: search everywhere next time."""
        self._images += 1
        if rejection.reason is RejectionReason.OFF_MAP:
            self._checked_m = math.inf
        self._judge(self._best_place())
        return dataclasses.replace(rejection, hypotheses=self.hypotheses())

    def hypotheses(self, best: Place | None = None) -> tuple[Hypothesis, ...]:
        """The places with most of the belief, camera positions, heaviest first. best: the first, where it is known."""
        shown: list[Hypothesis] = []
        rest = np.ones(len(self._belief), bool)
        while len(shown) < MAX_SHOWN and float(self._belief.weights[rest].sum()) >= LEAST_SHOWN:
            place = best if best is not None and not shown else self._place_about(rest)
            if place is None or place.weight < LEAST_SHOWN:
                break
            east, north = self._camera(place.mean)
            shown.append(Hypothesis(east, north, place.weight, place.tile_id))
            rest[place.members] = False
        return tuple(shown)

    # -- the belief's places --------------------------------------------------------------------------------------

    def _best_place(self) -> Place | None:
        return self._place_about(np.ones(len(self._belief), bool))

    def _place_about(self, allowed: npt.NDArray[np.bool_]) -> Place | None:
        """The heaviest neighbourhood among the allowed hypotheses."""
        belief = self._belief
        weights = np.where(allowed, belief.weights, 0.0)
        if not len(weights) or weights.max() <= 0:
            return None
        centres = np.argsort(-weights, kind="stable")[:4]
        away2 = ((belief.means[centres, None, :2] - belief.means[:, :2]) ** 2).sum(-1)
        spread = belief.covariances[centres, 0, 0] + belief.covariances[centres, 1, 1]  # at least the long axis's
        near = away2 <= np.maximum(self.gates.answer_radius_m**2, 4 * spread)[:, None]
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
        return Place(
            members, weight, mean, covariance, float(share @ belief.support[members]), int(belief.tile_ids[head])
        )

    def _inside_gate(self) -> npt.NDArray[np.bool_]:
        """Which hypotheses a limited search would have found: within the gate and half a tile."""
        if self._gate is None:
            return np.ones(len(self._belief), bool)
        spread = math.sqrt(float(np.linalg.eigvalsh(self._gate.covariance_m2)[-1]))
        reach = self.gates.prior_gate_sigma * spread + self._region.tile_side_m / 2
        centre = np.array([self._gate.east_m, self._gate.north_m])
        return np.asarray(((self._belief.means[:, :2] - centre) ** 2).sum(1) <= reach**2)

    def _apart(self, before: Place, after: Place) -> bool:
        """Whether the best place of the belief is another one than before."""
        away = float(np.hypot(*(after.mean[:2] - before.mean[:2])))
        spread = math.sqrt(float(before.covariance[0, 0] + before.covariance[1, 1]))
        return away > self.gates.answer_radius_m + 4 * spread

    def _judge(self, place: Place | None, left: bool = False) -> None:
        """The state that the belief is in, and why. left: another place than the track's has most of the belief."""
        config = self._config
        self._place = place
        against = 1.0 if place is None else 1.0 - place.weight
        support = 0.0 if place is None else place.support
        if self._state is TrackState.TRACKING:
            if against < config.lost_ambiguity and not left:
                self._reason = f"{1 - against:.1%} of the belief is in one place"
                return
            self._state = TrackState.LOST
            self._reason = "most of the belief left the track for another place"
            if not left:
                self._reason = f"{against:.0%} of the belief left the track"
            return
        if against <= config.confirm_ambiguity and support >= config.confirm_images:
            self._state = TrackState.TRACKING
            self._reason = (
                f"{1 - against:.1%} of the belief is in one place, {support:.1f} independent images confirm it"
            )
            return
        if self._state is not TrackState.LOST:
            known = 1.0 - self._belief.elsewhere
            self._state = TrackState.AMBIGUOUS if known >= 0.5 else TrackState.SEARCHING
        if against > config.confirm_ambiguity:
            self._reason = (
                f"{against:.1%} of the belief is elsewhere, confirm_ambiguity is {config.confirm_ambiguity:.1%}"
            )
        else:
            self._reason = (
                f"{support:.1f} independent images confirm the place, confirm_images is {config.confirm_images:g}"
            )

    def _remember_rivals(self, matches: Matches, place: Place) -> None:
        """log R of evidence.py from a search of the whole region, where the place is known."""
        logits = matches.scores.astype(np.float64) / self._calibration.tile_temperature
        away = np.abs(self._region.centres_m[matches.tile_ids] - np.array(self._camera(place.mean)))
        wrong = logits[(away > self._region.tile_side_m / 2).any(1)]
        seen = log_evidence_of_all(wrong, len(self._region.centres_m))
        # Half of what was remembered and half of what was seen: the rivals change with the scenery.
        both = np.logaddexp(self._log_rivals, seen) - math.log(2) if self._log_rivals > -math.inf else seen
        self._log_rivals = float(both)

    # -- the answer -----------------------------------------------------------------------------------------------

    def _result(
        self, observation: Observation, evidence: Evidence, place: Place | None, wider: float
    ) -> Fix | Rejection:
        """wider: factor on the covariances of fixes from the image."""

        def rejection(reason: RejectionReason, detail: str) -> Rejection:
            return Rejection(observation.stamp_ns, reason, detail, self.hypotheses(place))

        if self._state is not TrackState.TRACKING or place is None:
            reasons = {TrackState.LOST: RejectionReason.LOST, TrackState.AMBIGUOUS: RejectionReason.AMBIGUOUS}
            return rejection(reasons.get(self._state, RejectionReason.SEARCHING), self._reason)
        if self._likelihood < SUPPORT:
            return rejection(
                RejectionReason.UNCERTAIN,
                f"the image is {self._likelihood:.2g} times as likely from the track as from anywhere, which is under "
                f"{SUPPORT:g} and does not support it",
            )
        if self._doubt:
            return rejection(
                RejectionReason.UNCERTAIN,
                f"{self._doubt} more images must confirm the track after those that did not support it",
            )
        ambiguity = 1.0 - place.weight
        if ambiguity > self._config.keep_ambiguity:
            return rejection(
                RejectionReason.AMBIGUOUS,
                f"{ambiguity:.0%} of the belief left the track, keep_ambiguity is {self._config.keep_ambiguity:.0%}",
            )
        mean, covariance = place.mean, place.covariance
        if self._config.fix_from == "image":
            seen = self._image_only(evidence, place, wider)
            if seen is None:
                return rejection(RejectionReason.UNCERTAIN, "the image says nothing of the tracked place")
            mean, covariance = seen
        sigma_m = math.sqrt(float(np.linalg.eigvalsh(covariance[:2, :2])[-1]))
        if sigma_m > self.gates.gate_sigma_m:
            return rejection(
                RejectionReason.UNCERTAIN,
                f"standard deviation {sigma_m:.1f} m along the long axis, above gate_sigma_m "
                f"{self.gates.gate_sigma_m:g}",
            )
        east, north = float(mean[0]), float(mean[1])
        latitude, longitude = self._region.frame.geodetic_from_map(east, north)
        return Fix(
            stamp_ns=observation.stamp_ns,
            east_m=east,
            north_m=north,
            latitude_deg=float(latitude),
            longitude_deg=float(longitude),
            covariance_m2=covariance[:2, :2].copy(),
            yaw_rad=float(mean[2]),
            yaw_variance_rad2=min(float(covariance[2, 2]), UNIFORM_YAW_VARIANCE),
            tile_id=int(observation.matches.tile_ids[0]),
            score=float(observation.matches.scores[0]),
            ambiguity=ambiguity,
            hypotheses=self.hypotheses(place),
            integrity=self._integrity(mean, covariance, place),
        )

    def _image_only(self, evidence: Evidence, place: Place, wider: float) -> tuple[Float64, Float64] | None:
        """Mean and covariance (east, north, yaw) of the image's part of the tracked place: each component of the
        evidence weighed by how well it fits the track, with the covariance that the image gives it, which is wider the
        less of the image is new. The track chooses the component and adds nothing to its accuracy."""
        apart = evidence.means_m - np.array(self._camera(place.mean))
        total = evidence.covariances_m2 + place.covariance[:2, :2]
        distance2, determinant = mahalanobis2(apart, total)
        weights = evidence.weights * np.exp(-0.5 * distance2) / np.sqrt(determinant)
        weights = np.where(distance2 < 16.0, weights, 0.0)
        if weights.sum() <= 0:
            return None
        share = weights / weights.sum()
        shift = share @ apart
        second = wider * evidence.covariances_m2 + apart[:, :, None] * apart[:, None, :]
        spread = np.einsum("m,mde->de", share, second)
        covariance = place.covariance.copy()
        covariance[:2, :2] = spread - np.outer(shift, shift)
        covariance[:2, 2] = covariance[2, :2] = 0.0
        mean = place.mean.copy()
        mean[:2] += shift
        return mean, covariance

    def _integrity(self, mean: Float64, covariance: Float64, place: Place) -> float:
        """Belief inside the 95% ellipse: each near hypothesis by a fixed set of points of its own distribution."""
        belief = self._belief
        factors = np.linalg.cholesky(belief.covariances[place.members, :2, :2])
        apart = (belief.means[place.members, :2] - mean[:2])[:, None] + _NORMAL_POINTS @ factors.transpose(0, 2, 1)
        inside = mahalanobis2(apart, covariance[:2, :2])[0] < SIGMA95_2
        return float(belief.weights[place.members] @ inside.mean(1))

    def _camera(self, pose: Float64) -> tuple[float, float]:
        forward, left = self._lever_m
        cos, sin = math.cos(float(pose[2])), math.sin(float(pose[2]))
        return float(pose[0]) + cos * forward - sin * left, float(pose[1]) + sin * forward + cos * left


def _share_new(way_m: float, correlation_m: float) -> float:
    """The share of what is correlated over so many metres that is new after the way."""
    return 1.0 - math.exp(-way_m / correlation_m)


def _normal_points(count: int) -> Float64:
    """Points spread like a standard normal distribution in the plane: rings of equal probability, golden angle."""
    step = np.arange(count)
    radius = np.sqrt(-2 * np.log1p(-(step + 0.5) / count))
    angle = step * math.pi * (3 - math.sqrt(5))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


_NORMAL_POINTS = _normal_points(128)
