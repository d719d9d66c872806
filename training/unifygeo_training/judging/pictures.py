"""Pictures of a judgement: the recall curve (Fig. 4 of the paper) and sheets of single queries (Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from unifygeo_ros.core.arrays import Float32, UInt8
from unifygeo_ros.core.geodesy import tile_from_map
from unifygeo_training.judging.evaluation_set import EvaluationSet
from unifygeo_training.judging.judge import QueryResults
from unifygeo_training.metrics import CvglScores
from unifygeo_training.model import UnifyGeo

TILE_PX = 240
LARGE_PX = 480
GAP_PX = 8
TEXT_PX = 26
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
GREEN, YELLOW, RED = (30, 160, 60), (235, 190, 0), (215, 40, 40)
TRUTH, ANSWER = (0, 220, 255), (255, 0, 200)


def draw_curve(curve: CvglScores, title: str, file: Path) -> None:
    """Share of queries within each distance, by both protocols, as a picture of matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, recall, style in (
        ("strict: the positive tile wins (the paper's protocol)", curve.strict, "-"),
        ("distance on the earth, whichever tile wins", curve.geographic, "--"),
    ):
        axes.plot(list(recall), list(recall.values()), style, label=name)
    axes.set(xlabel="distance to the truth (m)", ylabel="queries within it (%)", title=title, ylim=(0, 100))
    axes.set_xlim(0, max(curve.strict))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


@torch.inference_mode()
def draw_sheet(
    network: UnifyGeo, data: EvaluationSet, results: QueryResults, query: int, *, device: torch.device | str = "cpu"
) -> UInt8:
    """One query as a sheet, uint8 (H, W, 3) RGB.

    It shows the panorama; the candidates in the order of retrieval, framed green (the positive), yellow (a
    semi-positive) or red, the re-ranked winner with a star; the winner with D over it; and the positive with the truth.
    Truth: cross. Answer: circle.
    """
    nearest, winner, positive = results.nearest[query], results.reranked[query, 0], results.positives[query]
    semi = set(data.tiles[query, 1:].tolist())
    frames = []
    for rank, tile in enumerate(nearest.tolist(), start=1):
        colour = GREEN if tile == positive else YELLOW if tile in semi else RED
        image = _framed(_resized(data.aerial_image(tile), TILE_PX), colour)
        image = _captioned(image, f"{rank}. tile {tile}")
        if tile == winner:
            _star(image, (TILE_PX - 18, TEXT_PX + 34))
        frames.append(image)
    row = _beside(frames)

    ground = network.encode_ground(_batch(data.ground_image(query), device), descriptor=False)
    aerial = network.encode_aerial(_batch(data.aerial_image(int(winner)), device), descriptor=False)
    logits = network.decode(ground.levels, aerial.pyramid).logits[0]
    probabilities = logits.flatten().softmax(dim=0).view_as(logits).cpu().numpy()

    large = [_over(_resized(data.aerial_image(int(winner)), LARGE_PX), probabilities)]
    large += [_resized(data.aerial_image(int(tile)), LARGE_PX) for tile in (winner, positive)]
    captions = [f"D on the winner, tile {winner}", f"the winner, tile {winner}", f"the positive, tile {positive}"]
    known = bool(results.errors_m)
    if known:
        apart_m = data.displacement_m(np.array([positive, positive]), np.array([winner, positive]))
        truth_m = data.offsets_m[query]
        answer_m = apart_m[0] + results.offsets_m["final"][query]  # from the positive's centre
        for image, tile, origin_m in zip(large, (winner, winner, positive), apart_m[[0, 0, 1]], strict=True):
            for point_m, mark in ((truth_m, _cross), (answer_m, _circle)):
                east_m, north_m = (point_m - origin_m).tolist()
                row_px, column_px = tile_from_map(east_m, north_m, 0.0, 0.0, LARGE_PX, data.side_m[tile] / LARGE_PX)
                if 0 <= row_px < LARGE_PX and 0 <= column_px < LARGE_PX:
                    mark(image, (round(float(column_px)), round(float(row_px))))
        captions[1] += f": {results.errors_m['final'][query]:.1f} m off"
        captions[2] += f": {results.errors_m['metric'][query]:.1f} m off if it were chosen"
    below = _beside([_captioned(image, text) for image, text in zip(large, captions, strict=True)])

    width = max(row.shape[1], below.shape[1])
    panorama = data.ground_image(query)
    panorama = cv2.resize(
        panorama, (width, round(width * len(panorama) / panorama.shape[1])), interpolation=cv2.INTER_AREA
    )
    key = "frames: green the positive, yellow a semi-positive, red another; star: first after re-ranking"
    if known:
        key += "; cross: truth, circle: answer"
    parts = [_captioned(panorama, f"{data.name}, query {query}: centre column north"), row, below]
    legend = np.full((TEXT_PX, width, 3), 255, np.uint8)
    _write(legend, key)
    return np.vstack([_widened(part, width) for part in (*parts, legend)])


def _batch(image: UInt8, device: torch.device | str) -> torch.Tensor:
    return torch.from_numpy(np.array(image)[None]).to(device)


def _resized(image: UInt8, size: int) -> UInt8:
    smaller = len(image) > size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def _over(image: UInt8, probabilities: Float32) -> UInt8:
    """Probabilities as colour over a paler image, on a logarithmic scale of three decades below the peak."""
    decades = np.log10(np.maximum(probabilities / probabilities.max(), 1e-3)) / 3 + 1
    heat = cv2.resize(decades.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share = 0.15 + 0.75 * heat[..., None]
    return ((1 - share) * image + share * colours).astype(np.uint8)


def _framed(image: UInt8, colour: tuple[int, int, int]) -> UInt8:
    image = image.copy()
    cv2.rectangle(image, (3, 3), (image.shape[1] - 4, len(image) - 4), colour, 7)
    return image


def _captioned(image: UInt8, text: str) -> UInt8:
    line = np.full((TEXT_PX, image.shape[1], 3), 255, np.uint8)
    _write(line, text)
    return np.vstack([line, image])


def _write(image: UInt8, text: str) -> None:
    cv2.putText(image, text, (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, BLACK, 1, cv2.LINE_AA)


def _beside(images: Sequence[UInt8]) -> UInt8:
    gap = np.full((len(images[0]), GAP_PX, 3), 255, np.uint8)
    parts = [part for image in images for part in (image, gap)][:-1]
    return np.hstack(parts)


def _widened(image: UInt8, width: int) -> UInt8:
    return np.pad(image, ((0, GAP_PX), (0, width - image.shape[1]), (0, 0)), constant_values=255)


def _star(image: UInt8, centre: tuple[int, int]) -> None:
    angles = np.pi * (np.arange(10) / 5 - 0.5)
    radius = np.where(np.arange(10) % 2 == 0, 16, 6.5)
    points = np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)
    polygon = [np.round(points).astype(np.int32)]
    cv2.fillPoly(image, polygon, (255, 215, 0), cv2.LINE_AA)
    cv2.polylines(image, polygon, True, BLACK, 1, cv2.LINE_AA)


def _cross(image: UInt8, at: tuple[int, int]) -> None:
    for colour, thickness in ((BLACK, 5), (TRUTH, 2)):
        cv2.drawMarker(image, at, colour, cv2.MARKER_TILTED_CROSS, 22, thickness, cv2.LINE_AA)


def _circle(image: UInt8, at: tuple[int, int]) -> None:
    for colour, thickness in ((BLACK, 5), (ANSWER, 2)):
        cv2.circle(image, at, 12, colour, thickness, cv2.LINE_AA)
