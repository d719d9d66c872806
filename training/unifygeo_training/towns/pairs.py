"""Training pairs from towns, cached as plain arrays: orthophotos, panoramas, and where each was taken.

A cached town is a folder `town_00042` with
  * `orthophotos.npy`, uint8 (V, P, P, 3): the town from above on V different days, row 0 north;
  * `panoramas.npy`, uint8 (N, H, W, 3): centre column north, elevations TRAINING_VIEW;
  * `positions.npy`, float64 (N, 2): the camera, metres east and north of the town's south-west corner;
  * `town.json`: `TownRecord`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from unifygeo_ros.core.arrays import Float64, UInt8
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_training.files import locked, new_folder
from unifygeo_training.towns.kinds import TownKind, kind_of
from unifygeo_training.towns.light import draw_appearance
from unifygeo_training.towns.orthophoto import crop_tile, lean, render_orthophoto
from unifygeo_training.towns.panorama import TRAINING_VIEW, light_stage, render_panorama, set_stage
from unifygeo_training.towns.scene import Town, clearance
from unifygeo_training.towns.town import (
    DEFAULT_METRES_PER_PIXEL,
    DEFAULT_SIZE_M,
    GENERATOR_VERSION,
    build_town,
)

CAMERA_HEIGHTS_M = (2.0, 2.0)
"""Lowest and highest camera above the ground, unless a caller says otherwise."""
MARGIN_M = 40.0
"""No camera stands nearer to the town's edge, so that a tile of 70 m around it lies in the town."""

SMALLEST_CAMERA_HEIGHT_M, LARGEST_CAMERA_HEIGHT_M = 0.3, 6.0
FREE_AROUND_M = 0.8
PAIRS_A_LIGHT = 40
"""Panoramas that share a sun and a season; each has its own camera noise."""


@dataclass(frozen=True)
class TownRecord:
    """What a cached town is: enough to make it again."""

    seed: int
    size_m: float
    metres_per_pixel: float
    origin_east_m: float
    origin_north_m: float
    pairs: int
    orthophotos: int
    camera_height_m: float
    """Of the lowest camera."""
    panorama_top_rad: float
    panorama_bottom_rad: float
    generator_version: int
    kind: str = "mixed"
    """See `unifygeo_training.towns.kinds`."""
    lean: float = 0.0
    """Largest lean of the solids in its orthophotos: metres aside for each metre up."""
    camera_height_range_m: float = 0.0
    """Each camera's height is drawn evenly from camera_height_m to this much above it."""


@dataclass(frozen=True)
class CachedTown:
    """A town read back from disk; the arrays are memory-mapped. See the module's docstring for their shapes."""

    record: TownRecord
    orthophotos: UInt8
    panoramas: UInt8
    positions: Float64

    def tile(self, view: int, east_m: float, north_m: float, size: int, side_m: float) -> UInt8:
        """The north-up tile of orthophoto `view` centred at a town point: uint8 (size, size, 3)."""
        return crop_tile(self.orthophotos[view], self.record.metres_per_pixel, east_m, north_m, size, side_m)

    def panorama(self, number: int, width: int) -> UInt8:
        """A panorama of the width that a network takes, up to the rendered one: uint8 (H, width, 3)."""
        image = np.asarray(self.panoramas[number])
        height, rendered = image.shape[:2]
        return image if width == rendered else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    def check_view(self, height: int, width: int) -> None:
        """Raise InputError unless `panorama` can give images of this size."""
        rows, columns = self.panoramas.shape[1:3]
        if height != rows or width > columns:
            raise InputError(
                f"town {self.record.seed} has panoramas of {rows} × {columns}, the network takes {height} × {width}; "
                f"set network.ground_height to {rows} and network.ground_width to at most {columns}"
            )


def folder_of(output: Path, seed: int) -> Path:
    """Where the cached town of a seed lies."""
    return output / f"town_{seed:05d}"


def street_positions(
    rng: np.random.Generator, town: Town, count: int, *, highest_camera_m: float = CAMERA_HEIGHTS_M[1]
) -> Float64:
    """Random camera positions in the streets' lanes, clear of solids up to the highest camera, float64 (count, 2)."""
    weights = np.array([s.length_m for s in town.streets])
    weights /= weights.sum()
    found: list[Float64] = []
    for _ in range(count * 60):
        if len(found) == count:
            break
        s = town.streets[int(rng.choice(len(weights), p=weights))]
        k = int(rng.integers(1, len(s.line) - 1))
        left, right = s.lane_edges_m
        d = s.line[k + 1] - s.line[k - 1]
        aside = np.array([-d[1], d[0]]) / np.hypot(*d)
        p = s.line[k] + aside * rng.uniform(right + 0.6, left - 0.6)
        if (
            p.min() >= MARGIN_M
            and p.max() <= town.size_m - MARGIN_M
            and clearance(town.objects, p[0], p[1], highest_camera_m + 0.6) > FREE_AROUND_M
        ):
            found.append(p)
    if len(found) < count:
        raise ConfigurationError(
            f"town {town.seed} of {town.size_m:.0f} m has room for {len(found)} of {count} cameras; enlarge the town"
        )
    return np.array(found).reshape(count, 2)


def render_pairs(
    seed: int,
    count: int,
    output: Path,
    *,
    size_m: float = DEFAULT_SIZE_M,
    orthophotos: int = 2,
    metres_per_pixel: float = DEFAULT_METRES_PER_PIXEL,
    camera_heights_m: tuple[float, float] = CAMERA_HEIGHTS_M,
    kind: str = "mixed",
    largest_lean: float = 0.0,
) -> Path:
    """Render a town and `count` panoramas into its folder under `output`; a complete one is left alone.

    The folder appears under its name only when all of it is written. Several processes may render into the same
    `output`: a town that another one is working on is waited for. What killed processes left behind is removed.

    kind: one of `unifygeo_training.towns.kinds`, or "varied". largest_lean: solids lean by up to so many metres aside
    for each metre up, each orthophoto in its own direction and by its own share of it.
    camera_heights_m: each camera's height above the ground is drawn evenly between these two.

    Raises ConfigurationError for heights that are no range, for a town of the same seed but other settings, and for a
    town too small for `count`.
    """
    lowest, highest = camera_heights_m
    if not SMALLEST_CAMERA_HEIGHT_M <= lowest <= highest <= LARGEST_CAMERA_HEIGHT_M:
        raise ConfigurationError(
            f"camera heights of {lowest:g} to {highest:g} m: give the lower one first, both between "
            f"{SMALLEST_CAMERA_HEIGHT_M:g} and {LARGEST_CAMERA_HEIGHT_M:g} m"
        )
    folder = folder_of(output, seed)
    found_kind = kind_of(kind, seed)
    wanted = {
        "pairs": count,
        "size_m": size_m,
        "orthophotos": orthophotos,
        "metres_per_pixel": metres_per_pixel,
        "generator_version": GENERATOR_VERSION,
        "kind": found_kind.name,
        "lean": largest_lean,
        "camera_height_m": lowest,
        "camera_height_range_m": highest - lowest,
    }
    with locked(folder):
        if folder.exists() and _is_complete(folder):
            found = asdict(load_record(folder))
            other = [
                f"{name} {_brief(found[name])}, not {_brief(value)}"
                for name, value in wanted.items()
                if found[name] != value
            ]
            if other:
                raise ConfigurationError(f"{folder} has {', '.join(other)}; give another --output or remove it")
            return folder
        with new_folder(folder) as part:
            _render(
                part, seed, count, size_m, orthophotos, metres_per_pixel, camera_heights_m, found_kind, largest_lean
            )
            shutil.rmtree(folder, ignore_errors=True)  # one that the first release left without its arrays
    return folder


def _brief(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _is_complete(folder: Path) -> bool:
    """Whether all arrays are there and as long as the record says."""
    try:
        town = load_town(folder)
    except InputError:
        return False
    record = town.record
    return (len(town.orthophotos), len(town.panoramas), len(town.positions)) == (
        record.orthophotos,
        record.pairs,
        record.pairs,
    )


def _render(
    folder: Path,
    seed: int,
    count: int,
    size_m: float,
    orthophotos: int,
    metres_per_pixel: float,
    camera_heights_m: tuple[float, float],
    kind: TownKind,
    largest_lean: float,
) -> None:
    rng = np.random.default_rng([GENERATOR_VERSION, seed, 1])
    town = build_town(seed, size_m, metres_per_pixel, kind)
    pixels = town.ground.shape[0]
    leaning = np.random.default_rng([seed, 11])
    aerial = np.lib.format.open_memmap(folder / "orthophotos.npy", "w+", np.uint8, (orthophotos, pixels, pixels, 3))
    for view in range(orthophotos):
        photo = render_orthophoto(town, draw_appearance(rng))
        if largest_lean > 0:
            azimuth, share = leaning.uniform(0, 2 * np.pi), largest_lean * leaning.random()
            photo = lean(photo, town, share * np.sin(azimuth), share * np.cos(azimuth))
        aerial[view] = photo
    aerial.flush()
    stage = set_stage(town)
    lowest, highest = camera_heights_m
    positions = street_positions(rng, town, count, highest_camera_m=highest)
    heights_m = np.random.default_rng([seed, 9]).uniform(lowest, highest, count)
    shape = (count, TRAINING_VIEW.height, TRAINING_VIEW.width, 3)
    panoramas = np.lib.format.open_memmap(folder / "panoramas.npy", "w+", np.uint8, shape)
    for k, (x, y) in enumerate(positions):
        if k % PAIRS_A_LIGHT == 0:
            lit = light_stage(stage, draw_appearance(rng))
        panoramas[k] = render_panorama(lit, x, y, height_m=heights_m[k], noise_seed=seed * 100_003 + k)
    panoramas.flush()
    np.save(folder / "positions.npy", positions)
    record = TownRecord(
        seed,
        size_m,
        metres_per_pixel,
        *town.origin,
        count,
        orthophotos,
        lowest,
        TRAINING_VIEW.top_rad,
        TRAINING_VIEW.bottom_rad,
        GENERATOR_VERSION,
        kind.name,
        largest_lean,
        highest - lowest,
    )
    (folder / "town.json").write_text(json.dumps(asdict(record), indent=1) + "\n")


def load_record(folder: Path) -> TownRecord:
    """The record of a cached town."""
    try:
        return TownRecord(**json.loads((folder / "town.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder} is no cached town ({error}); make it with `unifygeo-train towns render`") from error


def load_town(folder: Path) -> CachedTown:
    """Open a cached town without reading its pixels. Raises InputError."""
    record = load_record(folder)
    try:
        return CachedTown(
            record,
            np.load(folder / "orthophotos.npy", mmap_mode="r"),
            np.load(folder / "panoramas.npy", mmap_mode="r"),
            np.load(folder / "positions.npy"),
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not complete ({error}); render it again") from error
