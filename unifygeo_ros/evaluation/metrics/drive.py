"""A drive's results as arrays, one entry an image: what metrics and figures are made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Iterable

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Bool, Float64, Int64
from unifygeo_ros.core.records import Fix
from unifygeo_ros.core.se2 import rotation_matrix
from unifygeo_ros.core.time import NS_PER_S
from unifygeo_ros.evaluation.metrics.results import FrameResult, SeenTiles
from unifygeo_ros.localization.camera_mount import camera_offset_m
from unifygeo_ros.localization.config import CameraMount

_NO_POINT = (math.nan, math.nan)
_NO_MATRIX = ((math.nan, math.nan), (math.nan, math.nan))


@dataclass(frozen=True)
class Drive:
    """n images in the order of the bag.

    Positions are base_link's: float64 (n, 2), map east and north in metres. NaN stands where there is nothing.
    """

    stamps_ns: Int64
    time_s: Float64
    """Since the first image, by the recorder's clock."""
    outcomes: tuple[str, ...]
    """The word "fix", or the rejection's reason."""
    fixed: Bool
    """Whether there is a fix."""
    has_truth: Bool
    truth_m: Float64
    truth_covariance_m2: Float64
    truth_yaw_rad: Float64
    track_yaw_rad: Float64
    """Direction of travel; the orientation while standing."""
    fix_m: Float64
    covariance_m2: Float64
    yaw_rad: Float64
    yaw_variance_rad2: Float64
    score: Float64
    ambiguity: Float64
    answer_m: Float64
    """The best hypothesis, whether it passed the gates or not."""
    tile_m: Float64
    """Where base_link is if the camera is at the centre of the best tile after re-ranking."""
    retrieved_m: Float64
    """The same for the best tile before re-ranking."""
    odometry: Float64
    """float64 (n, 3): x, y, yaw in the odometry's own frame."""
    ranked: Bool
    """Whether the ranks of the right tile were determined."""
    rank_depth: int
    candidates: int
    ranks_covering_retrieved: Int64
    """Ranks: int64 (n,), from 1; 0 where the right tile is beyond the depth."""
    ranks_covering_reranked: Int64
    ranks_nearest_retrieved: Int64
    ranks_nearest_reranked: Int64

    def __len__(self) -> int:
        return len(self.stamps_ns)

    @property
    def judged(self) -> Bool:
        """Images with a fix and ground truth."""
        return self.fixed & self.has_truth


def gather(results: Iterable[FrameResult], mount: CameraMount) -> Drive:
    """Read results, one at a time, into arrays. mount: of the camera that took the images."""
    rows = [_row(result, mount) for result in results]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in (rows[0] if rows else _EMPTY)}
    log_times = np.array(columns.pop("log_time_ns"), np.int64)
    # What was recovered from a damaged bag may be out of order by a little.
    log_times = np.maximum.accumulate(log_times) if len(log_times) else log_times
    shapes = {name: (len(rows), *shape) for name, shape in _SHAPES.items()}
    arrays: dict[str, Any] = {
        **{name: np.array(columns[name], np.float64).reshape(shape) for name, shape in shapes.items()},
        **{name: np.array(columns[name], np.int64) for name in _RANKS},
    }
    return Drive(
        stamps_ns=np.array(columns["stamps_ns"], np.int64),
        time_s=(log_times - log_times[0]) / NS_PER_S if len(rows) else np.zeros(0),
        outcomes=tuple(columns["outcomes"]),
        fixed=np.array([outcome == "fix" for outcome in columns["outcomes"]], np.bool_),
        has_truth=np.asarray(~np.isnan(arrays["truth_m"]).any(axis=1)),
        ranked=np.array(columns["ranked"], np.bool_),
        rank_depth=max(columns["rank_depth"], default=0),
        candidates=max(columns["candidates"], default=0),
        **arrays,
    )


_SHAPES: dict[str, tuple[int, ...]] = {
    "truth_m": (2,),
    "truth_covariance_m2": (2, 2),
    "truth_yaw_rad": (),
    "track_yaw_rad": (),
    "fix_m": (2,),
    "covariance_m2": (2, 2),
    "yaw_rad": (),
    "yaw_variance_rad2": (),
    "score": (),
    "ambiguity": (),
    "answer_m": (2,),
    "tile_m": (2,),
    "retrieved_m": (2,),
    "odometry": (3,),
}
_RANKS = (
    "ranks_covering_retrieved",
    "ranks_covering_reranked",
    "ranks_nearest_retrieved",
    "ranks_nearest_reranked",
)
_EMPTY = ("log_time_ns", "stamps_ns", "outcomes", "ranked", "rank_depth", "candidates", *_SHAPES, *_RANKS)


def _row(result: FrameResult, mount: CameraMount) -> dict[str, Any]:
    outcome, truth, tiles, ranks = result.outcome, result.truth, result.tiles, result.ranks
    fix = outcome if isinstance(outcome, Fix) else None
    yaw = math.nan if truth is None or truth.yaw_rad is None else truth.yaw_rad
    course = math.nan if truth is None or truth.course_rad is None else truth.course_rad
    answer = outcome.hypotheses[0] if outcome.hypotheses else None
    return {
        "log_time_ns": result.log_time_ns,
        "stamps_ns": outcome.stamp_ns,
        "outcomes": "fix" if fix is not None else outcome.reason.value,  # type: ignore[union-attr]
        "truth_m": _NO_POINT if truth is None else (truth.east_m, truth.north_m),
        "truth_covariance_m2": _NO_MATRIX if truth is None else truth.covariance_m2,
        "truth_yaw_rad": yaw,
        "track_yaw_rad": yaw if math.isnan(course) else course,
        "fix_m": _NO_POINT if fix is None else (fix.east_m, fix.north_m),
        "covariance_m2": _NO_MATRIX if fix is None else fix.covariance_m2,
        "yaw_rad": math.nan if fix is None else fix.yaw_rad,
        "yaw_variance_rad2": math.nan if fix is None else fix.yaw_variance_rad2,
        "score": math.nan if tiles is None else tiles.scores[0],
        "ambiguity": math.nan if fix is None else fix.ambiguity,
        "answer_m": _base_link(None if answer is None else (answer.east_m, answer.north_m), tiles, mount),
        "tile_m": _base_link(None if tiles is None else tiles.centres_m[0], tiles, mount),
        "retrieved_m": _base_link(
            None if tiles is None else tiles.centres_m[int(np.argmin(tiles.retrieval_ranks))], tiles, mount
        ),
        "odometry": result.odometry or (math.nan,) * 3,
        "ranked": ranks is not None,
        "rank_depth": 0 if ranks is None else ranks.depth,
        "candidates": 0 if ranks is None else ranks.candidates,
        "ranks_covering_retrieved": 0 if ranks is None else ranks.covering_retrieved or 0,
        "ranks_covering_reranked": 0 if ranks is None else ranks.covering_reranked or 0,
        "ranks_nearest_retrieved": 0 if ranks is None else ranks.nearest_retrieved or 0,
        "ranks_nearest_reranked": 0 if ranks is None else ranks.nearest_reranked or 0,
    }


def _base_link(camera_m: npt.ArrayLike | None, tiles: SeenTiles | None, mount: CameraMount) -> Float64:
    """base_link's position for a camera's, by the heading that was used."""
    if camera_m is None or tiles is None:
        return np.array(_NO_POINT)
    return np.asarray(camera_m, np.float64) - camera_offset_m(mount, tiles.yaw_rad)


def dead_reckoning(drive: Drive) -> Float64:
    """Where odometry alone would be: float64 (n, 2), started at the first true pose and never corrected.

    NaN before that pose, without odometry, and where the ground truth has no direction to start with.
    """
    reckoned = np.full((len(drive), 2), np.nan)
    usable = drive.has_truth & ~np.isnan(drive.track_yaw_rad) & ~np.isnan(drive.odometry).any(axis=1)
    if not usable.any():
        return reckoned
    start = int(np.argmax(usable))
    # The orientation where there is one; the course is the next best.
    yaw = drive.truth_yaw_rad[start] if not math.isnan(drive.truth_yaw_rad[start]) else drive.track_yaw_rad[start]
    turn = yaw - drive.odometry[start, 2]
    moved = drive.odometry[start:, :2] - drive.odometry[start, :2]
    reckoned[start:] = drive.truth_m[start] + moved @ rotation_matrix(turn).T
    return reckoned
