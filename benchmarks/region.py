"""A drive through a region of a million tiles in a hundred indexes (`python benchmarks/region.py`).

Each number with the limit it must keep; exits with 1 when it is missed:

* resident memory: after opening, the most on the drive with the tracker's tree of tile centres, and after a search of
  the whole region (under 300 MB).

Printed without a limit: the time that opening takes, that of a search in a prior's gate, of the first search near an
index that was not open, and of a search of the whole region.

Each index has a datum of its own. The tile tables are real; descriptors, match maps and pixels are holes of the right
length and the published sizes, which take memory like any other file. The drive goes straight through the region by 30
m a search; for each the descriptors in the gate and the match maps of 20 tiles are read. Pixels are not read.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from index_search import SIDE_M, resident_mb, sparse_index
from measuring import describe_machine, verdict

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.regions import RegionIndex, open_map
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.core.records import Prior
from unifygeo_ros.tracking.region import region_of

LIMIT_MB = 300.0
STEP_M = 30.0


def make_region(folder: Path, indexes: int, tiles: int) -> float:
    """Indexes beside each other in a square. Returns the side of the square, metres."""
    across = round(indexes**0.5)
    index_m = tiles**0.5 * SIDE_M / 2
    frame = LocalFrame(Datum(48.5, 9.0))
    for number in range(across**2):
        row, column = divmod(number, across)
        middle = (np.array([column, row]) - (across - 1) / 2) * index_m
        datum = Datum(*frame.geodetic_from_map(*middle).tolist())
        sparse_index(
            folder / f"{number:03d}", tiles, descriptor_dim=768, match_size=12, match_channels=768, datum=datum
        )
    names = ", ".join(f'"{number:03d}"' for number in range(across**2))
    (folder / "region.yaml").write_text(f"datum: [48.5, 9.0]\nindexes: [{names}]\n")
    return across * index_m


def drive(region: RegionIndex, half_m: float) -> float:
    """Searches along a straight way. Prints their times; returns the most memory."""
    query = np.zeros(768, np.float32)
    query[0] = 1.0
    most = 0.0
    times: list[float] = []
    after_opening: list[float] = []
    for east in np.arange(-half_m, half_m, STEP_M).tolist():
        before = region.open_indexes
        started = time.perf_counter()
        found = region.search(query, 20, Gate(Prior(east, 0.3 * east, np.diag([30.0**2, 20.0**2])), 4.0))
        seconds = time.perf_counter() - started
        (times if set(region.open_indexes) <= set(before) else after_opening).append(seconds)
        region.match_maps[found.tile_ids]
        most = max(most, resident_mb())
    for kind, taken in (("searches in a gate", times), ("such searches that opened an index ahead", after_opening)):
        median, slowest = statistics.median(taken) * 1e3, max(taken) * 1e3
        print(f"{len(taken)} {kind}: the median {median:.1f} ms, the slowest {slowest:.1f} ms")
    return most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--indexes", type=int, default=100)
    parser.add_argument("--tiles", type=int, default=10_000, help="of each index")
    parser.add_argument("--folder", type=Path, help="where the region is made and removed; a temporary one")
    args = parser.parse_args()
    print(describe_machine("faiss-cpu", "numpy"))
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        side_m = make_region(base, args.indexes, args.tiles)
        before = resident_mb()
        started = time.perf_counter()
        region = open_map(base / "region.yaml")
        assert isinstance(region, RegionIndex)
        seconds = time.perf_counter() - started
        print(f"opening {len(region)} tiles in {len(region.indexes)} indexes takes {seconds:.1f} s and adds "
              f"{resident_mb() - before:.0f} MB to {before:.0f} MB")  # fmt: skip
        kept = [verdict("resident after opening, MB", resident_mb(), LIMIT_MB)]
        region_of(region).covers(np.zeros((1, 2)))
        kept.append(verdict("the most on the drive, MB", drive(region, side_m / 2), LIMIT_MB))
        for turn in ("first", "second"):
            started = time.perf_counter()
            region.search(np.eye(768, dtype=np.float32)[0], 20)
            print(f"{turn} search of the whole region: {time.perf_counter() - started:.1f} s")
        kept.append(verdict("resident after it, MB", resident_mb(), LIMIT_MB))
        return 0 if all(kept) else 1
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    sys.exit(main())
