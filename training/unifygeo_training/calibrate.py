"""Fit the constants of a bundle's `Calibration` on validation towns: neither trained on nor tested on.

Every temperature minimises the mean negative log-likelihood of the truth. Of some images the network knows nothing:
the tracker gives every image a share of doubt for that (`TrackerConfig.outlier`), and so do these fits, up to that
share and as far as it makes the truth likelier. Without it, a few such images among some dozens of a drive would
flatten what the network says of all the others. What the truth is:
* distribution: the camera's pixel of D on the positive tile;
* tile: any of the k candidates that holds the camera (queries with none of them are left out);
* heading: roll 0 among the rolls of a panorama that faces north, on the positive tile.
The minimum score is a quantile of the re-ranking scores of right answers. The covariance's three constants (scale,
floor, the heading's lever) maximise the Gaussian likelihood of the errors of right answers, each query once with its
exact heading and once with a wrong one. What the right answers of a set have in common, their median error, is how far
the imagery (or the truth) is off on the earth. It does not average out over images, so that no constant for single
images can describe it: it is reported, and taken away before the fits. The confidence comes from the whole localizer
(`unifygeo_training.confidence`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import optimize

from unifygeo_ros.core.arrays import Array, Bool, Float32, Float64, Int64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import tile_from_map
from unifygeo_ros.core.records import Candidates, Heading, HeadingSource, TileDistribution
from unifygeo_ros.inference.bundle import Calibration, calibration_from_json
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.decision import most_probable_position, position_covariance_m2, second_moment_m2
from unifygeo_ros.localization.decoding import probabilities
from unifygeo_ros.localization.heading import rolled_columns
from unifygeo_ros.localization.reranking import match, rerank
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_training import metrics
from unifygeo_training.judging.evaluation_set import EvaluationSet
from unifygeo_training.judging.judge import CANDIDATES
from unifygeo_training.model import UnifyGeo

MINIMUM_SCORE_QUANTILE = 0.01
RIGHT_WITHIN_M = LocalizerConfig().answer_radius_m
"""An answer nearer than this to the truth is right: the others are what ambiguity and rejection are for."""
WORTH_CORRECTING_M = 0.2
"""A smaller shift of the imagery is within what a few hundred images with a truth of GNSS tell."""
HEADING_ERROR_RAD = np.radians(4.0)
"""Standard deviation of the wrong headings."""
TEMPERATURES = (1e-3, 1e2)
DOUBTS = np.linspace(0.0, TrackerConfig().outlier, 16)
"""Shares of images of which the network knows nothing."""


class NothingRightError(InputError):
    """The network is right nowhere on the data, or the truth is wrong: there is nothing to calibrate."""


@dataclass(frozen=True)
class Evidence:
    """What the fits need of n queries."""

    logits: Float32
    """float32 (n, P, P) on the positive tile, with the exact heading and with a wrong one."""
    turned_logits: Float32
    """See `logits`."""
    pixel: Int64
    """int64 (n,), the camera's, row-major."""
    side_m: Float64
    """Side of each tile."""
    offsets_m: Float64
    """float64 (n, 2), the camera east and north of the positive's centre."""
    tile_scores: Float32
    """float32 (n, k), of the re-ranked candidates, best first."""
    holds_camera: Bool
    """bool (n, k)."""
    roll_scores: Float32
    """float32 (n, columns), max M⁰ of each roll on the positive tile."""


@dataclass(frozen=True)
class CalibrationReport:
    """The fitted constants and how they were found."""

    calibration: Calibration
    """The result."""
    nll_before: dict[str, float]
    """Mean negative log-likelihood of each temperature's truth at temperature 1 (of the logits) or 0.05 (of cosines),
    and at the fitted one."""
    nll_after: dict[str, float]
    """See `nll_before`."""
    right_share: float
    """Share of answers on the positive tile within RIGHT_WITHIN_M, the ones that the covariance is fitted on."""
    queries: int
    """Number of queries."""
    data: str
    """Name of the data."""
    imagery_offsets_m: list[tuple[float, float]] = field(default_factory=list)
    """Of each set of data: median error of the right answers, east and north. The fits are relative to it."""
    answers: dict[str, Any] = field(default_factory=dict)
    """Outcomes of the localizer's answers, with a given and with a searched heading (`Answers`)."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def for_people(self) -> str:
        """The same without the means and matrices of what is familiar, 30,000 characters that nobody reads."""
        content = asdict(self)
        if content["calibration"]["familiarity"] is not None:
            for name in ("ground", "aerial"):
                del content["calibration"]["familiarity"][name]
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_calibration(file: Path) -> Calibration:
    """The calibration of a report that `unifygeo-train calibrate` wrote. Raises InputError."""
    try:
        return calibration_from_json(json.loads(file.read_text(encoding="utf-8"))["calibration"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: no calibration ({error}); give what `unifygeo-train calibrate` wrote") from error


def calibrate(
    network: UnifyGeo, sets: Sequence[EvaluationSet], *, batch: int = 16, before: Calibration | None = None
) -> CalibrationReport:
    """Fit all constants on the queries of some evaluation sets. before: see `fit`."""
    evidence = [gather(network, data, batch=batch) for data in sets]
    return fit(evidence, ", ".join(data.name for data in sets), before)


def fit(evidence: Sequence[Evidence], data: str, before: Calibration | None = None) -> CalibrationReport:
    """The constants that suit the evidence best. Each part is of other imagery.

    Args:
        evidence: of each set.
        data: their names.
        before: of the weights that chose the queries, because they were certain of them. Such queries are the easy
            ones, often with the right tile first in all of them, which any small temperature suits: no temperature
            falls below its own. None: the queries were not chosen so.

    Raises:
        NothingRightError: no answer is right.
    """
    offsets_m = [imagery_offset_m(part) for part in evidence]
    evidence = [_on_imagery(part, offset) for part, offset in zip(evidence, offsets_m, strict=True)]

    def joined(name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in evidence])

    logits = joined("logits").reshape(len(joined("pixel")), -1)
    nll: dict[str, Callable[[float], float]] = {
        "distribution": lambda t: negative_log_likelihood(logits, _one_hot(joined("pixel"), logits.shape[1]), t),
        "tile": lambda t: negative_log_likelihood(joined("tile_scores"), joined("holds_camera"), t),
        "heading": lambda t: negative_log_likelihood(joined("roll_scores"), _first(joined("roll_scores")), t),
    }
    temperature = {name: minimise(function, *TEMPERATURES) for name, function in nll.items()}
    if before is not None:
        temperature = {name: max(found, getattr(before, f"{name}_temperature")) for name, found in temperature.items()}
    usual = {"distribution": 1.0, "tile": 0.05, "heading": 0.05}

    moments, errors, headings = [], [], []
    for part in evidence:
        for logits_of, variance in ((part.logits, 0.0), (part.turned_logits, HEADING_ERROR_RAD**2)):
            for query, of_query in enumerate(logits_of):
                moment, error = answer_moments(part, query, of_query, temperature["distribution"])
                moments.append(moment)
                errors.append(error)
                headings.append(variance)
    error, heading_variance = np.array(errors), np.array(headings)
    right = np.hypot(*error.T) <= RIGHT_WITHIN_M
    if not right.any():
        raise NothingRightError(f"no answer lies within {RIGHT_WITHIN_M} m of the truth: train the network first")
    winner_right = joined("holds_camera")[:, 0]
    calibration = Calibration(
        distribution_temperature=temperature["distribution"],
        tile_temperature=temperature["tile"],
        heading_temperature=temperature["heading"],
        minimum_score=float(np.quantile(joined("tile_scores")[winner_right, 0], MINIMUM_SCORE_QUANTILE))
        if winner_right.any()
        else -2.0,
        **fit_covariance(np.array(moments)[right], heading_variance[right], error[right]),
    )
    return CalibrationReport(
        calibration=calibration,
        nll_before={name: function(usual[name]) for name, function in nll.items()},
        nll_after={name: function(temperature[name]) for name, function in nll.items()},
        right_share=float(right[heading_variance == 0].mean()),
        queries=len(joined("pixel")),
        data=data,
        imagery_offsets_m=[(float(east), float(north)) for east, north in offsets_m],
    )


def imagery_offset_m(evidence: Evidence) -> Float64:
    """Median error of the right answers: float64 (2,), east and north; 0 where none is right."""
    found = [_answer(evidence, query, logits, 1.0)[1] for query, logits in enumerate(evidence.logits)]
    errors = np.array(found) - evidence.offsets_m
    right = np.hypot(*errors.T) <= RIGHT_WITHIN_M
    return np.median(errors[right], axis=0) if right.any() else np.zeros(2)


def offset_in_words(name: str, east_m: float, north_m: float) -> str:
    """What an offset of `CalibrationReport.imagery_offsets_m` means, and what to do about it."""
    length_m = float(np.hypot(east_m, north_m))
    east = f"{abs(east_m):.2f} m {'east' if east_m >= 0 else 'west'}"
    north = f"{abs(north_m):.2f} m {'north' if north_m >= 0 else 'south'}"
    text = f"{name}: the right answers lie {east} and {north} of the truth, in the median"
    if length_m < WORTH_CORRECTING_M:
        return text
    return (
        f"{text}. The imagery is shifted, or the truth is. Correct the imagery's georeference and build the index "
        f"again, or set localizer.imagery_sigma_m to {length_m / np.sqrt(2):.2f}"
    )


def _on_imagery(evidence: Evidence, offset_m: Float64) -> Evidence:
    """The evidence with the truth moved to where the imagery has it."""
    offsets_m = evidence.offsets_m + offset_m
    pixel = _pixels(offsets_m, evidence.side_m, evidence.logits.shape[-1])
    return replace(evidence, offsets_m=offsets_m, pixel=pixel)


def negative_log_likelihood(scores: Float32, true: Bool, temperature: float) -> float:
    """Mean of −log(b · u + (1 − b) · Σ_true softmax(scores / T)) over the rows that hold a true entry.

    u is the share of true entries, what chance would find, and b the one of `DOUBTS` that makes the mean least.

    Args:
        scores: (n, m).
        true: (n, m).
        temperature: T.
    """
    rows = true.any(axis=1)
    if not rows.any():
        raise NothingRightError("no query has a true entry among its candidates: train the network first")
    scaled = scores[rows].astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    weights = np.exp(scaled)
    right = np.where(true[rows], weights, 0.0).sum(axis=1) / weights.sum(axis=1)
    known = (1 - DOUBTS)[:, None] * right + DOUBTS[:, None] * true[rows].mean(axis=1)
    return float((-np.log(np.maximum(known, 1e-300))).mean(axis=1).min())


def minimise(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum between low and high has it, searched over the argument's logarithm."""
    found = optimize.minimize_scalar(
        lambda log: function(float(np.exp(log))), bounds=(np.log(low), np.log(high)), method="bounded"
    )
    return float(np.exp(found.x))


def answer_moments(evidence: Evidence, query: int, logits: Float32, temperature: float) -> tuple[Float64, Float64]:
    """D's second moment about an answer, and the answer's error.

    Returns:
        float64 (2, 2), m², as the runtime computes it, and float64 (2,), east and north, metres.
    """
    distribution, position = _answer(evidence, query, logits, temperature)
    moment = second_moment_m2(distribution, float(position[0]), float(position[1]), RIGHT_WITHIN_M)
    return moment, position - evidence.offsets_m[query]


def _answer(evidence: Evidence, query: int, logits: Float32, temperature: float) -> tuple[TileDistribution, Float64]:
    """D about the positive's centre, and its most probable position."""
    pixel_m = evidence.side_m[query] / len(logits)
    distribution = TileDistribution(
        0, 0.0, 0.0, pixel_m, probabilities(logits, temperature), Heading(0.0, 0.0, HeadingSource.CONSTANT)
    )
    return distribution, most_probable_position(distribution)


def _pixels(offsets_m: Float64, side_m: Float64, size: int) -> Int64:
    """int64 (n,), row-major: the pixels of D at offsets from the tiles' centres."""
    pixels = tile_from_map(offsets_m[:, 0], offsets_m[:, 1], 0.0, 0.0, size, side_m / size)
    row, column = np.clip(np.rint(pixels), 0, size - 1).astype(np.int64).T
    return np.asarray(row * size + column)


def fit_covariance(moments: Float64, heading_variances: Float64, errors: Float64) -> dict[str, Any]:
    """The covariance's constants (fields of `Calibration`) that make Gaussian errors likeliest.

    moments: float64 (n, 2, 2), m². heading_variances: float64 (n,), rad². errors: float64 (n, 2), m. With them the mean
    squared Mahalanobis distance of the errors is 2, as χ² with two degrees of freedom has it.
    """
    names = ("covariance_scale", "position_floor_m", "heading_lever_m")

    def negative_log_likelihood(logarithms: Float64) -> float:
        constants = Calibration(**dict(zip(names, np.exp(logarithms).tolist(), strict=True)))
        covariances = position_covariance_m2(moments, heading_variances[:, None, None], constants)
        distances = np.einsum("ni,nij,nj->n", errors, np.linalg.inv(covariances), errors)
        return float(np.mean(distances + np.log(np.linalg.det(covariances))))

    found = optimize.minimize(
        negative_log_likelihood,
        np.log([1.0, 0.2, 2.0]),
        method="L-BFGS-B",
        bounds=np.log([(1e-2, 1e2), (1e-2, 1e1), (1e-2, 1e2)]),
    )
    return dict(zip(names, np.exp(found.x).tolist(), strict=True))


@torch.inference_mode()
def gather(network: UnifyGeo, data: EvaluationSet, *, batch: int = 16) -> Evidence:
    """Run the network over an evaluation set that fits in memory."""
    network = network.eval()
    gallery, match_maps, positives = [], [], data.tiles[:, 0]
    for rows in _chunks(len(data.side_m), batch):
        aerial = network.encode_aerial(_stack([data.aerial_image(int(tile)) for tile in rows]))
        assert aerial.descriptor is not None
        gallery.append(aerial.descriptor.numpy())
        match_maps.append(aerial.match_map.permute(0, 2, 3, 1).half().numpy())  # NCHW → NHWC, as in the index
    descriptors, maps = np.concatenate(gallery), np.concatenate(match_maps)

    logits, turned_logits, scores, holds, rolls = [], [], [], [], []
    half = data.side_m / 2
    turns = np.random.default_rng(0).normal(0.0, HEADING_ERROR_RAD, len(positives))
    for rows in _chunks(len(positives), batch):
        panoramas = [data.ground_image(int(query)) for query in rows]
        ground = network.encode_ground(_stack(panoramas))
        assert ground.descriptor is not None
        turned = network.encode_ground(_stack([_turned(p, turns[q]) for p, q in zip(panoramas, rows, strict=True)]))
        own = network.encode_aerial(
            _stack([data.aerial_image(int(tile)) for tile in positives[rows]]), descriptor=False
        )
        logits.append(network.decode(ground.levels, own.pyramid).logits.numpy())
        turned_logits.append(network.decode(turned.levels, own.pyramid).logits.numpy())
        similarities, nearest = metrics.nearest(ground.descriptor.numpy(), descriptors, CANDIDATES)
        for row, query in enumerate(rows):
            f0 = ground.levels[0][row].numpy()
            tiles = nearest[row]
            matches = rerank(Candidates(tiles, similarities[row]), match(f0[None], maps[tiles])[:, 0])
            positive = np.full(len(tiles), positives[query])
            away = np.abs(data.offsets_m[query] - data.displacement_m(positive, matches.tile_ids))
            scores.append(matches.scores)
            holds.append((away <= half[matches.tile_ids, None]).all(axis=1))
            rolled = rolled_columns(f0, network.config.columns)
            rolls.append(match(rolled, maps[positives[query]][None])[0].max(axis=(1, 2)))

    side_m = data.side_m[positives]
    return Evidence(
        logits=np.concatenate(logits),
        turned_logits=np.concatenate(turned_logits),
        pixel=_pixels(data.offsets_m, side_m, network.config.distribution_size),
        side_m=side_m,
        offsets_m=data.offsets_m,
        tile_scores=np.array(scores, np.float32),
        holds_camera=np.array(holds),
        roll_scores=np.array(rolls, np.float32),
    )


def _turned(panorama: UInt8, angle_rad: float) -> UInt8:
    """The panorama as a heading that is wrong by an angle would have turned it, to the nearest column."""
    return np.roll(panorama, round(angle_rad / (2 * np.pi) * panorama.shape[1]), axis=1)


def _chunks(count: int, batch: int) -> list[Int64]:
    return [np.arange(start, min(start + batch, count)) for start in range(0, count, batch)]


def _stack(images: list[UInt8]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))


def _one_hot(index: Int64, size: int) -> Bool:
    return index[:, None] == np.arange(size)


def _first(scores: Float32) -> Bool:
    """True in column 0 alone."""
    return np.broadcast_to(np.arange(scores.shape[1]) == 0, scores.shape)
