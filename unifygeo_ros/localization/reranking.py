"""Re-ranking of the candidates by the matching level M⁰ (the paper's Eq. 4)."""

from __future__ import annotations

import numpy as np

from unifygeo_ros.core.arrays import Float16, Float32
from unifygeo_ros.core.records import Candidates, Matches


def match(f0s: Float32, match_maps: Float16) -> Float32:
    """M⁰ of every candidate for every query, in one matrix product.

    Args:
        f0s: float32 (R, C_0), unit length: one query, or its rolls.
        match_maps: float16 (k, S, S, C_0), unit length along the last axis.

    Returns:
        float32 (k, R, S, S), cosines.
    """
    k, size, _, channels = match_maps.shape
    cosines = match_maps.reshape(-1, channels).astype(np.float32) @ f0s.T  # (k·S·S, R)
    return np.ascontiguousarray(np.moveaxis(cosines.reshape(k, size, size, -1), 3, 1))  # positions last


def rerank(candidates: Candidates, match_maps: Float32) -> Matches:
    """Candidates in the order of similarity + max M⁰ (Eq. 4); equal scores keep the order of retrieval.

    Args:
        candidates: of the retrieval.
        match_maps: float32 (k, S, S), M⁰ of the candidates in their order.
    """
    scores = candidates.similarities + match_maps.max(axis=(1, 2))
    order = np.argsort(-scores, kind="stable")
    return Matches(
        tile_ids=candidates.tile_ids[order],
        scores=scores[order],
        similarities=candidates.similarities[order],
        match_maps=match_maps[order],
        retrieval_ranks=order.astype(np.int64),
    )
