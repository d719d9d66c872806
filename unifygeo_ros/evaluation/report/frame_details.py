"""The worst fixes again, with everything that the localizer saw."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Callable

import cv2
import numpy as np

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.core.arrays import Int64, UInt8
from unifygeo_ros.core.geodesy import tile_from_map
from unifygeo_ros.core.records import CameraImage, Fix, Observation, Prior, Query
from unifygeo_ros.evaluation.metrics.drive import Drive
from unifygeo_ros.evaluation.metrics.results import FrameResult
from unifygeo_ros.evaluation.metrics.summary import Judged
from unifygeo_ros.localization.localizer import Localizer

PANORAMA_WIDTH = 1000
TILE_PIXELS = 220
SHOWN_CANDIDATES = 5
_TRUTH_BGR, _FIX_BGR = (60, 230, 60), (40, 60, 235)


@dataclass(frozen=True)
class FrameDetails:
    """One image in detail. Pictures are base64 JPEG."""

    number: int
    time_s: float
    error_m: float
    sigma_major_m: float
    nees: float
    false: bool
    score: float
    ambiguity: float
    detail: str
    panorama: str
    distribution: str
    candidates: tuple[tuple[str, str], ...]
    """(caption, picture), best first."""


def worst_frames(drive: Drive, judged: Judged, count: int = 10) -> Int64:
    """Places in the drive of the fixes with the largest errors, the worst first."""
    return judged.frame_index[np.argsort(-judged.errors_m, kind="stable")[:count]]


def render_frame_details(
    image_again: Callable[[FrameResult], CameraImage | None],
    localizer: Localizer,
    drive: Drive,
    judged: Judged,
    frames: list[FrameResult],
) -> tuple[FrameDetails, ...]:
    """Localize some images again, as they were localized in the drive, and draw what came of it.

    image_again: gives the image of a result, with its tilt, or None where that cannot be done.
    """
    entries = {int(frame): entry for entry, frame in enumerate(judged.frame_index)}
    looks = []
    for frame in frames:
        query = frame.query
        if query is None or frame.truth is None or not isinstance(frame.outcome, Fix):
            continue
        exposure = image_again(frame)
        if exposure is None:
            continue
        observation = localizer.observe(exposure, Query(query.prior, query.heading))
        if not isinstance(observation, Observation):
            continue
        entry = entries[frame.number]
        truth = (frame.truth.east_m, frame.truth.north_m)
        fix = (frame.outcome.east_m, frame.outcome.north_m)
        looks.append(
            FrameDetails(
                number=frame.number,
                time_s=float(drive.time_s[frame.number]),
                error_m=float(judged.errors_m[entry]),
                sigma_major_m=float(judged.sigma_major_m[entry]),
                nees=float(judged.nees[entry]),
                false=bool(judged.false[entry]),
                score=frame.outcome.score,
                ambiguity=frame.outcome.ambiguity,
                detail=f"heading {math.degrees(frame.outcome.yaw_rad):.1f}° ± "
                f"{math.degrees(math.sqrt(frame.outcome.yaw_variance_rad2)):.1f}° ({observation.heading.source.value})",
                panorama=_panorama(exposure.pixels),
                distribution=_distribution(localizer, observation, truth, fix),
                candidates=tuple(_candidates(localizer, observation, truth, fix)),
            )
        )
    return tuple(looks)


def _jpeg(bgr: UInt8) -> str:
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    return base64.b64encode(encoded.tobytes()).decode()


def _panorama(pixels: UInt8) -> str:
    """The whole image, at most PANORAMA_WIDTH wide."""
    height, width = pixels.shape[:2]
    scale = min(1.0, PANORAMA_WIDTH / width)
    small = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return _jpeg(np.ascontiguousarray(small[:, :, ::-1]))


def _tile(localizer: Localizer, tile: int) -> UInt8:
    """uint8 (TILE_PIXELS, TILE_PIXELS, 3), BGR."""
    pixels = localizer.index.tile_pixels(tile)[:, :, ::-1]
    return np.asarray(cv2.resize(pixels, (TILE_PIXELS, TILE_PIXELS), interpolation=cv2.INTER_AREA), np.uint8)


def _mark(
    localizer: Localizer,
    picture: UInt8,
    tile: int,
    truth: tuple[float, float],
    fix: tuple[float, float],
) -> None:
    """Draw truth (cross) and fix (ring) where they lie inside the tile."""
    east, north = localizer.index.centres_m[tile]
    scale = localizer.index.manifest.side_m / TILE_PIXELS
    for (x_m, y_m), colour, ring in ((truth, _TRUTH_BGR, False), (fix, _FIX_BGR, True)):
        row, column = tile_from_map(x_m, y_m, east, north, TILE_PIXELS, scale)
        if not (0 <= row < TILE_PIXELS and 0 <= column < TILE_PIXELS):
            continue
        # Four bits below the pixel, so that a mark does not jump by half metres.
        centre = (round(float(column) * 16), round(float(row) * 16))
        for thickness, shade in ((4, (255, 255, 255)), (2, colour)):
            if ring:
                cv2.circle(picture, centre, 8 * 16, shade, thickness, cv2.LINE_AA, 4)
            else:
                for dx, dy in ((7 * 16, 0), (0, 7 * 16)):
                    ends = ((centre[0] - dx, centre[1] - dy), (centre[0] + dx, centre[1] + dy))
                    cv2.line(picture, *ends, shade, thickness, cv2.LINE_AA, 4)


def _distribution(
    localizer: Localizer, observation: Observation, truth: tuple[float, float], fix: tuple[float, float]
) -> str:
    """D over the winning tile. Brightness is relative to the peak, by its square root, so that rivals show."""
    best = observation.distributions[0]
    picture = _tile(localizer, best.tile_id)
    share = np.sqrt(best.probability / max(float(best.probability.max()), 1e-30))
    large = cv2.resize(share.astype(np.float32), (TILE_PIXELS, TILE_PIXELS), interpolation=cv2.INTER_LINEAR)
    heat = cv2.applyColorMap((255 * large).astype(np.uint8), cv2.COLORMAP_INFERNO)
    weight = (0.25 + 0.65 * large)[:, :, None]
    mixed = (picture * (1 - weight) + heat * weight).astype(np.uint8)
    _mark(localizer, mixed, best.tile_id, truth, fix)
    return _jpeg(mixed)


def _candidates(
    localizer: Localizer, observation: Observation, truth: tuple[float, float], fix: tuple[float, float]
) -> list[tuple[str, str]]:
    matches = observation.matches
    half = localizer.index.manifest.side_m / 2
    shown = []
    for rank, tile in enumerate(matches.tile_ids[:SHOWN_CANDIDATES].tolist()):
        picture = _tile(localizer, tile)
        _mark(localizer, picture, tile, truth, fix)
        covers = np.abs(localizer.index.centres_m[tile] - np.array(truth)).max() <= half
        caption = (
            f"{rank + 1}. tile {tile}: score {matches.scores[rank]:.3f}, retrieved as "
            f"{int(matches.retrieval_ranks[rank]) + 1}.{' Holds the truth.' if covers else ''}"
        )
        shown.append((caption, _jpeg(picture)))
    camera = Prior(*truth, np.eye(2) * 1e-6)
    covering = localizer.index.tiles_within(Gate(camera, 1.0))
    if len(covering) and not np.isin(matches.tile_ids[:SHOWN_CANDIDATES], covering).any():
        nearest = int(covering[np.argmin(np.hypot(*(localizer.index.centres_m[covering] - np.array(truth)).T))])
        picture = _tile(localizer, nearest)
        _mark(localizer, picture, nearest, truth, fix)
        shown.append((f"The true place: tile {nearest}, not among these.", _jpeg(picture)))
    return shown
