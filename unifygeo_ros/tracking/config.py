"""Settings of the tracker (mode sequence)."""

from __future__ import annotations

from dataclasses import dataclass

from unifygeo_ros.core.settings import check_settings, setting


@dataclass(frozen=True)
class TrackerConfig:
    """Settings of the filter over a sequence of images. docs/measurements/sequences.md says how they were chosen."""

    fix_from: str = setting(
        "posterior",
        "posterior: fixes include all information; image: only the evidence of the image about the tracked place, for "
        "a filter that fuses the same odometry itself",
        choices=("posterior", "image"),
        acts="mode sequence",
    )
    outlier: float = setting(
        0.15,
        "belief that the true tile is not among an image's candidates",
        minimum=0.001,
        maximum=0.9,
        advanced=True,
    )
    searched_outlier: float = setting(
        0.5,
        "the same for an image whose heading had to be searched for",
        minimum=0.001,
        maximum=0.99,
        advanced=True,
    )
    correlation_m: float = setting(
        10.0,
        "images this far apart have independent errors about the place (distance at which 1 − 1/e of an image is new)",
        minimum=0.1,
        maximum=1000.0,
        advanced=True,
    )
    accuracy_correlation_m: float = setting(
        1.0,
        "the same for the error inside the right place; at most correlation_m counts",
        minimum=0.01,
        maximum=1000.0,
        advanced=True,
    )
    image_correlation_m: float = setting(
        3.0,
        "the same for fixes from the image, each of which a filter takes for a measurement of its own",
        minimum=0.01,
        maximum=1000.0,
        advanced=True,
    )
    image_sigma_scale: float = setting(
        1.0,
        "factor on the standard deviations of the image's distribution",
        minimum=0.1,
        maximum=10.0,
        advanced=True,
    )
    restart_probability: float = setting(
        3e-4,
        "probability that the vehicle was carried to another place between two independent images",
        minimum=1e-9,
        maximum=0.5,
        advanced=True,
    )
    confirm_images: float = setting(
        2.0,
        "independent images that must confirm a place before the first fix",
        minimum=0.0,
        maximum=100.0,
        advanced=True,
    )
    confirm_ambiguity: float = setting(
        0.01,
        "largest belief in other places for the first fix",
        minimum=1e-6,
        maximum=0.5,
        advanced=True,
    )
    keep_ambiguity: float = setting(
        0.1, "belief in other places at which fixes stop", minimum=1e-6, maximum=0.5, advanced=True
    )
    lost_ambiguity: float = setting(
        0.5, "belief in other places at which the track is lost", minimum=0.01, maximum=1.0, advanced=True
    )
    off_map_ambiguity: float = setting(
        0.3,
        "belief that the vehicle is off the map above which a track gives no fix",
        minimum=1e-6,
        maximum=1.0,
        advanced=True,
    )
    search_candidates: int = setting(
        20,
        "tiles retrieved from the whole region while searching",
        minimum=1,
        maximum=1000,
        advanced=True,
    )
    search_distributions: int = setting(
        5, "of these, tiles whose distribution is decoded", minimum=1, maximum=100, advanced=True
    )
    track_candidates: int = setting(
        5, "tiles retrieved near the track while tracking", minimum=1, maximum=1000, advanced=True
    )
    check_distance_m: float = setting(
        40.0,
        "while tracking, the whole region is searched again after this distance",
        minimum=0.0,
        maximum=1e6,
        advanced=True,
    )
    hypotheses: int = setting(64, "hypotheses kept", minimum=2, maximum=10_000, advanced=True)

    def __post_init__(self) -> None:
        check_settings(self)
