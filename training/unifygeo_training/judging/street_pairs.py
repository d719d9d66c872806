"""How good a model is on photographs of real streets: panoramas with a position, and the imagery they were taken on.

A folder of pairs holds `pairs.csv` with one line a panorama and the columns `COLUMNS`. Everything runs as on a robot:
the imagery becomes an index, the panorama is prepared as the localizer prepares it.
"""

from __future__ import annotations

import csv
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.aerial.manifest import MANIFEST
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.aerial.sources import open_imagery
from unifygeo_ros.core.arrays import Bool, Float32, Float64, Int64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame, map_from_tile, yaw_from_azimuth
from unifygeo_ros.core.records import CameraImage, Candidates, Fix, Heading, HeadingSource, Query, Rejection
from unifygeo_ros.images.files import read_image
from unifygeo_ros.inference.bundle import GROUND_FEATURES, ModelBundle
from unifygeo_ros.inference.engine import EngineSet, Input
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.decoding import probabilities
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.localization.panorama import prepare_panorama
from unifygeo_ros.localization.pyramids import PyramidCache
from unifygeo_ros.localization.reranking import match, rerank

logger = logging.getLogger(__name__)

PAIRS_FILE = "pairs.csv"
REQUIRED = ("panorama", "aerial", "latitude", "longitude", "heading")
COLUMNS = (*REQUIRED, "elevation_top", "elevation_bottom")
"""All angles in degrees. `heading` is the azimuth of the panorama's centre column, clockwise from true north.
`aerial` is a GeoTIFF, a folder of them, or an index of the same model. The elevations, of the panorama's upper and
lower edge, may be left out: +90 and −90."""

TURNS_DEG = (0, 90, 180, 270)
"""The panorama as it is, and turned as controls: what a model still finds then, it does not find by what it sees."""
FIRST = 5
WITHIN_M = 5.0
TILINGS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))
"""By how much of the stride each tiling is shifted east and north: a camera falls on its tiles by chance."""
HEADING_SIGMA_RAD = LocalizerConfig().heading_sigma_rad
RESAMPLES = 2000


@dataclass(frozen=True)
class StreetPair:
    """One panorama and where it was taken."""

    panorama: Path
    aerial: Path
    latitude_deg: float
    longitude_deg: float
    heading_deg: float
    """Azimuth of the centre column."""
    elevation_top_deg: float = 90.0
    elevation_bottom_deg: float = -90.0

    @property
    def mount(self) -> CameraMount:
        return CameraMount(
            elevation_top_rad=math.radians(self.elevation_top_deg),
            elevation_bottom_rad=math.radians(self.elevation_bottom_deg),
        )

    def heading(self, turn_deg: float = 0.0) -> Heading:
        yaw_rad = float(yaw_from_azimuth(math.radians(self.heading_deg + turn_deg)))
        return Heading(yaw_rad, HEADING_SIGMA_RAD**2, HeadingSource.CONSTANT)


def read_pairs(folder: Path) -> list[StreetPair]:
    """The pairs of a folder. Raises InputError naming the file, the line and the column."""
    file = folder / PAIRS_FILE
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            header, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read ({error}); it needs the columns {', '.join(COLUMNS)}") from error
    missing, unknown = [c for c in REQUIRED if c not in header], [c for c in header if c not in COLUMNS]
    if missing or unknown:
        raise InputError(
            f"{file}: has no column {', '.join(missing) or '-'}, and unknown columns {', '.join(unknown) or '-'}; "
            f"it needs {', '.join(REQUIRED)} and may have {', '.join(COLUMNS[len(REQUIRED) :])}"
        )
    if not rows:
        raise InputError(f"{file}: holds no pair; add a line for each panorama")
    return [_pair(row, folder, f"{file}, line {number}") for number, row in enumerate(rows, start=2)]


_LIMITS_DEG = {
    "latitude": (-89.0, 89.0),
    "longitude": (-180.0, 180.0),
    "heading": (-360.0, 360.0),
    "elevation_top": (-90.0, 90.0),
    "elevation_bottom": (-90.0, 90.0),
}


def _pair(row: dict[str, Any], folder: Path, where: str) -> StreetPair:
    defaults = {"elevation_top": "90", "elevation_bottom": "-90"}
    numbers = {}
    for name, (low, high) in _LIMITS_DEG.items():
        text = (row.get(name) or defaults.get(name, "")).strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise InputError(f"{where}: {name} is {text!r}, must be a number from {low:g} to {high:g} degrees")
        numbers[name] = value
    if numbers["elevation_top"] <= numbers["elevation_bottom"]:
        raise InputError(
            f"{where}: elevation_top {numbers['elevation_top']:g} is not above elevation_bottom "
            f"{numbers['elevation_bottom']:g}; exchange them"
        )
    paths = {}
    for name in ("panorama", "aerial"):
        paths[name] = folder / (row[name] or "")
        if not (row[name] or "").strip() or not paths[name].exists():
            raise InputError(f"{where}: {name} {str(paths[name])!r} does not exist; paths are relative to the folder")
    return StreetPair(
        paths["panorama"],
        paths["aerial"],
        numbers["latitude"],
        numbers["longitude"],
        numbers["heading"],
        numbers["elevation_top"],
        numbers["elevation_bottom"],
    )


@dataclass(frozen=True)
class Answers:
    """What became of n panoramas, turned by one angle, on one tiling."""

    cosine_ranks: Int64
    """int64 (n,): the rank of the right tile among all, 1 for the first."""
    reranked_ranks: Int64
    """int64 (n,): the same by the score of Eq. 4, of all tiles."""
    mass: Float64
    """float64 (n,): D's mass within WITHIN_M of the camera, the mean over the tiles that hold it."""
    strangers_mass: Float64
    """float64 (n,): the same of the next pair's panorama on this pair's tiles, with that panorama's own heading; of a
    single pair it is `mass`, and not reported."""


@dataclass(frozen=True)
class FixCounts:
    """Fixes of the localizer at its default gates."""

    runs: int = 0
    fixes: int = 0
    false: int = 0
    """Of the fixes, those further than WITHIN_M from the camera, or of a place that is not in the index."""

    def __add__(self, other: FixCounts) -> FixCounts:
        return FixCounts(self.runs + other.runs, self.fixes + other.fixes, self.false + other.false)


@dataclass(frozen=True)
class StreetJudgement:
    """How good a model is on some pairs."""

    pairs: int
    tilings: int
    tiles: tuple[int, ...]
    """Tiles of the gallery, by tiling."""
    chance: float
    """Share of queries whose right tile is among FIRST random tiles."""
    uniform_mass: float
    """Mass that a uniform D has within WITHIN_M, away from the tile's edges."""
    answers: dict[int, list[Answers]]
    """By the panorama's turn in degrees, one for each tiling."""
    fixes: dict[str, FixCounts] = field(default_factory=dict)
    """By "heading" or "search", inside and outside the index; empty for a model that is not calibrated."""


def judge_pairs(
    pairs: Sequence[StreetPair],
    bundle: ModelBundle,
    engines: EngineSet,
    *,
    distractors: Sequence[Path] = (),
    tilings: int = len(TILINGS),
    temperature: float | None = None,
) -> StreetJudgement:
    """Judge a model on real pairs.

    The gallery is the tiles of all imagery that the pairs name, and of the distractors. The right tile is the one whose
    centre is nearest to the camera, in the larger of the two axes. Fixes are counted where the bundle is calibrated:
    inside in the index of the pair's own imagery, outside in those of all other imagery.

    Args:
        pairs: panoramas with their imagery.
        bundle: the model.
        engines: of the bundle.
        distractors: GeoTIFFs, folders of them, or indexes of the model.
        tilings: How many of TILINGS; imagery that is an index already has one tiling.
        temperature: Of D, in the place of the bundle's.

    Raises:
        InputError: imagery or panoramas that cannot be read, and cameras on no tile.
    """
    own = list(dict.fromkeys(pair.aerial for pair in pairs))
    others = [source for source in dict.fromkeys(distractors) if source not in own]
    answers: dict[int, list[Answers]] = {turn: [] for turn in TURNS_DEG}
    fixes: dict[str, FixCounts] = {}
    tiles = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, shift in enumerate(TILINGS[:tilings]):
            logger.info("tiling %d of %d", number + 1, tilings)
            indexes = [
                _index_of(source, bundle, engines, Path(temporary) / f"{number}-{imagery}", shift)
                for imagery, source in enumerate([*own, *others])
            ]
            gallery = _Gallery(indexes, bundle, engines, temperature)
            cameras = [gallery.camera(own.index(pair.aerial), pair) for pair in pairs]
            tiles.append(len(gallery))
            for turn in TURNS_DEG:
                answers[turn].append(gallery.answers(pairs, cameras, turn))
            if bundle.manifest.calibrated:
                for imagery, index in enumerate(indexes):
                    inside = [imagery < len(own) and pair.aerial == own[imagery] for pair in pairs]
                    for name, counts in _count_fixes(index, bundle, engines, pairs, inside).items():
                        fixes[name] = fixes.get(name, FixCounts()) + counts
    side_m = bundle.manifest.aerial.side_m
    return StreetJudgement(
        pairs=len(pairs),
        tilings=tilings,
        tiles=tuple(tiles),
        chance=float(np.mean([min(1.0, FIRST / count) for count in tiles])),
        uniform_mass=math.pi * WITHIN_M**2 / side_m**2,
        answers=answers,
        fixes=fixes,
    )


def _index_of(
    source: Path, bundle: ModelBundle, engines: EngineSet, folder: Path, shift: tuple[float, float]
) -> TileIndex:
    if (source / MANIFEST).is_file():
        return open_index(source, bundle=bundle)
    frame = LocalFrame(Datum(*open_imagery([source]).centre_deg()))
    settings = BuildSettings()
    stride_m = settings.stride * bundle.manifest.aerial.side_m
    datum = Datum(*(float(angle) for angle in frame.geodetic_from_map(*(np.array(shift) * stride_m))))
    build_index([source], bundle, engines, folder, datum=datum, settings=settings)
    return open_index(folder, bundle=bundle)


@dataclass(frozen=True)
class _Camera:
    """A camera on its index."""

    imagery: int
    """Number of the index."""
    east_m: float
    north_m: float
    right: int
    """Tile of the index that is right."""
    holding: Int64
    """All tiles of the index that hold the camera."""


class _Gallery:
    """The tiles of several indexes, one after another."""

    def __init__(
        self, indexes: Sequence[TileIndex], bundle: ModelBundle, engines: EngineSet, temperature: float | None
    ) -> None:
        self._indexes, self._model, self._engines = indexes, bundle.manifest, engines
        self._first = np.cumsum([0, *(len(index) for index in indexes)])
        self._descriptors = np.concatenate([np.asarray(index.descriptors[:], np.float32) for index in indexes])
        self._pyramids = [PyramidCache(index, engines.aerial_encoder, len(index)) for index in indexes]
        self._temperature = temperature or bundle.manifest.calibration.distribution_temperature

    def __len__(self) -> int:
        return len(self._descriptors)

    def camera(self, imagery: int, pair: StreetPair) -> _Camera:
        index = self._indexes[imagery]
        east_m, north_m = map(float, index.frame.map_from_geodetic(pair.latitude_deg, pair.longitude_deg))
        away = np.abs(np.asarray(index.centres_m) - (east_m, north_m)).max(axis=1)
        holding = np.flatnonzero(away <= index.manifest.side_m / 2)
        if not len(holding):
            raise InputError(
                f"{pair.panorama}: its position {pair.latitude_deg:.6f}, {pair.longitude_deg:.6f} lies on no tile of "
                f"{pair.aerial}, the nearest centre is {away.min():.0f} m away; check latitude and longitude"
            )
        return _Camera(imagery, east_m, north_m, int(np.argmin(away)), holding)

    def answers(self, pairs: Sequence[StreetPair], cameras: Sequence[_Camera], turn_deg: float) -> Answers:
        features = [self._encode(pair, turn_deg) for pair in pairs]
        cosine, reranked, mass, strangers = [], [], [], []
        for number, (own, camera) in enumerate(zip(features, cameras, strict=True)):
            right = int(self._first[camera.imagery]) + camera.right
            similarities = self._descriptors @ own["descriptor"][0]
            everything = Candidates(np.arange(len(self)), similarities)
            order = rerank(everything, self._matches(own[GROUND_FEATURES[0]])).tile_ids
            cosine.append(1 + int((similarities > similarities[right]).sum()))
            reranked.append(1 + int(np.flatnonzero(order == right)[0]))
            mass.append(self._mass(own, camera))
            strangers.append(self._mass(features[(number + 1) % len(features)], camera))
        return Answers(np.array(cosine), np.array(reranked), np.array(mass), np.array(strangers))

    def _encode(self, pair: StreetPair, turn_deg: float) -> dict[str, Float32]:
        image = CameraImage(read_image(pair.panorama), 1)
        panorama = prepare_panorama(image, self._model.ground, pair.mount, pair.heading(turn_deg))
        return dict(self._engines.ground_encoder.run({"image": panorama.pixels[None]}))

    def _matches(self, f0: Float32) -> Float32:
        return np.concatenate([match(f0, np.asarray(index.match_maps[:], np.float16))[:, 0] for index in self._indexes])

    def _mass(self, features: dict[str, Float32], camera: _Camera) -> float:
        """Mean over the tiles that hold the camera of D's mass within WITHIN_M of it."""
        index, size = self._indexes[camera.imagery], self._model.distribution_size
        rows, columns = np.mgrid[:size, :size]
        found = []
        for tile in camera.holding.tolist():
            inputs: dict[str, Input] = {name: features[name] for name in GROUND_FEATURES}
            inputs.update(self._pyramids[camera.imagery].pyramid(tile))
            logits = self._engines.decoder.run(inputs)["logits"][0]
            east_m, north_m = index.centres_m[tile].tolist()
            points = map_from_tile(rows, columns, east_m, north_m, size, index.manifest.side_m / size)
            near = np.hypot(*np.moveaxis(points - (camera.east_m, camera.north_m), -1, 0)) <= WITHIN_M
            found.append(float(probabilities(logits, self._temperature)[near].sum()))
        return float(np.mean(found))


def _count_fixes(
    index: TileIndex,
    bundle: ModelBundle,
    engines: EngineSet,
    pairs: Sequence[StreetPair],
    inside: Sequence[bool],
) -> dict[str, FixCounts]:
    config = LocalizerConfig(check_projection=False)  # the panoramas are known to be equirectangular
    localizers = {pair.mount: Localizer(index, bundle, engines, config, pair.mount) for pair in pairs}
    counts: dict[str, FixCounts] = {}
    for pair, is_inside in zip(pairs, inside, strict=True):
        image = CameraImage(read_image(pair.panorama), 1)
        truth = index.frame.map_from_geodetic(pair.latitude_deg, pair.longitude_deg)
        for name, heading in (("heading", pair.heading()), ("search", None)):
            result = localizers[pair.mount].locate(image, Query(heading=heading))
            key = f"{name}, {'inside' if is_inside else 'outside'}"
            counts[key] = counts.get(key, FixCounts()) + count_fix(result, truth, is_inside=is_inside)
    return counts


def count_fix(result: Fix | Rejection, truth: Float64, *, is_inside: bool) -> FixCounts:
    """One run. truth: float64 (2,), the camera in the map frame; is_inside: whether its place is in the index."""
    if not isinstance(result, Fix):
        return FixCounts(1)
    error_m = float(np.hypot(*(truth - (result.east_m, result.north_m))))
    return FixCounts(1, 1, int(not is_inside or error_m > WITHIN_M))


def interval(values: Float64, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """Mean of one value a panorama, and its 95% bootstrap interval (percentiles, panoramas drawn with replacement).

    values: float64 (n,).
    """
    rng = np.random.default_rng(seed)
    drawn = np.asarray(values, np.float64)[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(np.mean(values)), float(low), float(high)


def _of_panoramas(parts: Sequence[Answers], value: Callable[[Answers], Bool | Float64]) -> Float64:
    """Mean over the tilings, float64 (n,)."""
    return np.mean([np.asarray(value(part), np.float64) for part in parts], axis=0)


STRANGERS = "strangers_mass_within_5_m"
MEASURES: dict[str, Callable[[Answers], Bool | Float64]] = {
    "reranked_first_five": lambda a: a.reranked_ranks <= FIRST,
    "cosine_first_five": lambda a: a.cosine_ranks <= FIRST,
    "mass_within_5_m": lambda a: a.mass,
    STRANGERS: lambda a: a.strangers_mass,
}


def to_json(judgement: StreetJudgement) -> dict[str, Any]:
    """Plain data: every measure by turn as mean and interval, every panorama's answers, the fixes."""
    wanted = [name for name in MEASURES if judgement.pairs > 1 or name != STRANGERS]
    measures = {
        str(turn): {
            name: dict(zip(("mean", "low", "high"), interval(_of_panoramas(parts, MEASURES[name])), strict=True))
            for name in wanted
        }
        for turn, parts in judgement.answers.items()
    }
    panoramas = {
        str(turn): [
            {
                "cosine_ranks": part.cosine_ranks.tolist(),
                "reranked_ranks": part.reranked_ranks.tolist(),
                "mass": part.mass.tolist(),
            }
            for part in parts
        ]
        for turn, parts in judgement.answers.items()
    }
    return {
        "pairs": judgement.pairs,
        "tilings": judgement.tilings,
        "tiles": list(judgement.tiles),
        "chance_first_five": judgement.chance,
        "uniform_mass_within_5_m": judgement.uniform_mass,
        "by_turn_deg": measures,
        "fixes": {name: vars(counts) for name, counts in sorted(judgement.fixes.items())},
        "panoramas": panoramas,
    }


def report(judgement: StreetJudgement) -> str:
    """A Markdown table of everything, with intervals."""
    data = to_json(judgement)
    lines = [
        f"{judgement.pairs} panoramas, {judgement.tilings} tilings, "
        f"{min(judgement.tiles)} to {max(judgement.tiles)} tiles; means, 95% bootstrap intervals over panoramas",
        "",
        "| panorama turned by | right tile in the first five, re-ranked | by cosine | D's mass within 5 m | of another "
        "panorama |",
        "|---|---|---|---|---|",
    ]
    for turn, of_turn in data["by_turn_deg"].items():
        cells = []
        for name in MEASURES:
            if name not in of_turn:
                cells.append("–")
                continue
            scale, unit = (1.0, "") if name.endswith("5_m") else (100.0, "%")
            mean, low, high = (of_turn[name][key] * scale for key in ("mean", "low", "high"))
            digits = 3 if scale == 1.0 else 0
            cells.append(f"{mean:.{digits}f}{unit} ({low:.{digits}f}–{high:.{digits}f})")
        lines.append(f"| {turn}° | {' | '.join(cells)} |")
    lines.append(
        f"| chance | {100 * judgement.chance:.0f}% | {100 * judgement.chance:.0f}% | {judgement.uniform_mass:.3f} | |"
    )
    if judgement.fixes:
        lines += ["", "| fixes at the default gates | runs | fixes | false |", "|---|---|---|---|"]
        for name, counts in sorted(judgement.fixes.items()):
            lines.append(f"| {name} | {counts.runs} | {counts.fixes} | {counts.false} |")
    else:
        lines += ["", "not calibrated: fixes are not counted"]
    return "\n".join(lines)
