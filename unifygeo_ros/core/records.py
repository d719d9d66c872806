"""The frozen records that pass between the stages of a fix.

Stages take and return these and do not import each other; `unifygeo_ros.localization.localizer.Localizer`
is the one place that joins them. Arrays inside records are never written to after construction.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Mapping

from unifygeo_ros.core.arrays import Bool, Float32, Float64, Int64, UInt8


@dataclass(frozen=True)
class CameraImage:
    """One exposure as it came from the camera, before any geometry."""

    pixels: UInt8
    """uint8 (H, W, 3), RGB, equirectangular."""
    stamp_ns: int
    """Time of exposure."""
    roll_rad: float | None = None
    """Rotation of the vehicle about base_link's x axis at exposure (REP-103); None: not known."""
    pitch_rad: float | None = None
    """Rotation of the vehicle about base_link's y axis at exposure (REP-103); None: not known."""
    seen: Bool | None = None
    """bool (H, W), False where the image shows nothing of the world: transparent or cropped. None: all of it does."""
    composed: bool = False
    """Whether it was composed of the images of a rig: then its elevations are those of the whole sphere."""


class HeadingSource(enum.Enum):
    """Where a heading comes from. The value is the text of messages and JSON."""

    ODOMETRY = "odometry"
    """Its yaw in the map frame."""
    IMU = "imu"
    CONSTANT = "constant"
    """Given by the user."""
    SEARCH = "search"
    """Found in the image."""
    TRACK = "track"
    """The tracker's own estimate."""


@dataclass(frozen=True)
class Heading:
    """Yaw of base_link in the map frame (REP-103), with its variance."""

    yaw_rad: float
    variance_rad2: float
    """Above 0: a fix takes it over, and no covariance that is published may be singular."""
    source: HeadingSource


@dataclass(frozen=True)
class Prior:
    """The position of base_link that is expected before the image is looked at, in the map frame."""

    east_m: float
    north_m: float
    covariance_m2: Float64
    """float64 (2, 2), east and north, symmetric positive definite."""


@dataclass(frozen=True)
class Query:
    """What a localizer is asked about one image: what is known besides the image, and how much to look at."""

    prior: Prior | None = None
    """Position of base_link at the image's stamp; None: search the whole index."""
    heading: Heading | None = None
    """Yaw of base_link at the image's stamp; None: search the heading."""
    distributions: int = 1
    """How many of the best candidates are decoded, at least 1."""
    candidates: int | None = None
    """How many tiles are retrieved and re-ranked; None: `LocalizerConfig.candidates`. Fewer where the gate holds
    fewer."""
    stamp_covariance: Float64 | None = None
    """float64 (3, 3): how base_link may have moved between the exposure and its stamp, in its own axes (forward and
    left in m, turn in rad); None: the stamp is exact."""


@dataclass(frozen=True)
class Panorama:
    """An image as the ground encoder takes it."""

    pixels: UInt8
    """uint8 (H, W, 3), RGB, of the bundle's ground size."""
    stamp_ns: int
    azimuth_rad: float | None
    """Azimuth (clockwise from north) of the centre column: 0 when the heading was known and applied. None when the
    heading is not known; the centre column then faces along base_link's x axis."""


@dataclass(frozen=True)
class GroundFeatures:
    """Output of the ground encoder for one panorama."""

    descriptor: Float32
    """float32 (C,), unit length."""
    levels: tuple[Float32, ...]
    """f_g^0 … f_g^3: float32 (C_l,), unit length each, made of `columns` groups, one for each azimuth sector from left
    to right (the projected features, flattened column by column)."""
    resident: Mapping[str, Any]
    """The same levels by the names of the decoder's inputs, batch size 1, where the engine left them
    (`ResidentArray`)."""


@dataclass(frozen=True)
class Candidates:
    """The tiles with the most similar descriptors, most similar first."""

    tile_ids: Int64
    """int64 (k,)."""
    similarities: Float32
    """float32 (k,), cosine."""


@dataclass(frozen=True)
class Matches:
    """Candidates re-ranked by the paper's Eq. 4, best first."""

    tile_ids: Int64
    """int64 (k,)."""
    scores: Float32
    """float32 (k,): similarities + maximum of match_maps (Eq. 4)."""
    similarities: Float32
    """float32 (k,), cosine of the descriptors."""
    match_maps: Float32
    """float32 (k, S, S): M⁰ as cosines."""
    retrieval_ranks: Int64
    """int64 (k,): each candidate's rank before re-ranking, 0 for the most similar."""


@dataclass(frozen=True)
class TileDistribution:
    """D of one tile, after the calibrated temperature: where in the tile the camera is, if it is in the tile."""

    tile_id: int
    centre_east_m: float
    centre_north_m: float
    metres_per_pixel: float
    """Tile side / P."""
    probability: Float32
    """float32 (P, P), sums to 1, covers the whole tile. Pixel (r, c) has its centre at
    `map_from_tile(r, c, centre…, size=P, metres_per_pixel)`."""
    heading: Heading | None = None
    """The heading that was found for this tile and with which D was decoded, where the heading was searched (each tile
    has its own). None where one heading was given for all tiles."""


@dataclass(frozen=True)
class Hypothesis:
    """A possible position of the camera in the map frame, with its probability."""

    east_m: float
    north_m: float
    weight: float
    tile_id: int


class RejectionReason(enum.Enum):
    """Why no fix was given. The value is the text of diagnostics and JSON."""

    BAD_IMAGE = "bad_image"
    """Not equirectangular, wrong type, unreadable."""
    BLACK_IMAGE = "black_image"
    FROZEN_IMAGE = "frozen_image"
    BLURRED_IMAGE = "blurred_image"
    TOO_LITTLE_SEEN = "too_little_seen"
    """Cameras of a rig are missing, or the mask hides too much."""
    BAD_STAMP = "bad_stamp"
    """None, or not after the image before."""
    RATE_LIMIT = "rate_limit"
    """Too soon after the image before, as configured."""
    RESET = "reset"
    """The session was reset while the image was localized."""
    BAD_PRIOR = "bad_prior"
    """Not finite, or covariance not positive definite."""
    NO_HEADING = "no_heading"
    OFF_MAP = "off_map"
    """No tile of the index lies within the prior's gate or at the track, or the images look so."""
    LOW_SCORE = "low_score"
    AMBIGUOUS = "ambiguous"
    UNCERTAIN = "uncertain"
    """Covariance above the gate."""
    PRIOR_CONFLICT = "prior_conflict"
    SEARCHING = "searching"
    """Sequence mode: not certain yet."""
    LOST = "lost"
    """Sequence mode."""
    UNFAMILIAR = "unfamiliar"
    """Panorama or imagery is of a kind for which the model's calibration does not hold."""
    CAMERA_MISMATCH = "camera_mismatch"
    """The drive has not shown that the camera is mounted as configured, or shows that it is mirrored, turned, upside
    down, pitched or vertically stretched."""


@dataclass(frozen=True)
class Distances:
    """How far panorama and best tile are from what the model was calibrated on.

    99 of 100 of its pictures lie nearer than 1 (`unifygeo_ros.inference.familiarity`).
    """

    ground: float
    aerial: float

    @property
    def unfamiliarity(self) -> float:
        """What is beyond 1, of both together."""
        return max(0.0, self.ground - 1) + max(0.0, self.aerial - 1)


@dataclass(frozen=True)
class Seen:
    """How much a panorama shows of what the network takes in; a tilt is left out."""

    azimuth: float = 1.0
    """Share of the azimuths in which a tenth or more of the elevations is seen, 0 … 1."""
    elevation: float = 1.0
    """Mean share of the elevations that is seen in those azimuths, 0 … 1."""

    @property
    def share(self) -> float:
        """Of the whole."""
        return self.azimuth * self.elevation


ALL_SEEN = Seen()


@dataclass(frozen=True)
class Observation:
    """Everything that the network says about one image, before any decision.

    The single-image decision and the sequence tracker both start from it.
    """

    stamp_ns: int
    matches: Matches
    distributions: tuple[TileDistribution, ...]
    """D of the first one or more matches, in the same order."""
    heading: Heading
    """Given, or found by the search."""
    features: GroundFeatures
    """Of the image under that heading: what the candidates were retrieved and the first of them decoded with."""
    distances: Distances | None = None
    """Of the panorama and the first of the matches; None: the bundle does not know what is usual."""
    seen: Seen = ALL_SEEN
    """How much of the panorama showed the world."""
    timings_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Milliseconds by stage."""


@dataclass(frozen=True)
class Fix:
    """Where base_link was at `stamp_ns`, in the map frame and as WGS84."""

    stamp_ns: int
    east_m: float
    north_m: float
    latitude_deg: float
    longitude_deg: float
    covariance_m2: Float64
    """float64 (2, 2), map east and north, symmetric positive definite."""
    yaw_rad: float
    """Yaw of base_link in the map frame (REP-103)."""
    yaw_variance_rad2: float
    tile_id: int
    """The best candidate of the image."""
    score: float
    """Re-ranking score of that candidate."""
    ambiguity: float
    """Probability that the position is wrong altogether, 0 … 1."""
    hypotheses: tuple[Hypothesis, ...]
    """The answer first, then its rivals."""
    timings_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
    integrity: float | None = None
    """Probability that base_link lies inside the 95% ellipse of covariance_m2; None: not computed."""


@dataclass(frozen=True)
class Rejection:
    """No fix for the image of `stamp_ns`: a reason, and a sentence with the value and the limit."""

    stamp_ns: int
    reason: RejectionReason
    detail: str
    hypotheses: tuple[Hypothesis, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
