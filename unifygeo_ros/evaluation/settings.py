"""Settings of a judgement: what the ground truth is, and what the robot's task asks."""

from __future__ import annotations

from dataclasses import dataclass

from unifygeo_ros.core.settings import check_settings, setting


@dataclass(frozen=True)
class TruthSettings:
    """How ground truth is read."""

    truth_frame: str = setting(
        "map",
        "what its x and y are: map (of the index), LAT,LON of another datum, or a projected system such as EPSG:32632; "
        "NavSatFix needs none",
    )
    truth_max_gap_s: float = setting(
        1.5, "samples further apart are a gap; images in it are not judged", minimum=0.001, maximum=60.0
    )
    truth_sigma_m: float = setting(
        0.0, "standard deviation of samples that bring none; 0: exact", minimum=0.0, maximum=100.0
    )
    truth_x_m: float = setting(
        0.0, "its reference point (antenna) in base_link, forward, metres", minimum=-100.0, maximum=100.0
    )
    truth_y_m: float = setting(
        0.0, "its reference point (antenna) in base_link, left, metres", minimum=-100.0, maximum=100.0
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Criteria:
    """What the robot's task asks of a fix."""

    alert_limit_m: float = setting(
        10.0, "error that the vehicle's task does not tolerate, metres", minimum=0.1, maximum=1000.0
    )

    def __post_init__(self) -> None:
        check_settings(self)
