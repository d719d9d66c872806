"""From an ONNX graph to a TensorRT plan. Needs no GPU with tensorrt_rtx."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.tensorrt_library import Library

logger = logging.getLogger(__name__)

# Largest batch of each graph; a longer one is run in pieces. The aerial encoder's is that of index building.
MAX_BATCH = {"ground_encoder": 8, "aerial_encoder": 32, "decoder": 8}
# Of scratch memory that a kernel may ask for. Enough for the published size, and it fits a Jetson's shared memory.
WORKSPACE_BYTES = 1 << 30
PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """What a build gave. timing_cache: of `tensorrt`, to be kept for the next build; None with tensorrt_rtx."""

    plan: bytes
    timing_cache: bytes | None
    seconds: float


def build_plan(
    library: Library,
    graph: str,
    onnx_path: Path,
    *,
    compute_capability: tuple[int, int] | None = None,
    timing_cache: bytes | None = None,
) -> Plan:
    """Parse and build one graph.

    The network is strongly typed: every tensor has the type the ONNX graph says, so the fp16 graph makes the fp16
    engine, and nothing is left to the builder's taste. It gets two optimisation profiles, batch 1 (a fix) and batch 2
    … MAX_BATCH (index building, several tiles), so that neither pays for the other.

    compute_capability: of the GPUs it is for (tensorrt_rtx); None: for the GPU in this machine. Raises EngineError.
    """
    trt = library.module
    log = library.logger()
    start = time.monotonic()
    logger.info("Building %s with %s %s from %s", graph, library.backend, library.version, onnx_path.name)
    try:
        builder = trt.Builder(log)
        if builder is None:
            raise EngineError(f"{library.backend} cannot make a builder: {log.last_error or 'is there a GPU?'}")
        # Always on in TensorRT 11, a flag in 10.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(onnx_path)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise EngineError(f"{onnx_path}: {library.backend} {library.version} cannot parse it: {errors}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        config.clear_flag(trt.BuilderFlag.TF32)  # "fp32" must mean it
        progress = _progress_monitor(trt, graph)
        config.progress_monitor = progress
        for least, best, most in ((1, 1, 1), (2, MAX_BATCH[graph], MAX_BATCH[graph])):
            profile = builder.create_optimization_profile()
            for i in range(network.num_inputs):
                tensor = network.get_input(i)
                fixed = tuple(tensor.shape)[1:]
                profile.set_shape(tensor.name, (least, *fixed), (best, *fixed), (most, *fixed))
            if config.add_optimization_profile(profile) < 0:
                raise EngineError(
                    f"{onnx_path}: batches {least} … {most} do not fit the graph; export the bundle again"
                )
        cache = _set_timing_cache(library, config, timing_cache)
        if compute_capability is not None:
            _set_target(library, config, compute_capability)
        plan = builder.build_serialized_network(network, config)
    except EngineError:
        raise
    except Exception as error:  # whatever the bindings throw: TypeError of a null builder, RuntimeError, …
        raise EngineError(f"{onnx_path}: {library.backend} cannot build it ({error}); {log.last_error}") from error
    if plan is None:
        raise EngineError(f"{onnx_path}: {library.backend} {library.version} cannot build it; {log.last_error}")
    seconds = time.monotonic() - start
    logger.info("Built %s in %.1f s", graph, seconds)
    return Plan(bytes(plan), bytes(cache.serialize()) if cache is not None else None, seconds)


def _set_timing_cache(library: Library, config: Any, timing_cache: bytes | None) -> Any:
    """Give the builder what earlier builds measured; tensorrt_rtx measures nothing, it picks kernels at run time."""
    if library.is_rtx:
        return None
    cache = config.create_timing_cache(timing_cache or b"")
    # ignore_mismatch False: measurements of another GPU are refused.
    if cache is None or not config.set_timing_cache(cache, False):
        logger.warning("The timing cache does not fit this GPU; it is started anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _set_target(library: Library, config: Any, compute_capability: tuple[int, int]) -> None:
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(library.compute_capability(compute_capability), 0):
        raise EngineError(f"tensorrt_rtx refuses compute capability {compute_capability}; choose another")


def _progress_monitor(trt: Any, graph: str) -> Any:
    """Log how far the build has come, at most every PROGRESS_SECONDS; on a Jetson it takes minutes."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]  # the module is known only at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._last = time.monotonic()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            now = time.monotonic()
            if now - self._last >= PROGRESS_SECONDS:
                self._last = now
                logger.info("Building %s: %s, step %d of %d", graph, phase, step + 1, self._steps.get(phase, 0))
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Progress()
