"""The search of the whole index on a GPU: over a stand-in of FAISS's GPU classes, and, marked `gpu`, on a real one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from unifygeo_ros.aerial.search import GPU_MOST_CANDIDATES, GPU_SCRATCH_BYTES, GpuExactSearch, open_search, wants_gpu
from unifygeo_ros.core.errors import ConfigurationError

NOWHERE = Path("/nonexistent")


def unit_vectors(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class FakeGpu:
    """FAISS's GPU classes as far as they are used, computing with its CPU indexes."""

    def __init__(self) -> None:
        self.gpus = 2
        self.memory = 1 << 30
        self.resources: list[Any] = []
        self.indexes: list[Any] = []
        self.similarity_error = 0.0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = self

        class StandardGpuResources:
            temporary = 1536 << 20  # FAISS's defaults
            pinned = 256 << 20

            def __init__(self) -> None:
                gpu.resources.append(self)

            def setTempMemory(self, size: int) -> None:
                self.temporary = size

            def setPinnedMemory(self, size: int) -> None:
                self.pinned = size

        class GpuIndexFlatConfig:
            device = 0

        class GpuIndex:
            kind: Any

            def __init__(self, resources: Any, width: int, config: GpuIndexFlatConfig) -> None:
                assert isinstance(resources, StandardGpuResources)
                self.device = config.device
                self._index = self.kind(width)
                self.metric_type = self._index.metric_type
                gpu.indexes.append(self)

            def add(self, vectors: np.ndarray) -> None:
                assert vectors.flags.c_contiguous
                self._index.add(vectors)
                if 4 * self._index.ntotal * self._index.d > gpu.memory:
                    raise RuntimeError("Error in virtual void* allocMemory()\nfailed with error out of memory")

            def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
                assert k <= 2048
                similarities, ids = self._index.search(queries, k)
                return similarities + gpu.similarity_error, ids

        monkeypatch.setattr(faiss, "get_num_gpus", lambda: self.gpus, raising=False)
        monkeypatch.setattr(faiss, "StandardGpuResources", StandardGpuResources, raising=False)
        monkeypatch.setattr(faiss, "GpuIndexFlatConfig", GpuIndexFlatConfig, raising=False)
        for name, kind in (("GpuIndexFlatIP", faiss.IndexFlatIP), ("GpuIndexFlatL2", faiss.IndexFlatL2)):
            monkeypatch.setattr(faiss, name, type(name, (GpuIndex,), {"kind": kind}), raising=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    gpu.install(monkeypatch)
    return gpu


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_search_runs_on_the_gpu_that_was_chosen(gpu: FakeGpu, device: str) -> None:
    opened = open_search("exact", unit_vectors(100), NOWHERE, device, gpu=1)
    assert opened.description == "exact, GPU 1"
    assert [index.device for index in gpu.indexes] == [1]


def test_its_candidates_are_the_most_similar_tiles(gpu: FakeGpu) -> None:
    """Unit vectors rank alike by inner product and by distance; the similarities must be cosines all the same."""
    vectors = unit_vectors(300)
    query = unit_vectors(1, seed=1)[0]
    found = open_search("exact", vectors, NOWHERE, "gpu").nearest(query, 7)
    cosines = vectors.astype(np.float64) @ query
    np.testing.assert_array_equal(found.tile_ids, np.argsort(-cosines)[:7])
    np.testing.assert_allclose(found.similarities, np.sort(cosines)[::-1][:7], atol=1e-6)


def test_scratch_memory_is_bounded(gpu: FakeGpu) -> None:
    open_search("exact", unit_vectors(100), NOWHERE, "gpu")
    assert [(r.temporary, r.pinned) for r in gpu.resources] == [(GPU_SCRATCH_BYTES, GPU_SCRATCH_BYTES)]


def test_more_candidates_than_a_gpu_selects_come_from_the_cpu(gpu: FakeGpu) -> None:
    vectors = unit_vectors(3000)
    found = GpuExactSearch(vectors, 0).nearest(vectors[5], GPU_MOST_CANDIDATES + 1)
    assert len(found.tile_ids) == GPU_MOST_CANDIDATES + 1
    assert found.tile_ids[0] == 5


def test_gpu_too_small_is_an_error_by_name_and_a_warning_in_auto(
    gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.memory = 1000
    with pytest.raises(ConfigurationError, match=r"GPU 0 cannot search .* 100 descriptors .*out of memory"):
        open_search("exact", unit_vectors(100), NOWHERE, "gpu")
    with caplog.at_level(logging.WARNING):
        assert open_search("exact", unit_vectors(100), NOWHERE, "auto").description == "exact, CPU"
    assert "descriptor search on the CPU: GPU 0 cannot search" in caplog.text


def test_gpu_whose_similarities_are_wrong_is_not_used(gpu: FakeGpu) -> None:
    gpu.similarity_error = 0.01
    with pytest.raises(ConfigurationError, match="a similarity differs from the CPU's by"):
        open_search("exact", unit_vectors(100), NOWHERE, "gpu")


def test_distances_in_place_of_inner_products_are_noticed(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "GpuIndexFlatIP", faiss.GpuIndexFlatL2)
    with pytest.raises(ConfigurationError, match="a similarity differs from the CPU's by"):
        open_search("exact", unit_vectors(100), NOWHERE, "gpu")


@pytest.mark.parametrize(
    ("kind", "device", "number", "gpus", "expected"),
    [
        ("exact", "auto", 0, 1, True),
        ("exact", "auto", 0, 0, False),
        ("exact", "auto", 1, 1, False),
        ("exact", "cpu", 0, 1, False),
        ("exact", "gpu", 0, 1, True),
        ("ivfpq", "auto", 0, 1, False),
    ],
)
def test_gpu_search_is_chosen_by_parameter_and_size(
    gpu: FakeGpu, kind: str, device: str, number: int, gpus: int, expected: bool
) -> None:
    gpu.gpus = gpus
    assert wants_gpu(kind, device, number) is expected


@pytest.mark.parametrize(
    ("kind", "device", "number", "gpus", "message"),
    [
        ("exact", "gpu", 0, 0, "sees 0 GPUs, GPU 0 is not among them; install a FAISS with CUDA"),
        ("exact", "gpu", 3, 2, "sees 2 GPUs, GPU 3 is not among them"),
        ("ivfpq", "gpu", 0, 1, "an IVF-PQ index is searched on the CPU"),
        ("exact", "npu", 0, 1, "index_search is 'npu', must be one of auto, cpu, gpu"),
    ],
)
def test_gpu_search_that_is_impossible_is_refused(
    gpu: FakeGpu, kind: str, device: str, number: int, gpus: int, message: str
) -> None:
    gpu.gpus = gpus
    with pytest.raises(ConfigurationError, match=message):
        wants_gpu(kind, device, number)


def test_faiss_without_cuda_searches_on_the_cpu() -> None:
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS has CUDA")
    assert open_search("exact", unit_vectors(100), NOWHERE, "auto").description == "exact, CPU"
    with pytest.raises(ConfigurationError, match="install a FAISS with CUDA"):
        open_search("exact", unit_vectors(100), NOWHERE, "gpu")


@pytest.mark.gpu
def test_real_gpu_finds_what_the_cpu_finds() -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS has no CUDA")
    vectors, queries = unit_vectors(200_000, 320), unit_vectors(20, 320, seed=1)
    on_gpu, on_cpu = (open_search("exact", vectors, NOWHERE, device) for device in ("gpu", "cpu"))
    assert on_gpu.description == "exact, GPU 0"
    for query in queries:
        expected, found = on_cpu.nearest(query, 20), on_gpu.nearest(query, 20)
        np.testing.assert_allclose(found.similarities, expected.similarities, atol=1e-4)
        assert len(set(found.tile_ids) & set(expected.tile_ids)) >= 19  # near ties may change places
