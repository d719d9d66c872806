"""Imagery → tiles → aerial encoder → index.

The tiles are cut and packed by reader threads and written by another, so that the encoder, which runs in the calling
thread, waits for neither. Tiles are cut into shards and shards into batches by their number in the plan alone, so every
build of the same imagery with the same model and backend writes the same bytes, in one process, interrupted or not, or
on a cluster (`unifygeo_ros.aerial.cluster`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from tqdm import tqdm

from unifygeo_ros.aerial.encoding import Advance, Shards, TimedEncoder, encode_shards
from unifygeo_ros.aerial.familiarity import warn_if_unlike
from unifygeo_ros.aerial.imagery import ImageryOptions
from unifygeo_ros.aerial.known_tiles import KnownTiles
from unifygeo_ros.aerial.manifest import IndexManifest, read_manifest
from unifygeo_ros.aerial.partial import PartialIndex, finish_rename
from unifygeo_ros.aerial.region import Region, plan_region
from unifygeo_ros.aerial.search import choose_search
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import Datum
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.inference.engine import EngineSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    path: Path
    tiles: int
    """Tiles of the whole index."""
    skipped: int
    """Tiles of the whole plan that were left out."""
    encoded: int
    """Tiles encoded by this run: fewer after a kill, and where an earlier index had them."""
    seconds: float
    """Duration of this run."""
    encoder_share: float
    """Share of that time during which the encoder was running."""
    dropped: int = 0
    """Tiles of an earlier index at whose places this one has none; of an update."""


def build_index(
    sources: Sequence[Path | str],
    bundle: ModelBundle,
    engines: EngineSet,
    output: Path | str,
    *,
    datum: Datum | None = None,
    settings: BuildSettings | None = None,
    options: ImageryOptions | None = None,
    readers: int = 0,
    progress: bool = False,
) -> BuildReport:
    """Build the index of some imagery (`open_imagery`) in the folder `output`, or finish a build that was interrupted.

    Args:
        sources: Paths of the imagery.
        bundle: The model.
        engines: Of the bundle.
        output: Folder of the index; it must not exist.
        datum: Origin of the map frame; None: the middle of the imagery.
        settings: None: the defaults.
        options: How to read the imagery; None: the defaults.
        readers: Threads that cut tiles; 0: one for each processor core.
        progress: Show a progress bar, on a terminal.

    Raises:
        UnifyGeoError: Names what is wrong. Then `output` does not exist, and the tiles that are done are kept in
            `output`.partial for the next attempt.
    """
    settings = settings or BuildSettings()
    if finish_rename(Path(output)):
        return report_of_finished(Path(output))
    return encode_region(plan_region(sources, options, bundle, datum, settings), bundle, engines, output, readers,
                         progress)  # fmt: skip


def encode_region(
    region: Region,
    bundle: ModelBundle,
    engines: EngineSet,
    output: Path | str,
    readers: int,
    progress: bool,
    known: KnownTiles | None = None,
    earlier: str = "",
) -> BuildReport:
    """Encode and write a planned region, as `build_index` and `update_index` do.

    Args:
        region: The tiles.
        bundle: The model.
        engines: Of the bundle.
        output: Folder of the index.
        readers: Threads that cut tiles; 0: one for each processor core.
        progress: Show a progress bar, on a terminal.
        known: Tiles that an earlier index holds; they are taken from it.
        earlier: What identifies that index.
    """
    encoder = TimedEncoder(engines.aerial_encoder, bundle)

    def encode(first_shard: int, advance: Advance) -> Shards:
        return encode_shards(region, encoder, range(first_shard, region.shards), readers, advance, known)

    plan = build_plan(region, bundle, encoder.description)
    plan |= {"earlier": earlier} if earlier else {}
    manifest = manifest_of(region, bundle, encoder.description)
    total = len(region.tiles.centres_m)
    report = write_index(Path(output), plan, manifest, total, region.settings.shard_tiles, encode, progress)
    warn_if_unlike(report.path, bundle)
    return dataclasses.replace(report, encoded=encoder.tiles, encoder_share=encoder.seconds / report.seconds)


def write_index(
    output: Path,
    plan: Mapping[str, Any],
    manifest: IndexManifest,
    total: int,
    shard_tiles: int,
    encode: Callable[[int, Advance], Shards],
    progress: bool,
) -> BuildReport:
    """Write what `encode(first shard, advance)` yields, shard by shard in order, and finish the index.

    Args:
        output: Folder of the index.
        plan: All that decides its bytes, for `PartialIndex`.
        manifest: Of the index, without the numbers of tiles and the files; `search` may be "auto".
        total: Tiles of the plan.
        shard_tiles: Tiles of each shard but the last.
        encode: Makes the shards.
        progress: Show a progress bar, on a terminal.
    """
    started = time.perf_counter()
    side_m = manifest.side_m
    with PartialIndex(output, plan) as partial, contextlib.ExitStack() as stack:
        before = partial.tiles
        done = min(partial.shards * shard_tiles, total)
        if done:
            logger.info("%s: going on after %d of %d tiles", partial.folder, done, total)
        hidden = None if progress else True  # None: shown on a terminal only
        bar = stack.enter_context(tqdm(total=total, initial=done, desc="Encoding tiles", unit="tile", disable=hidden))
        # One thread writes, so that the disk's flushes do not hold up the encoder; one shard waits at most.
        writer = stack.enter_context(ThreadPoolExecutor(1, "index-writer"))
        writing: Future[None] | None = None
        for shard in stack.enter_context(contextlib.closing(encode(partial.shards, bar.update))):
            if writing is not None:
                writing.result()
            writing = writer.submit(partial.append, shard, side_m)
        if writing is not None:
            writing.result()
        if partial.tiles == 0:
            raise InputError(
                f"none of {total} tiles of {side_m:.1f} m is known to {manifest.minimum_coverage:.0%} and shows "
                "anything; check that the imagery is larger than a tile, check its nodata value, or lower "
                "--minimum-coverage"
            )
        tiles = partial.tiles
        search = choose_search(tiles) if manifest.search == "auto" else manifest.search
        partial.finish(dataclasses.replace(manifest, tiles=tiles, skipped=partial.skipped, search=search))
        encoded = partial.tiles - before
        return BuildReport(output, partial.tiles, partial.skipped, encoded, time.perf_counter() - started, 0.0)


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


def manifest_of(region: Region, bundle: ModelBundle, encoder_description: str) -> IndexManifest:
    """The manifest of a region's index before it is encoded, for `write_index`."""
    return IndexManifest(
        model=bundle.manifest.name,
        weights_sha256=bundle.manifest.weights_sha256,
        encoder=encoder_description,
        datum=region.datum,
        tiles=0,
        skipped=0,
        tile_size=bundle.manifest.aerial.size,
        metres_per_pixel=region.tiles.metres_per_pixel,
        stride_m=region.tiles.stride_m,
        minimum_coverage=region.settings.minimum_coverage,
        descriptor_dim=bundle.manifest.descriptor_dim,
        match_size=bundle.manifest.match_size,
        match_channels=bundle.manifest.match_channels,
        imagery=region.imagery.describe(),
        search=region.settings.search,
        files={},
    )


def report_of_finished(output: Path) -> BuildReport:
    """Of a build that was killed after its last tile: only the folder's name was left to change."""
    manifest = read_manifest(output)
    return BuildReport(output, manifest.tiles, manifest.skipped, 0, math.ulp(1.0), 0.0)
