"""Fit the bundle's confidences: how often an answer of the real localizer is right.

The belief of an answer is shared out among the candidates, as if one of them had to be right. On validation data it is
known how often none is, in two ways: another place on the map looks more like it, or the place is not on the map. For
the second the panoramas are localized in the index of another town (or part of a city) and, the harder case, in an
index of the other half of their own. Two logistic regressions on the same clues say how probable each is, once for
images with a heading and once for images whose heading was searched. A third says how probably an image that was
looked for near a place only, as by the tracker, is on the map.

The mean features of all these panoramas and tiles are what the model knows (`unifygeo_ros.inference.familiarity`). What
a distance from them means is fitted on the same places, photographed by other cameras and providers: with changed
colours, tones, weather and noise. The distance has a weight of its own, and all other constants stay as they are. What
it means that a part of the panorama is not seen is fitted in the same way, on the same places seen by cameras of less
than the whole field: for the confidences, and for the covariance of right answers (`Calibration.widening`).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

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
    ALWAYS_ON_MAP,
    MANIFEST_NAME,
    MISSING_PARTS,
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
from unifygeo_ros.inference.familiarity import (
    Familiarity,
    joined_familiarity,
    panorama_features,
    tile_features,
    usual_features,
)
from unifygeo_ros.inference.select import choose_precision, open_engines
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.tracker import near_query
from unifygeo_training.calibrate import CalibrationReport, NothingRightError
from unifygeo_training.data.photography import PhotographyConfig
from unifygeo_training.export import BundleText, export_bundle
from unifygeo_training.files import locked, new_folder
from unifygeo_training.model import UnifyGeo
from unifygeo_training.streets import PhotographedStreets, Streets

logger = logging.getLogger(__name__)

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
FIELDS_DEG = (
    (360.0, -25.0, 20.0), (270.0, -90.0, 90.0), (180.0, -90.0, 90.0), (270.0, -25.0, 20.0), (90.0, -90.0, 90.0)
)  # fmt: skip
"""Fields of view with which the meaning of missing parts is fitted, in turn: width in azimuth about the image's middle,
lowest and highest elevation. The first is that of a car's surround cameras."""
LEAST_BLIND = 0.01
"""Smallest share of azimuths or elevations that counts as missing: a pixel at an edge does not."""
NEAR_SIGMA_M = 1.0
"""How well the tracker knows the place near which it looks, standard deviation of each axis."""
LIMIT_QUANTILE = 0.99
"""Share of the right answers that lie within the limits of `Familiarity`."""
LEAST_LIMIT = 1.2
"""Limits of `Familiarity` are not below this: a few towns do not tell how much others of their kind differ. Of three
held-out drives one had 3.5% of its images between 1.0 and 1.18, with fixes as good as the others'."""
_SHRINKAGE = 0.1
"""Weight, against one answer's, of the squared distance from the constants of before, or from "as sure as the belief":
where the data do not tell. A town's hundreds of answers do; a drive's dozens hardly find a `score_weight` of 12."""


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
    blind: Float64
    """Shares of azimuth and elevation that were not seen, (n, 2)."""
    distances2: Float64
    """Squared Mahalanobis distance of the answer's error, by the covariance that it had if all were seen. Errors are
    relative to the median error of the right answers: imagery may be shifted (`calibrate.imagery_offset_m`)."""
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
        columns = (self.beliefs, self.scores, self.spreads, self.agreeing)
        found = [
            replace(Clues(*map(float, row)), blind_azimuth=float(azimuth), blind_elevation=float(elevation))
            for *row, (azimuth, elevation) in zip(*columns, self.blind, strict=True)
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
    network: UnifyGeo,
    report: CalibrationReport,
    streets: Sequence[Streets],
    bundle: ModelBundle | None = None,
    before: Calibration | None = None,
) -> CalibrationReport:
    """A calibration report with all confidences, fitted on the answers that the rest of it leads to.

    Args:
        network: the weights.
        report: the rest of the calibration.
        streets: where the answers come from.
        bundle: the one that the weights came from; None: the network is exported for it.
        before: see `fit_bundle`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        if bundle is None:
            text = BundleText("calibration", "unstated", "unstated")
            bundle = export_bundle(network, folder, text, precisions=("fp32",), calibration=report.calibration)
        else:
            bundle = write_calibrated(bundle, report, folder)
        calibration, answers = fit_bundle(bundle, streets, before)
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


def also_familiar(calibration: Calibration, parent: ModelBundle) -> Calibration:
    """The calibration of a fine-tuned bundle to which the pictures that its parent knows are familiar, too.

    Raises:
        ConfigurationError: the parent knows no pictures, or is a network of another size.
    """
    assert calibration.familiarity is not None
    return replace(calibration, familiarity=joined_familiarity(known_pictures(parent), calibration.familiarity))


def known_pictures(bundle: ModelBundle) -> Familiarity:
    """What is familiar to a bundle. Raises ConfigurationError where that is not known."""
    known = bundle.manifest.calibration.familiarity
    if known is None:
        raise ConfigurationError(f"{bundle.path} does not know what is familiar to it; calibrate it first")
    return known


def fit_bundle(
    bundle: ModelBundle, streets: Sequence[Streets], before: Calibration | None = None
) -> tuple[Calibration, dict[str, Any]]:
    """The bundle's calibration with all confidences fitted again, and what became of the answers (`Answers`).

    Args:
        bundle: with the rest of a calibration.
        streets: where the answers come from.
        before: of weights that these are still near to. Its confidences hold where the answers do not tell, as the few
            of an adaptation. None: nothing is known.
    """
    calibration, answers = bundle.manifest.calibration, {}
    with opened(bundle) as runtime:
        gathered = [gather(runtime, of_one, streets[(n + 1) % len(streets)]) for n, of_one in enumerate(streets)]
        photographed = photographed_outcomes(runtime, streets)
        partly_seen = {way: partly_seen_outcomes(runtime, streets, searched=way) for way in (False, True)}
        near = _near_outcomes(runtime, streets)
    usual = joined([one.given for one in gathered])
    known = familiarity_of(gathered, joined([usual, photographed]))
    calibration = replace(calibration, familiarity=known)
    for name, parts in (("", [one.given for one in gathered]), ("searched_", [one.searched for one in gathered])):
        outcomes = joined(parts)
        base = _known_before(before, f"{name}confidence"), _known_before(before, f"{name}on_map_confidence")
        confidence, on_map = fit_confidence(outcomes, base[0]), fit_on_map(outcomes, base[1])
        if not name:
            weights = unfamiliar_weights(photographed, known, confidence, on_map)
        confidence = replace(confidence, unfamiliar_weight=weights[0])
        on_map = replace(on_map, unfamiliar_weight=weights[1])
        confidence, on_map = with_missing_weights(partly_seen[bool(name)], known, confidence, on_map, base)
        fitted: dict[str, Any] = {f"{name}confidence": confidence, f"{name}on_map_confidence": on_map}
        calibration = replace(calibration, **fitted)
        answers[f"{name}confidence"] = asdict(judge(outcomes, calibration, searched=bool(name)))
    of_near = _near(*near, known, _known_before(before, "near_on_map_confidence"))
    widening = fit_elevation_widening(partly_seen[False])
    calibration = replace(calibration, near_on_map_confidence=of_near, elevation_widening=widening)
    answers["photographed"] = asdict(judge(photographed, calibration))
    answers["partly_seen"] = asdict(judge(partly_seen[False], calibration))
    return calibration, answers


def _known_before(before: Calibration | None, name: str) -> Confidence | None:
    """A confidence of a calibration, None where it says nothing."""
    found: Confidence | None = None if before is None else getattr(before, name)
    return None if found == ALWAYS_ON_MAP else found


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
        raise NothingRightError("no right answer: train the network first")

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
    clues, right, outside = photographed.clues(known), photographed.right, photographed.outside
    unfamiliarity = np.array([one.unfamiliarity for one in clues])
    on = ~outside
    of_place = np.where(on, 1.0 / max(on.sum(), 1), 0.0)
    # As `Calibration.on_map_confidence` has it: half of the images are on the map, and not all of those are right.
    of_map = np.where(right, 1.0 / max(on.sum(), 1), np.where(outside, 1.0 / max(outside.sum(), 1), 0.0))

    def fitted(base: Confidence, weights: Float64) -> float:
        shown = _log_odds(base, clues)
        return float(_likeliest(lambda weight: shown + unfamiliarity * weight, right, weights, [(-50.0, 0.0)])[0])

    return fitted(confidence, of_place), fitted(on_map, of_map)


def with_missing_weights(
    partly_seen: Outcomes,
    known: Familiarity,
    confidence: Confidence,
    on_map: Confidence,
    before: tuple[Confidence | None, Confidence | None] = (None, None),
) -> tuple[Confidence, Confidence]:
    """Both with the weights and fades of missing parts under which the answers to partly seen streets are likeliest.

    Those of confidence are fitted to which answers on the map are right. Of images with large missing parts few are,
    so those of on_map are fitted to which images are on the map (`Calibration.outside_ratio`), as if half of them were.

    Args:
        partly_seen: the answers, on the map and off it.
        known: what the model knows.
        confidence: all its other constants stay.
        on_map: the same.
        before: of both, see `fit_bundle`.
    """
    clues, blind, right, outside = partly_seen.clues(known), partly_seen.blind, partly_seen.right, partly_seen.outside
    if not right.any():
        return confidence, on_map  # a network that finds nothing in a part
    confidence, on_map = (replace(base, **dict.fromkeys(MISSING_PARTS, 0.0)) for base in (confidence, on_map))
    of_place = np.where(outside, 0.0, 1.0 / (~outside).sum())
    confidence = _with_missing(confidence, clues, np.zeros(len(clues)), blind, right, of_place, before[0])
    if not outside.any():
        return confidence, on_map  # one town alone
    # on the map : off it = (1 + wrong place : right) · (right : off the map)
    of_right = np.logaddexp(0.0, -_log_odds(confidence, clues))
    return confidence, _with_missing(on_map, clues, of_right, blind, ~outside, _halves(outside), before[1])


def fit_elevation_widening(partly_seen: Outcomes) -> float:
    """`Calibration.elevation_widening` under which the Gaussian errors of right answers are likeliest.

    Answers without some of the azimuths do not count. Their errors have long tails, along the street, and a track
    takes these for misses: on drives its covariances are as honest without some azimuths as with all.

    Args:
        partly_seen: answers to parts of panoramas.
    """
    chosen = partly_seen.right & (partly_seen.blind[:, 0] < LEAST_BLIND)
    distances2, blind = partly_seen.distances2[chosen], partly_seen.blind[chosen, 1]
    if not np.any(blind >= LEAST_BLIND):
        return 0.0

    def loss(widening: float) -> float:
        # −2 log likelihood in the plane: d² / w + 2 log w.
        return float(np.sum(distances2 * np.exp(-widening * blind) + 2 * widening * blind))

    found = optimize.minimize_scalar(loss, bounds=(0.0, 10.0), method="bounded")
    return float(found.x) if loss(found.x) < loss(0.0) else 0.0


_MISSING_SCALE = 10.0
"""What is usual for these constants, which are multiplied by shares: a score falls by 0.3 where half is not seen, which
a score_weight of 12 makes 4."""


def fit_near(
    whole: Outcomes, partly_seen: Outcomes, known: Familiarity, before: Confidence | None = None
) -> Confidence:
    """On the map against off it, as if half of the images were, of answers near a place (`near_outcomes`).

    Args:
        whole: answers to panoramas that show all.
        partly_seen: to parts of them.
        known: what the model knows.
        before: see `fit_bundle`.
    """
    base = _fit(whole, ~whole.outside, _halves(whole.outside) * len(whole), before)
    clues, nothing, outside = partly_seen.clues(known), np.zeros(len(partly_seen)), partly_seen.outside
    return _with_missing(base, clues, nothing, partly_seen.blind, ~outside, _halves(outside), before)


def _halves(outside: Bool) -> Float64:
    """Weights, (n,): those off the map together weigh as much as those on it."""
    return np.where(outside, 1.0 / max(outside.sum(), 1), 1.0 / max((~outside).sum(), 1))


def _with_missing(
    base: Confidence,
    clues: Sequence[Clues],
    more: Float64,
    blind: Float64,
    true: Bool,
    weights: Float64,
    before: Confidence | None = None,
) -> Confidence:
    """With the constants of missing parts under which what is true is likeliest.

    Args:
        base: without such constants.
        clues: n answers'.
        more: logarithmic odds beside those of the confidence, (n,).
        blind: shares of azimuth and elevation that were not seen, (n, 2).
        true: what the odds are of, (n,).
        weights: of each of the n, (n,).
        before: whose constants of missing parts hold where the data do not tell; None: zeros.
    """
    shown = _log_odds(base, clues)

    def odds_of(constants: Float64) -> Float64:
        trust = np.exp(-blind @ constants[2:4])
        return np.asarray(trust * (shown + blind @ constants[:2]) + (1 - trust) * constants[4] + more)

    bounds = [(-50.0, 50.0)] * 2 + [(0.0, 10.0)] * 2 + [(-50.0, 50.0)]
    start = np.array([0.0 if before is None else getattr(before, name) for name in MISSING_PARTS])
    found = _likeliest(odds_of, true, weights, bounds, _MISSING_SCALE, start)
    return replace(base, **dict(zip(MISSING_PARTS, found.tolist(), strict=True)))


def _log_odds(confidence: Confidence, clues: Sequence[Clues]) -> Float64:
    return np.array([confidence.log_odds(one) for one in clues])


def _likeliest(
    odds_of: Callable[[Float64], Float64],
    true: Bool,
    weights: Float64,
    bounds: Sequence[tuple[float, float]],
    scale: float = 1.0,
    start: Float64 | None = None,
) -> Float64:
    """The constants under which what is true is likeliest.

    Args:
        odds_of: from the constants to the logarithmic odds, (n,).
        true: what the odds are of, (n,).
        weights: of each of the n, (n,).
        bounds: of each constant.
        scale: what is usual for the constants.
        start: the constants where the outcomes do not tell; None: zeros.
    """
    signs, start = np.where(true, 1.0, -1.0), np.zeros(len(bounds)) if start is None else start

    def loss(constants: Float64) -> float:
        likelihood = weights * special.log_expit(signs * odds_of(constants))
        return float(-likelihood.sum() + _SHRINKAGE * (((constants - start) / scale) ** 2).sum() / len(true))

    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x, np.float64)


def photographed_outcomes(runtime: Runtime, streets: Sequence[Streets]) -> Outcomes:
    """Answers to all streets photographed in each of `STYLES`, with a heading.

    They are localized on the map and off it (`_visits`).
    """
    parts = []
    for style, config in enumerate(STYLES):
        changed = [PhotographedStreets(of_one, config, 100 * style + n) for n, of_one in enumerate(streets)]
        for index, own, chosen, off_map in _visits(runtime, changed):
            localizer, outside = runtime.localizer(index, own), np.full(len(own), off_map)
            truth, rows = own.truth(index.frame), np.flatnonzero(chosen)
            parts.append(_localized(localizer, own, truth, outside, rows, leave_out_refused=True))
    return joined(parts)


def fit_missing(bundle: ModelBundle, streets: Sequence[Streets]) -> tuple[Calibration, dict[str, Any]]:
    """The bundle's calibration with the constants of missing parts and those near a place fitted again.

    Args:
        bundle: a calibrated one; all its other constants stay.
        streets: one or more.

    Raises:
        InputError: The bundle does not know what is usual.
    """
    calibration, answers = bundle.manifest.calibration, {}
    known = calibration.familiarity
    if known is None:
        raise InputError(f"{bundle.path}: its calibration knows no usual pictures; fit all of it again")
    with opened(bundle) as runtime:
        seen = {way: partly_seen_outcomes(runtime, streets, searched=way) for way in (False, True)}
        near = _near_outcomes(runtime, streets)
    for name in ("", "searched_"):
        partly_seen = seen[bool(name)]
        if not name:
            calibration = replace(calibration, elevation_widening=fit_elevation_widening(partly_seen))
        bases = (getattr(calibration, f"{name}confidence"), getattr(calibration, f"{name}on_map_confidence"))
        confidence, on_map = with_missing_weights(partly_seen, known, *bases)
        fitted: dict[str, Any] = {f"{name}confidence": confidence, f"{name}on_map_confidence": on_map}
        calibration = replace(calibration, **fitted)
        answers[f"{name}partly_seen"] = asdict(judge(partly_seen, calibration, searched=bool(name)))
    return replace(calibration, near_on_map_confidence=_near(*near, known)), answers


def _near_outcomes(runtime: Runtime, streets: Sequence[Streets]) -> tuple[Outcomes, Outcomes]:
    """Answers near a place to panoramas that show all, and to parts of them."""
    return near_outcomes(runtime, streets), near_outcomes(runtime, streets, FIELDS_DEG)


def _near(
    whole: Outcomes, partly_seen: Outcomes, known: Familiarity, before: Confidence | None = None
) -> Confidence | None:
    """Fitted to answers near a place; that of before where all places are so near each other that none is elsewhere."""
    if not whole.outside.any() or not partly_seen.outside.any():
        logger.warning(
            "the data lie within a tile: what images near a track look like off the map is not learnt from them; give "
            "drives of several hundred metres"
        )
        return before
    return fit_near(whole, partly_seen, known, before)


def partly_seen_outcomes(runtime: Runtime, streets: Sequence[Streets], *, searched: bool = False) -> Outcomes:
    """Answers to all streets, each panorama seen in one of `FIELDS_DEG`, with a heading or with it searched.

    They are localized on the map and off it (`_visits`).
    """
    parts = []
    for index, own, chosen, off_map in _visits(runtime, streets):
        localizer, outside = runtime.localizer(index, own), np.full(len(own), off_map)
        truth, rows = own.truth(index.frame), np.flatnonzero(chosen)
        answers = _localized(
            localizer, own, truth, outside, rows, searched=searched, leave_out_refused=True, fields=FIELDS_DEG
        )
        parts.append(answers)
    return joined(parts)


def near_outcomes(
    runtime: Runtime, streets: Sequence[Streets], fields: Sequence[tuple[float, float, float]] = ()
) -> Outcomes:
    """Answers to all streets, looked for near a place as the tracker does, with a heading.

    On the map near the truth, and off it: in the index of the streets after them near a place on a street that is not
    theirs. Near a place only the tiles there are looked at. So where the streets are alone, another place of their own
    is off the map as well, if it is so far away that these tiles do not hold the camera.

    Args:
        runtime: with a calibrated bundle.
        streets: one or more.
        fields: as `FIELDS_DEG`, in turn; empty: all is seen.
    """
    parts = []
    for number, shown in enumerate(streets):
        index, stranger = runtime.index(shown.imagery), streets[number - 1]
        places, cameras = shown.truth(index.frame), stranger.truth(index.frame)
        rng = np.random.default_rng(stranger.seed)
        elsewhere = places_elsewhere(cameras, places, index.manifest.side_m + 6 * NEAR_SIGMA_M, rng)
        for own, near, outside in ((shown, places, False), (stranger, elsewhere, True)):
            truth, rows = own.truth(index.frame), np.flatnonzero(~np.isnan(near[:, 0]))
            near = near + np.random.default_rng(own.seed).normal(0.0, NEAR_SIGMA_M, near.shape)
            answers = _localized(
                runtime.localizer(index, own),
                own,
                truth,
                np.full(len(truth), outside),
                rows,
                leave_out_refused=True,
                fields=fields,
                near=near,
            )
            parts.append(answers)
    return joined(parts)


def places_elsewhere(cameras_m: Float64, places_m: Float64, apart_m: float, rng: np.random.Generator) -> Float64:
    """For each camera one of the places, at random, that is far away.

    Args:
        cameras_m: float64 (n, 2).
        places_m: float64 (m, 2), of the same frame.
        apart_m: how far a place must be, in the larger of the two axes.
        rng: what chooses.

    Returns:
        float64 (n, 2), NaN for a camera with no such place.
    """
    found = np.full(cameras_m.shape, np.nan)
    for row, camera in enumerate(cameras_m):
        far = places_m[np.abs(places_m - camera).max(axis=1) > apart_m]
        if len(far):
            found[row] = far[rng.integers(len(far))]
    return found


def field_mask(mount: CameraMount, shape: tuple[int, int], field_deg: tuple[float, float, float]) -> Bool:
    """The pixels of an image that a field of view shows.

    Args:
        mount: of the camera.
        shape: (height, width).
        field_deg: as in `FIELDS_DEG`.

    Returns:
        bool (height, width).
    """
    width, lowest, highest = field_deg
    height, columns = shape
    fraction = (np.arange(height) + 0.5) / height
    elevation = np.degrees(mount.elevation_top_rad + fraction * (mount.elevation_bottom_rad - mount.elevation_top_rad))
    azimuth = (np.arange(columns) + 0.5) / columns * 360 - 180
    shown: Bool = ((elevation > lowest) & (elevation < highest))[:, None] & (np.abs(azimuth) < width / 2)
    return shown


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


class Runtime:
    """Indexes in a temporary folder, each built once, and localizers on ONNX Runtime's CPU."""

    def __init__(self, bundle: ModelBundle, engines: EngineSet, folder: Path) -> None:
        self.bundle = bundle
        self._engines, self._folder = engines, folder
        self._indexes: dict[tuple[Callable[[Path], Path], Datum | None], TileIndex] = {}

    def index(self, imagery: Callable[[Path], Path], datum: Datum | None = None) -> TileIndex:
        """imagery: `Streets.imagery` or `Streets.half`."""
        if (imagery, datum) not in self._indexes:
            folder = self._folder / str(len(self._indexes))
            folder.mkdir()
            build_index([imagery(folder)], self.bundle, self._engines, folder / "index", datum=datum)
            self._indexes[imagery, datum] = open_index(folder / "index", bundle=self.bundle)
        return self._indexes[imagery, datum]

    def localizer(self, index: TileIndex, streets: Streets) -> Localizer:
        return Localizer(index, self.bundle, self._engines, CONFIG, streets.mount)


@contextlib.contextmanager
def opened(bundle: ModelBundle) -> Iterator[Runtime]:
    """The whole localizer with a bundle, as long as the context lasts."""
    precision = choose_precision(bundle, "onnx_cpu", "auto")
    with (
        tempfile.TemporaryDirectory() as temporary,
        open_engines(bundle, backend="onnx_cpu", precision=precision) as engines,
    ):
        yield Runtime(bundle, engines, Path(temporary))


def gather(runtime: Runtime, streets: Streets, stranger: Streets) -> Gathered:
    """Localize all panoramas with the bundle: with a heading, and with it searched.

    In the index of the whole imagery, in that of half of it, and in that of the stranger, where it is another: in these
    two only those that are not on it.
    """
    whole = runtime.index(streets.imagery)
    truth = streets.truth(whole.frame)
    half = runtime.index(streets.half, whole.manifest.datum)
    everywhere, nowhere = np.ones(len(truth), np.bool_), np.zeros(len(truth), np.bool_)
    trials = [(whole, nowhere, everywhere), (half, everywhere, _off_map(half, streets))]
    if stranger is not streets:
        strange = runtime.index(stranger.imagery)
        trials.append((strange, everywhere, _off_map(strange, streets)))
    given, searched = [], []
    for index, outside, chosen in trials:
        localizer, places = runtime.localizer(index, streets), np.flatnonzero(chosen)
        given.append(_localized(localizer, streets, truth, outside, places))
        searched.append(_localized(localizer, streets, truth, outside, places, searched=True))
    tiles = tile_features(whole.match_maps[np.arange(len(whole))], runtime.bundle.manifest.ground.columns)
    return Gathered(joined(given), joined(searched), tiles)


def squared_distances(errors_m: Float64, covariances_m2: Float64, right: Sequence[bool]) -> Float64:
    """Squared Mahalanobis distances of errors, relative to the median error of the right answers: float64 (n,).

    Args:
        errors_m: (n, 2), east and north.
        covariances_m2: (n, 2, 2).
        right: (n,).
    """
    if np.any(right):
        errors_m = errors_m - np.median(errors_m[np.array(right)], axis=0)
    return np.asarray(np.einsum("ni,nij,nj->n", errors_m, np.linalg.inv(covariances_m2), errors_m))


def _off_map(index: TileIndex, streets: Streets) -> Bool:
    """Which of the cameras are on no tile of an index: bool (n,)."""
    places = streets.truth(index.frame).tolist()
    gates = (Gate(Prior(east, north, 1e-6 * np.eye(2)), 1.0) for east, north in places)
    return np.array([not len(index.tiles_within(gate)) for gate in gates], np.bool_)


def _visits(runtime: Runtime, streets: Sequence[Streets]) -> Iterator[tuple[TileIndex, Streets, Bool, bool]]:
    """The index of each of the streets, and what is looked for in it: all that is theirs, and what is off its map.

    Off the map are the streets before them, as far as they are elsewhere. Where there are none (one town alone, or
    drives of two years through one), the index is that of half of the imagery, and their own other half is off it.

    Yields:
        The index, the streets whose images are looked for, which of them, bool (n,), and whether those are off the map.
    """
    for number, shown in enumerate(streets):
        index, stranger = runtime.index(shown.imagery), streets[number - 1]
        yield index, shown, np.ones(len(shown), np.bool_), False
        off_map = _off_map(index, stranger)
        if not off_map.any():
            index, stranger = runtime.index(shown.half, index.manifest.datum), shown
            off_map = _off_map(index, shown)
        yield index, stranger, off_map, True


def _localized(
    localizer: Localizer,
    streets: Streets,
    truth: Float64,
    outside: Bool,
    rows: npt.NDArray[np.intp],
    *,
    searched: bool = False,
    leave_out_refused: bool = False,
    fields: Sequence[tuple[float, float, float]] = (),
    near: Float64 | None = None,
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
        fields: As `FIELDS_DEG`: what is seen of each panorama, in turn; empty: all of it.
        near: float64 (n, 2): Look for each near this place in the map frame, as the tracker does; None: everywhere.

    Raises:
        InputError: The localizer refuses a panorama, and it is not to be left out.
    """
    rng = np.random.default_rng(streets.seed)
    rolls = rng.integers(streets.columns, size=len(truth)) if searched else np.zeros(len(truth), np.int64)
    errors_rad = rng.normal(0.0, HEADING_SIGMA_RAD, len(truth))
    columns, channels = localizer.bundle.manifest.ground.columns, localizer.bundle.manifest.mean_channels
    calibration = localizer.bundle.manifest.calibration
    looked_at, clues, blind, errors_m, covariances_m2, right, panoramas, tiles = [], [], [], [], [], [], [], []
    for row in rows.tolist():
        heading = None
        if not searched:
            heading = Heading(float(yaw_from_azimuth(errors_rad[row])), HEADING_SIGMA_RAD**2, HeadingSource.CONSTANT)
        pixels, seen = streets.camera_image(row, int(rolls[row])), None
        if fields:
            seen = field_mask(streets.mount, (pixels.shape[0], pixels.shape[1]), fields[row % len(fields)])
        image = CameraImage(pixels, row + 1, seen=seen)
        query = Query(heading=heading)
        if near is not None:
            place = Prior(float(near[row, 0]), float(near[row, 1]), NEAR_SIGMA_M**2 * np.eye(2))
            query = near_query(place, heading, TrackerConfig())
        observation = localizer.observe(image, query)
        if isinstance(observation, Rejection):
            if leave_out_refused:
                continue
            raise InputError(f"{streets.name}, panorama {row}: {observation.detail}")
        looked_at.append(row)
        found = localizer.answer(observation)
        clues.append((found.clues.belief, found.clues.score, found.clues.spread, found.clues.agreeing))
        blind.append((found.clues.blind_azimuth, found.clues.blind_elevation))
        panoramas.append(panorama_features(observation.features.levels[0][None], columns)[0])
        tiles.append(tile_features(localizer.index.match_maps[observation.matches.tile_ids[:1]], columns)[0])
        errors_m.append((found.east_m, found.north_m) - truth[row])
        covariances_m2.append(found.covariance_m2 / calibration.widening(found.clues.blind_elevation))
        right.append(not outside[row] and np.hypot(*errors_m[-1]) <= localizer.config.answer_radius_m)
    belief, score, spread, agreeing = np.array(clues, np.float64).reshape(-1, 4).T
    ground, aerial = (np.array(of_each, np.float64).reshape(-1, channels) for of_each in (panoramas, tiles))
    return Outcomes(
        belief,
        score,
        spread,
        agreeing,
        ground,
        aerial,
        np.array(blind, np.float64).reshape(-1, 2),
        squared_distances(np.array(errors_m).reshape(-1, 2), np.array(covariances_m2).reshape(-1, 2, 2), right),
        np.array(right, np.bool_),
        outside[np.array(looked_at, np.intp)],
    )


def fit_confidence(outcomes: Outcomes, before: Confidence | None = None) -> Confidence:
    """Right against a wrong place on the map, from the images on the map. before: see `fit_bundle`."""
    on_map = outcomes.select(~outcomes.outside)
    return _fit(on_map, on_map.right, np.ones(len(on_map)), before)


def fit_on_map(outcomes: Outcomes, before: Confidence | None = None) -> Confidence:
    """Right against a place that is not on the map, as if half of the images were. before: see `fit_bundle`.

    The wrong answers on the map have their own odds (`fit_confidence`) and are left out.
    """
    on_map = ~outcomes.outside
    either = outcomes.select(outcomes.right | outcomes.outside)
    if not either.right.any():
        raise NothingRightError("no right answer: train the network first")
    if not either.outside.any():
        if before is not None:
            return before
        raise InputError("no image off the map: render more panoramas, in at least one town")
    share = float(np.mean(outcomes.right[on_map]))
    weights = np.where(either.right, 0.5 / either.right.sum(), 0.5 / either.outside.sum()) * len(either)
    if before is not None:
        before = replace(before, bias=before.bias - float(np.log(share)))
    found = _fit(either, either.right, weights, before)
    return replace(found, bias=found.bias + float(np.log(share)))


AS_SURE_AS_THE_BELIEF = Confidence(bias=0.0, belief_weight=1.0)


def _fit(outcomes: Outcomes, right: Bool, weights: Float64, before: Confidence | None = None) -> Confidence:
    """The constants under which the outcomes are likeliest; no clue may count against its meaning.

    before: where the data do not tell.
    """
    columns = (log_odds(outcomes.beliefs), outcomes.scores, outcomes.spreads, outcomes.agreeing)
    features = np.stack([np.ones(len(right)), *columns], axis=-1)
    signs = np.where(right, 1.0, -1.0)
    base = AS_SURE_AS_THE_BELIEF if before is None else before
    start = np.array([base.bias, base.belief_weight, base.score_weight, base.spread_weight, base.agreeing_weight])

    def loss(constants: Float64) -> float:
        likelihood = weights * special.log_expit(signs * (features @ constants))
        return float(-likelihood.sum() + _SHRINKAGE * ((constants - start) ** 2).sum()) / len(right)

    bounds = [(None, None), (0, None), (0, None), (None, 0), (0, None)]
    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds)
    return Confidence(*map(float, found.x))
