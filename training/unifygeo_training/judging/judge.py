"""The whole pipeline of the paper (section III-B) over an evaluation set, streaming.

A gallery of m tiles costs m × (C + S² C_0 × 2) bytes of scratch disk (224 KB a tile at the published size: 20 GB for
VIGOR's 90,618) and one aerial encoding a tile, plus one more for each tile that wins or is a positive. Memory holds
the queries' features (6 KB each at the published size) and one batch.
"""

from __future__ import annotations

import concurrent.futures
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np
import torch

from unifygeo_ros.core.arrays import Array, Float16, Float32, Float64, Int64, UInt8
from unifygeo_ros.core.geodesy import map_from_tile
from unifygeo_ros.core.records import Candidates
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.reranking import match, rerank
from unifygeo_training import metrics
from unifygeo_training.judging.evaluation_set import EvaluationSet
from unifygeo_training.model import UnifyGeo

Progress = Callable[[Iterable[Int64], str, int], Iterable[Int64]]

CANDIDATES = LocalizerConfig().candidates
"""k of the paper."""


@dataclass(frozen=True)
class QueryResults:
    """What became of each of n queries."""

    nearest: Int64
    """int64 (n, k), rows of the gallery, best first."""
    reranked: Int64
    """int64 (n, k), rows of the gallery, best first."""
    positives: Int64
    """int64 (n,)."""
    offsets_m: dict[str, Float64]
    """By answer, as `Judgement` names them and "metric", float64 (n, 2): metres east and north of the centre of the
    tile that the answer lies on."""
    errors_m: dict[str, Float64]
    """By answer, float64 (n,), on the earth. Both are empty where the data tell no positions."""

    def arrays(self) -> dict[str, Array]:
        """Everything by name, for `np.savez`."""
        return {
            "nearest": self.nearest,
            "reranked": self.reranked,
            "positives": self.positives,
            **{f"{name}_offsets_m": value for name, value in self.offsets_m.items()},
            **{f"{name}_errors_m": value for name, value in self.errors_m.items()},
        }


@dataclass(frozen=True)
class Judgement:
    """All metrics of one network on one evaluation set. Fields that the data cannot give are None."""

    data: str
    queries: int
    gallery: int
    candidates: int
    retrieval: metrics.RetrievalScores
    reranked: metrics.RerankedScores
    metric: metrics.MetricScores | None
    """On the positive tile."""
    final: metrics.CvglScores | None
    """The pipeline's answer."""
    without_reranking: metrics.CvglScores | None
    """The same, with the nearest tile decoded."""
    tile_centre: metrics.CvglScores | None
    """The re-ranked winner's centre as the answer."""
    retrieval_only: metrics.CvglScores | None
    """The nearest tile's centre."""
    curve: metrics.CvglScores | None
    """Of the pipeline's answer, over `metrics.CURVE_M`."""
    results: QueryResults


@torch.inference_mode()
def judge(
    network: UnifyGeo,
    data: EvaluationSet,
    scratch: Path,
    *,
    candidates: int = CANDIDATES,
    batch: int = 32,
    workers: int = 4,
    device: torch.device | str = "cpu",
    progress: Progress = lambda batches, what, total: batches,
) -> Judgement:
    """Judge a network in evaluation mode. scratch: an empty folder for the gallery's features; the caller removes it.

    progress: wraps the batches (of rows) of each pass, given what is done and how many batches there are.
    Raises InputError for images that cannot be read and for descriptors that must not score.
    """
    network = network.to(device).eval()
    encoder = Encoder(network, data, batch, workers, torch.device(device), progress)
    descriptors, match_maps = encoder.gallery(scratch)
    queries, levels = encoder.queries()
    positives, semi_positives = data.tiles[:, 0], data.tiles[:, 1:]

    ranks = metrics.retrieval_ranks(queries, descriptors, positives)
    masked_ranks = metrics.retrieval_ranks(queries, descriptors, positives, semi_positives)
    similarities, nearest = metrics.nearest(queries, descriptors, candidates)
    order = rerank_all(levels[0], similarities, nearest, match_maps)

    metric, scores, answers, errors = None, {}, {}, {}
    if np.isfinite(data.offsets_m).all():
        winner, first = order[:, 0], nearest[:, 0]
        decoded = encoder.answers(levels, {"winner": winner, "nearest": first, "positive": positives})
        centre = np.zeros_like(data.offsets_m)
        tiles = {"final": winner, "without_reranking": first, "tile_centre": winner, "retrieval_only": first}
        answers = {
            "final": decoded["winner"],
            "without_reranking": decoded["nearest"],
            "tile_centre": centre,
            "retrieval_only": centre,
        }
        for name, offset_m in answers.items():
            apart_m = data.displacement_m(positives, tiles[name]) + offset_m - data.offsets_m
            errors[name] = np.hypot(*apart_m.T)
            scores[name] = metrics.cvgl_scores(errors[name], tiles[name], positives)
        scores["curve"] = metrics.cvgl_scores(errors["final"], winner, positives, metrics.CURVE_M)
        answers["metric"] = decoded["positive"]
        errors["metric"] = np.hypot(*(decoded["positive"] - data.offsets_m).T)
        metric = metrics.metric_scores(errors["metric"])
    return Judgement(
        data=data.name,
        queries=len(queries),
        gallery=len(descriptors),
        candidates=candidates,
        retrieval=metrics.retrieval_scores(ranks, masked_ranks, len(descriptors)),
        reranked=metrics.reranked_scores(order, positives, semi_positives),
        metric=metric,
        **{name: scores.get(name) for name in _CVGL},
        results=QueryResults(nearest, order, positives, answers, errors),
    )


_CVGL = ("final", "without_reranking", "tile_centre", "retrieval_only", "curve")


def rerank_all(f0: Float32, similarities: Float32, rows: Int64, match_maps: Float16) -> Int64:
    """The robot's re-ranking (Eq. 4) of every query.

    f0: float32 (n, C_0). similarities, rows: (n, k). match_maps: float16 (m, S², C_0), a memory map is fine.
    Returns int64 (n, k), the rows in their new order.
    """
    side = math.isqrt(match_maps.shape[1])
    order = np.empty_like(rows)
    for i, candidates in enumerate(rows):
        maps = match_maps[candidates].reshape(len(candidates), side, side, -1)
        order[i] = rerank(Candidates(candidates, similarities[i]), match(f0[i][None], maps)[:, 0]).tile_ids
    return order


class Encoder:
    """Runs the network over images that are read ahead by threads."""

    def __init__(
        self,
        network: UnifyGeo,
        data: EvaluationSet,
        batch: int,
        workers: int,
        device: torch.device,
        progress: Progress = lambda batches, what, total: batches,
    ) -> None:
        self.network, self.data, self.batch, self.workers = network, data, batch, workers
        self.device, self.progress = device, progress

    def gallery(self, scratch: Path) -> tuple[Float32, Float16]:
        """Descriptors (m, C) float32 and match maps (m, S², C_0) float16, memory-mapped in scratch."""
        m, (channels, size) = len(self.data.side_m), self.network.pyramid_shape[0]
        descriptors = np.lib.format.open_memmap(
            scratch / "descriptors.npy", "w+", np.float32, (m, self.network.descriptor_dim)
        )
        maps = np.lib.format.open_memmap(scratch / "match_maps.npy", "w+", np.float16, (m, size * size, channels))
        for rows, images in self._batches(np.arange(m), self.data.aerial_image, "gallery"):
            aerial = self.network.encode_aerial(images)
            assert aerial.descriptor is not None
            descriptors[rows] = aerial.descriptor.float().cpu().numpy()
            maps[rows] = aerial.match_map.flatten(2).transpose(1, 2).half().cpu().numpy()  # (N, C, S²) → (N, S², C)
        return descriptors, maps

    def queries(self) -> tuple[Float32, tuple[Float32, ...]]:
        """Descriptors (n, C) and levels f_g⁰ … f_g³ (n, C_l), float32."""
        descriptors, levels = [], []
        for _rows, images in self._batches(np.arange(len(self.data.tiles)), self.data.ground_image, "queries"):
            ground = self.network.encode_ground(images)
            assert ground.descriptor is not None
            descriptors.append(ground.descriptor.float().cpu().numpy())
            levels.append([level.float().cpu().numpy() for level in ground.levels])
        return np.concatenate(descriptors), tuple(np.concatenate(level) for level in zip(*levels, strict=True))

    def answers(self, levels: tuple[Float32, ...], tiles_of: dict[str, Int64]) -> dict[str, Float64]:
        """Most probable pixel of D on the tile that each query names, as metres east and north of the tile's centre.

        tiles_of: by name int64 (n,); each tile is encoded once. Returns by name float64 (n, 2).
        """
        wanted = np.unique(np.concatenate(list(tiles_of.values())))
        n = len(self.data.tiles)
        offsets = {name: np.full((n, 2), np.nan) for name in tiles_of}
        for rows, images in self._batches(wanted, self.data.aerial_image, "decoding"):
            pyramid = self.network.encode_aerial(images, descriptor=False).pyramid
            for name, tiles in tiles_of.items():
                queries = np.flatnonzero(np.isin(tiles, rows))
                for chunk in np.split(queries, range(self.batch, len(queries), self.batch)):
                    if len(chunk):
                        rows_of_chunk = np.searchsorted(rows, tiles[chunk])
                        offsets[name][chunk] = self._decode(levels, chunk, pyramid, rows_of_chunk, tiles[chunk])
        return offsets

    def _decode(
        self,
        levels: tuple[Float32, ...],
        queries: Int64,
        pyramid: tuple[torch.Tensor, ...],
        rows_of_chunk: Int64,
        tiles: Int64,
    ) -> Float64:
        ground = tuple(torch.from_numpy(level[queries]).to(self.device) for level in levels)
        logits = self.network.decode(ground, tuple(level[rows_of_chunk] for level in pyramid)).logits
        size = logits.shape[-1]
        row, column = np.divmod(logits.flatten(1).argmax(dim=1).cpu().numpy(), size)
        return map_from_tile(row, column, 0.0, 0.0, size, self.data.side_m[tiles] / size)

    def _batches(self, rows: Int64, read: Callable[[int], UInt8], what: str) -> Iterator[tuple[Int64, torch.Tensor]]:
        """Rows and their images (N, H, W, 3) uint8 on the device; the next batch is read while one is computed."""
        batches = [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            pending = [pool.submit(read, int(row)) for row in batches[0]]
            following = iter(batches[1:])
            for batch in self.progress(batches, what, len(batches)):
                images = [job.result() for job in pending]
                pending = [pool.submit(read, int(row)) for row in next(following, ())]
                yield batch, torch.from_numpy(np.stack(images)).to(self.device)
