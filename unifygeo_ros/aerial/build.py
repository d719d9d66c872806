"""Imagery → tiles → aerial encoder → index.

The tiles are cut and packed by reader threads and written by another, so that the encoder, which runs in the calling
thread, waits for neither. Tiles are cut into shards and shards into batches by their number in the plan alone, so every
build of the same imagery with the same model and backend writes the same bytes, in one process, interrupted or not, or
on a cluster (`unifygeo_ros.aerial.cluster`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Generator, Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from unifygeo_ros.aerial.imagery import Imagery, ImageryOptions, TileImage, TileSet
from unifygeo_ros.aerial.manifest import UNIT_LENGTH_TOLERANCE, IndexManifest, read_manifest
from unifygeo_ros.aerial.partial import PartialIndex, Shard, finish_rename
from unifygeo_ros.aerial.search import MINIMUM_TRAINING, choose_search
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.aerial.sources import open_imagery
from unifygeo_ros.errors import ConfigurationError, EngineError, InputError
from unifygeo_ros.geodesy import Datum, LocalFrame
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.inference.engine import Engine, EngineSet
from unifygeo_ros.records import Float32, UInt8

logger = logging.getLogger(__name__)

MINIMUM_TEXTURE = 1.0
"""Grey levels (standard deviation) under which a tile is of one colour and shows nothing: water, fog, fill."""

Advance = Callable[[int], None]
"""Told how many more tiles of the plan are done."""

_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3]


@dataclass(frozen=True)
class BuildReport:
    """What a build did. tiles, skipped: of the whole index. encoded: tiles encoded by this run (fewer after a kill).
    seconds: of this run. encoder_share: of that time, how much the encoder was running."""

    path: Path
    tiles: int
    skipped: int
    encoded: int
    seconds: float
    encoder_share: float


def build_index(
    sources: Sequence[Path | str],
    bundle: ModelBundle,
    engines: EngineSet,
    output: Path | str,
    *,
    datum: Datum | None = None,
    settings: BuildSettings | None = None,
    options: ImageryOptions | None = None,
    readers: int = 2,
    progress: bool = False,
) -> BuildReport:
    """Build the index of some imagery (`open_imagery`) in the folder `output`, or finish a build that was interrupted.

    datum: origin of the map frame, the middle of the imagery by default. readers: threads that cut tiles. Raises a
    UnifyGeoError that names what is wrong; then `output` does not exist, and what is done so far is kept in
    `output`.partial for the next attempt.
    """
    settings = settings or BuildSettings()
    if finish_rename(Path(output)):
        return report_of_finished(Path(output))
    region = plan_region(sources, options, bundle, datum, settings)
    encoder = TimedEncoder(engines.aerial_encoder, bundle)

    def encode(first_shard: int, advance: Advance) -> Iterator[Shard]:
        return encode_shards(region, encoder, range(first_shard, region.shards), readers, advance)

    report = write_index(region, bundle, engines.aerial_encoder.description, Path(output), encode, progress)
    return dataclasses.replace(report, encoder_share=encoder.seconds / report.seconds)


@dataclass(frozen=True)
class Region:
    """The plan of a build: which tiles, of what, in which frame."""

    imagery: Imagery
    datum: Datum
    tiles: TileSet
    settings: BuildSettings

    @property
    def shards(self) -> int:
        return -(-len(self.tiles.centres_m) // self.settings.shard_tiles)

    def numbers(self, shard: int) -> range:
        """Tiles of a shard."""
        first = shard * self.settings.shard_tiles
        return range(first, min(first + self.settings.shard_tiles, len(self.tiles.centres_m)))


def plan_region(
    sources: Sequence[Path | str],
    options: ImageryOptions | None,
    bundle: ModelBundle,
    datum: Datum | None,
    settings: BuildSettings,
) -> Region:
    """Open the imagery and lay out its tiles."""
    imagery = open_imagery(sources, options)
    if datum is None:
        latitude, longitude = imagery.centre_deg()
        datum = Datum(round(latitude, 7), round(longitude, 7))  # 1e-7° is a centimetre
    tiles = imagery.tiles(LocalFrame(datum), bundle.manifest.aerial, settings.stride)
    if settings.search == "ivfpq" and len(tiles.centres_m) < MINIMUM_TRAINING:
        raise ConfigurationError(
            f"an IVF-PQ search takes {MINIMUM_TRAINING} tiles to train, the imagery gives at most "
            f"{len(tiles.centres_m)}; use the exact search, which is fast at this size"
        )
    return Region(imagery, datum, tiles, settings)


def write_index(
    region: Region,
    bundle: ModelBundle,
    encoder_description: str,
    output: Path,
    encode: Callable[[int, Advance], Iterator[Shard]],
    progress: bool,
) -> BuildReport:
    """Write what `encode(first shard, advance)` yields, shard by shard in order, and finish the index."""
    started = time.perf_counter()
    total = len(region.tiles.centres_m)
    side_m = bundle.manifest.aerial.size * region.tiles.metres_per_pixel
    with (
        PartialIndex(output, build_plan(region, bundle, encoder_description)) as partial,
        contextlib.ExitStack() as stack,
    ):
        before = partial.tiles
        done = min(partial.shards * region.settings.shard_tiles, total)
        if done:
            logger.info("%s: going on after %d of %d tiles", partial.folder, done, total)
        bar = stack.enter_context(
            tqdm(total=total, initial=done, desc="Encoding tiles", unit="tile", disable=not progress)
        )
        # One thread writes, so that the disk's flushes do not hold up the encoder; one shard waits at most.
        writer = stack.enter_context(ThreadPoolExecutor(1, "index-writer"))
        writing: Future[None] | None = None
        for shard in encode(partial.shards, bar.update):
            if writing is not None:
                writing.result()
            writing = writer.submit(partial.append, shard, side_m)
        if writing is not None:
            writing.result()
        if partial.tiles == 0:
            raise InputError(
                f"none of {total} tiles of {side_m:.1f} m is known to {region.settings.minimum_coverage:.0%} and shows "
                "anything; check the imagery and its nodata value, or lower --minimum-coverage"
            )
        partial.finish(_manifest(region, bundle, encoder_description, partial.tiles, partial.skipped))
        encoded = partial.tiles - before
        return BuildReport(output, partial.tiles, partial.skipped, encoded, time.perf_counter() - started, 0.0)


class TimedEncoder:
    """The aerial encoder, its outputs checked, and the time it ran."""

    def __init__(self, engine: Engine, bundle: ModelBundle) -> None:
        self._engine = engine
        self._manifest = bundle.manifest
        self.seconds = 0.0

    def encode(self, images: UInt8) -> tuple[Float32, npt.NDArray[np.float16]]:
        """images: uint8 (n, L, L, 3). Returns descriptors float32 (n, C) and match maps float16 (n, S, S, C_0)."""
        started = time.perf_counter()
        outputs = self._engine.run({"image": images}, ("descriptor", "match_map"))
        self.seconds += time.perf_counter() - started
        manifest = self._manifest
        shapes = {
            "descriptor": (len(images), manifest.descriptor_dim),
            "match_map": (len(images), manifest.match_size, manifest.match_size, manifest.match_channels),
        }
        for name, shape in shapes.items():
            if name not in outputs or outputs[name].shape != shape:
                found = outputs[name].shape if name in outputs else "nothing"
                raise EngineError(
                    f"{self._engine.description}: {name} is {found}, the bundle says {shape}; export it again"
                )
        descriptors = np.asarray(outputs["descriptor"], np.float32)
        lengths = np.linalg.norm(descriptors, axis=1)
        if not np.all(np.abs(lengths - 1) <= UNIT_LENGTH_TOLERANCE):  # also false for NaN
            worst = float(lengths[np.argmax(np.where(np.isnan(lengths), np.inf, np.abs(lengths - 1)))])
            raise EngineError(
                f"{self._engine.description}: a tile's descriptor has length {worst}, must be finite and 1 to within "
                f"{UNIT_LENGTH_TOLERANCE}; the model is damaged, or its fp16 overflows: try precision fp32"
            )
        match_maps = np.asarray(outputs["match_map"]).astype(np.float16)
        if not np.all(np.isfinite(match_maps)):
            raise EngineError(
                f"{self._engine.description}: a tile's match map is not finite; the model is damaged, or its fp16 "
                "overflows: try precision fp32"
            )
        return descriptors, match_maps


def encode_shards(
    region: Region, encoder: TimedEncoder, shards: Sequence[int], readers: int, advance: Advance
) -> Iterator[Shard]:
    """Encode some shards of the plan in order. readers: threads that cut and pack tiles ahead of the encoder."""
    numbers = itertools.chain.from_iterable(region.numbers(shard) for shard in shards)
    with contextlib.closing(_read_ahead(region, numbers, readers)) as tiles:
        for shard in shards:
            yield _encode_shard(region, encoder, region.numbers(shard), tiles, advance)


def _encode_shard(
    region: Region, encoder: TimedEncoder, numbers: range, tiles: Iterator[_PackedTile | None], advance: Advance
) -> Shard:
    """tiles: goes on with those of `numbers`."""
    kept: list[int] = []
    pngs: list[bytes] = []
    descriptors: list[Float32] = []
    match_maps: list[npt.NDArray[np.float16]] = []
    batch: list[UInt8] = []

    def run_batch() -> None:
        if batch:
            encoded = encoder.encode(np.stack(batch))
            descriptors.append(encoded[0])
            match_maps.append(encoded[1])
            batch.clear()

    for number, tile in zip(numbers, tiles, strict=False):
        if tile is not None:
            kept.append(number)
            pngs.append(tile.png)
            batch.append(tile.pixels)
            if len(batch) == region.settings.batch_size:
                run_batch()
        advance(1)
    run_batch()
    return Shard(
        centres_m=region.tiles.centres_m[kept],
        descriptors=np.concatenate(descriptors) if kept else np.empty((0, 0), np.float32),
        match_maps=np.concatenate(match_maps) if kept else np.empty((0, 0), np.float16),
        pngs=tuple(pngs),
        skipped=len(numbers) - len(kept),
    )


@dataclass(frozen=True)
class _PackedTile:
    """pixels: uint8 (L, L, 3) RGB. png: the same, losslessly packed, so that the winner is encoded again from the very
    pixels the index was made of, whichever decoder unpacks them."""

    pixels: UInt8
    png: bytes


def _read_ahead(region: Region, numbers: Iterator[int], readers: int) -> Generator[_PackedTile | None, None, None]:
    """The tiles in order, None for an empty one, cut by other threads up to a few batches ahead."""
    depth = 2 * region.settings.batch_size + readers
    pool = ThreadPoolExecutor(readers, "tile-reader")
    try:
        waiting = deque(pool.submit(_pack_tile, region, number) for number in itertools.islice(numbers, depth))
        while waiting:
            tile = waiting.popleft().result()
            waiting.extend(pool.submit(_pack_tile, region, number) for number in itertools.islice(numbers, 1))
            yield tile
    finally:
        pool.shutdown(cancel_futures=True)


def _pack_tile(region: Region, number: int) -> _PackedTile | None:
    image = region.tiles.read(number)
    if image.valid.mean() < region.settings.minimum_coverage or _is_flat(image):
        return None
    done, png = cv2.imencode(".png", image.pixels[:, :, ::-1], _PNG_OPTIONS)  # RGB → BGR
    if not done:
        raise InputError(f"tile {number} cannot be packed as PNG")
    return _PackedTile(image.pixels, png.tobytes())


def _is_flat(image: TileImage) -> bool:
    return bool(image.pixels[image.valid].std(axis=0).max() < MINIMUM_TEXTURE)


def build_plan(region: Region, bundle: ModelBundle, encoder_description: str) -> dict[str, Any]:
    """All that decides the bytes of the tiles' files."""
    aerial = bundle.manifest.aerial
    settings = dataclasses.asdict(region.settings)
    settings.pop("search")  # made at the end from the finished descriptors, so it may still be changed
    return {
        "weights_sha256": bundle.manifest.weights_sha256,
        "encoder": encoder_description,
        "datum": dataclasses.asdict(region.datum),
        "tile": {"size": aerial.size, "metres_per_pixel": region.tiles.metres_per_pixel},
        "tiles": len(region.tiles.centres_m),
        "settings": settings,
        "imagery": region.imagery.describe(),
        "files": region.imagery.fingerprint().splitlines(),
    }


def _manifest(region: Region, bundle: ModelBundle, encoder_description: str, tiles: int, skipped: int) -> IndexManifest:
    search = region.settings.search
    return IndexManifest(
        model=bundle.manifest.name,
        weights_sha256=bundle.manifest.weights_sha256,
        encoder=encoder_description,
        datum=region.datum,
        tiles=tiles,
        skipped=skipped,
        tile_size=bundle.manifest.aerial.size,
        metres_per_pixel=region.tiles.metres_per_pixel,
        stride_m=region.tiles.stride_m,
        minimum_coverage=region.settings.minimum_coverage,
        descriptor_dim=bundle.manifest.descriptor_dim,
        match_size=bundle.manifest.match_size,
        match_channels=bundle.manifest.match_channels,
        imagery=region.imagery.describe(),
        search=choose_search(tiles) if search == "auto" else search,
        files={},
    )


def report_of_finished(output: Path) -> BuildReport:
    """Of a build that was killed after its last tile: only the folder's name was left to change."""
    manifest = read_manifest(output)
    return BuildReport(output, manifest.tiles, manifest.skipped, 0, math.ulp(1.0), 0.0)
