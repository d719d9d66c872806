"""Choice of the inference backend, and the opening of a bundle's three engines."""

from __future__ import annotations

import logging
from pathlib import Path

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.bundle import GRAPHS, PRECISIONS, ModelBundle
from unifygeo_ros.inference.engine import BackendUnavailable, EngineSet

logger = logging.getLogger(__name__)

BACKENDS = ("tensorrt", "tensorrt_rtx", "onnx_cuda", "onnx_cpu")  # the order in which "auto" tries them
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

    backend: one of BACKENDS, or "auto": the first of them that can run here; each skip is logged with its reason. A
    backend that was asked for by name and cannot run raises EngineError. precision: "fp32", "fp16", or "auto": fp32 on
    the CPU, fp16 on a GPU. device: number of the GPU. cache_dir: of compiled engines. threads: of the CPU backend, 0:
    one for each physical core.
    """
    if backend not in ("auto", *BACKENDS):
        raise EngineError(f"backend {backend!r} is not known; choose one of {', '.join(('auto', *BACKENDS))}")
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"precision {precision!r} is not known; choose one of {', '.join(('auto', *PRECISIONS))}")
    if backend != "auto":
        return _open(bundle, backend, precision, device, cache_dir, threads)
    reasons = []
    for name in BACKENDS:
        try:
            return _open(bundle, name, precision, device, cache_dir, threads)
        except EngineError as error:
            # What is merely not there is no news; what is there and fails is.
            level = logging.INFO if isinstance(error, BackendUnavailable) else logging.WARNING
            logger.log(level, "Backend %s skipped: %s", name, error)
            reasons.append(f"{name}: {error}")
    raise EngineError("no inference backend can run here:\n" + "\n".join(reasons))


def choose_precision(bundle: ModelBundle, backend: str, precision: str) -> str:
    """The precision that "auto" means: fp32 on the CPU, fp16 on a GPU; the other where the bundle holds only that."""
    if precision != "auto":
        return precision
    order = ("fp32", "fp16") if backend in CPU_BACKENDS else ("fp16", "fp32")
    held = [name for name in order if all(name in files for files in bundle.manifest.graphs.values())]
    if held[0] != order[0]:
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
        engines = _open_onnxruntime(bundle, backend, precision, device, threads)
    logger.info("Engines of %s: %s", bundle.manifest.name, engines.description)
    return engines


def _open_onnxruntime(bundle: ModelBundle, backend: str, precision: str, device: int, threads: int) -> EngineSet:
    try:
        import onnxruntime

        from unifygeo_ros.inference.onnxruntime_engine import OnnxRuntimeEngine
    except ImportError as error:
        raise BackendUnavailable(f"onnxruntime cannot be imported ({error}); pip install onnxruntime") from error
    provider = "CPUExecutionProvider" if backend == "onnx_cpu" else "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise BackendUnavailable(
            f"this onnxruntime has no {provider}, only {onnxruntime.get_available_providers()}; "
            "pip install onnxruntime-gpu in its place"
        )
    ground_encoder, aerial_encoder, decoder = (
        OnnxRuntimeEngine(
            bundle,
            graph,
            precision=precision,
            provider=provider,
            device=device,
            threads=threads,
        )
        for graph in GRAPHS
    )
    return EngineSet(ground_encoder, aerial_encoder, decoder, ground_encoder.description)
