"""The settings of an index build, and where an index is searched: the one home of each default."""

from __future__ import annotations

from dataclasses import dataclass

from unifygeo_ros.core.settings import check_settings, setting

SEARCH_DEVICES = ("auto", "cpu", "gpu")
"""Where the whole index can be searched, see `unifygeo_ros.aerial.search.wants_gpu`."""


@dataclass(frozen=True)
class BuildSettings:
    """What decides the tiles and the bytes of an index besides its imagery and model."""

    stride: float = setting(
        0.5, "distance of neighbouring tile centres, as a share of a tile's side", minimum=0.05, maximum=4.0
    )
    minimum_coverage: float = setting(
        0.5, "share of a tile that must be known, otherwise it is left out", minimum=0.01, maximum=1.0
    )
    batch_size: int = setting(8, "tiles in one run of the encoder", minimum=1, maximum=1024)
    search: str = setting(
        "auto",
        "how the whole index is searched; auto: exact up to a million tiles, ivfpq beyond",
        choices=("auto", "exact", "ivfpq"),
    )
    shard_tiles: int = setting(
        256,
        "tiles that are written together: what a kill costs at most, and 0.5 MB of memory each at the published size",
        minimum=1,
        maximum=65_536,
    )

    def __post_init__(self) -> None:
        check_settings(self)
