"""A localizer that can be asked afterwards what it saw, without changing what it answers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.index import TileIndex
from unifygeo_ros.core.records import CameraImage, Candidates, Fix, Float32, Heading, Observation, Prior, Rejection
from unifygeo_ros.evaluation.metrics.results import Query, SeenTiles, TileRanks
from unifygeo_ros.evaluation.recordings.truth import TruthPose
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.inference.engine import EngineSet
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.lever_arm import camera_offset_m
from unifygeo_ros.localization.localizer import Localizer

RANK_DEPTH = 1000
_POINT_M2 = np.eye(2) * 1e-6


class WatchedIndex(TileIndex):
    """An index that remembers the last search."""

    def __init__(self, index: TileIndex) -> None:
        super().__init__(index.path, index.manifest)
        self._last: tuple[Float32, Gate | None] | None = None

    def search(self, descriptor: npt.ArrayLike, k: int, gate: Gate | None = None) -> Candidates:
        self._last = (np.array(descriptor, np.float32), gate)
        return super().search(descriptor, k, gate)

    def ranking(self) -> npt.NDArray[np.int64]:
        """The first RANK_DEPTH tiles of the last search, most similar first: int64."""
        if self._last is None:
            return np.empty(0, np.int64)
        descriptor, gate = self._last
        return super().search(descriptor, RANK_DEPTH, gate).tile_ids


class WatchedLocalizer(Localizer):
    """Remembers the last query and observation. Given an outcome to repeat, `locate` answers that and computes nothing;
    a session in mode sequence asks for observations, which are always computed."""

    def __init__(
        self,
        index: WatchedIndex,
        bundle: ModelBundle,
        engines: EngineSet,
        config: LocalizerConfig,
        mount: CameraMount,
    ) -> None:
        super().__init__(index, bundle, engines, config, mount)
        self.watched_index = index
        self.query: Query | None = None
        self.observation: Observation | None = None
        self._repeat: Fix | Rejection | None = None

    def prepare(self, repeat: Fix | Rejection | None) -> None:
        """Forget the last image. repeat: what to answer to the next, None to localize it."""
        self.query, self.observation, self._repeat = None, None, repeat

    def locate(self, image: CameraImage, prior: Prior | None = None, heading: Heading | None = None) -> Fix | Rejection:
        return self._repeat or super().locate(image, prior, heading)

    def observe(
        self,
        image: CameraImage,
        prior: Prior | None = None,
        heading: Heading | None = None,
        *,
        distributions: int = 1,
        candidates: int | None = None,
    ) -> Observation | Rejection:
        self.query = Query(prior, heading, image.roll_rad, image.pitch_rad)
        result = super().observe(image, prior, heading, distributions=distributions, candidates=candidates)
        self.observation = result if isinstance(result, Observation) else None
        return result

    def seen_tiles(self) -> SeenTiles | None:
        """The candidates of the last image, None if it did not get so far."""
        if self.observation is None:
            return None
        matches = self.observation.matches
        return SeenTiles(
            tile_ids=tuple(matches.tile_ids.tolist()),
            centres_m=np.array(self.index.centres_m[matches.tile_ids]),
            scores=tuple(matches.scores.tolist()),
            similarities=tuple(matches.similarities.tolist()),
            retrieval_ranks=tuple(matches.retrieval_ranks.tolist()),
            yaw_rad=self.observation.heading.yaw_rad,
        )

    def ranks(self, truth: TruthPose) -> TileRanks | None:
        """Where the right tile stood in the last search; None if there was none, or if no tile holds the position."""
        if self.observation is None:
            return None
        camera = np.array([truth.east_m, truth.north_m])
        direction = truth.course_rad if truth.yaw_rad is None else truth.yaw_rad
        if direction is not None:
            camera = camera + camera_offset_m(self.mount, direction)
        covering = self.index.tiles_within(Gate(Prior(float(camera[0]), float(camera[1]), _POINT_M2), 1.0))
        if not len(covering):
            return None
        nearest = covering[np.argmin(np.hypot(*(self.index.centres_m[covering] - camera).T))]
        retrieved, reranked = self.watched_index.ranking(), self.observation.matches.tile_ids
        return TileRanks(
            depth=RANK_DEPTH,
            candidates=len(reranked),
            covering_retrieved=_first_place(retrieved, covering),
            covering_reranked=_first_place(reranked, covering),
            nearest_retrieved=_first_place(retrieved, nearest),
            nearest_reranked=_first_place(reranked, nearest),
        )


def _first_place(ranking: npt.NDArray[np.int64], wanted: npt.ArrayLike) -> int | None:
    """Place, from 1, of the first of the wanted tiles."""
    places = np.flatnonzero(np.isin(ranking, wanted))
    return int(places[0]) + 1 if len(places) else None
