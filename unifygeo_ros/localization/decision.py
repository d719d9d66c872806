"""Observation → fix or rejection: the answer, its covariance, its rivals, and the gates.

The answer is the most probable pixel of D of the best candidate, refined below the pixel. What D and the candidates
say against it is split in two, at `answer_radius_m`: spread within it is covariance, belief beyond it is ambiguity, and
too much of either is a rejection.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.arrays import Bool, Float64
from unifygeo_ros.core.covariance import symmetric
from unifygeo_ros.core.geodesy import LocalFrame, map_from_tile
from unifygeo_ros.core.records import (
    ALL_SEEN,
    Distances,
    Fix,
    Heading,
    Hypothesis,
    Matches,
    Observation,
    Query,
    Rejection,
    RejectionReason,
    Seen,
    TileDistribution,
)
from unifygeo_ros.core.softmax import softmax
from unifygeo_ros.inference.bundle import Calibration, Clues
from unifygeo_ros.localization.camera_mount import camera_offset_covariance_m2, camera_offset_m
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.fixes import PoseEstimate, build_fix, with_stamp_error

MAX_HYPOTHESES = 8
_LEAST_WEIGHT = 0.01
"""Hypotheses of less weight are left out."""


@dataclass(frozen=True)
class Answer:
    """Where the camera most probably is."""

    east_m: float
    north_m: float
    covariance_m2: Float64
    """float64 (2, 2), of the error if the camera is within answer_radius_m."""
    clues: Clues
    """The observations from which the probability of a wrong answer is computed."""
    ambiguity: float
    """Probability that the camera is not there, by the bundle's calibration."""
    outside: float
    """The part of the ambiguity that the camera is not on the map."""
    hypotheses: tuple[Hypothesis, ...]
    """The answer, then its rivals by falling weight."""


def most_probable_position(distribution: TileDistribution) -> Float64:
    """The most probable pixel (the first of equals), refined: float64 (2,), east and north in metres.

    The centre of mass of the 3×3 pixels about it, since its centre alone is off by up to half a pixel; on the tile's
    edge, where one side is missing, the pixel's own row or column stays.
    """
    probability = distribution.probability
    size = len(probability)
    row, column = (int(number) for number in np.unravel_index(int(probability.argmax()), probability.shape))
    rows = np.arange(row - 1, row + 2) if 0 < row < size - 1 else np.array([row])
    columns = np.arange(column - 1, column + 2) if 0 < column < size - 1 else np.array([column])
    window = probability[np.ix_(rows, columns)].astype(np.float64)
    mass = window.sum()
    return _position(distribution, float(window.sum(axis=1) @ rows / mass), float(window.sum(axis=0) @ columns / mass))


def second_moment_m2(distribution: TileDistribution, east_m: float, north_m: float, radius_m: float) -> Float64:
    """Second moment of D about a point in the tile: float64 (2, 2), east and north, positive definite.

    Of the pixels whose centres are at most radius_m away (or one pixel, where that is more), and of a pixel's own
    extent. It is taken about the answer and not about the mean. So a distribution that the tile's edge cuts off keeps
    its spread: the part inside the tile shows how wide the part outside is.
    """
    east, north = _offsets(distribution, east_m, north_m)
    reach_m = max(radius_m, distribution.metres_per_pixel)
    near = np.where(_within(east, north, reach_m), distribution.probability.astype(np.float64), 0.0)
    cross = float(north @ near @ east)
    moments = np.array([[float(near.sum(axis=0) @ east**2), cross], [cross, float(near.sum(axis=1) @ north**2)]])
    return moments / float(near.sum()) + np.eye(2) * distribution.metres_per_pixel**2 / 12


def position_covariance_m2(
    moment_m2: Float64, heading_variance_rad2: float | Float64, calibration: Calibration, seen: Seen = ALL_SEEN
) -> Float64:
    """Covariance of an answer: float64 (2, 2).

    Args:
        moment_m2: D's second moment about the answer. Moments float64 (n, 2, 2) take variances float64 (n, 1, 1).
        heading_variance_rad2: of its heading.
        calibration: of the bundle.
        seen: how much the image showed.
    """
    floor = calibration.position_floor_m**2 + calibration.heading_lever_m**2 * heading_variance_rad2
    widening = calibration.widening(1 - seen.elevation)
    return widening * (calibration.covariance_scale * moment_m2 + floor * np.eye(2))


def mass_within(distribution: TileDistribution, east_m: float, north_m: float, radius_m: float) -> float:
    """Share of D whose pixel centres are at most radius_m from a point."""
    east, north = _offsets(distribution, east_m, north_m)
    return float(distribution.probability[_within(east, north, radius_m)].sum(dtype=np.float64))


def spread_of(distribution: TileDistribution) -> float:
    """Differential entropy of D: the ln of the area, in m², of an even distribution that is as undecided."""
    probability = distribution.probability[distribution.probability > 0].astype(np.float64)
    return float(-probability @ np.log(probability)) + 2 * math.log(distribution.metres_per_pixel)


def clues_of(
    observation: Observation, centres_m: Float64, side_m: float, config: LocalizerConfig, calibration: Calibration
) -> tuple[Clues, Float64, Float64]:
    """What speaks for and against the answer of an observation.

    A candidate whose D is there counts with D's mass near the answer. Of the others, one whose best cell overlaps the
    answer's neighbourhood agrees (tiles overlap, so several hold the camera), and any other is a rival.

    Returns:
        The clues; float64 (k,), how much of each candidate agrees with the answer, 0 … 1; and float64 (2,), the answer.
    """
    beliefs = tile_beliefs(observation.matches, calibration.tile_temperature)
    return _clues(observation, beliefs, match_peaks_m(observation.matches, centres_m, side_m), side_m, config)


def _clues(
    observation: Observation, beliefs: Float64, peaks_m: Float64, side_m: float, config: LocalizerConfig
) -> tuple[Clues, Float64, Float64]:
    """`clues_of`, with the belief in each candidate and where it matches best."""
    winner = observation.distributions[0]
    position = most_probable_position(winner)
    half_cell_m = side_m / observation.matches.match_maps.shape[-1] / 2
    reach_m = config.answer_radius_m + math.sqrt(2) * half_cell_m
    agreement = (np.hypot(*(peaks_m - position).T) <= reach_m).astype(np.float64)
    agreeing = float(agreement[1:].sum())
    for rank, distribution in enumerate(observation.distributions):
        agreement[rank] = mass_within(distribution, float(position[0]), float(position[1]), config.answer_radius_m)
    belief = float(np.clip(beliefs @ agreement, 0.0, 1.0))
    unfamiliarity = 0.0 if observation.distances is None else observation.distances.unfamiliarity
    clues = Clues(
        belief,
        float(observation.matches.scores[0]),
        spread_of(winner),
        agreeing,
        unfamiliarity,
        blind_azimuth=1 - observation.seen.azimuth,
        blind_elevation=1 - observation.seen.elevation,
    )
    return clues, agreement, position


def unfamiliar(distances: Distances | None, calibration: Calibration) -> str | None:
    """Why the calibration does not hold for a panorama and its best tile, or None."""
    known = calibration.familiarity
    if distances is None or known is None:
        return None
    for what, distance, limit, remedy in (
        ("image", distances.ground, known.ground_limit, "the camera, its exposure and its mount"),
        ("aerial imagery", distances.aerial, known.aerial_limit, "the imagery and its resolution"),
    ):
        if distance > limit:
            return (
                f"the {what} is {distance:.2f} times as far from what the model knows as 99 of 100 pictures of its "
                f"calibration, the limit is {limit:.2f}; check {remedy}, or take a model that was trained for such "
                "pictures"
            )
    return None


def tile_beliefs(matches: Matches, temperature: float) -> Float64:
    """Belief in each candidate, in their order: softmax of the scores; float64 (k,)."""
    return softmax(matches.scores, temperature)


def match_peaks_m(matches: Matches, centres_m: Float64, side_m: float) -> Float64:
    """Where each candidate matches best: centres of the cells of max M⁰, float64 (k, 2), east and north.

    Args:
        matches: the candidates.
        centres_m: float64 (k, 2), of the candidates in their order.
        side_m: of a tile.
    """
    size = matches.match_maps.shape[-1]
    best = matches.match_maps.reshape(len(centres_m), -1).argmax(axis=1)
    rows, columns = np.divmod(best, size)
    return map_from_tile(rows, columns, centres_m[:, 0], centres_m[:, 1], size, side_m / size)


def answer(
    observation: Observation, centres_m: Float64, side_m: float, config: LocalizerConfig, calibration: Calibration
) -> Answer:
    """The answer of an observation and the probability that it is wrong."""
    winner = observation.distributions[0]
    radius_m = config.answer_radius_m
    beliefs = tile_beliefs(observation.matches, calibration.tile_temperature)
    peaks_m = match_peaks_m(observation.matches, centres_m, side_m)
    clues, agreement, position = _clues(observation, beliefs, peaks_m, side_m, config)
    east_m, north_m, belief = float(position[0]), float(position[1]), clues.belief
    # A distribution with a heading of its own was decoded with one that was searched.
    ambiguity, outside = calibration.wrong_probabilities(
        clues, searched=winner.heading is not None, on_map_prior=config.on_map_prior
    )
    probability = 1.0 - ambiguity

    rivals = []
    for rank, (weight, tile_id) in enumerate(zip(beliefs, observation.matches.tile_ids, strict=True)):
        if rank < len(observation.distributions):
            modes = _modes(observation.distributions[rank], position, radius_m, float(weight))
            rivals += [Hypothesis(east, north, mass, int(tile_id)) for east, north, mass in modes]
        elif agreement[rank] == 0.0:
            rivals.append(Hypothesis(float(peaks_m[rank, 0]), float(peaks_m[rank, 1]), float(weight), int(tile_id)))
    # Rivals keep their odds against the answer, as far as there is belief left for them.
    share = min(probability / max(belief, _LEAST_WEIGHT), (1 - probability) / max(1 - belief, _LEAST_WEIGHT), 1.0)
    rivals = [dataclasses.replace(rival, weight=share * rival.weight) for rival in rivals]
    heading = winner.heading or observation.heading
    moment = second_moment_m2(winner, east_m, north_m, radius_m)
    return Answer(
        east_m,
        north_m,
        position_covariance_m2(moment, heading.variance_rad2, calibration, observation.seen),
        clues,
        ambiguity,
        outside,
        (Hypothesis(east_m, north_m, probability, winner.tile_id), *_merged(rivals, radius_m)[: MAX_HYPOTHESES - 1]),
    )


def decide(
    observation: Observation,
    found: Answer,
    query: Query,
    config: LocalizerConfig,
    calibration: Calibration,
    mount: CameraMount,
    frame: LocalFrame,
) -> Fix | Rejection:
    """Put an answer through the gates and move it from the camera to base_link."""
    prior = query.prior
    heading: Heading = observation.distributions[0].heading or observation.heading
    offset = camera_offset_m(mount, heading.yaw_rad)
    covariance = found.covariance_m2 + camera_offset_covariance_m2(mount, heading.yaw_rad, heading.variance_rad2)
    covariance, yaw_variance_rad2 = with_stamp_error(
        symmetric(covariance), heading.variance_rad2, query.stamp_covariance, heading.yaw_rad
    )
    east_m, north_m = found.east_m - float(offset[0]), found.north_m - float(offset[1])
    score = float(observation.matches.scores[0])

    def rejection(reason: RejectionReason, detail: str) -> Rejection:
        return Rejection(observation.stamp_ns, reason, detail, found.hypotheses)

    problem = unfamiliar(observation.distances, calibration)
    if problem is not None:
        return rejection(RejectionReason.UNFAMILIAR, problem)
    minimum_score = calibration.minimum_score + config.gate_score
    if score < minimum_score:
        return rejection(
            RejectionReason.LOW_SCORE,
            f"score {score:.3f} of the best tile is under {minimum_score:.3f} (the bundle's minimum_score plus "
            f"gate_score {config.gate_score:g}): no tile of the index looks like the image; check that the vehicle is "
            "inside the index, and the camera's mount",
        )
    heading_sigma_rad = math.sqrt(heading.variance_rad2)
    if heading_sigma_rad > config.gate_heading_sigma_rad:
        return rejection(
            RejectionReason.NO_HEADING,
            f"heading ({heading.source.value}) has a standard deviation of {heading_sigma_rad:.3f} rad, above "
            f"gate_heading_sigma_rad {config.gate_heading_sigma_rad:g}",
        )
    if found.ambiguity > config.gate_ambiguity:
        return rejection(
            RejectionReason.AMBIGUOUS,
            f"the answer is wrong with a probability of {found.ambiguity:.0%} ({found.outside:.0%}: not on the map, "
            f"for on_map_prior {config.on_map_prior:g}), above gate_ambiguity {config.gate_ambiguity:.0%}",
        )
    estimate = PoseEstimate(
        east_m=east_m,
        north_m=north_m,
        covariance_m2=covariance,
        yaw_rad=heading.yaw_rad,
        yaw_variance_rad2=yaw_variance_rad2,
        tile_id=observation.distributions[0].tile_id,
        score=score,
        ambiguity=found.ambiguity,
        hypotheses=found.hypotheses,
    )
    result = build_fix(observation.stamp_ns, estimate, frame, config)
    if isinstance(result, Fix) and prior is not None:
        away = np.array([east_m - prior.east_m, north_m - prior.north_m])
        distance = math.sqrt(float(away @ np.linalg.solve(result.covariance_m2 + prior.covariance_m2, away)))
        if distance > config.gate_prior_sigma:
            return rejection(
                RejectionReason.PRIOR_CONFLICT,
                f"{float(np.hypot(*away)):.1f} m from the prior, Mahalanobis distance {distance:.1f}, above "
                f"{config.gate_prior_sigma:g}; is the covariance of the prior's source too small?",
            )
    return result


def _position(distribution: TileDistribution, row: float, column: float) -> Float64:
    d = distribution
    return map_from_tile(row, column, d.centre_east_m, d.centre_north_m, d.probability.shape[0], d.metres_per_pixel)


def _offsets(distribution: TileDistribution, east_m: float, north_m: float) -> tuple[Float64, Float64]:
    """Metres from a point to the pixel centres: east of each column (P,), north of each row (P,)."""
    pixels = np.arange(distribution.probability.shape[0])
    positions = _position(distribution, pixels, pixels)  # type: ignore[arg-type]
    return positions[:, 0] - east_m, positions[:, 1] - north_m


def _within(east: Float64, north: Float64, radius_m: float) -> Bool:
    """Pixels at most radius_m from the point that `_offsets` measured from: bool (P, P)."""
    return np.asarray(east[None, :] ** 2 + north[:, None] ** 2 <= radius_m**2)


def _modes(
    distribution: TileDistribution, answer_m: Float64, radius_m: float, weight: float
) -> list[tuple[float, float, float]]:
    """Peaks of D outside the answer's neighbourhood: east, north, weight.

    The weight is `weight` times the mass within radius_m of the peak and not of a peak before it.
    """
    remaining = distribution.probability.astype(np.float64)
    peak, modes = answer_m, []
    for _ in range(MAX_HYPOTHESES):
        east, north = _offsets(distribution, float(peak[0]), float(peak[1]))
        near = _within(east, north, radius_m)
        mass = weight * float(remaining[near].sum())
        if peak is not answer_m:
            if mass < _LEAST_WEIGHT:
                break
            modes.append((float(peak[0]), float(peak[1]), mass))
        remaining[near] = 0.0
        if weight * float(remaining.sum()) < _LEAST_WEIGHT:
            break
        row, column = np.unravel_index(int(remaining.argmax()), remaining.shape)
        peak = _position(distribution, float(row), float(column))
    return modes


def _merged(hypotheses: list[Hypothesis], radius_m: float) -> list[Hypothesis]:
    """Hypotheses closer than radius_m become the heaviest of them with their weights' sum; by falling weight."""
    merged: list[Hypothesis] = []
    for hypothesis in sorted(hypotheses, key=lambda h: -h.weight):
        for row, other in enumerate(merged):
            if math.hypot(hypothesis.east_m - other.east_m, hypothesis.north_m - other.north_m) <= radius_m:
                merged[row] = Hypothesis(other.east_m, other.north_m, other.weight + hypothesis.weight, other.tile_id)
                break
        else:
            merged.append(hypothesis)
    return sorted((h for h in merged if h.weight >= _LEAST_WEIGHT), key=lambda h: -h.weight)
