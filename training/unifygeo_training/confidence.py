"""Fit the bundle's confidences: how often an answer of the real localizer is right.

The belief of an answer is shared out among the candidates, as if one of them had to be right. On validation data it is
known how often none is, in two ways: another place on the map looks more like it, or the place is not on the map. For
the second the panoramas are localized in the index of another town (or part of a city) and, the harder case, in an
index of the other half of their own. Two logistic regressions on the same clues say how probable each is, once for
images with a heading and once for images whose heading was searched.

The mean features of all these panoramas and tiles are what the model knows (`unifygeo_ros.inference.familiarity`). What
a distance from them means is fitted on the same places, photographed by other cameras and providers: with changed
colours, tones, weather and noise. The distance has a weight of its own, and all other constants stay as they are.

So has what an image does not show, as where a rig has gaps: the same places with sectors and elevations missing. D is
wider then although the answer is as right.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.core.arrays import Bool, Float64
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import Datum, yaw_from_azimuth
from unifygeo_ros.core.records import CameraImage, Distances, Heading, HeadingSource, Prior, Query, Rejection
from unifygeo_ros.inference.bundle import (
    MANIFEST_NAME,
    BundleManifest,
    Calibration,
    Clues,
    Confidence,
    ModelBundle,
    load_bundle,
    log_odds,
    with_calibration,
)
from unifygeo_ros.inference.engine import EngineSet
from unifygeo_ros.inference.familiarity import Familiarity, panorama_features, tile_features, usual_features
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_training.calibrate import CalibrationReport
from unifygeo_training.data.photography import PhotographyConfig, draw_seen
from unifygeo_training.export import BundleText, export_bundle
from unifygeo_training.files import locked, new_folder
from unifygeo_training.model import UnifyGeo
from unifygeo_training.streets import PhotographedStreets, Streets

GATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
HEADING_SIGMA_RAD = LocalizerConfig().heading_sigma_rad
CONFIG = LocalizerConfig(check_projection=False)
"""Of the localizer whose answers are judged. The panoramas of a data set are known to be equirectangular."""
STYLES = (
    PhotographyConfig(
        tone=0.5, channels=0.2, fourier=0.3, statistics=0.3, lens=0.3, weather=0.2, vehicle=0.2, passers=0.3,
        imagery=0.5,
    ),
    PhotographyConfig(
        tone=0.7, channels=0.5, fourier=0.5, statistics=0.5, convolution=0.4, lens=0.4, weather=0.4, motion=0.3,
        vehicle=0.3, passers=0.3, imagery=0.7, shadows=0.5,
    ),
)  # fmt: skip
"""Cameras and providers with which the meaning of unfamiliarity is fitted: mild and strong changes."""
LIMIT_QUANTILE = 0.99
"""Share of the right answers that lie within the limits of `Familiarity`."""
LEAST_LIMIT = 1.2
"""Limits of `Familiarity` are not below this: a few towns do not tell how much others of their kind differ. Of three
held-out drives one had 3.5% of its images between 1.0 and 1.18, with fixes as good as the others'."""
_SHRINKAGE = 0.1
"""Weight, against one answer's, of the squared distance from "as sure as the belief": where the data do not tell."""


@dataclass(frozen=True)
class Outcomes:
    """Answers of the localizer: their clues (`Clues`), and what became of them."""

    beliefs: Float64
    scores: Float64
    spreads: Float64
    agreeing: Float64
    panoramas: Float64
    """Mean features of the panoramas, (n, C)."""
    tiles: Float64
    """Mean features of the best tiles, (n, C)."""
    unseen: Float64
    """Share of what the network takes in that the images do not show."""
    right: Bool
    """Within answer_radius_m of the truth."""
    outside: Bool
    """The place is on no tile of the index."""

    def __len__(self) -> int:
        return len(self.right)

    def distances(self, known: Familiarity) -> list[Distances]:
        """How far each is from what is known."""
        grounds, aerials = known.ground.distances(self.panoramas), known.aerial.distances(self.tiles)
        return [Distances(float(ground), float(aerial)) for ground, aerial in zip(grounds, aerials, strict=True)]

    def clues(self, known: Familiarity | None = None) -> list[Clues]:
        columns = (self.beliefs, self.scores, self.spreads, self.agreeing, self.unseen)
        found = [
            Clues(belief, score, spread, agreeing, unseen=unseen)
            for belief, score, spread, agreeing, unseen in zip(*(column.tolist() for column in columns), strict=True)
        ]
        if known is None:
            return found
        distances = self.distances(known)
        return [replace(one, unfamiliarity=away.unfamiliarity) for one, away in zip(found, distances, strict=True)]

    def select(self, chosen: Bool) -> Outcomes:
        return Outcomes(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Several Outcomes as one."""
    names = [field.name for field in fields(Outcomes)]
    return Outcomes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Answers:
    """What some values of `gate_ambiguity` let through, at the default `on_map_prior`."""

    count: int
    """Images on the map."""
    right: float
    """Share of them with a right answer, before any gate."""
    gates: tuple[float, ...]
    accepted: tuple[float, ...]
    """Share of the images on the map that pass."""
    wrong_among_accepted: tuple[float, ...]
    """Share of those that are wrong; 0 where none passes."""
    outside: int
    """Images off the map."""
    accepted_outside: tuple[float, ...]
    """Share of the images off the map that pass."""


def with_confidence(
    network: UnifyGeo, report: CalibrationReport, streets: Sequence[Streets], bundle: ModelBundle | None = None
) -> CalibrationReport:
    """A calibration report with all confidences, fitted on the answers that the rest of it leads to.

    bundle: the one that the weights came from; None: the network is exported for it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        if bundle is None:
            text = BundleText("calibration", "unstated", "unstated")
            bundle = export_bundle(network, folder, text, precisions=("fp32",), calibration=report.calibration)
        else:
            bundle = write_calibrated(bundle, report, folder)
        calibration, answers = fit_bundle(bundle, streets)
    return replace(report, calibration=calibration, answers=answers)


def write_calibrated(bundle: ModelBundle, report: CalibrationReport, output: Path) -> ModelBundle:
    """A copy of a bundle with another calibration. Raises ConfigurationError if `output` exists."""
    if output.exists():
        raise ConfigurationError(f"{output} exists; remove it or choose another folder")
    manifest = calibrated_manifest(bundle, report)
    with locked(output), new_folder(output) as folder:
        shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        load_bundle(folder)
    return load_bundle(output)


def calibrated_manifest(bundle: ModelBundle, report: CalibrationReport) -> BundleManifest:
    """The bundle's manifest with the calibration of a report, and that step in its lineage."""
    return with_calibration(bundle.manifest, report.calibration, "unifygeo-train calibrate", report.data)


def fit_bundle(bundle: ModelBundle, streets: Sequence[Streets]) -> tuple[Calibration, dict[str, Any]]:
    """The bundle's calibration with all confidences fitted again, and what became of the answers (`Answers`)."""
    gathered = [gather(bundle, of_one, streets[(n + 1) % len(streets)]) for n, of_one in enumerate(streets)]
    calibration, answers = bundle.manifest.calibration, {}
    usual = joined([one.given for one in gathered])
    photographed, partly_seen = photographed_outcomes(bundle, streets), partly_seen_outcomes(bundle, streets)
    known = familiarity_of(gathered, joined([usual, photographed]))
    calibration = replace(calibration, familiarity=known)
    for name, parts in (("", [one.given for one in gathered]), ("searched_", [one.searched for one in gathered])):
        outcomes = joined(parts)
        confidence, on_map = fit_confidence(outcomes), fit_on_map(outcomes)
        if not name:
            weights = unfamiliar_weights(photographed, known, confidence, on_map)
            gaps = unseen_weights(partly_seen, known, confidence, on_map)
        fitted: dict[str, Any] = {
            f"{name}confidence": replace(confidence, unfamiliar_weight=weights[0], unseen_weight=gaps[0]),
            f"{name}on_map_confidence": replace(on_map, unfamiliar_weight=weights[1], unseen_weight=gaps[1]),
        }
        calibration = replace(calibration, **fitted)
        answers[f"{name}confidence"] = asdict(judge(outcomes, calibration, searched=bool(name)))
    answers["photographed"] = asdict(judge(photographed, calibration))
    answers["partly_seen"] = asdict(judge(partly_seen, calibration))
    return calibration, answers


def familiarity_of(gathered: Sequence[Gathered], all_answers: Outcomes) -> Familiarity:
    """What the model knows: the panoramas and tiles of the streets; and how far from it right answers were found.

    Args:
        gathered: of each of the streets.
        all_answers: with photographed streets among them.
    """
    on_map = [one.given.select(~one.given.outside) for one in gathered]
    ground, aerial = usual_features([one.panoramas for one in on_map]), usual_features([one.tiles for one in gathered])
    right = all_answers.select(all_answers.right)
    if not len(right):
        raise InputError("no right answer: train the network first")

    def limit(distances: Float64) -> float:
        return max(LEAST_LIMIT, float(np.quantile(distances, LIMIT_QUANTILE)))

    limits = limit(ground.distances(right.panoramas)), limit(aerial.distances(right.tiles))
    return Familiarity(ground, aerial, *limits)


def unfamiliar_weights(
    photographed: Outcomes, known: Familiarity, confidence: Confidence, on_map: Confidence
) -> tuple[float, float]:
    """The weights of unfamiliarity under which the answers to photographed streets are likeliest.

    Args:
        photographed: the answers, on the map and off it.
        known: what the model knows.
        confidence: all its other constants stay.
        on_map: the same.

    Returns:
        `Confidence.unfamiliar_weight` of confidence and of on_map, at most 0.
    """
    clues = photographed.clues(known)
    unfamiliarity = np.array([one.unfamiliarity for one in clues])
    return _added_weights(photographed, clues, unfamiliarity, (confidence, on_map), (-50.0, 0.0))


def unseen_weights(
    partly_seen: Outcomes, known: Familiarity, confidence: Confidence, on_map: Confidence
) -> tuple[float, float]:
    """The weights of what is not seen under which the answers to partly seen streets are likeliest.

    Args:
        partly_seen: the answers, on the map and off it.
        known: what the model knows.
        confidence: all its other constants stay.
        on_map: the same.

    Returns:
        `Confidence.unseen_weight` of confidence and of on_map.
    """
    return _added_weights(
        partly_seen, partly_seen.clues(known), partly_seen.unseen, (confidence, on_map), (-50.0, 50.0)
    )


def _added_weights(
    outcomes: Outcomes,
    clues: Sequence[Clues],
    added: Float64,
    bases: tuple[Confidence, Confidence],
    bounds: tuple[float, float],
) -> tuple[float, float]:
    """The weights of one more clue in two regressions, which have none for it yet and otherwise stay as they are.

    Args:
        outcomes: answers, on the map and off it.
        clues: theirs.
        added: float64 (n,), the clue.
        bases: `Calibration.confidence` and `Calibration.on_map_confidence`.
        bounds: of the weights.
    """
    right, outside = outcomes.right, outcomes.outside

    def fitted(base: Confidence, weights: Float64) -> float:
        odds, signs = np.array([base.log_odds(one) for one in clues]), np.where(right, 1.0, -1.0)

        def loss(weight: float) -> float:
            likelihood = weights * special.log_expit(signs * (odds + weight * added))
            return float(-likelihood.sum() + _SHRINKAGE * weight**2 / len(clues))

        return float(optimize.minimize_scalar(loss, bounds=bounds, method="bounded").x)

    on = ~outside
    of_place = np.where(on, 1.0 / max(on.sum(), 1), 0.0)
    # As `Calibration.on_map_confidence` has it: half of the images are on the map, and not all of those are right.
    of_map = np.where(right, 1.0 / max(on.sum(), 1), np.where(outside, 1.0 / max(outside.sum(), 1), 0.0))
    return fitted(bases[0], of_place), fitted(bases[1], of_map)


def photographed_outcomes(bundle: ModelBundle, streets: Sequence[Streets]) -> Outcomes:
    """Answers to all streets photographed in each of `STYLES`, with a heading (`_at_home_and_away`)."""
    return joined(
        [
            _at_home_and_away(
                bundle, [PhotographedStreets(of_one, config, 100 * style + n) for n, of_one in enumerate(streets)]
            )
            for style, config in enumerate(STYLES)
        ]
    )


def fit_unseen(
    bundle: ModelBundle, streets: Sequence[Streets], panoramas: int | None = None
) -> tuple[Calibration, dict[str, Any]]:
    """The bundle's calibration with the weights of what is not seen fitted again, and what became of the answers.

    Args:
        bundle: a calibrated one; all its other constants stay.
        streets: two or more.
        panoramas: of each, evenly spread; None: all.

    Raises:
        InputError: The bundle does not know what is usual.
    """
    calibration = bundle.manifest.calibration
    if calibration.familiarity is None:
        raise InputError(f"{bundle.path}: its calibration knows no usual pictures; fit all of it again")
    partly_seen = partly_seen_outcomes(bundle, streets, panoramas)
    bases = (replace(one, unseen_weight=0.0) for one in (calibration.confidence, calibration.on_map_confidence))
    of_place, of_map = unseen_weights(partly_seen, calibration.familiarity, *bases)
    calibration = replace(
        calibration,
        confidence=replace(calibration.confidence, unseen_weight=of_place),
        searched_confidence=replace(calibration.searched_confidence, unseen_weight=of_place),
        on_map_confidence=replace(calibration.on_map_confidence, unseen_weight=of_map),
        searched_on_map_confidence=replace(calibration.searched_on_map_confidence, unseen_weight=of_map),
    )
    return calibration, {
        "unseen_weight": {"confidence": of_place, "on_map_confidence": of_map},
        "partly_seen_before": asdict(judge(partly_seen, bundle.manifest.calibration)),
        "partly_seen": asdict(judge(partly_seen, calibration)),
    }


def partly_seen_outcomes(bundle: ModelBundle, streets: Sequence[Streets], panoramas: int | None = None) -> Outcomes:
    """Answers to streets of which only a part is seen, as a rig with gaps would (`draw_seen`), with a heading.

    panoramas: of each of the streets, evenly spread; None: all.
    """
    return _at_home_and_away(bundle, streets, gaps=True, panoramas=panoramas)


def _at_home_and_away(
    bundle: ModelBundle, streets: Sequence[Streets], *, gaps: bool = False, panoramas: int | None = None
) -> Outcomes:
    """Answers to streets in their own index and in that of the streets after them. gaps: see `_localized`."""
    parts = []
    for number, shown in enumerate(streets):
        with _runtime(bundle) as runtime:
            index = runtime.index(shown.imagery)
            visitors = {number, (number - 1) % len(streets)}  # one whose streets these are, one from elsewhere
            for own in (streets[visitor] for visitor in sorted(visitors)):
                truth = own.truth(index.frame)
                outside = np.full(len(truth), own is not shown)
                localizer = runtime.localizer(index, own)
                rows = np.arange(len(truth))
                if panoramas is not None and panoramas < len(rows):
                    rows = np.linspace(0, len(rows) - 1, panoramas).astype(np.intp)
                parts.append(_localized(localizer, own, truth, outside, rows, leave_out_refused=True, gaps=gaps))
    return joined(parts)


def judge(outcomes: Outcomes, calibration: Calibration, *, searched: bool = False) -> Answers:
    """Count what passes which gate."""
    prior = LocalizerConfig().on_map_prior
    clues = outcomes.clues(calibration.familiarity)
    wrong = np.array([calibration.wrong_probabilities(one, searched=searched, on_map_prior=prior)[0] for one in clues])
    on_map, right = ~outcomes.outside, outcomes.right
    passed = [wrong <= gate for gate in GATES]

    def share(of: Bool, among: Bool) -> float:
        return float(np.mean(of[among])) if among.any() else 0.0

    return Answers(
        count=int(on_map.sum()),
        right=share(right, on_map),
        gates=GATES,
        accepted=tuple(share(those, on_map) for those in passed),
        wrong_among_accepted=tuple(share(~right, on_map & those) for those in passed),
        outside=int(outcomes.outside.sum()),
        accepted_outside=tuple(share(those, outcomes.outside) for those in passed),
    )


@dataclass(frozen=True)
class Gathered:
    """Answers to the panoramas of some streets."""

    given: Outcomes
    """With a heading."""
    searched: Outcomes
    """With the heading searched."""
    tiles: Float64
    """Mean features of the tiles of their imagery, (m, C)."""


class _Runtime:
    """Indexes in a temporary folder, and localizers on ONNX Runtime's CPU."""

    def __init__(self, bundle: ModelBundle, engines: EngineSet, folder: Path) -> None:
        self._bundle, self._engines, self._folder, self._indexes = bundle, engines, folder, 0

    def index(self, imagery: Callable[[Path], Path], datum: Datum | None = None) -> TileIndex:
        """imagery: writes it into a folder and returns what `build_index` takes."""
        self._indexes += 1
        folder = self._folder / str(self._indexes)
        folder.mkdir()
        build_index([imagery(folder)], self._bundle, self._engines, folder / "index", datum=datum)
        return open_index(folder / "index", bundle=self._bundle)

    def localizer(self, index: TileIndex, streets: Streets) -> Localizer:
        return Localizer(index, self._bundle, self._engines, CONFIG, streets.mount)


@contextlib.contextmanager
def _runtime(bundle: ModelBundle) -> Iterator[_Runtime]:
    precision = "fp32" if "fp32" in bundle.manifest.graphs["decoder"] else "fp16"
    with (
        tempfile.TemporaryDirectory() as temporary,
        open_engines(bundle, backend="onnx_cpu", precision=precision) as engines,
    ):
        yield _Runtime(bundle, engines, Path(temporary))


def gather(bundle: ModelBundle, streets: Streets, stranger: Streets) -> Gathered:
    """Localize all panoramas with the bundle: with a heading, and with it searched.

    In the index of the whole imagery, in that of its western half (only those that are not on it), and in that of the
    stranger, where it is another.
    """
    with _runtime(bundle) as runtime:
        whole = runtime.index(streets.imagery)
        truth = streets.truth(whole.frame)
        half = runtime.index(streets.western_half, whole.manifest.datum)
        beyond = np.array([not len(half.tiles_within(Gate(_place(point), 1.0))) for point in truth])
        everywhere, nowhere = np.ones(len(truth), np.bool_), np.zeros(len(truth), np.bool_)
        trials = [(whole, nowhere, everywhere), (half, everywhere, beyond)]
        if stranger is not streets:
            trials.append((runtime.index(stranger.imagery), everywhere, everywhere))
        given, searched = [], []
        for index, outside, chosen in trials:
            localizer, places = runtime.localizer(index, streets), np.flatnonzero(chosen)
            given.append(_localized(localizer, streets, truth, outside, places))
            searched.append(_localized(localizer, streets, truth, outside, places, searched=True))
        tiles = tile_features(whole.match_maps[np.arange(len(whole))], bundle.manifest.ground.columns)
        return Gathered(joined(given), joined(searched), tiles)


def _place(point: Float64) -> Prior:
    return Prior(float(point[0]), float(point[1]), 1e-6 * np.eye(2))


def _localized(
    localizer: Localizer,
    streets: Streets,
    truth: Float64,
    outside: Bool,
    rows: npt.NDArray[np.intp],
    *,
    searched: bool = False,
    leave_out_refused: bool = False,
    gaps: bool = False,
) -> Outcomes:
    """The answers to the panoramas `rows`.

    Args:
        localizer: of the town's index.
        streets: the panoramas.
        truth: float64 (n, 2), the cameras in the map frame.
        outside: bool (n,), which of them are on no tile.
        rows: of `streets`.
        searched: Turn each panorama by a random angle and give no heading; otherwise give one that is wrong by
            `HEADING_SIGMA_RAD`.
        leave_out_refused: Leave out panoramas that the localizer refuses to look at, such as too dark ones.
        gaps: Only a part of each panorama is seen, the same in every index.

    Raises:
        InputError: The localizer refuses a panorama, and it is not to be left out.
    """
    rng = np.random.default_rng(streets.seed)
    rolls = rng.integers(streets.columns, size=len(truth)) if searched else np.zeros(len(truth), np.int64)
    errors_rad = rng.normal(0.0, HEADING_SIGMA_RAD, len(truth))
    columns, channels = localizer.bundle.manifest.ground.columns, localizer.bundle.manifest.mean_channels
    looked_at, clues, right, unseen, panoramas, tiles = [], [], [], [], [], []
    for row in rows.tolist():
        heading = None
        if not searched:
            heading = Heading(float(yaw_from_azimuth(errors_rad[row])), HEADING_SIGMA_RAD**2, HeadingSource.CONSTANT)
        pixels = streets.camera_image(row, int(rolls[row]))
        seen = None
        if gaps:
            drawn = draw_seen(np.random.default_rng([streets.seed, row]), 90, 360).astype(np.uint8)
            seen = cv2.resize(drawn, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        image = CameraImage(pixels, row + 1, seen=seen)
        observation = localizer.observe(image, Query(heading=heading))
        if isinstance(observation, Rejection):
            if leave_out_refused:
                continue
            raise InputError(f"{streets.name}, panorama {row}: {observation.detail}")
        looked_at.append(row)
        found = localizer.answer(observation)
        clues.append((found.clues.belief, found.clues.score, found.clues.spread, found.clues.agreeing))
        unseen.append(observation.unseen)
        panoramas.append(panorama_features(observation.features.levels[0][None], columns)[0])
        tiles.append(tile_features(localizer.index.match_maps[observation.matches.tile_ids[:1]], columns)[0])
        error_m = np.hypot(*(truth[row] - (found.east_m, found.north_m)))
        right.append(not outside[row] and error_m <= localizer.config.answer_radius_m)
    belief, score, spread, agreeing = np.array(clues, np.float64).reshape(-1, 4).T
    ground, aerial = (np.array(of_each, np.float64).reshape(-1, channels) for of_each in (panoramas, tiles))
    return Outcomes(
        belief,
        score,
        spread,
        agreeing,
        ground,
        aerial,
        np.array(unseen, np.float64),
        np.array(right, np.bool_),
        outside[np.array(looked_at, np.intp)],
    )


def fit_confidence(outcomes: Outcomes) -> Confidence:
    """Right against a wrong place on the map, from the images on the map."""
    on_map = outcomes.select(~outcomes.outside)
    return _fit(on_map, on_map.right, np.ones(len(on_map)))


def fit_on_map(outcomes: Outcomes) -> Confidence:
    """Right against a place that is not on the map, as if half of the images were.

    The wrong answers on the map have their own odds (`fit_confidence`) and are left out.
    """
    on_map = ~outcomes.outside
    either = outcomes.select(outcomes.right | outcomes.outside)
    if not either.right.any() or not either.outside.any():
        raise InputError("no right answer, or no image off the map: render more panoramas, in at least one town")
    share = float(np.mean(outcomes.right[on_map]))
    weights = np.where(either.right, 0.5 / either.right.sum(), 0.5 / either.outside.sum()) * len(either)
    found = _fit(either, either.right, weights)
    return replace(found, bias=found.bias + float(np.log(share)))


def _fit(outcomes: Outcomes, right: Bool, weights: Float64) -> Confidence:
    """The constants under which the outcomes are likeliest; no clue may count against its meaning."""
    columns = (log_odds(outcomes.beliefs), outcomes.scores, outcomes.spreads, outcomes.agreeing)
    features = np.stack([np.ones(len(right)), *columns], axis=-1)
    signs = np.where(right, 1.0, -1.0)
    start = np.array([0.0, 1.0, 0.0, 0.0, 0.0])

    def loss(constants: Float64) -> float:
        likelihood = weights * special.log_expit(signs * (features @ constants))
        return float(-likelihood.sum() + _SHRINKAGE * ((constants - start) ** 2).sum()) / len(right)

    bounds = [(None, None), (0, None), (0, None), (None, 0), (0, None)]
    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds)
    return Confidence(*map(float, found.x))
