"""Panorama → fix: the one place that joins the stages.

image ─► panorama ─► ground encoder ─► retrieve ─► re-rank ─► decode ─► decide ─► fix | rejection
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import contextmanager
from typing import Iterator, Mapping, Sequence

import numpy as np

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.arrays import Float32, Float64, Int64
from unifygeo_ros.core.errors import BundleError, EngineError, IndexFormatError
from unifygeo_ros.core.geodesy import wrap_angle, yaw_from_azimuth
from unifygeo_ros.core.records import (
    ALL_SEEN,
    CameraImage,
    Candidates,
    Distances,
    Fix,
    GroundFeatures,
    Heading,
    HeadingSource,
    Observation,
    Panorama,
    Prior,
    Query,
    Rejection,
    RejectionReason,
    TileDistribution,
)
from unifygeo_ros.core.settings import check_only_live_changed
from unifygeo_ros.inference.bundle import GROUND_FEATURES, ModelBundle
from unifygeo_ros.inference.engine import EngineSet
from unifygeo_ros.inference.familiarity import panorama_features, tile_features
from unifygeo_ros.localization.camera_alternatives import CONFIGURED, Alternative
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.decision import Answer, answer, clues_of, decide, unfamiliar
from unifygeo_ros.localization.decoding import probabilities
from unifygeo_ros.localization.heading import (
    HeadingSearch,
    encoding_azimuths,
    estimate_heading,
    heading_search,
    rolled_columns,
)
from unifygeo_ros.localization.panorama import (
    check_image,
    check_mask,
    check_seen,
    enough_columns,
    how_much_is_seen,
    prepare_panorama,
)
from unifygeo_ros.localization.pyramids import PyramidCache
from unifygeo_ros.localization.reranking import match, rerank
from unifygeo_ros.localization.retrieval import camera_gate, prior_problem
from unifygeo_ros.localization.tile_axes import observation_in_map, query_along_tiles

NOTHING_KNOWN = Query()
"""Neither position nor heading."""

HEADING_SEARCH_ENCODINGS = 10
"""Encodings of a heading search before the last one, 36° apart. The descriptor does not roll and needs one that is
near: on four drives the right tile with the right heading is among the first five in 45% of the images with two
encodings, in 52% with six, 62% with ten and 64% with twenty. The time of the search grows with their number."""

HEADING_SEARCH_CANDIDATES = 5
"""Tiles retrieved for each encoding of a heading search. With twenty the right one leads no more often."""


class Localizer:
    """Where images were taken, each for itself. Not safe for use from two threads at once (its engines are not)."""

    def __init__(
        self,
        index: MapIndex,
        bundle: ModelBundle,
        engines: EngineSet,
        config: LocalizerConfig | None = None,
        mount: CameraMount | None = None,
    ) -> None:
        """Check that the parts fit together.

        Args:
            index: of the region.
            bundle: the model that the index was built with.
            engines: of the bundle; they are not closed here.
            config: gates and searches; None: the defaults.
            mount: of the camera; None: the defaults.

        Raises:
            IndexFormatError: index and bundle do not belong together.
            InputError: the mount's mask cannot be used.
        """
        self.index = index
        self.bundle = bundle
        self.config = config or LocalizerConfig()
        self.mount = mount or CameraMount()
        self._engines = engines
        self._model = bundle.manifest
        if index.manifest.weights_sha256 != self._model.weights_sha256:
            raise IndexFormatError(
                f"{index.path}: made with the weights {index.manifest.weights_sha256[:12]}…, the model has "
                f"{self._model.weights_sha256[:12]}…; build the index again"
            )
        if self._model.match_channels % self._model.ground.columns:
            raise BundleError(
                f"{bundle.path}: {self._model.match_channels} matching channels are no multiple of "
                f"{self._model.ground.columns} columns; export the bundle again"
            )
        check_mask(self.mount)
        self._pyramids = PyramidCache(index, engines.aerial_encoder, self.config.pyramid_cache_tiles)

    @property
    def enough_columns(self) -> int:
        """Columns beyond which an image adds nothing visible: see `panorama.enough_columns`."""
        return enough_columns(self._model.ground)

    def reconfigure(self, config: LocalizerConfig) -> None:
        """Use other live settings from the next image on. The others must be as they were."""
        check_only_live_changed(self.config, config, "localizer")
        self.config = config

    def locate(self, image: CameraImage, query: Query = NOTHING_KNOWN) -> Fix | Rejection:
        """Where base_link was when the image was taken."""
        observation = self.observe(image, query)
        return observation if isinstance(observation, Rejection) else self.decide(observation, query)

    def observe(self, image: CameraImage, query: Query = NOTHING_KNOWN) -> Observation | Rejection:
        """All that an image says of where the camera was."""
        observation = self._observe_along_tiles(image, query_along_tiles(query, self.index))
        return observation if isinstance(observation, Rejection) else observation_in_map(observation, query, self.index)

    def _observe_along_tiles(self, image: CameraImage, query: Query) -> Observation | Rejection:
        """`observe`, with headings from the tiles' eastward axis, and distributions that are not turned yet."""
        prior, heading = query.prior, query.heading
        clock = _StageClock()
        with clock.stage("checks"):
            refusal = check_image(image, self.mount, self.config)
            seen = ALL_SEEN if refusal is not None else how_much_is_seen(image, self.mount, self._model.ground)
            refusal = refusal or check_seen(image, seen, self.config) or self._check_inputs(image, prior, heading)
        if refusal is not None:
            return dataclasses.replace(refusal, timings_ms=clock.timings_ms())
        count = self.config.candidates if query.candidates is None else query.candidates
        search = None
        if heading is None:
            search = self._search_heading(image, self.gate(prior, None), clock)
            if search is not None:
                heading = estimate_heading(search, self._model.calibration.heading_temperature)
        if heading is None:
            return self._off_map(image, prior, clock)
        with clock.stage("preprocessing"):
            panorama = prepare_panorama(image, self._model.ground, self.mount, heading)
        with clock.stage("ground_encoder"):
            features = self._encode(panorama)
        with clock.stage("retrieval"):
            found = self._retrieve(features, count, self.gate(prior, heading), search)
        if not len(found.tile_ids):
            return self._off_map(image, prior, clock)
        with clock.stage("reranking"):
            matches = rerank(found, self._match(features.levels[0][None], found.tile_ids)[:, 0])
        decoded = [self._decode(int(matches.tile_ids[0]), features, None if search is None else heading, clock)]
        for tile_id in matches.tile_ids[1 : query.distributions].tolist():
            own_features, own_heading = self._features_for(tile_id, image, features, heading, search, clock)
            decoded.append(self._decode(tile_id, own_features, own_heading, clock))
        return Observation(
            image.stamp_ns,
            matches,
            tuple(decoded),
            heading,
            features,
            self._distances(features, int(matches.tile_ids[0])),
            seen,
            clock.timings_ms(),
        )

    def answer(self, observation: Observation) -> Answer:
        """Where the camera most probably was, before any gate."""
        centres_m = self.index.centres_m[observation.matches.tile_ids]
        return answer(observation, centres_m, self.index.manifest.side_m, self.config, self._model.calibration)

    def decide(self, observation: Observation, query: Query = NOTHING_KNOWN) -> Fix | Rejection:
        """A fix if the observation passes the gates, else why not."""
        start = time.perf_counter()
        found = self.answer(observation)
        calibration = self._model.calibration
        result = decide(observation, found, query, self.config, calibration, self.mount, self.index.frame)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        timings = {**observation.timings_ms, "decision": elapsed_ms}
        timings["total"] = timings.get("total", 0.0) + elapsed_ms
        return dataclasses.replace(result, timings_ms=timings)

    def camera_fits(
        self,
        image: CameraImage,
        heading: Heading,
        alternatives: Sequence[Alternative],
        configured: GroundFeatures | None = None,
        prior: Prior | None = None,
    ) -> dict[str, float]:
        """How much an image looks as if it were taken on the map, as configured and mounted in other ways.

        Args:
            image: one that `observe` does not reject.
            heading: of base_link.
            alternatives: the other ways, all possible for this image and mount; each is encoded and decoded.
            configured: the image's features under that heading as configured, where they are known.
            prior: of base_link. The places near it are looked at as well as the nearest in the whole index.

        Returns:
            ln of the odds of showing a place on the map against showing none, by `Alternative.words` and for
            `CONFIGURED`; −∞ for an image of which the calibration says nothing.
        """
        clock, calibration = _StageClock(), self._model.calibration
        gate = self.gate(prior, heading)

        def log_odds(taken: CameraImage, mount: CameraMount, known: GroundFeatures | None = None) -> float:
            ground = self._model.ground
            features = known or self._encode(prepare_panorama(taken, ground, mount, heading))
            found = self._retrieve(features, self.config.candidates, None, None)
            if gate is not None:
                near = self._retrieve(features, self.config.candidates, gate, None)
                tile_ids = np.union1d(found.tile_ids, near.tile_ids)
                found = Candidates(tile_ids, self._similarities(tile_ids, features)[:, 0])
            matches = rerank(found, self._match(features.levels[0][None], found.tile_ids)[:, 0])
            best = int(matches.tile_ids[0])
            observation = Observation(
                image.stamp_ns,
                matches,
                (self._decode(best, features, None, clock),),
                heading,
                features,
                self._distances(features, best),
                how_much_is_seen(taken, mount, ground),
            )
            if unfamiliar(observation.distances, calibration) is not None:
                return -math.inf
            centres_m = self.index.centres_m[matches.tile_ids]
            clues, _, _ = clues_of(observation, centres_m, self.index.manifest.side_m, self.config, calibration)
            return calibration.place_log_odds(clues)

        fits = {CONFIGURED: log_odds(image, self.mount, configured)}
        for alternative in alternatives:
            fits[alternative.words] = log_odds(*alternative.applied(image, self.mount))
        return fits

    def tile_distances(self, tile_ids: Int64) -> Float64 | None:
        """How far tiles of the index are from what the model was calibrated on, as in `Distances`.

        Returns:
            float64 (n,); None where the bundle does not know what is usual.
        """
        known = self._model.calibration.familiarity
        if known is None:
            return None
        return known.aerial.distances(tile_features(self.index.match_maps[tile_ids], self._model.ground.columns))

    # -- stages, each one line of `observe` -----------------------------------------------------------------------

    def _check_inputs(self, image: CameraImage, prior: Prior | None, heading: Heading | None) -> Rejection | None:
        if prior is not None and (problem := prior_problem(prior)):
            return Rejection(image.stamp_ns, RejectionReason.BAD_PRIOR, problem)
        if heading is None and not self.config.heading_search:
            return Rejection(
                image.stamp_ns, RejectionReason.NO_HEADING, "no heading was given and heading_search is off"
            )
        if heading is not None and not (
            np.isfinite(heading.yaw_rad) and np.isfinite(heading.variance_rad2) and heading.variance_rad2 > 0
        ):
            return Rejection(
                image.stamp_ns,
                RejectionReason.NO_HEADING,
                f"heading ({heading.source.value}) is {heading.yaw_rad} rad with variance "
                f"{heading.variance_rad2} rad²; both must be finite, the variance above 0; give "
                "the square of its standard deviation",
            )
        return None

    def gate(self, prior: Prior | None, heading: Heading | None) -> Gate | None:
        """The part of the index that a prior of base_link limits the search to; None: all of it."""
        return None if prior is None else camera_gate(prior, self.mount, heading, self.config.prior_gate_sigma)

    def _off_map(self, image: CameraImage, prior: Prior | None, clock: _StageClock) -> Rejection:
        where = "" if prior is None else f" within {self.config.prior_gate_sigma:g} σ of {_place(prior)}"
        detail = f"the index holds no tile{where}; check the prior or extend the index"
        return Rejection(image.stamp_ns, RejectionReason.OFF_MAP, detail, timings_ms=clock.timings_ms())

    def _encode(self, panorama: Panorama) -> GroundFeatures:
        image = {"image": panorama.pixels[None]}
        wanted = ("descriptor", *GROUND_FEATURES)
        outputs, resident = self._engines.ground_encoder.run_resident(image, GROUND_FEATURES, wanted)
        features = GroundFeatures(
            outputs["descriptor"][0], tuple(outputs[name][0] for name in GROUND_FEATURES), resident
        )
        if not all(np.isfinite(array).all() for array in (features.descriptor, *features.levels)):
            raise EngineError(
                f"the ground encoder ({self._engines.description}) gave values that are not finite; "
                "run it in fp32 or export the bundle again"
            )
        return features

    def _match(self, f0s: Float32, tile_ids: Int64) -> Float32:
        return match(f0s, np.asarray(self.index.match_maps[tile_ids], np.float16))

    def _search_heading(self, image: CameraImage, gate: Gate | None, clock: _StageClock) -> HeadingSearch | None:
        """All rolls of one or more encodings against all tiles that any of the encodings retrieves; None: no tile."""
        ground = self._model.ground
        azimuths = encoding_azimuths(HEADING_SEARCH_ENCODINGS, ground.columns)
        with clock.stage("heading_encoder"):
            headings = [Heading(float(yaw_from_azimuth(azimuth)), 0.0, HeadingSource.SEARCH) for azimuth in azimuths]
            encodings = [self._encode(prepare_panorama(image, ground, self.mount, h)) for h in headings]
        with clock.stage("heading_search"):
            found = [self.index.search(e.descriptor, HEADING_SEARCH_CANDIDATES, gate) for e in encodings]
            tile_ids = np.unique(np.concatenate([candidates.tile_ids for candidates in found]))
            if not len(tile_ids):
                return None
            similarities = self._similarities(tile_ids, *encodings)
            rolls = np.concatenate([rolled_columns(features.levels[0], ground.columns) for features in encodings])
            peaks = self._match(rolls, tile_ids).max(axis=(2, 3)).reshape(*similarities.shape, ground.columns)
            sectors = np.arange(ground.columns) * (2 * np.pi / ground.columns)
            return heading_search(tile_ids, azimuths[:, None] + sectors, similarities, peaks)

    def _similarities(self, tile_ids: Int64, *queries: GroundFeatures) -> Float32:
        """Cosines of the descriptors: float32 (tiles, queries)."""
        descriptors = np.stack([features.descriptor for features in queries])
        return np.asarray(np.asarray(self.index.descriptors[tile_ids], np.float32) @ descriptors.T, np.float32)

    def _retrieve(
        self, features: GroundFeatures, count: int, gate: Gate | None, search: HeadingSearch | None
    ) -> Candidates:
        """The nearest tiles, and in any case the one that the heading comes from.

        Without that tile the heading means nothing.
        """
        found = self.index.search(features.descriptor, count, gate)
        if search is None or search.best_tile in found.tile_ids:
            return found
        tile_ids = np.append(found.tile_ids[: count - 1], search.best_tile)
        return Candidates(tile_ids, self._similarities(tile_ids, features)[:, 0])

    def _distances(self, features: GroundFeatures, tile_id: int) -> Distances | None:
        known, tile = self._model.calibration.familiarity, self.tile_distances(np.array([tile_id]))
        if known is None or tile is None:
            return None
        ground = known.ground.distances(panorama_features(features.levels[0][None], self._model.ground.columns))
        return Distances(float(ground[0]), float(tile[0]))

    def _features_for(
        self,
        tile_id: int,
        image: CameraImage,
        features: GroundFeatures,
        heading: Heading,
        search: HeadingSearch | None,
        clock: _StageClock,
    ) -> tuple[GroundFeatures, Heading | None]:
        """Features under the heading that fits one tile, and that heading where it was searched.

        Those of `heading` serve tiles that fit best within a quarter of a sector of it.
        """
        if search is None:
            return features, None
        if tile_id not in search.tile_ids:
            return features, heading
        own = estimate_heading(search, self._model.calibration.heading_temperature, tile_id)
        if abs(wrap_angle(own.yaw_rad - heading.yaw_rad)) < np.pi / 2 / self._model.ground.columns:
            return features, heading
        with clock.stage("heading_encoder"):
            return self._encode(prepare_panorama(image, self._model.ground, self.mount, own)), own

    def _decode(
        self, tile_id: int, features: GroundFeatures, heading: Heading | None, clock: _StageClock
    ) -> TileDistribution:
        with clock.stage("aerial_encoder"):
            pyramid = self._pyramids.pyramid(tile_id)
        with clock.stage("decoder"):
            logits = self._engines.decoder.run({**features.resident, **pyramid})["logits"][0]
        if not np.isfinite(logits).all():
            raise EngineError(
                f"the decoder ({self._engines.description}) gave values that are not finite for tile {tile_id}; "
                "run it in fp32 or export the bundle again"
            )
        with clock.stage("distribution"):
            east_m, north_m = map(float, self.index.centres_m[tile_id])
            return TileDistribution(
                tile_id=tile_id,
                centre_east_m=east_m,
                centre_north_m=north_m,
                metres_per_pixel=self.index.manifest.side_m / self._model.distribution_size,
                probability=probabilities(logits, self._model.calibration.distribution_temperature),
                heading=heading,
            )


class _StageClock:
    """Milliseconds by stage of one image; a stage entered again adds up."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def timings_ms(self) -> Mapping[str, float]:
        """The stages so far, and the "total" since the clock was made."""
        return {**self._stages, "total": (time.perf_counter() - self._start) * 1e3}


def _place(prior: Prior) -> str:
    return f"east {prior.east_m:.1f} m, north {prior.north_m:.1f} m"
