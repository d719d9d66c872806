"""Which names are parameters of the localizer, and which one a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from operator import attrgetter
from typing import Collection

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.parameters.settings import PARAMETERS, Settings

RCLPY_PARAMETERS = ("use_sim_time", "start_type_description_service")
RCLPY_GROUPS = ("qos_overrides",)
"""Parameters of rclpy itself, which any node has."""

CONSTANTS = (
    "localizer.answer_radius_m",
    "localizer.gate_prior_sigma",
    "localizer.prior_gate_sigma",
    "odometry.scale_persistence_m",
    "session.buffer_age_s",
    "session.frozen_distance_m",
    "session.frozen_repeats",
    "session.last_fix_age_s",
    "session.last_fix_failures",
    "session.time_jump_s",
    "tracker.accuracy_correlation_m",
    "tracker.check_distance_m",
    "tracker.hypotheses",
    "tracker.image_correlation_m",
    "tracker.lost_ambiguity",
    "tracker.outlier",
    "tracker.restart_probability",
    "tracker.search_candidates",
    "tracker.search_distributions",
    "tracker.searched_outlier",
    "tracker.track_candidates",
)
"""Fields of the settings that were parameters in earlier versions."""

RETIRED = {
    **{name: f"it is always {attrgetter(name)(Settings())}; remove the line" for name in CONSTANTS},
    "future_stamp_s": "it is always 0.5; remove the line",
    "tracker.image_sigma_scale": "it is always 1.0; remove the line",
    "tracker.odometry_persistence_m": "it is always 1000.0; remove the line",
    "camera.z_m": "the camera's height never had an effect; remove the line",
    "localizer.heading_search_candidates": "it is always 20; remove the line",
    "localizer.heading_search_encodings": "it is always 2; remove the line",
    "tracker.doubt_images": "it is always 3; remove the line",
    "tracker.heading_outlier": "it is always 0.02; remove the line",
    "tracker.initial_pose_doubt": "it is always 0.1; remove the line",
    "tracker.slip_probability": "it is always 0.003; remove the line",
    "tracker.slip_sigma_m": "it is always 8.0; remove the line",
    "tracker.track_distributions": "it is always 1; remove the line",
    "session.odometry_growth": "use odometry.scale",
    "session.speed_sigma_m_s": "use odometry.speed_m_s",
    "tracker.odometry_scale": "use odometry.scale",
    "tracker.odometry_walk": "use odometry.walk",
    "tracker.odometry_yaw_walk": "use odometry.yaw_walk",
    "tracker.odometry_turn_scale": "use odometry.turn_scale",
    "tracker.speed_m_s": "use odometry.speed_m_s",
    "tracker.turn_rad_s": "use odometry.turn_rad_s",
}
"""Parameters of earlier versions, and what to do about them."""

_GROUPS = frozenset(name.partition(".")[0] for name in PARAMETERS if "." in name)
_ALIKE = 0.6
"""Least similarity (difflib's ratio) at which a name is suggested."""
_MEANT = 0.82
"""Least similarity at which an unknown name in a section for several nodes is reported as a spelling mistake."""


def nearest_name(name: str) -> str | None:
    """Return the parameter whose name is most like `name`, None if none is.

    A name without its group, `heading_source`, is most like the one with it, `session.heading_source`.
    """
    same_end = [known for known in PARAMETERS if known.endswith(f".{name}")]
    near = same_end or difflib.get_close_matches(name, PARAMETERS, n=1, cutoff=_ALIKE)
    return near[0] if near else None


def check_names(names: Collection[str], *, only_ours: bool) -> None:
    """Refuse names that are no parameters of the localizer, with the nearest name that is one.

    Args:
        names: Parameter names, dotted.
        only_ours: Whether the names are meant for the localizer alone. False for what may come from a section for
            several nodes, such as `/**`: there, a name is refused only if it begins with one of the localizer's groups
            or is nearly one of its names; others are taken for another node's.

    Raises:
        ConfigurationError: A name is unknown.
    """
    for name in names:
        group = name.partition(".")[0]
        if name in PARAMETERS or name in RCLPY_PARAMETERS or group in RCLPY_GROUPS:
            continue
        if not only_ours and group not in _GROUPS and not difflib.get_close_matches(name, PARAMETERS, 1, _MEANT):
            continue
        if name in RETIRED:
            raise ConfigurationError(f"{name} is no longer a parameter of the localizer: {RETIRED[name]}")
        near = nearest_name(name)
        remedy = f"did you mean {near}?" if near else "docs/reference/parameters.md lists them all."
        if not only_ours:
            remedy += " A parameter of another node belongs below that node's name"
        raise ConfigurationError(f"{name} is not a parameter of the localizer; {remedy}")
