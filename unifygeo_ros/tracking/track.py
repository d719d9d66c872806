"""The state of a track: when a place is found, doubted and lost. See docs/explanation/sequences.md."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, replace

from unifygeo_ros.core.records import ALL_SEEN, Seen
from unifygeo_ros.tracking.belief import Belief, uniform
from unifygeo_ros.tracking.clusters import Cluster
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.filter import CONFIRMING, SUPPORT

LEAST_NEW = 0.05
"""Images of which less is new do not count against a track: images taken while parked count as a single observation."""

NEUTRAL = 1.0
"""An image that is less likely from a track than from anywhere speaks against it."""

MISSED_WHOLE, MISSED_AZIMUTH, MISSED_ELEVATION = 0.01, 0.6, 0.06
"""Share of the images of a right track that do not support it: where all is seen, and what is added for each share that
is not (docs/measurements/sequences.md)."""

AGAINST_AZIMUTH = 0.33
"""Share of the images of a right track that speak against it, for all azimuths that are not seen: with half of them 17%
of 625 images do, with all of them, whatever the elevations, less than one in two hundred
(docs/measurements/sequences.md)."""

RARE = 0.02
"""Share of the right tracks with so many misses in a row from which on they are usual."""

AGREEING, DISAGREEING = 0.4, 2.0
"""How much likelier off the map than on it an image is that confirms a track, and one that does not support it. Of the
images of tracks on the map 52% (half of the surroundings seen) to 96% (all seen) confirm, and 1 to 35% do not support;
off it 0 to 9% and 80 to 100% (docs/measurements/sequences.md)."""

AGREEING_AZIMUTH = 1.8
"""With it `AGREEING` falls exponentially with the share of the azimuths that are not seen: the less an image shows, the
less often a wrong track agrees with it. Off the map 22% of the images of tracks confirm them where all is seen, 7% with
half of the azimuths; on it 95% and 52%."""


class TrackState(enum.Enum):
    """The value is the text of the diagnostics."""

    SEARCHING = "searching"
    """No place has most of the belief."""
    AMBIGUOUS = "ambiguous"
    """A few places have it together."""
    TRACKING = "tracking"
    LOST = "lost"
    """Was tracking; searching again."""


@dataclass(frozen=True)
class TrackStatus:
    """What is known of the track after an image."""

    state: TrackState
    reason: str
    hypotheses: int
    """How many the belief has."""
    uniform_weight: float
    """Belief in none of the hypotheses."""
    on_map: float
    """P(the vehicle is where the index holds imagery)."""
    images: int
    """How many so far."""
    whole_searches: int
    """How many of them were searched for in the whole region."""
    odometry_scale: tuple[float, float] | None
    """True distance per metre of odometry, and its standard deviation; None while there is no track."""
    cluster: Cluster | None = field(default=None, compare=False)
    """The tracked one, with the pose of base_link at the image's stamp; None while there is no track."""
    belief: Belief = field(default_factory=uniform, compare=False)
    """At the image's stamp."""


def usual_misses(seen: Seen) -> int:
    """How many images in a row that do not support a right track are no sign of a wrong one.

    So many happen to `RARE` or more of the right tracks, if the images miss independently.
    """
    share = MISSED_WHOLE + MISSED_AZIMUTH * (1 - seen.azimuth) + MISSED_ELEVATION * (1 - seen.elevation)
    return int(math.log(RARE) / math.log(share))


def usual_against(seen: Seen) -> int:
    """How many images in a row that speak against a right track are no sign of a wrong one, as `usual_misses`."""
    share = AGAINST_AZIMUTH * (1 - seen.azimuth)
    return int(math.log(RARE) / math.log(share)) if share > 0 else 0


@dataclass(frozen=True)
class Track:
    """The state machine's memory; each method returns the next one."""

    state: TrackState = TrackState.SEARCHING
    reason: str = "no image yet"
    likelihood_ratio: float = math.inf
    """How much likelier the last image was from the tracked cluster than from anywhere."""
    unsupported: int = 0
    """Images that did not support the cluster, but for those tolerated, since the last one that confirmed it."""
    misses: int = 0
    """Images in a row, the last one included, that did not support the cluster."""
    against: int = 0
    """Images in a row, the last one included, that speak against the cluster."""
    tolerated: bool = False
    """Whether the last image did not support the cluster, but so many in a row are usual with so little seen."""
    seen: Seen = ALL_SEEN
    """How much the last image showed."""
    is_new: bool = True
    """Whether the last image was taken away from the one before."""
    inside: bool = False
    """Whether the tracked vehicle is taken to be on the map (`after_on_map`)."""

    @property
    def tracking(self) -> bool:
        return self.state is TrackState.TRACKING

    @property
    def least_ratio(self) -> float:
        """A fix takes an image that is so much likelier from the cluster than from anywhere.

        `SUPPORT`; `NEUTRAL` if the last image is tolerated; 0 if so many in a row that speak against the cluster are
        usual, too. Not where the odometry stands: a vehicle that is carried away stands, too.
        """
        if not self.tolerated:
            return SUPPORT
        return 0.0 if self.is_new and self.against <= usual_against(self.seen) else NEUTRAL

    @property
    def outside_ratio(self) -> float:
        """How much likelier off the map than on it the last image is, by how it agrees with the track."""
        if self.likelihood_ratio >= CONFIRMING:
            return AGREEING * math.exp(-AGREEING_AZIMUTH * (1 - self.seen.azimuth))
        return 1.0 if self.likelihood_ratio >= SUPPORT else DISAGREEING

    def after_image(self, likelihood_ratio: float, novelty: float, seen: Seen, *, may_confirm: bool = True) -> Track:
        """The cluster that was dominant before the image explains it so well.

        Args:
            likelihood_ratio: as in `Track`.
            novelty: how much of the image is new.
            seen: how much the image shows.
            may_confirm: False for an image that may support the cluster, but not confirm it.
        """
        unsupported, misses, tolerated, is_new = self.unsupported, self.misses, False, novelty > LEAST_NEW
        against = 0 if likelihood_ratio >= NEUTRAL else self.against + is_new
        if likelihood_ratio >= SUPPORT:
            misses = 0
            if likelihood_ratio >= CONFIRMING and may_confirm:
                unsupported = 0
        else:
            misses += is_new
            tolerated = not unsupported and max(misses, 1) <= usual_misses(seen)
            unsupported += is_new and not tolerated
        return replace(
            self,
            likelihood_ratio=likelihood_ratio,
            unsupported=unsupported,
            misses=misses,
            against=against,
            tolerated=tolerated,
            seen=seen,
            is_new=is_new,
        )

    def after_belief(
        self,
        cluster: Cluster | None,
        uniform_weight: float,
        config: TrackerConfig,
        *,
        moved: bool = False,
        confirm_images: float | None = None,
    ) -> Track:
        """The next state, from the belief after an image.

        Args:
            cluster: the dominant one; None: there is none.
            uniform_weight: of the belief.
            config: its limits are used.
            moved: whether the dominant cluster has changed.
            confirm_images: independent images that must confirm a new track; None: as in the config.
        """
        needed = config.confirm_images if confirm_images is None else confirm_images
        against = 1.0 if cluster is None else 1.0 - cluster.weight
        support = 0.0 if cluster is None else cluster.support
        if self.tracking:
            if against < config.lost_ambiguity and not moved:
                return replace(self, reason=f"{1 - against:.1%} of the belief is in one place")
            reason = f"{against:.0%} of the belief left the track"
            if moved:
                reason = "most of the belief left the track for another place"
            return replace(self, state=TrackState.LOST, reason=reason, inside=False)
        if against <= config.confirm_ambiguity and support >= needed:
            return replace(
                self,
                state=TrackState.TRACKING,
                reason=f"{1 - against:.1%} of the belief is in one place, {support:.1f} independent images confirm it",
            )
        state = self.state
        if state is not TrackState.LOST:
            state = TrackState.AMBIGUOUS if 1.0 - uniform_weight >= 0.5 else TrackState.SEARCHING
        if against > config.confirm_ambiguity:
            reason = (
                f"{against:.1%} of the belief is in other places, confirm_ambiguity is {config.confirm_ambiguity:.1%}"
            )
        else:
            reason = f"{support:.1f} independent images confirm the place, {needed:g} must (confirm_images)"
        return replace(self, state=state, reason=reason)

    def after_on_map(self, on_map: float, config: TrackerConfig) -> Track:
        """Whether the track counts as on the map, with hysteresis.

        A place that was found off the map, or on the way back from there, is a wrong one. So it takes more to begin
        than to go on.

        Args:
            on_map: P(the vehicle is where the index holds imagery), after the image.
            config: enter_off_map_ambiguity and off_map_ambiguity are used.
        """
        limit = config.enter_off_map_ambiguity
        if self.inside:
            limit = max(limit, config.off_map_ambiguity)
        return replace(self, inside=self.tracking and 1 - on_map <= limit)
