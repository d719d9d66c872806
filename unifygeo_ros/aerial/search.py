"""Nearest descriptors by cosine, behind one small interface.

`ExactSearch` compares with every mapped descriptor. `InvertedFileSearch` (IVF-PQ) is for regions of more than
`EXACT_LIMIT` tiles: it visits some of the inverted lists, ranks their product-quantised codes, and compares the best of
them exactly with the mapped descriptors, so that the similarities it returns are true cosines too.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unifygeo_ros.aerial.settings import SEARCH_DEVICES
from unifygeo_ros.core.arrays import Float32, Int64
from unifygeo_ros.core.errors import ConfigurationError, IndexFormatError
from unifygeo_ros.core.records import Candidates

logger = logging.getLogger(__name__)

EXACT_LIMIT = 1_000_000
"""Largest number of tiles searched exactly by default: 3 GB of descriptors at width 768, about a third of a second."""

MINIMUM_TRAINING = 10_000
"""Fewest tiles from which the product quantiser (256 centroids, 39 points each) can be trained."""

GPU_SCRATCH_BYTES = 64 << 20
"""Scratch memory of a search on a GPU: on the device, and pinned on the host."""

GPU_MOST_CANDIDATES = 2048
"""FAISS selects no more than these on a GPU; for more, the CPU searches."""

_PROBED = 10
"""Number of candidates that are compared with the CPU's when a GPU search is opened."""
_TRAINING_POINTS = 262_144
_PROBES = 64
"""Number of inverted lists that a query visits."""
_REFINED = 32
"""For k results, k times this many descriptors are compared exactly, and at least `_REFINED_AT_LEAST`."""
_REFINED_AT_LEAST = 512
_ADD_BLOCK = 65_536


def _faiss() -> Any:
    """FAISS, imported when a search needs it: commands that do not search need not have it."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it reports each instruction set that it tries
    try:
        import faiss
    except RuntimeError as error:  # the build for GPUs, where CUDA's libraries are missing
        raise ConfigurationError(
            f"FAISS cannot be loaded ({error}); install faiss-cpu in its place, or the CUDA libraries that it names"
        ) from error
    return faiss


class DescriptorSearch(Protocol):
    """Finds the tiles nearest to a descriptor in the whole index."""

    @property
    def description(self) -> str:
        """Kind and device, for logs."""
        ...

    def nearest(self, descriptor: Float32, k: int) -> Candidates:
        """descriptor: float32 (C,), unit length. 1 ≤ k ≤ number of tiles. Most similar first."""
        ...


def choose_search(tiles: int) -> str:
    """The stated rule: "exact" up to EXACT_LIMIT tiles, "ivfpq" beyond."""
    return "exact" if tiles <= EXACT_LIMIT else "ivfpq"


def nearest_among(descriptors: Float32, tile_ids: Int64, descriptor: Float32, k: int) -> Candidates:
    """Exact search among some tiles. descriptors: float32 (n, C), mapped; tile_ids: int64 (m,)."""
    k = min(k, len(tile_ids))
    if k == 0:
        return Candidates(np.empty(0, np.int64), np.empty(0, np.float32))
    similarities, rows = _inner_products(descriptors[tile_ids], descriptor, k)
    return Candidates(tile_ids[rows], similarities)


class ExactSearch:
    """FAISS's brute-force kernel straight over the mapped descriptors: no copy, no index object."""

    description = "exact, CPU"

    def __init__(self, descriptors: Float32) -> None:
        self._descriptors = descriptors

    def nearest(self, descriptor: Float32, k: int) -> Candidates:
        similarities, tile_ids = _inner_products(self._descriptors, descriptor, k)
        return Candidates(tile_ids, similarities)


class GpuExactSearch:
    """The same on a GPU: descriptors are copied to its memory once. Needs a FAISS built with CUDA."""

    def __init__(self, descriptors: Float32, gpu: int) -> None:
        """Copy the descriptors and try a search.

        Args:
            descriptors: float32 (n, C), unit length, mapped.
            gpu: Number of the GPU.

        Raises:
            ConfigurationError: FAISS cannot use the GPU, the descriptors do not fit its memory, or its answers differ
                from the CPU's.
        """
        self.description = f"exact, GPU {gpu}"
        self._descriptors = descriptors
        size = f"{len(descriptors)} descriptors of {descriptors.nbytes / 1e6:.0f} MB"
        try:
            faiss = _faiss()
            self._resources = faiss.StandardGpuResources()
            # By default FAISS takes up to 1.5 GB of the GPU and 256 MB of pinned memory for scratch; a Jetson shares
            # both with everything else.
            self._resources.setTempMemory(GPU_SCRATCH_BYTES)
            self._resources.setPinnedMemory(GPU_SCRATCH_BYTES)
            config = faiss.GpuIndexFlatConfig()
            config.device = gpu
            self._index = faiss.GpuIndexFlatIP(self._resources, descriptors.shape[1], config)
            for start in range(0, len(descriptors), _ADD_BLOCK):
                self._index.add(np.ascontiguousarray(descriptors[start : start + _ADD_BLOCK]))
            self._probe()
        except RuntimeError as error:  # how FAISS reports CUDA's errors, full memory among them
            raise ConfigurationError(
                f"GPU {gpu} cannot search the index, {size} ({_first_line(error)}); choose index_search cpu, or auto, "
                "which falls back to it"
            ) from error

    def nearest(self, descriptor: Float32, k: int) -> Candidates:
        if k > GPU_MOST_CANDIDATES:
            return ExactSearch(self._descriptors).nearest(descriptor, k)
        similarities, tile_ids = self._index.search(descriptor[None], k)
        return Candidates(tile_ids[0], similarities[0])

    def _probe(self) -> None:
        """Compare one search with the CPU's. Raises RuntimeError."""
        k = min(_PROBED, len(self._descriptors))
        found = self.nearest(self._descriptors[0], k).similarities
        expected, _ = _inner_products(self._descriptors, self._descriptors[0], k)
        difference = float(np.max(np.abs(found - expected)))
        if self._index.metric_type != _faiss().METRIC_INNER_PRODUCT or not difference < 1e-3:
            raise RuntimeError(f"a similarity differs from the CPU's by {difference:.3g}")


class InvertedFileSearch:
    """IVF-PQ over mapped inverted lists, its best codes compared exactly."""

    description = "IVF-PQ refined exactly, CPU"

    def __init__(self, path: Path, descriptors: Float32) -> None:
        self._descriptors = descriptors
        try:
            self._index = _faiss().read_index(str(path), _faiss().IO_FLAG_MMAP | _faiss().IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise IndexFormatError(
                f"{path}: FAISS cannot read it ({_first_line(error)}); build the index again"
            ) from error
        if self._index.ntotal != len(descriptors) or self._index.d != descriptors.shape[1]:
            raise IndexFormatError(
                f"{path}: holds {self._index.ntotal} vectors of width {self._index.d} instead of {len(descriptors)} of "
                f"width {descriptors.shape[1]}; build the index again"
            )
        _faiss().extract_index_ivf(self._index).nprobe = _PROBES

    def nearest(self, descriptor: Float32, k: int) -> Candidates:
        count = min(max(_REFINED * k, _REFINED_AT_LEAST), len(self._descriptors))
        _, found = self._index.search(descriptor[None], count)
        # Sorted ids walk the mapped file forwards; FAISS marks what it did not find with −1.
        tile_ids = np.sort(found[0][found[0] >= 0])
        return nearest_among(self._descriptors, tile_ids, descriptor, k)


def wants_gpu(kind: str, device: str, gpu: int) -> bool:
    """Whether the search is to be on a GPU.

    Args:
        kind: "exact" or "ivfpq".
        device: "auto": if the installed FAISS sees the GPU and the search is exact; "cpu"; "gpu".
        gpu: Number of the GPU.

    Raises:
        ConfigurationError: `device` is not known, or is "gpu" where that cannot be.
    """
    if device not in SEARCH_DEVICES:
        raise ConfigurationError(f"index_search is {device!r}, must be one of {', '.join(SEARCH_DEVICES)}")
    gpus = _faiss().get_num_gpus() if hasattr(_faiss(), "StandardGpuResources") else 0
    if device != "gpu":
        return device == "auto" and kind == "exact" and gpu < gpus
    if gpu >= gpus:
        raise ConfigurationError(
            f"index_search gpu: the installed FAISS sees {gpus} GPUs, GPU {gpu} is not among them; install a FAISS "
            "with CUDA (docs/how-to/engines.md), choose another device, or index_search cpu"
        )
    if kind == "ivfpq":
        raise ConfigurationError(
            "index_search gpu: an IVF-PQ index is searched on the CPU, where its lists are mapped; choose auto or cpu"
        )
    return True


def open_search(kind: str, descriptors: Float32, path: Path, device: str, gpu: int = 0) -> DescriptorSearch:
    """The search of an index. The choice is logged.

    Args:
        kind: "exact" or "ivfpq".
        descriptors: float32 (n, C), mapped.
        path: File of the IVF-PQ index.
        device: As for `wants_gpu`; with "auto", the CPU searches where the GPU cannot, and the log says why.
        gpu: Number of the GPU.

    Raises:
        ConfigurationError: `device` is "gpu" and the GPU cannot search.
        IndexFormatError: the IVF-PQ index is damaged.
    """
    chosen: DescriptorSearch | None = None
    if wants_gpu(kind, device, gpu):
        try:
            chosen = GpuExactSearch(descriptors, gpu)
        except ConfigurationError as error:
            if device == "gpu":
                raise
            logger.warning("descriptor search on the CPU: %s", error)
    if chosen is None:
        chosen = InvertedFileSearch(path, descriptors) if kind == "ivfpq" else ExactSearch(descriptors)
    logger.info("descriptor search: %s, %d tiles", chosen.description, len(descriptors))
    return chosen


def write_inverted_file(descriptors: Float32, path: Path) -> None:
    """Train an IVF-PQ index on descriptors (n, C) and write it. Deterministic. Raises ConfigurationError."""
    tiles, width = descriptors.shape
    if tiles < MINIMUM_TRAINING:
        raise ConfigurationError(
            f"an IVF-PQ search of {tiles} tiles cannot be trained, it takes {MINIMUM_TRAINING}; "
            "use the exact search, which is fast at this size"
        )
    lists = max(1, min(round(4 * math.sqrt(tiles)), tiles // 39))
    subquantisers = max(m for m in range(1, max(width // 8, 1) + 1) if width % m == 0)
    index = _faiss().index_factory(width, f"IVF{lists},PQ{subquantisers}", _faiss().METRIC_INNER_PRODUCT)
    # Every so many tiles: a sample of the whole region, the same in every build.
    step = max(1, tiles // _TRAINING_POINTS)
    index.train(np.ascontiguousarray(descriptors[::step][:_TRAINING_POINTS]))
    for start in range(0, tiles, _ADD_BLOCK):
        index.add(np.ascontiguousarray(descriptors[start : start + _ADD_BLOCK]))
    _faiss().write_index(index, str(path))


def _inner_products(descriptors: Float32, descriptor: Float32, k: int) -> tuple[Float32, Int64]:
    similarities, rows = _faiss().knn(descriptor[None], descriptors, k, metric=_faiss().METRIC_INNER_PRODUCT)
    return similarities[0], rows[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
