"""Settings of the tracker (mode sequence)."""

from __future__ import annotations

from dataclasses import dataclass

from unifygeo_ros.core.settings import check_settings, setting


@dataclass(frozen=True)
class TrackerConfig:
    """The filter over a sequence of images. docs/measurements/sequences.md says how its values were chosen.

    Fields made by `setting` are parameters. The others are constants of the method, which no vehicle needs to change:
    they are fields so that `benchmarks/sequence_table.py --sweep` can show what another value does.
    """

    fix_from: str = setting(
        "posterior",
        "posterior: fixes include all information; image: only the evidence of the image about the tracked place, for "
        "a filter that fuses the same odometry itself",
        choices=("posterior", "image"),
        acts="mode sequence",
    )
    correlation_m: float = setting(
        10.0,
        "distance after which the errors of two images about the place are independent (63% of an image is then new)",
        minimum=0.1,
        maximum=1000.0,
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
    enter_off_map_ambiguity: float = setting(
        0.1,
        "belief that the vehicle is off the map under which a track begins to give fixes, and does so again after "
        "off_map_ambiguity",
        minimum=1e-6,
        maximum=1.0,
        advanced=True,
    )
    off_map_ambiguity: float = setting(
        0.3,
        "belief that the vehicle is off the map above which a track stops giving fixes; at least "
        "enter_off_map_ambiguity counts",
        minimum=1e-6,
        maximum=1.0,
        advanced=True,
    )

    outlier: float = 0.15
    """Belief that the true tile is not among an image's candidates."""
    searched_outlier: float = 0.5
    """The same for an image whose heading had to be searched for."""
    accuracy_correlation_m: float = 1.0
    """As correlation_m, for the error inside the right place; at most correlation_m counts."""
    image_correlation_m: float = 3.0
    """The same for fixes from the image (fix_from), each of which a filter takes for a measurement of its own."""
    confirm_unguided: float = 1.5
    """So many times confirm_images for a first fix without a heading from a sensor: look-alikes are more then."""
    confirm_elsewhere: float = 2.5
    """So many times confirm_images for a first fix where the odometry does not lead from the place of a track that was
    lost. Near the end of the imagery the right place fades, and a look-alike elsewhere agrees for up to 40 m."""
    restart_probability: float = 3e-4
    """Probability that the vehicle was carried to another place between two independent images."""
    lost_ambiguity: float = 0.5
    """Belief in other places at which the track is lost: the track is then no longer the likelier answer."""
    search_candidates: int = 20
    """Tiles retrieved from the whole region while searching."""
    search_distributions: int = 5
    """Of these, tiles whose distribution is decoded: each takes a run of the decoder."""
    track_candidates: int = 5
    """Tiles retrieved near the track while tracking, as many as `LocalizerConfig.candidates`."""
    check_distance_m: float = 40.0
    """While tracking, the whole region is searched again after this distance."""
    hypotheses: int = 64
    """Hypotheses kept. docs/measurements/benchmarks.md has what one image costs with so many."""

    def __post_init__(self) -> None:
        check_settings(self)
