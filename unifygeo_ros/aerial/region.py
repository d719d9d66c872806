"""The plan of a build: which tiles, of what, in which frame, in which shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from unifygeo_ros.aerial.imagery import Imagery, ImageryOptions, TileSet
from unifygeo_ros.aerial.index_imagery import IndexImagery
from unifygeo_ros.aerial.search import MINIMUM_TRAINING
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.aerial.sources import open_imagery
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.inference.bundle import ModelBundle


@dataclass(frozen=True)
class Region:
    """A region as it will be encoded."""

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
    if datum is None and isinstance(imagery, IndexImagery):
        datum = imagery.datum
    elif datum is None:
        latitude, longitude = imagery.centre_deg()
        datum = Datum(round(latitude, 7), round(longitude, 7))  # 1e-7° is a centimetre
    tiles = imagery.tiles(LocalFrame(datum), bundle.manifest.aerial, settings.stride)
    if settings.search == "ivfpq" and len(tiles.centres_m) < MINIMUM_TRAINING:
        raise ConfigurationError(
            f"an IVF-PQ search takes {MINIMUM_TRAINING} tiles to train, the imagery gives at most "
            f"{len(tiles.centres_m)}; use the exact search, which is fast at this size"
        )
    return Region(imagery, datum, tiles, settings)
