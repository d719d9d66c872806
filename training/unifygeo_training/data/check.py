"""What is missing, unreadable or inconsistent in a data set, with counts, before a training run wastes a night."""

from __future__ import annotations

import concurrent.futures
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable

import cv2
import numpy as np

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.images.files import read_image
from unifygeo_training.data.split import METRES_PER_DEGREE, NO_TILE, CrossViewSplit

EXAMPLES = 3
POSITION_TOLERANCE_M = 2.0
"""Largest accepted disagreement between a label and the coordinates in the file names, which are rounded to 1e-6°
(0.1 m); the metres per pixel of a city are a mean."""


@dataclass(frozen=True)
class Finding:
    """One kind of trouble: how often, of how many, the first few cases. An error makes the data unfit to train on."""

    what: str
    count: int
    total: int
    is_error: bool
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataReport:
    """All findings about one split; those with count 0 are kept, so that the reader sees what was looked for."""

    split: str
    queries: int
    gallery: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not any(finding.is_error and finding.count for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"{self.split}: {self.queries} queries, {self.gallery} tiles"]
        for finding in self.findings:
            mark = "ok   " if not finding.count else ("ERROR" if finding.is_error else "note ")
            lines.append(f"  {mark} {finding.what}: {finding.count} of {finding.total}")
            lines.extend(f"          e.g. {example}" for example in finding.examples)
        return "\n".join(lines)


def check_split(
    split: CrossViewSplit,
    *,
    decode: bool = True,
    workers: int = 8,
    progress: Callable[[Iterable[Path], int], Iterable[Path]] = lambda files, total: files,
) -> DataReport:
    """Look at every file and every label of a split.

    decode: read each image whole, which finds truncated ones; otherwise only their presence is checked.
    """
    findings = [_duplicates("panorama listed twice", split.ground), _duplicates("tile listed twice", split.gallery)]
    missing_ground = [file for file in split.ground if not file.is_file()]
    missing_tiles = [file for file in split.gallery if not file.is_file()]
    findings += [
        _finding("panorama file missing", missing_ground, len(split.ground)),
        _finding("tile file missing", missing_tiles, len(split.gallery)),
    ]
    if decode:
        ground = sorted(set(split.ground) - set(missing_ground))
        tiles = sorted(set(split.gallery) - set(missing_tiles))
        sizes = dict(zip(ground + tiles, _sizes(ground + tiles, workers, progress), strict=True))
        findings += [
            _finding("panorama unreadable or truncated", [f for f in ground if sizes[f] is None], len(ground)),
            _finding("tile unreadable or truncated", [f for f in tiles if sizes[f] is None], len(tiles)),
            _finding(
                f"tile not {split.tile_size}×{split.tile_size}",
                [f for f in tiles if sizes[f] not in (None, (split.tile_size, split.tile_size))],
                len(tiles),
            ),
            _finding("panorama of another shape than most", _odd_shapes(ground, sizes), len(ground)),
        ]
    return DataReport(split.name, len(split.ground), len(split.gallery), (*findings, *_label_findings(split)))


def draw_labels(split: CrossViewSplit, query: int) -> np.ndarray:
    """The panorama above the tiles of one query, the camera marked on each tile: uint8 (H, W, 3), RGB.

    Red cross: camera on the positive; yellow: on semi-positives. A camera outside a tile is an arrow to its edge.
    """
    side = 320
    tiles = []
    for column, tile in enumerate(split.tiles[query]):
        if tile == NO_TILE:
            continue
        image = cv2.resize(read_image(split.gallery[tile]), (side, side), interpolation=cv2.INTER_AREA)
        down, right = split.offsets_px[query, column] * side / split.tile_size + (side - 1) / 2  # pixel centres
        colour = (255, 0, 0) if column == 0 else (255, 220, 0)
        inside = 0 <= down < side and 0 <= right < side
        point = (int(np.clip(right, 4, side - 5)), int(np.clip(down, 4, side - 5)))
        if inside:
            cv2.drawMarker(image, point, colour, cv2.MARKER_CROSS, 24, 2, cv2.LINE_AA)
        else:
            cv2.arrowedLine(image, (side // 2, side // 2), point, colour, 2, cv2.LINE_AA)
        tiles.append(image)
    row = np.hstack(tiles)
    panorama = read_image(split.ground[query])
    height = round(panorama.shape[0] * row.shape[1] / panorama.shape[1])
    return np.vstack([cv2.resize(panorama, (row.shape[1], height), interpolation=cv2.INTER_AREA), row])


def _label_findings(split: CrossViewSplit) -> list[Finding]:
    half = split.tile_size / 2
    names = [file.name for file in split.ground]
    reach = np.abs(split.offsets_px).max(axis=-1)  # (n, 1 + s), the larger of |down|, |right|
    positive, semi = reach[:, 0], reach[:, 1:]
    present = split.semi_positives != NO_TILE
    findings = [
        _finding("camera outside its positive tile", _names(names, positive > half), len(names)),
        _finding(
            "camera outside the central quarter of its positive",
            _names(names, positive > half / 2),
            len(names),
            is_error=False,
        ),
        Finding(
            "semi-positive that does not contain the camera",
            int((semi[present] > half).sum()),
            int(present.sum()),
            is_error=False,
        ),
        _finding(
            "tile that is positive or semi-positive of no query",
            [split.gallery[i].name for i in np.setdiff1d(np.arange(len(split.gallery)), split.tiles)],
            len(split.gallery),
            is_error=False,
        ),
    ]
    disagreement = _position_disagreement_m(split)
    known = np.isfinite(disagreement)
    if known.any():
        findings.append(
            _finding(
                f"label and coordinates of the file names disagree by more than {POSITION_TOLERANCE_M:g} m",
                _names(names, known & (disagreement > POSITION_TOLERANCE_M)),
                int(known.sum()),
                is_error=False,
            )
        )
    return findings


def _position_disagreement_m(split: CrossViewSplit) -> np.ndarray:
    """float64 (n,): distance between the labelled camera and its coordinates, on the positive; NaN where unknown.

    Equirectangular approximation, exact to a millimetre over a tile.
    """
    tile = split.positives
    degrees = split.ground_lat_lon - split.gallery_lat_lon[tile]
    north = degrees[:, 0] * METRES_PER_DEGREE
    east = degrees[:, 1] * METRES_PER_DEGREE * np.cos(np.radians(split.gallery_lat_lon[tile, 0]))
    labelled = split.offsets_px[:, 0] * split.metres_per_pixel[tile, None]
    return np.hypot(north + labelled[:, 0], east - labelled[:, 1])


def _sizes(
    files: list[Path], workers: int, progress: Callable[[Iterable[Path], int], Iterable[Path]]
) -> list[tuple[int, int] | None]:
    def size(file: Path) -> tuple[int, int] | None:
        try:
            return read_image(file).shape[:2]
        except InputError:
            return None

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(size, progress(files, len(files))))


def _odd_shapes(files: list[Path], sizes: dict[Path, tuple[int, int] | None]) -> list[Path]:
    shapes = Counter(sizes[file] for file in files if sizes[file])
    if not shapes:
        return []
    usual = shapes.most_common(1)[0][0]
    return [file for file in files if sizes[file] and sizes[file] != usual]


def _duplicates(what: str, files: tuple[Path, ...]) -> Finding:
    repeated = [file for file, count in Counter(files).items() if count > 1]
    return _finding(what, repeated, len(files))


def _names(names: list[str], chosen: np.ndarray) -> list[str]:
    return [names[i] for i in np.flatnonzero(chosen)]


def _finding(what: str, cases: list[Path] | list[str], total: int, *, is_error: bool = True) -> Finding:
    return Finding(what, len(cases), total, is_error, tuple(str(case) for case in cases[:EXAMPLES]))
