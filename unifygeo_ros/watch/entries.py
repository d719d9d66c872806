"""The journal's entries: what the page gets to know. Times are milliseconds, lengths metres, angles radians.

{"kind": "frame", "t", …}   what is known of the image of that stamp; entries of one stamp complete each other:
    "fix", "east", "north", "yaw", "covariance": [ee, en, nn]    a fix
    "wgs84": [latitude, longitude]                               degrees
    "reason", "text"                                             a rejection, or the fix in words
    "hypotheses": [[east, north, weight], …]
    "truth": [east, north], "tile": [east, north]                of a replay
    "image"                                                      number of the picture: /images/NUMBER.jpg
{"kind": "image", "t", "image"}     a picture of the camera, whose stamp need not be a frame's
{"kind": "pose", "t", "east", "north", "yaw", "covariance"}
{"kind": "status", "parts": [{"name", "level", "text", "values"}, …]}
{"kind": "map"}             the map has come or gone: ask for /info.json again
"""

from __future__ import annotations

import math
from typing import Any, Iterable

from unifygeo_ros.conversions.message_values import outcome_diagnostic
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.records import Fix
from unifygeo_ros.evaluation.metrics.results import FrameResult

Entry = dict[str, Any]


def milliseconds(stamp_ns: int) -> float:
    """To the microsecond, which a JavaScript number holds."""
    return stamp_ns // 1000 / 1e3


def position(east_m: float, north_m: float, yaw_rad: float, covariance_m2: Float64) -> Entry:
    """Where something is, as JSON.

    Numbers that are not finite, which JSON cannot hold, are left out. The covariance is float64 (2, 2).
    """
    values = (east_m, north_m, yaw_rad, *(float(covariance_m2[i][j]) for i, j in ((0, 0), (0, 1), (1, 1))))
    if not all(map(math.isfinite, values)):
        return {}
    return {
        "east": round(east_m, 3),
        "north": round(north_m, 3),
        "yaw": round(yaw_rad, 5),
        "covariance": [float(f"{value:.4g}") for value in values[3:]],
    }


def weighted(hypotheses: Iterable[tuple[float, float, float]]) -> list[list[float]]:
    """hypotheses: east, north, weight."""
    return [[round(east, 2), round(north, 2), float(f"{weight:.3g}")] for east, north, weight in hypotheses]


def frame_of_replay(result: FrameResult) -> Entry:
    """All that a replay knows of an image."""
    outcome = result.outcome
    frame: Entry = {
        "kind": "frame",
        "t": milliseconds(outcome.stamp_ns),
        "fix": isinstance(outcome, Fix),
        "text": outcome_diagnostic(outcome).message,
        "hypotheses": weighted((one.east_m, one.north_m, one.weight) for one in outcome.hypotheses),
        "image": result.number,
    }
    if isinstance(outcome, Fix):
        frame |= position(outcome.east_m, outcome.north_m, outcome.yaw_rad, outcome.covariance_m2)
        frame["wgs84"] = [round(outcome.latitude_deg, 7), round(outcome.longitude_deg, 7)]
        frame["ambiguity"] = float(f"{outcome.ambiguity:.3g}")
    else:
        frame["reason"] = outcome.reason.value
    if result.truth is not None:
        frame["truth"] = [round(result.truth.east_m, 3), round(result.truth.north_m, 3)]
    if result.tiles is not None and len(result.tiles.centres_m):
        frame["tile"] = [round(float(value), 2) for value in result.tiles.centres_m[0]]
    return frame
