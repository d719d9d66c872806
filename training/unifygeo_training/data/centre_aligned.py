"""CVUSA (Workman et al., Zhai et al.) and CVACT (Liu and Li): one tile a query, centred on its panorama."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.io

from unifygeo_ros.core.errors import InputError
from unifygeo_training.data.split import CrossViewSplit

CVUSA_TILE_SIZE = 750
CVACT_TILE_SIZE = 1200
CVUSA_HALF_FIELD_RAD = math.pi * 224 / 1232
"""CVUSA ships panoramas cropped to 224 of 616 rows at 1232 columns a turn: ±32.7° about the horizon."""


def load_cvusa(root: Path, part: Literal["train", "val"]) -> CrossViewSplit:
    """CVUSA from `splits/{part}-19zl.csv` (no header: aerial, ground, annotation paths). Raises InputError."""
    file = root / "splits" / f"{part}-19zl.csv"
    try:
        with file.open(newline="") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); give the root of CVUSA") from error
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise InputError(f"{file}:{number}: {len(row)} fields, at least aerial and ground path are needed")
    return _centre_aligned(
        f"CVUSA {part}",
        [root / row[1].strip() for row in rows],
        [root / row[0].strip() for row in rows],
        CVUSA_TILE_SIZE,
        half_field_rad=CVUSA_HALF_FIELD_RAD,
        source=file,
    )


def load_cvact(root: Path, part: Literal["train", "val", "test"]) -> CrossViewSplit:
    """CVACT from `ACT_data.mat`; the test part is every panorama of the file that lies under `ANU_data_test/`.

    Raises InputError for a missing or malformed file and for an empty split.
    """
    file = root / "ACT_data.mat"
    try:
        data = scipy.io.loadmat(file, simplify_cells=True)
        names = np.atleast_1d(data["panoIds"]).astype(str)
        keep = range(len(names)) if part == "test" else _indices(data, part)
    except (OSError, KeyError, TypeError, ValueError, NotImplementedError, scipy.io.matlab.MatReadError) as error:
        raise InputError(f"{file}: cannot be read as CVACT's list ({error!r}); give the root of CVACT") from error
    outside = [i + 1 for i in keep if not 0 <= i < len(names)]
    if outside:
        raise InputError(f"{file}: {part} names panorama {outside[0]} of 1 … {len(names)}; the file is damaged")
    folder = root / ("ANU_data_test" if part == "test" else "ANU_data_small")
    ground = [folder / "streetview" / f"{names[i]}_grdView.jpg" for i in keep]
    aerial = [folder / "satview_polish" / f"{names[i]}_satView_polish.jpg" for i in keep]
    if part == "test":
        present = [i for i, file in enumerate(ground) if file.is_file()]
        ground, aerial = [ground[i] for i in present], [aerial[i] for i in present]
    return _centre_aligned(f"CVACT {part}", ground, aerial, CVACT_TILE_SIZE, half_field_rad=math.pi / 2, source=folder)


def _indices(data: dict[str, Any], part: str) -> list[int]:
    # MATLAB counts from 1.
    return [int(i) - 1 for i in np.atleast_1d(data[f"{part}Set"][f"{part}Ind"])]


def _centre_aligned(
    name: str, ground: list[Path], aerial: list[Path], tile_size: int, *, half_field_rad: float, source: Path
) -> CrossViewSplit:
    if not ground:
        raise InputError(f"{source}: {name} is empty; complete the data set")
    n = len(ground)
    unknown = np.full((n, 2), np.nan)
    return CrossViewSplit(
        name=name,
        ground=tuple(ground),
        gallery=tuple(aerial),
        tiles=np.arange(n, dtype=np.int64)[:, None],
        offsets_px=np.zeros((n, 1, 2)),
        tile_size=tile_size,
        metres_per_pixel=np.full(n, np.nan),
        gallery_lat_lon=unknown,
        ground_lat_lon=unknown,
        ground_top_rad=half_field_rad,
        ground_bottom_rad=-half_field_rad,
    )
