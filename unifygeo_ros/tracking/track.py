"""The state of a track: when a place is found, doubted and lost. See docs/explanation/sequences.md."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, replace

from unifygeo_ros.tracking.belief import Belief, uniform
from unifygeo_ros.tracking.clusters import Cluster
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.filter import CONFIRMING, SUPPORT

LEAST_NEW = 0.05
"""Images of which less is new do not count against a track: images taken while parked count as a single observation."""

AGREEING, DISAGREEING = 0.4, 2.0
"""How much likelier off the map than on it an image is that confirms a track, and one that does not support it. Of the
images of tracks on the map 54% (half of the surroundings seen) to 96% (all seen) confirm, and 1 to 33% do not support;
off it 0 to 11% and 78 to 100% (docs/measurements/sequences.md)."""


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


@dataclass(frozen=True)
class Track:
    """The state machine's memory; each method returns the next one."""

    state: TrackState = TrackState.SEARCHING
    reason: str = "no image yet"
    likelihood_ratio: float = math.inf
    """How much likelier the last image was from the tracked cluster than from anywhere."""
    unsupported: int = 0
    """Images that did not support the cluster since the last one that confirmed it."""
    inside: bool = False
    """Whether the tracked vehicle is taken to be on the map (`after_on_map`)."""

    @property
    def tracking(self) -> bool:
        return self.state is TrackState.TRACKING

    @property
    def outside_ratio(self) -> float:
        """How much likelier off the map than on it the last image is, by how it agrees with the track."""
        if self.likelihood_ratio >= CONFIRMING:
            return AGREEING
        return 1.0 if self.likelihood_ratio >= SUPPORT else DISAGREEING

    def after_image(self, likelihood_ratio: float, novelty: float, *, may_confirm: bool = True) -> Track:
        """The cluster that was dominant before the image explains it so well.

        Args:
            likelihood_ratio: as in `Track`.
            novelty: how much of the image is new.
            may_confirm: False for an image that may support the cluster, but not confirm it.
        """
        unsupported = self.unsupported
        if likelihood_ratio >= CONFIRMING and may_confirm:
            unsupported = 0
        elif likelihood_ratio < SUPPORT and novelty > LEAST_NEW:
            unsupported += 1
        return replace(self, likelihood_ratio=likelihood_ratio, unsupported=unsupported)

    def after_belief(
        self, cluster: Cluster | None, uniform_weight: float, config: TrackerConfig, *, moved: bool = False
    ) -> Track:
        """The next state, from the belief after an image.

        Args:
            cluster: the dominant one; None: there is none.
            uniform_weight: of the belief.
            config: its limits are used.
            moved: whether the dominant cluster has changed.
        """
        against = 1.0 if cluster is None else 1.0 - cluster.weight
        support = 0.0 if cluster is None else cluster.support
        if self.tracking:
            if against < config.lost_ambiguity and not moved:
                return replace(self, reason=f"{1 - against:.1%} of the belief is in one place")
            reason = f"{against:.0%} of the belief left the track"
            if moved:
                reason = "most of the belief left the track for another place"
            return replace(self, state=TrackState.LOST, reason=reason, inside=False)
        if against <= config.confirm_ambiguity and support >= config.confirm_images:
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
            reason = f"{support:.1f} independent images confirm the place, confirm_images is {config.confirm_images:g}"
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
