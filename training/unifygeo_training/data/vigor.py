"""VIGOR (Zhu et al., CVPR 2021) as it is found on disks: both label versions and all known layouts.

A label row has 13 fields separated by spaces: the panorama, then four times (tile, d_row, d_col), first the positive
and then three semi-positives, in pixels of 640. The camera lies d_row pixels *below* and d_col pixels *left* of
the tile's centre: d_row grows with lat_tile − lat_camera, d_col with lon_tile − lon_camera.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Literal, Mapping

import numpy as np

from unifygeo_ros.aerial.vigor import METRES_PER_PIXEL, SIZE
from unifygeo_ros.core.errors import InputError
from unifygeo_training.data.split import METRES_PER_DEGREE, CrossViewSplit

CITIES = {
    ("same-area", "train"): ("NewYork", "Seattle", "SanFrancisco", "Chicago"),
    ("same-area", "test"): ("NewYork", "Seattle", "SanFrancisco", "Chicago"),
    ("cross-area", "train"): ("NewYork", "Seattle"),
    ("cross-area", "test"): ("SanFrancisco", "Chicago"),
}
LABEL_FOLDERS = (("splits__corrected", "__corrected.txt"), ("splits_new", ".txt"), ("splits", ".txt"))
"""Where labels are found, with the ending of their files. The folder does not tell the version: `splits_new` usually
holds the corrected labels, under the plain file names."""
LIST_FOLDERS = ("splits", "splits_new", "splits__corrected")
FIELDS = 13
CORRECTED_WITHIN_M = 0.5
"""Corrected labels (SliceMatch, Lentsch et al. 2023) and the coordinates in the file names disagree by 0.15 m in the
median and 0.42 m at most in New York and Seattle. The original ones took one scale for all cities, which is wrong by a
tenth in Seattle: a metre or more."""

Area = Literal["same-area", "cross-area"]
Part = Literal["train", "test"]
Labels = Literal["original", "corrected"]


@dataclass(frozen=True)
class LabelRow:
    """One line of a label file: the panorama's name, four tile names, and (d_row, d_col) of each in pixels of 640."""

    panorama: str
    tiles: tuple[str, ...]
    deltas: tuple[tuple[float, float], ...]


def read_labels(file: Path) -> list[LabelRow]:
    """Read a label file; LF or CRLF, with or without a final newline. Raises InputError naming file, line and value."""
    rows = []
    for number, line in enumerate(_read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != FIELDS:
            raise InputError(f"{file}:{number}: {len(fields)} fields, a VIGOR label row has {FIELDS}; repair the line")
        try:
            numbers = [(float(fields[i + 1]), float(fields[i + 2])) for i in range(1, FIELDS, 3)]
        except ValueError as error:
            raise InputError(f"{file}:{number}: {error}; offsets must be numbers; repair the line") from error
        if not np.isfinite(numbers).all():
            raise InputError(f"{file}:{number}: an offset is not finite; repair the line")
        rows.append(LabelRow(fields[0], tuple(fields[1::3]), tuple(numbers)))
    if not rows:
        raise InputError(f"{file}: no label rows; give a label file of VIGOR")
    return rows


def load_vigor(root: Path, area: Area, part: Part, *, labels: Labels = "corrected") -> CrossViewSplit:
    """The queries of one split and its gallery, which is every tile of the split's cities.

    labels: the version, found by comparing the labels with the coordinates in the file names, not by the folder.
    Image files are not touched; `unifygeo-train check-data` looks at them.

    Raises InputError for labels of the other version alone, a missing folder or list, a malformed row, or a label that
    names a tile outside the gallery.
    """
    gallery: list[Path] = []
    scales: list[float] = []
    row_of: dict[tuple[str, str], int] = {}
    cities = CITIES[area, part]
    for city in cities:
        folder = _first_folder(root, (f"{city}/satellite", f"satellite/{city}"))
        for name in _read_text(_find_list(root, city)).split():
            row_of[city, name] = len(gallery)
            gallery.append(folder / name)
            scales.append(METRES_PER_PIXEL[city])
    gallery_lat_lon = _positions(gallery, r"satellite_(-?[\d.]+)_(-?[\d.]+)\.\w+$")
    stem = f"same_area_balanced_{part}" if area == "same-area" else "pano_label_balanced"
    seen = []
    for label_folder, suffix in LABEL_FOLDERS:
        files = {city: root / label_folder / city / f"{stem}{suffix}" for city in cities}
        if not all(file.is_file() for file in files.values()):
            continue
        ground, tiles, offsets = _read_split(root, files, row_of)
        split = CrossViewSplit(
            name=f"VIGOR {area} {part} ({labels} labels)",
            ground=tuple(ground),
            gallery=tuple(gallery),
            tiles=np.array(tiles, np.int64),
            offsets_px=np.array(offsets, np.float64),
            tile_size=SIZE,
            metres_per_pixel=np.array(scales),
            gallery_lat_lon=gallery_lat_lon,
            ground_lat_lon=_positions(ground, r",(-?[\d.]+),(-?[\d.]+),"),
        )
        disagreement_m = label_disagreement_m(split)
        found: Labels = "original" if disagreement_m > CORRECTED_WITHIN_M else "corrected"  # NaN: unknown
        if found == labels or np.isnan(disagreement_m):
            return split
        seen.append(f"{root / label_folder} has {found} ones ({disagreement_m:.2f} m off the coordinates in the names)")
    if seen:
        raise InputError(f"no {labels} labels: {'; '.join(seen)}; choose the other labels or get the {labels} ones")
    folders = ", ".join(folder for folder, _ in LABEL_FOLDERS)
    raise InputError(f"{root}: none of {folders} has {stem} for {', '.join(cities)}; complete the data set")


def label_disagreement_m(split: CrossViewSplit) -> float:
    """How far the labels of positives lie from the coordinates in the file names: the largest of the cities' medians.

    NaN where the names hold no coordinates.
    """
    degrees = split.ground_lat_lon - split.gallery_lat_lon[split.positives]
    east_shrinks = np.cos(np.radians(split.ground_lat_lon[:, 0]))
    named_m = np.stack([-degrees[:, 0], degrees[:, 1] * east_shrinks], axis=1) * METRES_PER_DEGREE  # down, right
    scales = split.metres_per_pixel[split.positives]
    apart_m = np.hypot(*(split.offsets_px[:, 0] * scales[:, None] - named_m).T)
    return float(max(np.median(apart_m[scales == scale]) for scale in np.unique(scales)))


def _read_split(
    root: Path, files: Mapping[str, Path], row_of: Mapping[tuple[str, str], int]
) -> tuple[list[Path], list[list[int]], list[list[tuple[float, float]]]]:
    """Panoramas, gallery rows and (down, right) of each query. files: of labels, by city."""
    ground: list[Path] = []
    tiles: list[list[int]] = []
    offsets: list[list[tuple[float, float]]] = []
    for city, file in files.items():
        folder = _first_folder(root, (f"{city}/panorama", f"ground/{city}", f"panorama/{city}"))
        for row in read_labels(file):
            try:
                tiles.append([row_of[city, name] for name in row.tiles])
            except KeyError as error:
                raise InputError(
                    f"{file}: {row.panorama} names {error.args[0][1]}, which satellite_list.txt of {city} lacks; "
                    "lists and labels must be of one version"
                ) from None
            ground.append(folder / row.panorama)
            # (d_row, d_col) are down and LEFT of the centre; the split wants down and right.
            offsets.append([(d_row, -d_col) for d_row, d_col in row.deltas])
    return ground, tiles, offsets


def _positions(files: Iterable[Path], pattern: str) -> np.ndarray:
    """Latitude and longitude from file names, NaN where a name holds none."""
    compiled = re.compile(pattern)
    matches = (compiled.search(file.name) for file in files)
    return np.array([[float(m[1]), float(m[2])] if m else [np.nan, np.nan] for m in matches])


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error


def _first_folder(root: Path, choices: tuple[str, ...]) -> Path:
    for choice in choices:
        if (root / choice).is_dir():
            return root / choice
    raise InputError(f"{root}: none of the folders {', '.join(choices)} exists; give the root of VIGOR")


def _find_list(root: Path, city: str) -> Path:
    # The labels are often copied without the tile lists, which are the same in all versions.
    choices = [root / folder / city / "satellite_list.txt" for folder in LIST_FOLDERS]
    for choice in choices:
        if choice.is_file():
            return choice
    raise InputError(f"none of {', '.join(map(str, choices))} exists; complete the data set")
