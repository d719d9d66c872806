"""Choice of the inference backend, and the opening of a bundle's three engines."""

from __future__ import annotations

import logging
from pathlib import Path

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.bundle import GRAPHS, PRECISIONS, ModelBundle
from unifygeo_ros.inference.engine import BackendUnavailable, EngineSet

logger = logging.getLogger(__name__)

AUTOMATIC = ("tensorrt", "tensorrt_rtx", "onnx_cuda", "onnx_cpu")
"""The backends that "auto" tries, in this order."""

BACKENDS = (*AUTOMATIC, "onnx_tensorrt", "onnx_tensorrt_rtx")
"""All of them. The last two are ONNX Runtime's ways to TensorRT, to be compared with the first two on a real GPU."""

CPU_BACKENDS = ("onnx_cpu",)


def open_engines(
    bundle: ModelBundle,
    *,
    backend: str = "auto",
    precision: str = "auto",
    device: int = 0,
    cache_dir: Path | None = None,
    threads: int = 0,
) -> EngineSet:
    """Open the three engines of a bundle on one device.

    Args:
        bundle: The bundle.
        backend: One of BACKENDS, or "auto": the first of AUTOMATIC that can run here; each skip is logged with its
            reason.
        precision: One of PRECISIONS, or "auto" (`choose_precision`).
        device: Number of the GPU.
        cache_dir: Folder of compiled engines; None: the user's cache.
        threads: Of the CPU backend; 0: one for each physical core.

    Raises:
        EngineError: the backend that was asked for by name cannot run here, or, with "auto", none can.
        BundleError: the bundle does not hold that precision, or its graphs are not what it says.
    """
    if backend not in ("auto", *BACKENDS):
        raise EngineError(f"backend {backend!r} is not known; choose one of {', '.join(('auto', *BACKENDS))}")
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"precision {precision!r} is not known; choose one of {', '.join(('auto', *PRECISIONS))}")
    if backend != "auto":
        return _open(bundle, backend, precision, device, cache_dir, threads)
    reasons = []
    for name in AUTOMATIC:
        try:
            return _open(bundle, name, precision, device, cache_dir, threads)
        except EngineError as error:
            # A missing package is normal; a backend that is installed and fails is not.
            level = logging.INFO if isinstance(error, BackendUnavailable) else logging.WARNING
            logger.log(level, "Backend %s skipped: %s", name, error)
            reasons.append(f"{name}: {error}")
    raise EngineError("no inference backend can run here:\n" + "\n".join(reasons))


def choose_precision(bundle: ModelBundle, backend: str, precision: str) -> str:
    """The precision that "auto" means: fp32 on the CPU, fp16 on a GPU; another where the bundle does not hold that."""
    if precision != "auto":
        return precision
    order = ("fp32", "fp16", "int8") if backend in CPU_BACKENDS else ("fp16", "fp32", "int8")
    held = [name for name in order if all(name in files for files in bundle.manifest.graphs.values())]
    if held == ["int8"]:  # who takes such a bundle wants it
        logger.info("Bundle %s holds int8 graphs alone", bundle.manifest.name)
    elif held[0] != order[0]:
        logger.warning("Bundle %s holds no %s graphs; %s is used", bundle.manifest.name, order[0], held[0])
    return held[0]


def _open(
    bundle: ModelBundle, backend: str, precision: str, device: int, cache_dir: Path | None, threads: int
) -> EngineSet:
    precision = choose_precision(bundle, backend, precision)
    if backend.startswith("tensorrt"):
        from unifygeo_ros.inference.tensorrt_engine import open_tensorrt

        engines = open_tensorrt(bundle, backend, precision, device, cache_dir)
    else:
        engines = _open_onnxruntime(bundle, backend, precision, device, cache_dir, threads)
    logger.info("Engines of %s: %s", bundle.manifest.name, engines.description)
    return engines


def _open_onnxruntime(
    bundle: ModelBundle, backend: str, precision: str, device: int, cache_dir: Path | None, threads: int
) -> EngineSet:
    try:
        from unifygeo_ros.inference.onnx_providers import find_provider
        from unifygeo_ros.inference.onnxruntime_engine import OnnxRuntimeEngine
    except ImportError as error:
        raise BackendUnavailable(f"onnxruntime cannot be imported ({error}); pip install onnxruntime") from error
    provider = find_provider(backend, device)
    ground_encoder, aerial_encoder, decoder = (
        OnnxRuntimeEngine(bundle, graph, precision=precision, provider=provider, cache_dir=cache_dir, threads=threads)
        for graph in GRAPHS
    )
    return EngineSet(ground_encoder, aerial_encoder, decoder, ground_encoder.description)
