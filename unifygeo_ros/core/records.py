"""The frozen records that pass between the stages of a fix.

Stages take and return these and do not import each other; `unifygeo_ros.localization.localizer.Localizer`
is the one place that joins them. Arrays inside records are never written to after construction.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Mapping

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CameraImage:
    """One exposure as it came from the camera, before any geometry.

    pixels: uint8 (H, W, 3), RGB, equirectangular. stamp_ns: time of exposure.
    roll_rad, pitch_rad: tilt of the vehicle at exposure (REP-103: about base_link x and y), None if not known.
    """

    pixels: UInt8
    stamp_ns: int
    roll_rad: float | None = None
    pitch_rad: float | None = None


class HeadingSource(enum.Enum):
    """Where a heading comes from. The value is the text of messages and JSON."""

    ODOMETRY = "odometry"  # in the map frame
    IMU = "imu"
    CONSTANT = "constant"  # given by the user
    SEARCH = "search"  # found in the image
    TRACK = "track"  # the tracker's own estimate


@dataclass(frozen=True)
class Heading:
    """Yaw of base_link in the map frame (REP-103), with its variance."""

    yaw_rad: float
    variance_rad2: float
    source: HeadingSource


@dataclass(frozen=True)
class Prior:
    """What is believed of base_link's position before the image: map frame, metres.

    covariance_m2: float64 (2, 2), east and north, symmetric positive definite.
    """

    east_m: float
    north_m: float
    covariance_m2: Float64


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


@dataclass(frozen=True)
class Panorama:
    """An image as the ground encoder wants it.

    pixels: uint8 (H, W, 3) RGB of the bundle's ground size. azimuth_rad: azimuth (clockwise from north) that the
    centre column faces, 0 when the heading was known and applied; None when the heading is not known, and then the
    centre column faces base_link's x axis.
    """

    pixels: UInt8
    stamp_ns: int
    azimuth_rad: float | None


@dataclass(frozen=True)
class GroundFeatures:
    """Output of the ground encoder for one panorama.

    descriptor: float32 (C,), unit length. levels: f_g^0 … f_g^3, float32 (C_l,), unit length each, made of `columns`
    groups, one for each azimuth sector from left to right (network.md §1: flattened column-major). resident: the same
    levels by the names of the decoder's inputs, batch size 1, where the engine left them (`ResidentArray`).
    """

    descriptor: Float32
    levels: tuple[Float32, ...]
    resident: Mapping[str, Any]


@dataclass(frozen=True)
class Candidates:
    """Nearest tiles by global descriptor, most similar first.

    tile_ids: int64 (k,). similarities: float32 (k,), cosine.
    """

    tile_ids: npt.NDArray[np.int64]
    similarities: Float32


@dataclass(frozen=True)
class Matches:
    """Candidates re-ranked by the paper's Eq. 4, best first.

    tile_ids: int64 (k,). scores: float32 (k,) = similarities + max of match_maps. similarities: float32 (k,).
    match_maps: float32 (k, S, S), M⁰ as raw cosines. retrieval_ranks: int64 (k,), the place each had before.
    """

    tile_ids: npt.NDArray[np.int64]
    scores: Float32
    similarities: Float32
    match_maps: Float32
    retrieval_ranks: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TileDistribution:
    """D of one tile, after the calibrated temperature. probability: float32 (P, P), sums to 1, covers the whole tile.

    Its pixel (r, c) has its centre at map_from_tile(r, c, centre…, size=P, metres_per_pixel=tile side / P).
    heading: where the heading was searched, the one found for this tile, with which D was decoded (each tile has its
    own); None where one heading was given for all.
    """

    tile_id: int
    centre_east_m: float
    centre_north_m: float
    metres_per_pixel: float
    probability: Float32
    heading: Heading | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A place where the image may have been taken (map frame; the camera), with its share of the belief."""

    east_m: float
    north_m: float
    weight: float
    tile_id: int


class RejectionReason(enum.Enum):
    """Why no fix was given. The value is the text of diagnostics and JSON."""

    BAD_IMAGE = "bad_image"  # not equirectangular, wrong type, unreadable
    BLACK_IMAGE = "black_image"
    FROZEN_IMAGE = "frozen_image"
    BLURRED_IMAGE = "blurred_image"
    BAD_STAMP = "bad_stamp"  # none, or not after the image before
    RATE_LIMIT = "rate_limit"  # too soon after the image before, as configured
    RESET = "reset"  # the session was reset while the image was localized
    BAD_PRIOR = "bad_prior"  # not finite, or covariance not positive definite
    NO_HEADING = "no_heading"
    OFF_MAP = "off_map"  # the prior's gate holds no tile of the index
    LOW_SCORE = "low_score"
    AMBIGUOUS = "ambiguous"
    UNCERTAIN = "uncertain"  # covariance above the gate
    PRIOR_CONFLICT = "prior_conflict"
    SEARCHING = "searching"  # sequence mode: not certain yet
    LOST = "lost"  # sequence mode


@dataclass(frozen=True)
class Observation:
    """All that one image says of where it was taken, before any decision: what the single-image decision and the
    sequence tracker both start from.

    matches: of the candidates, best first. distributions: D of the first one or more of them, same order.
    heading: given, or found by the search. descriptor: float32 (C,), the image's global descriptor under that heading,
    with which the candidates were retrieved. timings_ms: milliseconds by stage.
    """

    stamp_ns: int
    matches: Matches
    distributions: tuple[TileDistribution, ...]
    heading: Heading
    descriptor: Float32
    timings_ms: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Fix:
    """Where base_link was at `stamp_ns`.

    covariance_m2: float64 (2, 2), map east and north, symmetric positive definite. score: re-ranking score of the
    winner. ambiguity: probability that the place is a wrong one, 0 … 1. hypotheses: the answer
    first, then its rivals (camera positions). integrity: probability that base_link lies inside the 95% ellipse of
    covariance_m2 (Mahalanobis distance² below 5.99), None where it was not computed.
    """

    stamp_ns: int
    east_m: float
    north_m: float
    latitude_deg: float
    longitude_deg: float
    covariance_m2: Float64
    yaw_rad: float
    yaw_variance_rad2: float
    tile_id: int
    score: float
    ambiguity: float
    hypotheses: tuple[Hypothesis, ...]
    timings_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
    integrity: float | None = None


@dataclass(frozen=True)
class Rejection:
    """No fix for the image of `stamp_ns`: a reason, and a sentence with the value and the limit."""

    stamp_ns: int
    reason: RejectionReason
    detail: str
    hypotheses: tuple[Hypothesis, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
