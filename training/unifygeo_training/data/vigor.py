"""VIGOR (Zhu et al., CVPR 2021) as it is found on disks: both label versions and all layouts seen.

A label row has 13 fields separated by spaces: the panorama, then four times (tile, d_row, d_col), first the positive
and then three semi-positives, in pixels of 640. The camera lies d_row pixels *below* and d_col pixels *left* of
the tile's centre: d_row grows with lat_tile − lat_camera, d_col with lon_tile − lon_camera.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Literal

import numpy as np

from unifygeo_ros.core.errors import InputError
from unifygeo_training.data.split import CrossViewSplit

TILE_SIZE = 640
METRES_PER_PIXEL = {"NewYork": 0.113248, "Seattle": 0.100817, "SanFrancisco": 0.118141, "Chicago": 0.111262}
CITIES = {
    ("same-area", "train"): ("NewYork", "Seattle", "SanFrancisco", "Chicago"),
    ("same-area", "test"): ("NewYork", "Seattle", "SanFrancisco", "Chicago"),
    ("cross-area", "train"): ("NewYork", "Seattle"),
    ("cross-area", "test"): ("SanFrancisco", "Chicago"),
}
SPLIT_FOLDERS = {"original": ("splits", "splits_new"), "corrected": ("splits__corrected",)}
SUFFIX = {"original": ".txt", "corrected": "__corrected.txt"}
FIELDS = 13

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

    Raises InputError for a missing folder or list, a malformed row, or a label that names a tile outside the gallery.
    Image files are not touched; `unifygeo-train check-data` looks at them.
    """
    gallery: list[Path] = []
    scales: list[float] = []
    row_of: dict[tuple[str, str], int] = {}
    ground: list[Path] = []
    tiles: list[list[int]] = []
    offsets: list[list[tuple[float, float]]] = []
    cities = CITIES[area, part]
    for city in cities:
        folder = _first_folder(root, (f"{city}/satellite", f"satellite/{city}"))
        for name in _read_text(_find_list(root, city, "satellite_list.txt", labels)).split():
            row_of[city, name] = len(gallery)
            gallery.append(folder / name)
            scales.append(METRES_PER_PIXEL[city])
    for city in cities:
        folder = _first_folder(root, (f"{city}/panorama", f"ground/{city}", f"panorama/{city}"))
        stem = f"same_area_balanced_{part}" if area == "same-area" else "pano_label_balanced"
        label_file = _find_list(root, city, stem + SUFFIX[labels], labels)
        for row in read_labels(label_file):
            try:
                tiles.append([row_of[city, name] for name in row.tiles])
            except KeyError as error:
                raise InputError(
                    f"{label_file}: {row.panorama} names {error.args[0][1]}, which satellite_list.txt of {city} lacks; "
                    "lists and labels must be of one version"
                ) from None
            ground.append(folder / row.panorama)
            # (d_row, d_col) are down and LEFT of the centre; the split wants down and right.
            offsets.append([(d_row, -d_col) for d_row, d_col in row.deltas])
    return CrossViewSplit(
        name=f"VIGOR {area} {part} ({labels} labels)",
        ground=tuple(ground),
        gallery=tuple(gallery),
        tiles=np.array(tiles, np.int64),
        offsets_px=np.array(offsets, np.float64),
        tile_size=TILE_SIZE,
        metres_per_pixel=np.array(scales),
        gallery_lat_lon=_positions(gallery, r"satellite_(-?[\d.]+)_(-?[\d.]+)\.\w+$"),
        ground_lat_lon=_positions(ground, r",(-?[\d.]+),(-?[\d.]+),"),
    )


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


def _find_list(root: Path, city: str, name: str, labels: Labels) -> Path:
    # The corrected labels are often copied without the tile lists, which did not change.
    folders = SPLIT_FOLDERS[labels] + (SPLIT_FOLDERS["original"] if name == "satellite_list.txt" else ())
    choices = [root / folder / city / name for folder in folders]
    for choice in choices:
        if choice.is_file():
            return choice
    raise InputError(
        f"none of {', '.join(map(str, choices))} exists; choose the other --labels or complete the data set"
    )
