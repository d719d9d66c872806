"""The candidates of an observation, and where the right tile stood among them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.core.arrays import Int64
from unifygeo_ros.core.records import Observation, Prior
from unifygeo_ros.evaluation.metrics.results import SeenTiles, TileRanks
from unifygeo_ros.evaluation.recordings.truth import TruthPose
from unifygeo_ros.localization.camera_mount import camera_offset_m
from unifygeo_ros.localization.localizer import Localizer

RANK_DEPTH = 1000
"""Tiles of the retrieval that are searched for the right one."""

_POINT_M2 = np.eye(2) * 1e-6


def seen_tiles(observation: Observation, localizer: Localizer) -> SeenTiles:
    """The candidates of an observation."""
    matches = observation.matches
    return SeenTiles(
        tile_ids=tuple(matches.tile_ids.tolist()),
        centres_m=np.array(localizer.index.centres_m[matches.tile_ids]),
        scores=tuple(matches.scores.tolist()),
        similarities=tuple(matches.similarities.tolist()),
        retrieval_ranks=tuple(matches.retrieval_ranks.tolist()),
        yaw_rad=observation.heading.yaw_rad,
    )


def tile_ranks(
    observation: Observation, prior: Prior | None, localizer: Localizer, truth: TruthPose
) -> TileRanks | None:
    """Where the right tile stood in the retrieval and after re-ranking; None if no tile holds the true position.

    prior: that of the observation's query. The retrieval is repeated to RANK_DEPTH.
    """
    index = localizer.index
    camera = np.array([truth.east_m, truth.north_m])
    direction = truth.course_rad if truth.yaw_rad is None else truth.yaw_rad
    if direction is not None:
        camera = camera + camera_offset_m(localizer.mount, direction)
    covering = index.tiles_within(Gate(Prior(float(camera[0]), float(camera[1]), _POINT_M2), 1.0))
    if not len(covering):
        return None
    nearest = covering[np.argmin(np.hypot(*(index.centres_m[covering] - camera).T))]
    gate = localizer.gate(prior, observation.heading)
    retrieved = index.search(observation.features.descriptor, RANK_DEPTH, gate).tile_ids
    reranked = observation.matches.tile_ids
    return TileRanks(
        depth=RANK_DEPTH,
        candidates=len(reranked),
        covering_retrieved=_first_rank(retrieved, covering),
        covering_reranked=_first_rank(reranked, covering),
        nearest_retrieved=_first_rank(retrieved, nearest),
        nearest_reranked=_first_rank(reranked, nearest),
    )


def _first_rank(ranking: Int64, wanted: npt.ArrayLike) -> int | None:
    """Rank, from 1, of the first of the wanted tiles."""
    found = np.flatnonzero(np.isin(ranking, wanted))
    return int(found[0]) + 1 if len(found) else None
