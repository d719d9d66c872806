"""Build a TensorRT plan of an ONNX graph. With tensorrt_rtx this needs no GPU."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.tensorrt_library import Library

logger = logging.getLogger(__name__)

MAX_BATCH = {"ground_encoder": 8, "aerial_encoder": 32, "decoder": 8}
"""Largest batch of each graph; a longer one is run in pieces. The aerial encoder's is that of index building."""

WORKSPACE_BYTES = 1 << 30
"""Limit of the scratch memory that a kernel may use: enough for the published size, and it fits a Jetson."""

PROGRESS_SECONDS = 5.0
"""Shortest time between two progress messages."""


@dataclass(frozen=True)
class Plan:
    """The result of a build."""

    plan: bytes
    timing_cache: bytes | None
    """Kernel timings of `tensorrt`, for the next build; None with tensorrt_rtx."""
    seconds: float
    """How long it took."""


def build_plan(
    library: Library,
    graph: str,
    onnx_path: Path,
    *,
    compute_capability: tuple[int, int] | None = None,
    timing_cache: bytes | None = None,
) -> Plan:
    """Parse and build one graph.

    The network is strongly typed: every tensor has the type that the ONNX graph states, so the fp16 graph becomes the
    fp16 engine, and the builder chooses no types. It has two optimisation profiles, batch 1 (a fix) and batch 2 …
    MAX_BATCH (index building, several tiles), so that neither is slowed down by the other.

    Args:
        library: The library that builds.
        graph: One of GRAPHS.
        onnx_path: File of the graph.
        compute_capability: Of the GPUs that it is for (tensorrt_rtx); None: for the GPU in this machine.
        timing_cache: `Plan.timing_cache` of an earlier build.

    Raises:
        EngineError: the library cannot parse or build the graph.
    """
    trt = library.module
    log = library.logger()
    start = time.monotonic()
    logger.info("Building %s with %s %s from %s", graph, library.backend, library.version, onnx_path.name)
    try:
        builder = trt.Builder(log)
        _there(builder, f"{library.backend} cannot make a builder: {log.last_error or 'is there a GPU?'}")
        # Always on in TensorRT 11, a flag in 10.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        _there(network, f"{library.backend} {library.version} cannot make a network: {log.last_error}")
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(onnx_path)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise EngineError(f"{onnx_path}: {library.backend} {library.version} cannot parse it: {errors}")
        config = builder.create_builder_config()
        _there(config, f"{library.backend} {library.version} cannot make a configuration: {log.last_error}")
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
    except Exception as error:  # the bindings raise TypeError (a null builder), RuntimeError, …
        raise EngineError(f"{onnx_path}: {library.backend} cannot build it ({error}); {log.last_error}") from error
    if plan is None:
        raise EngineError(f"{onnx_path}: {library.backend} {library.version} cannot build it; {log.last_error}")
    seconds = time.monotonic() - start
    logger.info("Built %s in %.1f s", graph, seconds)
    timings = None if cache is None else cache.serialize()
    return Plan(bytes(plan), None if timings is None else bytes(timings), seconds)


def _there(made: Any, message: str) -> None:
    """Raise EngineError if the library gave None in place of an object."""
    if made is None:
        raise EngineError(message)


def _set_timing_cache(library: Library, config: Any, timing_cache: bytes | None) -> Any:
    """Give the builder the timings of earlier builds, and return where it keeps its own.

    None where there are none: tensorrt_rtx measures nothing, it chooses kernels at run time.
    """
    if library.is_rtx:
        return None
    cache = config.create_timing_cache(timing_cache or b"")
    # ignore_mismatch False: measurements of another GPU are refused.
    if cache is None or not config.set_timing_cache(cache, False):
        logger.warning("The timing cache does not fit this GPU; kernels are timed again")
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            logger.warning("%s takes no timing cache; the next build will take as long", library.backend)
            return None
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
