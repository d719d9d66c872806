"""Settings of the camera's mount and of the single-image localizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.settings import check_settings, setting


@dataclass(frozen=True)
class CameraMount:
    """How the camera sits on base_link, and what of its image is of use."""

    x_m: float = setting(
        0.0, "camera position in base_link, forward, metres", minimum=-100.0, maximum=100.0, acts="camera_frame empty"
    )
    y_m: float = setting(
        0.0, "camera position in base_link, left, metres", minimum=-100.0, maximum=100.0, acts="camera_frame empty"
    )
    yaw_rad: float = setting(
        0.0,
        "yaw of the image's centre column in base_link, counter-clockwise from its x axis",
        minimum=-3.142,
        maximum=3.142,
        acts="camera_frame empty",
    )
    pitch_rad: float = setting(
        0.0,
        "pitch of the camera in base_link about its left axis, positive looks down (REP-103)",
        minimum=-1.571,
        maximum=1.571,
        acts="camera_frame empty",
    )
    roll_rad: float = setting(
        0.0,
        "roll of the camera about its own forward axis, positive to the right (REP-103)",
        minimum=-3.142,
        maximum=3.142,
        acts="camera_frame empty",
    )
    upside_down: bool = setting(
        False, "the camera hangs with its top down: half a turn added to roll_rad", acts="camera_frame empty"
    )
    elevation_top_rad: float = setting(
        math.pi / 2,
        "elevation of the image's upper edge (camera not upside down); π/2 for a full sphere",
        minimum=-1.571,
        maximum=1.571,
    )
    elevation_bottom_rad: float = setting(
        -math.pi / 2,
        "elevation of the image's lower edge (camera not upside down); −π/2 for a full sphere",
        minimum=-1.571,
        maximum=1.571,
    )
    mask_path: str = setting("", "PNG of the image's aspect, black where the vehicle itself is seen; empty: none")

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.elevation_top_rad > self.elevation_bottom_rad:
            raise ConfigurationError(
                f"elevation_top_rad {self.elevation_top_rad} is not above elevation_bottom_rad "
                f"{self.elevation_bottom_rad}; give the elevations of the image's edges, the upper one first"
            )


@dataclass(frozen=True)
class LocalizerConfig:
    """Settings of the single-image localizer. The gates turn an observation into a fix or a rejection.

    Fields made by `setting` are parameters; the others are constants, fields only so that experiments can change them.
    """

    candidates: int = setting(5, "tiles retrieved and re-ranked, k", minimum=1, maximum=1000, advanced=True)
    heading_search: bool = setting(
        True, "search the heading when none is given; otherwise reject the image", advanced=True
    )
    heading_sigma_rad: float = setting(
        0.035,
        "standard deviation assumed for a given heading that brings none",
        minimum=1e-3,
        maximum=math.pi,
        advanced=True,
    )
    gate_heading_sigma_rad: float = setting(
        0.35,
        "largest standard deviation of the heading, given or found",
        minimum=1e-3,
        maximum=math.pi,
        live=True,
        advanced=True,
    )
    gate_ambiguity: float = setting(
        0.15,
        "largest probability that the place is wrong",
        minimum=0.0,
        maximum=1.0,
        live=True,
        acts="mode single",
    )
    on_map_prior: float = setting(
        0.5,
        "share of the images that the vehicle takes where the index holds aerial imagery; nearer 1 for one that never "
        "leaves it",
        minimum=0.01,
        maximum=1.0,
        live=True,
    )
    gate_sigma_m: float = setting(
        10.0,
        "largest standard deviation along the error ellipse's long axis, metres",
        minimum=0.1,
        maximum=1000.0,
        live=True,
    )
    imagery_sigma_m: float = setting(
        0.0,
        "standard deviation of the aerial imagery's position on the earth, each axis, metres (its CE90 / 2.15): an "
        "error that all fixes of a neighbourhood share and no number of images averages out, part of every covariance "
        "that is published",
        minimum=0.0,
        maximum=100.0,
        live=True,
    )
    gate_score: float = setting(
        0.0,
        "added to the bundle's calibrated minimum score; higher rejects more",
        minimum=-4.0,
        maximum=4.0,
        live=True,
        advanced=True,
    )
    pyramid_cache_tiles: int = setting(64, "aerial pyramids kept in memory", minimum=1, maximum=100_000, advanced=True)
    minimum_brightness: float = setting(
        8.0,
        "mean grey value, 0 to 255, under which an image is black",
        minimum=0.0,
        maximum=255.0,
        advanced=True,
    )
    minimum_sharpness: float = setting(
        3.0,
        "variance of the Laplacian, at 512 columns, under which an image is blurred or blank; 0: not checked",
        minimum=0.0,
        maximum=1e6,
        advanced=True,
    )
    minimum_seen: float = setting(
        0.1,
        "share of what the network takes in under which an image shows too little, as when most cameras of a rig have "
        "failed",
        minimum=0.0,
        maximum=1.0,
        advanced=True,
    )
    check_projection: bool = setting(
        True,
        "refuse images that are not equirectangular, by their poles and their seam (fisheye, pinhole)",
        advanced=True,
    )
    prior_gate_sigma: float = 4.0
    """The search is limited to tiles within this many standard deviations of the prior: 99.97% of a Gaussian."""
    gate_prior_sigma: float = 3.7
    """Largest Mahalanobis distance between the answer and the prior: 99.9% of a Gaussian in the plane lie within."""
    answer_radius_m: float = 5.0
    """Belief within this distance of the answer counts as the answer's. The confidences of a bundle are fitted for it,
    so it is the same for all."""

    def __post_init__(self) -> None:
        check_settings(self)
