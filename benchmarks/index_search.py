"""How an index of a million tiles opens and is searched (`python benchmarks/index_search.py`).

Each number with the limit it must keep; exits with 1 when one is missed:

* opening: seconds and resident memory (under 1 s, under 300 MB);
* a search inside a prior's gate, in a million tiles and in a thousand (within 2 ×);
* an ungated search against bare FAISS on the same descriptors in memory (at most 1.2 ×).

Descriptors are random unit vectors of the published width, the tile table is real; match maps and pixels, which no
search reads, are sparse files of the right length.

`--recall N` measures the inverted file instead: how many of the exact five nearest of N tiles it finds, and how much
faster. Its descriptors are made so that the similarity of tiles is exp(−d²/2ℓ²) of their distance d, ℓ half a tile,
half of each descriptor's length being noise of its own; queries are tiles with as much noise again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from measuring import Cost, describe_machine, measure, verdict

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.aerial.manifest import (
    DESCRIPTORS,
    MANIFEST,
    MATCH_MAPS,
    PIXELS,
    SEARCH,
    TILE_DTYPE,
    TILES,
    FileRecord,
    IndexManifest,
    cell_keys,
)
from unifygeo_ros.aerial.search import ExactSearch, InvertedFileSearch, write_inverted_file
from unifygeo_ros.core.arrays import Float32
from unifygeo_ros.core.geodesy import Datum
from unifygeo_ros.core.records import Prior
from unifygeo_ros.inference.bundle import sha256_of_file

TILE_SIZE, METRES_PER_PIXEL = 384, 0.1822
SIDE_M = TILE_SIZE * METRES_PER_PIXEL
BLOCK = 10_000


def resident_mb() -> float:
    """What of this process lies in memory, mapped files included (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def sparse_index(
    folder: Path,
    tiles: int,
    *,
    descriptor_dim: int,
    match_size: int,
    match_channels: int,
    random: bool = False,
    datum: Datum | None = None,
) -> Path:
    """An index whose table is real and whose other files are holes, except for the descriptors if `random`."""
    folder.mkdir(parents=True)
    across = int(np.ceil(np.sqrt(tiles)))
    steps = np.stack(np.divmod(np.arange(tiles), across), axis=-1)[:, ::-1] - across // 2
    centres = steps * (SIDE_M / 2)
    keys = cell_keys(centres, SIDE_M)
    order = np.argsort(keys, kind="stable")
    table = np.zeros(tiles, TILE_DTYPE)
    table["east_m"], table["north_m"] = centres[order].T
    table["cell"] = keys[order]
    table["pixels_bytes"] = 100_000
    table["pixels_offset"] = np.arange(tiles) * 100_000
    map_bytes = 2 * match_size**2 * match_channels
    table["match_map_crc"] = zlib.crc32(bytes(map_bytes))
    table["pixels_crc"] = zlib.crc32(bytes(100_000))
    table["descriptor_crc"] = zlib.crc32(bytes(4 * descriptor_dim))
    sizes = {DESCRIPTORS: 4 * descriptor_dim, MATCH_MAPS: map_bytes, PIXELS: 100_000}
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size * tiles)
    if random:
        rng = np.random.default_rng(0)
        with (folder / DESCRIPTORS).open("wb") as file:
            for start in range(0, tiles, BLOCK):
                rows = rng.standard_normal((min(BLOCK, tiles - start), descriptor_dim), np.float32)
                rows /= np.linalg.norm(rows, axis=1, keepdims=True)
                table["descriptor_crc"][start : start + BLOCK] = [zlib.crc32(row.data) for row in rows]
                file.write(rows.tobytes())
    (folder / TILES).write_bytes(table.tobytes())
    files = {name: FileRecord(size * tiles, "not computed: the files are holes") for name, size in sizes.items()}
    files[TILES] = FileRecord(TILE_DTYPE.itemsize * tiles, sha256_of_file(folder / TILES))
    manifest = IndexManifest(
        model="none", weights_sha256="0" * 64, encoder="none", datum=datum or Datum(48.5, 9.0), tiles=tiles, skipped=0,
        tile_size=TILE_SIZE, metres_per_pixel=METRES_PER_PIXEL, stride_m=SIDE_M / 2, minimum_coverage=0.5,
        descriptor_dim=descriptor_dim, match_size=match_size, match_channels=match_channels,
        imagery={"kind": "none"}, search="exact", files=files,
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return folder


def alike_by_distance(tiles: int, width: int) -> Float32:
    """Descriptors (tiles, width) of a square grid of half-overlapping tiles, by random Fourier features."""
    rng = np.random.default_rng(0)
    across = int(np.ceil(np.sqrt(tiles)))
    positions = np.stack(np.divmod(np.arange(tiles), across), axis=-1).astype(np.float32)  # in strides = half tiles
    frequencies = rng.standard_normal((2, width), np.float32)
    phases = rng.uniform(0, 2 * np.pi, width).astype(np.float32)
    return with_noise(np.sqrt(2 / width) * np.cos(positions @ frequencies + phases), rng)


def with_noise(rows: Float32, rng: np.random.Generator) -> Float32:
    """Unit rows with noise of the same length, at unit length again."""
    noisy = rows + rng.standard_normal(rows.shape, np.float32) / np.sqrt(rows.shape[1])
    return np.asarray(noisy / np.linalg.norm(noisy, axis=1, keepdims=True), np.float32)


def measure_recall(tiles: int, folder: Path) -> None:
    descriptors = alike_by_distance(tiles, 768)
    rng = np.random.default_rng(1)
    queries = with_noise(descriptors[rng.choice(tiles, 200, replace=False)], rng)
    started = time.perf_counter()
    write_inverted_file(descriptors, folder / SEARCH)
    print(f"training and filling the inverted file of {tiles} tiles: {time.perf_counter() - started:.0f} s, "
          f"{(folder / SEARCH).stat().st_size / tiles:.0f} bytes a tile")  # fmt: skip
    searches: dict[str, Any] = {
        "exact": ExactSearch(descriptors),
        "ivfpq": InvertedFileSearch(folder / SEARCH, descriptors),
    }
    found = {name: [search.nearest(query, 5).tile_ids for query in queries] for name, search in searches.items()}
    hits = sum(len(set(a) & set(b)) for a, b in zip(found["exact"], found["ivfpq"], strict=True))
    first = sum(a[0] == b[0] for a, b in zip(found["exact"], found["ivfpq"], strict=True))
    costs = measure({name: partial(search.nearest, queries[0], 5) for name, search in searches.items()}, 51)
    print(f"found {hits / 5 / len(queries):.1%} of the five nearest and {first / len(queries):.1%} of the nearest, in "
          f"{in_words(costs['ivfpq'])} instead of {in_words(costs['exact'])}")  # fmt: skip


def measure_opening(folder: Path) -> bool:
    before = resident_mb()
    started = time.perf_counter()
    index = open_index(folder, search_device="cpu")
    seconds, resident = time.perf_counter() - started, resident_mb()
    print(f"opening {len(index)} tiles adds {resident - before:.0f} MB")
    in_time = verdict("opening, seconds", seconds, 1.0)
    return verdict("resident after opening, MB", resident, 300.0) and in_time


def measure_gated(large: TileIndex, small: TileIndex, query: Float32) -> bool:
    gate = Gate(Prior(20.0, -30.0, np.diag([30.0**2, 20.0**2])), 4.0)
    costs = measure({"large": lambda: large.search(query, 5, gate), "small": lambda: small.search(query, 5, gate)}, 301)
    print(f"gated search, {len(large.tiles_within(gate))} and {len(small.tiles_within(gate))} tiles in the gate: "
          f"{in_words(costs['large'])} of {len(large)}, {in_words(costs['small'])} of {len(small)}")  # fmt: skip
    ratio = costs["large"].processor / costs["small"].processor
    return verdict("gated search, large index against small (processor time)", ratio, 2.0)


def measure_ungated(index: TileIndex, query: Float32) -> bool:
    started, used = time.perf_counter(), time.process_time()
    index.search(query, 5)
    first = Cost(time.perf_counter() - started, time.process_time() - used)
    print(f"first ungated search, which reads and verifies every descriptor: {in_words(first)}")
    bare = faiss.IndexFlatIP(768)
    bare.add(np.asarray(index.descriptors.verify()))
    costs = measure({"ours": lambda: index.search(query, 5), "bare": lambda: bare.search(query[None], 5)}, 25)
    print(f"ungated search {in_words(costs['ours'])}, bare FAISS {in_words(costs['bare'])}")
    ratio = costs["ours"].processor / costs["bare"].processor
    return verdict("ungated search against bare FAISS (processor time)", ratio, 1.2)


def in_words(cost: Cost) -> str:
    return f"{cost.clock * 1e3:.3g} ms ({cost.processor * 1e3:.3g} ms of the processor)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the index is made and removed (3 GB); a temporary one")
    parser.add_argument("--recall", type=int, metavar="N", help="measure the inverted file on N tiles instead")
    args = parser.parse_args()
    print(describe_machine("faiss-cpu", "numpy"))
    base = Path(tempfile.mkdtemp(dir=args.folder))
    if args.recall:
        measure_recall(args.recall, base)
        shutil.rmtree(base)
        return 0
    published: dict[str, Any] = {"descriptor_dim": 768, "match_size": 12, "match_channels": 768, "random": True}
    try:
        large_folder = sparse_index(base / "large", args.tiles, **published)
        small_folder = sparse_index(base / "small", 1000, **published)

        kept = [measure_opening(large_folder)]
        large, small = (open_index(folder, search_device="cpu") for folder in (large_folder, small_folder))
        rng = np.random.default_rng(1)
        query = rng.standard_normal(768).astype(np.float32)
        query /= np.linalg.norm(query)
        kept += [measure_gated(large, small, query), measure_ungated(large, query)]
        return 0 if all(kept) else 1
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    sys.exit(main())
