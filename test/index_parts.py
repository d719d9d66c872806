"""Parts of an index as indexes of their own."""

from pathlib import Path

import numpy as np

from unifygeo_ros.aerial.build import write_index
from unifygeo_ros.aerial.index import TileIndex
from unifygeo_ros.aerial.manifest import TILES
from unifygeo_ros.aerial.merge import _shard


def subset(index: TileIndex, chosen: np.ndarray, output: Path) -> Path:
    """An index of some of the tiles of another. chosen: bool (n,)."""
    order = np.stack([np.zeros(np.count_nonzero(chosen), np.int64), np.flatnonzero(chosen)], axis=-1)
    write_index(output, {"of": index.manifest.files[TILES].sha256, "tiles": order[:, 1].tolist()}, index.manifest,
                len(order), len(order), lambda first, advance: (_shard([index], order, 0) for _ in range(1 - first)),
                progress=False)  # fmt: skip
    return output
