"""Indexes of one model on one grid of the map → one index, without encoding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from unifygeo_ros.aerial.build import BuildReport, report_of_finished, write_index
from unifygeo_ros.aerial.encoding import Advance, Shards
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.aerial.manifest import TILES, cell_keys
from unifygeo_ros.aerial.partial import Shard, finish_rename
from unifygeo_ros.core.arrays import Int64
from unifygeo_ros.core.errors import ConfigurationError

_COMMON = {
    "weights_sha256": "build one of them again with the other's model",
    "encoder": "build one of them again with the other's --backend and --precision",
    "datum": "build one of them again with the other's --datum, or give both to the node as a region",
    "tile_size": "build one of them again",
    "metres_per_pixel": "build one of them again",
    "stride_m": "build one of them again with the other's --stride",
    "minimum_coverage": "build one of them again with the other's --minimum-coverage",
}
"""What must be equal, and the remedy where it is not."""

SHARD_TILES = 256
"""Tiles that are written together."""


def merge_indexes(paths: Sequence[Path | str], output: Path | str, *, progress: bool = False) -> BuildReport:
    """Put indexes together in the folder `output`, or finish a merge that was interrupted.

    Of tiles with one centre the one that knows more pixels is taken, of equal ones that of the index named first. The
    manifest counts the tiles that were left out of any of the indexes.

    Args:
        paths: Folders of the indexes, at least two. They are only read.
        output: Folder of the merged index.
        progress: Show a progress bar, on a terminal.

    Raises:
        ConfigurationError: The indexes do not fit together, or the output cannot be written.
        IndexFormatError: One of them is damaged.
    """
    if finish_rename(Path(output)):
        return report_of_finished(Path(output))
    if len(paths) < 2:
        raise ConfigurationError(f"{len(paths)} index given; name at least two to merge")
    indexes = [open_index(path) for path in paths]
    for index in indexes[1:]:
        _check_fits(indexes[0], index)
    order = _merged_order(indexes)
    first = indexes[0].manifest
    rasters: list[Any] = []
    for index in indexes:
        own = index.manifest.imagery
        rasters.extend(raster for raster in own.get("rasters", [own]) if raster not in rasters)
    manifest = dataclasses.replace(first, skipped=0, tiles=0, imagery={"rasters": rasters}, search="auto", files={})
    plan = {"merged": [index.manifest.files[TILES].sha256 for index in indexes]}

    def shards(first_shard: int, advance: Advance) -> Shards:
        for start in range(first_shard * SHARD_TILES, len(order), SHARD_TILES):
            part = order[start : start + SHARD_TILES]
            # Every index's left-out tiles count once, with the first shard.
            skipped = 0 if start else sum(index.manifest.skipped for index in indexes)
            yield _shard(indexes, part, skipped)
            advance(len(part))

    report = write_index(Path(output), plan, manifest, len(order), SHARD_TILES, shards, progress)
    return dataclasses.replace(report, encoded=0)


def _check_fits(one: TileIndex, other: TileIndex) -> None:
    for name, remedy in _COMMON.items():
        values = [getattr(index.manifest, name) for index in (one, other)]
        if values[0] != values[1]:
            raise ConfigurationError(
                f"{one.path} and {other.path} cannot be merged: {name} is {values[0]} and {values[1]}; {remedy}"
            )


def _merged_order(indexes: Sequence[TileIndex]) -> Int64:
    """The tiles of the merged index in its order: int64 (n, 2), number of the index and of its tile."""
    centres = np.concatenate([np.asarray(index.centres_m) for index in indexes])
    sources = np.concatenate(
        [np.stack([np.full(len(index), i), np.arange(len(index))], axis=-1) for i, index in enumerate(indexes)]
    )
    cells = cell_keys(centres, indexes[0].manifest.side_m)
    order = np.lexsort((sources[:, 0], centres[:, 0], centres[:, 1], cells))
    centres, sources = centres[order], sources[order]
    again = np.append(False, np.all(centres[1:] == centres[:-1], axis=1))
    groups = np.cumsum(~again) - 1
    chosen = sources[~again]
    best: dict[int, int] = {}  # known pixels of the chosen tile, where several compete
    for place in np.flatnonzero(again).tolist():
        group = int(groups[place])
        if group not in best:
            best[group] = _known_pixels(indexes, chosen[group])
        known = _known_pixels(indexes, sources[place])
        if known > best[group]:
            best[group], chosen[group] = known, sources[place]
    return np.asarray(chosen, np.int64)


def _known_pixels(indexes: Sequence[TileIndex], source: Int64) -> int:
    """Pixels of a tile that are not black: unknown ones are."""
    return int(np.count_nonzero(indexes[int(source[0])].tile_pixels(int(source[1])).any(axis=-1)))


def _shard(indexes: Sequence[TileIndex], part: Int64, skipped: int) -> Shard:
    places = [(indexes[number], tile_id) for number, tile_id in part.tolist()]
    return Shard(
        centres_m=np.stack([index.centres_m[tile_id] for index, tile_id in places]),
        descriptors=np.stack([index.descriptors[tile_id] for index, tile_id in places]),
        match_maps=np.stack([index.match_maps[tile_id] for index, tile_id in places]),
        pngs=tuple(index.tile_png(tile_id) for index, tile_id in places),
        skipped=skipped,
    )
