"""The settings of a build: the one home of each default."""

from __future__ import annotations

from dataclasses import dataclass

from unifygeo_ros.core.errors import ConfigurationError

SEARCH_DEVICES = ("auto", "cpu", "gpu")
"""Where the whole index can be searched, see `unifygeo_ros.aerial.search.wants_gpu`."""


@dataclass(frozen=True)
class BuildSettings:
    """What decides the tiles and the bytes of an index beside its imagery and model.

    stride: distance of tile centres, of a tile's side. minimum_coverage: share of a tile that must be known.
    batch_size: tiles in one run of the encoder. search: "auto", "exact" or "ivfpq". shard_tiles: tiles of the plan
    that are written together: what a kill costs at most, and about 130 MB of memory at the published size.
    """

    stride: float = 0.5
    minimum_coverage: float = 0.5
    batch_size: int = 8
    search: str = "auto"
    shard_tiles: int = 256

    def __post_init__(self) -> None:
        if not 0.05 <= self.stride <= 4.0:
            raise ConfigurationError(f"stride {self.stride}, must be between 0.05 and 4 of a tile's side")
        if not 0.0 < self.minimum_coverage <= 1.0:
            raise ConfigurationError(f"minimum coverage {self.minimum_coverage}, must be above 0 and at most 1")
        if min(self.batch_size, self.shard_tiles) < 1:
            raise ConfigurationError(f"batch size {self.batch_size} and shard {self.shard_tiles} must be at least 1")
        if self.search not in ("auto", "exact", "ivfpq"):
            raise ConfigurationError(f"search {self.search!r}, must be auto, exact or ivfpq")
