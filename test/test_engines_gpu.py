"""GPU engines against ONNX Runtime on the CPU, on a real GPU. Run with `pytest -m gpu`.

These have not run on the project's own machines, which have no GPU; docs/how-to/engines.md says what has.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from bundles import random_bundle

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.bundle import FLOAT_PRECISIONS, GROUND_FEATURES, PYRAMID, ModelBundle
from unifygeo_ros.inference.engine import BackendUnavailable, EngineSet
from unifygeo_ros.inference.select import BACKENDS, CPU_BACKENDS, open_engines
from unifygeo_ros.inference.tensorrt_engine import open_tensorrt

pytestmark = pytest.mark.gpu

GPU_BACKENDS = [backend for backend in BACKENDS if backend not in CPU_BACKENDS]

# Largest difference to ONNX Runtime in fp32; unit-length outputs have elements of about 0.1, logits go to 30.
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2}
LOGIT_TOLERANCE = {"fp32": 1e-2, "fp16": 0.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return random_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def reference(bundle: ModelBundle) -> EngineSet:
    return open_engines(bundle, backend="onnx_cpu", precision="fp32")


def opened(bundle: ModelBundle, backend: str, precision: str, cache: Path) -> EngineSet:
    try:
        return open_engines(bundle, backend=backend, precision=precision, cache_dir=cache)
    except BackendUnavailable as error:  # not installed: anything else is a failure
        pytest.skip(str(error))


def ground(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).integers(0, 256, (batch, 32, 128, 3), dtype=np.uint8)}


def aerial(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)}


def decoder_inputs(engines: EngineSet, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    f = engines.ground_encoder.run(ground(batch, seed), GROUND_FEATURES)
    return {**f, **engines.aerial_encoder.run(aerial(batch, seed), PYRAMID)}


@pytest.mark.parametrize("batch", [1, 2, 40])
@pytest.mark.parametrize("precision", FLOAT_PRECISIONS)
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_outputs_equal_the_cpus(
    bundle: ModelBundle, reference: EngineSet, cache: Path, backend: str, precision: str, batch: int
) -> None:
    with opened(bundle, backend, precision, cache) as engines:
        for seed in range(4):  # the captured graph is replayed from the third run on
            inputs = decoder_inputs(reference, batch, seed)
            for actual, expected in (
                (engines.ground_encoder.run(ground(batch, seed)), reference.ground_encoder.run(ground(batch, seed))),
                (engines.aerial_encoder.run(aerial(batch, seed)), reference.aerial_encoder.run(aerial(batch, seed))),
                (engines.decoder.run(inputs), reference.decoder.run(inputs)),
            ):
                assert set(actual) == set(expected)
                for name, array in expected.items():
                    tolerance = (LOGIT_TOLERANCE if name == "logits" else TOLERANCE)[precision]
                    np.testing.assert_allclose(actual[name], array, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_captured_graphs_change_nothing(bundle: ModelBundle, cache: Path, backend: str) -> None:
    opened(bundle, backend, "fp16", cache).close()
    with (
        open_tensorrt(bundle, backend, "fp16", 0, cache, graphs=False) as plain,
        open_tensorrt(bundle, backend, "fp16", 0, cache) as captured,
    ):
        for seed in range(6):
            batch = 1 + seed % 2
            expected = plain.aerial_encoder.run(aerial(batch, seed))
            actual = captured.aerial_encoder.run(aerial(batch, seed))
            for name in expected:
                np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_chaining_on_the_device_equals_the_way_through_the_host(bundle: ModelBundle, cache: Path, backend: str) -> None:
    with opened(bundle, backend, "fp16", cache) as engines:
        pyramids = [engines.aerial_encoder.run_resident(aerial(1, tile), PYRAMID, ())[1] for tile in range(3)]
        for tile in (2, 0, 1, 0, 2):
            _, f = engines.ground_encoder.run_resident(ground(1, tile), GROUND_FEATURES)
            chained = engines.decoder.run({**f, **pyramids[tile]})["logits"]
            through_host = engines.decoder.run(decoder_inputs(engines, 1, tile))["logits"]
            np.testing.assert_array_equal(chained, through_host)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_second_start_builds_nothing(bundle: ModelBundle, cache: Path, backend: str) -> None:
    opened(bundle, backend, "fp16", cache).close()
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*.engine")}
    start = time.monotonic()
    opened(bundle, backend, "fp16", cache).close()
    print(f"{backend}: opened from the cache in {time.monotonic() - start:.2f} s")
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.engine")} == before


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_gpu_that_is_not_there_is_refused(bundle: ModelBundle, cache: Path, backend: str) -> None:
    opened(bundle, backend, "fp16", cache).close()
    with pytest.raises(EngineError):
        open_engines(bundle, backend=backend, device=99, cache_dir=cache)
