"""Fit the bundle's `Confidence`: how often an answer that the real localizer believes so much is right.

The belief of an answer is shared out among the candidates, as if one of them had to be right. On validation data it is
known how often none is; a logistic regression on the belief and on the winner's score says how sure to be, once for
images with a heading and once for images whose heading was searched.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import yaw_from_azimuth
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, Query, Rejection
from unifygeo_ros.inference.bundle import MANIFEST_NAME, Calibration, Confidence, ModelBundle, load_bundle, log_odds
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_training.calibrate import CalibrationReport
from unifygeo_training.export import BundleText, export_bundle
from unifygeo_training.files import locked, new_folder
from unifygeo_training.model import UnifyGeo
from unifygeo_training.streets import Streets

Float64 = npt.NDArray[np.float64]

GATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
HEADING_SIGMA_RAD = LocalizerConfig().heading_sigma_rad
_SHRINKAGE = 0.1
"""Weight, against one answer's, of the squared distance from "as sure as the belief": where the data do not tell."""


@dataclass(frozen=True)
class Outcomes:
    """Answers of the localizer. beliefs, scores: float64 (n,), of `Answer.belief` and of the winner. right: bool (n,),
    within answer_radius_m of the truth."""

    beliefs: Float64
    scores: Float64
    right: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """How many there are and which share is right; for some values of `gate_ambiguity`, with the fitted confidence,
    which share passes and which share of those is wrong (0 where none passes)."""

    count: int
    right: float
    gates: tuple[float, ...]
    accepted: tuple[float, ...]
    wrong_among_accepted: tuple[float, ...]


def with_confidence(
    network: UnifyGeo, report: CalibrationReport, streets: Sequence[Streets], bundle: ModelBundle | None = None
) -> CalibrationReport:
    """A calibration report with both confidences, fitted on the answers that the rest of it leads to.

    bundle: the one that the weights came from; None: the network is exported for it.
    """
    fitted: dict[str, Confidence] = {}
    answers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        if bundle is None:
            text = BundleText("calibration", "unstated", "unstated")
            bundle = export_bundle(network, folder, text, precisions=("fp32",), calibration=report.calibration)
        else:
            bundle = write_calibrated(bundle, report.calibration, folder)
        gathered = zip(*(gather(bundle, of_one) for of_one in streets), strict=True)
        for name, parts in zip(("confidence", "searched_confidence"), gathered, strict=True):
            outcomes = Outcomes(*(np.concatenate(values) for values in zip(*map(astuple, parts), strict=True)))
            fitted[name] = fit_confidence(outcomes)
            answers[name] = asdict(judge(outcomes, fitted[name]))
    return replace(report, calibration=replace(report.calibration, **fitted), answers=answers)


def write_calibrated(bundle: ModelBundle, calibration: Calibration, output: Path) -> ModelBundle:
    """A copy of a bundle with another calibration. Raises ConfigurationError if `output` exists."""
    if output.exists():
        raise ConfigurationError(f"{output} exists; remove it or choose another folder")
    manifest = replace(bundle.manifest, calibration=calibration, calibrated=True)
    with locked(output), new_folder(output) as folder:
        shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        load_bundle(folder)
    return load_bundle(output)


def judge(outcomes: Outcomes, confidence: Confidence) -> Answers:
    probability = [confidence.probability(b, s) for b, s in zip(outcomes.beliefs, outcomes.scores, strict=True)]
    passed = [1 - np.array(probability) <= gate for gate in GATES]
    return Answers(
        count=len(probability),
        right=float(outcomes.right.mean()),
        gates=GATES,
        accepted=tuple(float(those.mean()) for those in passed),
        wrong_among_accepted=tuple(float(np.mean(~outcomes.right[those])) if those.any() else 0.0 for those in passed),
    )


def gather(bundle: ModelBundle, streets: Streets) -> tuple[Outcomes, Outcomes]:
    """Localize all panoramas with the bundle, on ONNX Runtime's CPU: with a heading, and with it searched."""
    precision = "fp32" if "fp32" in bundle.manifest.graphs["decoder"] else "fp16"
    with (
        tempfile.TemporaryDirectory() as temporary,
        open_engines(bundle, backend="onnx_cpu", precision=precision) as engines,
    ):
        folder = Path(temporary)
        build_index([streets.imagery(folder)], bundle, engines, folder / "index")
        index = open_index(folder / "index", bundle=bundle)
        localizer = Localizer(index, bundle, engines, LocalizerConfig(), streets.mount)
        truth = streets.truth(index.frame)
        return _localized(localizer, streets, truth, searched=False), _localized(
            localizer, streets, truth, searched=True
        )


def _localized(localizer: Localizer, streets: Streets, truth: Float64, *, searched: bool) -> Outcomes:
    """truth: float64 (n, 2), the cameras in the map frame. searched: turn each panorama by a random angle and give no
    heading; otherwise give one that is wrong by `heading_sigma_rad`."""
    rng = np.random.default_rng(streets.seed)
    rolls = rng.integers(streets.columns, size=len(truth)) if searched else np.zeros(len(truth), np.int64)
    errors_rad = rng.normal(0.0, HEADING_SIGMA_RAD, len(truth))
    beliefs, scores, right = [], [], []
    for place in range(len(streets)):
        heading = None
        if not searched:
            heading = Heading(float(yaw_from_azimuth(errors_rad[place])), HEADING_SIGMA_RAD**2, HeadingSource.CONSTANT)
        image = CameraImage(streets.camera_image(place, int(rolls[place])), place + 1)
        observation = localizer.observe(image, Query(heading=heading))
        if isinstance(observation, Rejection):
            raise InputError(f"{streets.name}, panorama {place}: {observation.detail}")
        found = localizer.answer(observation)
        beliefs.append(found.belief)
        scores.append(float(observation.matches.scores[0]))
        error_m = np.hypot(*(truth[place] - (found.east_m, found.north_m)))
        right.append(error_m <= localizer.config.answer_radius_m)
    return Outcomes(np.array(beliefs), np.array(scores), np.array(right, np.bool_))


def fit_confidence(outcomes: Outcomes) -> Confidence:
    """The constants under which the outcomes are likeliest; neither belief nor score may count against an answer."""
    odds = log_odds(outcomes.beliefs)

    def loss(constants: Float64) -> float:
        bias, belief, score = constants
        logits = bias + belief * odds + score * outcomes.scores
        likelihood = np.where(outcomes.right, special.log_expit(logits), special.log_expit(-logits))
        return float(-likelihood.sum() + _SHRINKAGE * (bias**2 + (belief - 1) ** 2 + score**2)) / len(likelihood)

    found = optimize.minimize(loss, [0.0, 1.0, 0.0], method="L-BFGS-B", bounds=[(None, None), (0, None), (0, None)])
    return Confidence(*map(float, found.x))
