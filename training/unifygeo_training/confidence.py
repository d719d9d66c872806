"""Fit the bundle's confidences: how often an answer of the real localizer is right.

The belief of an answer is shared out among the candidates, as if one of them had to be right. On validation data it is
known how often none is, in two ways: another place on the map looks more like it, or the place is not on the map. For
the second the panoramas are localized in the index of another town (or part of a city) and, the harder case, in an
index of the other half of their own. Two logistic regressions on the same clues say how probable each is, once for
images with a heading and once for images whose heading was searched.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
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
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, Prior, Query, Rejection
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
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_training.calibrate import CalibrationReport
from unifygeo_training.export import BundleText, export_bundle
from unifygeo_training.files import locked, new_folder
from unifygeo_training.model import UnifyGeo
from unifygeo_training.streets import Streets

GATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
HEADING_SIGMA_RAD = LocalizerConfig().heading_sigma_rad
CONFIG = LocalizerConfig(check_projection=False)
"""Of the localizer whose answers are judged. The panoramas of a data set are known to be equirectangular."""
_SHRINKAGE = 0.1
"""Weight, against one answer's, of the squared distance from "as sure as the belief": where the data do not tell."""


@dataclass(frozen=True)
class Outcomes:
    """Answers of the localizer: their clues (`Clues`), and what became of them."""

    beliefs: Float64
    scores: Float64
    spreads: Float64
    agreeing: Float64
    right: Bool
    """Within answer_radius_m of the truth."""
    outside: Bool
    """The place is on no tile of the index."""

    def __len__(self) -> int:
        return len(self.right)

    def clues(self) -> list[Clues]:
        columns = (self.beliefs, self.scores, self.spreads, self.agreeing)
        return [Clues(*map(float, row)) for row in zip(*columns, strict=True)]

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
    for name, parts in zip(("", "searched_"), zip(*gathered, strict=True), strict=True):
        outcomes = joined(parts)
        fitted: dict[str, Any] = {
            f"{name}confidence": fit_confidence(outcomes),
            f"{name}on_map_confidence": fit_on_map(outcomes),
        }
        calibration = replace(calibration, **fitted)
        answers[f"{name}confidence"] = asdict(judge(outcomes, calibration, searched=bool(name)))
    return calibration, answers


def judge(outcomes: Outcomes, calibration: Calibration, *, searched: bool = False) -> Answers:
    """Count what passes which gate."""
    prior = LocalizerConfig().on_map_prior
    wrong = np.array(
        [calibration.wrong_probabilities(clues, searched=searched, on_map_prior=prior)[0] for clues in outcomes.clues()]
    )
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


def gather(bundle: ModelBundle, streets: Streets, stranger: Streets) -> tuple[Outcomes, Outcomes]:
    """Localize all panoramas with the bundle, on ONNX Runtime's CPU: with a heading, and with it searched.

    In the index of the whole imagery, in that of its western half (only those that are not on it), and in that of the
    stranger, where it is another.
    """
    precision = "fp32" if "fp32" in bundle.manifest.graphs["decoder"] else "fp16"
    with (
        tempfile.TemporaryDirectory() as temporary,
        open_engines(bundle, backend="onnx_cpu", precision=precision) as engines,
    ):

        def index_of(source: Path, datum: Datum | None = None) -> TileIndex:
            build_index([source], bundle, engines, source.parent / "index", datum=datum)
            return open_index(source.parent / "index", bundle=bundle)

        folders = [Path(temporary) / name for name in ("whole", "half", "stranger")]
        for folder in folders:
            folder.mkdir()
        whole = index_of(streets.imagery(folders[0]))
        truth = streets.truth(whole.frame)
        half = index_of(streets.western_half(folders[1]), whole.manifest.datum)
        beyond = np.array([not len(half.tiles_within(Gate(_place(point), 1.0))) for point in truth])
        everywhere, nowhere = np.ones(len(truth), np.bool_), np.zeros(len(truth), np.bool_)
        trials = [(whole, nowhere, everywhere), (half, everywhere, beyond)]
        if stranger is not streets:
            trials.append((index_of(stranger.imagery(folders[2])), everywhere, everywhere))
        given, searched = [], []
        for index, outside, chosen in trials:
            localizer = Localizer(index, bundle, engines, CONFIG, streets.mount)
            rows = np.flatnonzero(chosen)
            given.append(_localized(localizer, streets, truth, outside, rows, searched=False))
            searched.append(_localized(localizer, streets, truth, outside, rows, searched=True))
        return joined(given), joined(searched)


def _place(point: Float64) -> Prior:
    return Prior(float(point[0]), float(point[1]), 1e-6 * np.eye(2))


def _localized(
    localizer: Localizer,
    streets: Streets,
    truth: Float64,
    outside: Bool,
    rows: npt.NDArray[np.intp],
    *,
    searched: bool,
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
    """
    rng = np.random.default_rng(streets.seed)
    rolls = rng.integers(streets.columns, size=len(truth)) if searched else np.zeros(len(truth), np.int64)
    errors_rad = rng.normal(0.0, HEADING_SIGMA_RAD, len(truth))
    clues, right = [], []
    for row in rows.tolist():
        heading = None
        if not searched:
            heading = Heading(float(yaw_from_azimuth(errors_rad[row])), HEADING_SIGMA_RAD**2, HeadingSource.CONSTANT)
        image = CameraImage(streets.camera_image(row, int(rolls[row])), row + 1)
        observation = localizer.observe(image, Query(heading=heading))
        if isinstance(observation, Rejection):
            raise InputError(f"{streets.name}, panorama {row}: {observation.detail}")
        found = localizer.answer(observation)
        clues.append(astuple(found.clues))
        error_m = np.hypot(*(truth[row] - (found.east_m, found.north_m)))
        right.append(not outside[row] and error_m <= localizer.config.answer_radius_m)
    columns = np.array(clues, np.float64).reshape(-1, 4).T
    return Outcomes(columns[0], columns[1], columns[2], columns[3], np.array(right, np.bool_), outside[rows])


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
