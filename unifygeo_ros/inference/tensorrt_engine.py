"""Engines of TensorRT: compiled where they run, kept in the cache, chained on the GPU.

What has run on a GPU and what has not is listed in docs/how-to/engines.md.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float32
from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.bundle import GRAPHS, ModelBundle
from unifygeo_ros.inference.cuda import CudaDevice, CudaGraph, DeviceBuffer, PinnedArray
from unifygeo_ros.inference.engine import (
    BackendUnavailable,
    EngineSet,
    Input,
    ResidentArray,
    TensorSpec,
    check_inputs,
    check_outputs,
)
from unifygeo_ros.inference.engine_cache import EngineCache, EngineKey
from unifygeo_ros.inference.interface import check_interface
from unifygeo_ros.inference.tensorrt_build import MAX_BATCH, WORKSPACE_BYTES, build_plan
from unifygeo_ros.inference.tensorrt_library import Library, is_installed, load_library

logger = logging.getLogger(__name__)

ANY = "any"
"""In a key: every GPU of the compute capability, every driver."""

CAPTURE_ATTEMPTS = 3
"""How often the capture of a CUDA graph is tried before single images go on without one."""

RUNS_BETWEEN_CAPTURES = 50
"""Single images between two attempts."""


@dataclass(frozen=True)
class Target:
    """The GPUs that an engine is built for."""

    compute_capability: tuple[int, int]
    gpu: str = ANY
    """`CudaDevice.model`."""
    driver: str = ANY
    """`CudaDevice.driver_version`."""

    @classmethod
    def of(cls, device: CudaDevice) -> Target:
        """The GPU in this machine."""
        return cls(device.compute_capability, device.model, device.driver_version)


def engine_key(bundle: ModelBundle, graph: str, precision: str, library: Library, target: Target) -> EngineKey:
    """The cache key of one engine of a bundle.

    Engines of tensorrt_rtx hold no kernel chosen by measurement and run on every GPU of their compute capability, so
    their key names neither GPU nor driver, and an engine that was built ahead of time is found.
    """
    return EngineKey(
        graph=graph,
        precision=precision,
        weights_sha256=bundle.manifest.weights_sha256,
        graph_sha256=bundle.manifest.graphs[graph][precision].sha256,
        backend=library.backend,
        version=library.version,
        cuda=library.cuda,
        driver=ANY if library.is_rtx else target.driver,
        gpu=ANY if library.is_rtx else target.gpu,
        compute_capability="{}.{}".format(*target.compute_capability),
        options=f"batch 1 and 2-{MAX_BATCH[graph]}, workspace {WORKSPACE_BYTES}",
    )


@dataclass(frozen=True)
class CompiledEngine:
    """A plan in the cache."""

    key: EngineKey
    path: Path
    plan: bytes
    seconds: float
    """Of the build; 0 when it was there already."""


def compile_engine(
    bundle: ModelBundle,
    graph: str,
    precision: str,
    library: Library,
    cache: EngineCache,
    target: Target,
    *,
    rebuild: bool = False,
) -> CompiledEngine:
    """Take an engine from the cache, or build it and put it there.

    Args:
        bundle: The bundle of the graph.
        graph: One of GRAPHS.
        precision: One of PRECISIONS.
        library: The library that builds.
        cache: Where engines are kept.
        target: The GPU in this machine; with tensorrt_rtx, any.
        rebuild: Build it even if it is there.

    Raises:
        BundleError: the bundle does not hold that precision.
        EngineError: the engine cannot be built, or the cache cannot be used.
    """
    onnx_path = bundle.graph_path(graph, precision)
    key = engine_key(bundle, graph, precision, library, target)
    plan = None if rebuild else cache.load(key)
    if plan is None:
        with cache.lock():
            plan = None if rebuild else cache.load(key)  # another process may just have built it
            if plan is None:
                timing_key = _timing_key(key)
                built = build_plan(
                    library,
                    graph,
                    onnx_path,
                    compute_capability=target.compute_capability if library.is_rtx else None,
                    timing_cache=cache.load(timing_key),
                )
                if built.timing_cache is not None:
                    cache.store(timing_key, built.timing_cache)
                return CompiledEngine(key, cache.store(key, built.plan), built.plan, built.seconds)
    return CompiledEngine(key, cache.path(key), plan, 0.0)


def _timing_key(key: EngineKey) -> EngineKey:
    """One timing cache serves all graphs and bundles on a GPU."""
    return dataclasses.replace(
        key, graph="all", precision="all", weights_sha256="", graph_sha256="", options="", part="timing"
    )


def open_tensorrt(
    bundle: ModelBundle, backend: str, precision: str, device: int, cache_dir: Path | None, *, graphs: bool = True
) -> EngineSet:
    """The three engines of a bundle on one GPU, compiled first where the cache has none.

    Args:
        bundle: The bundle.
        backend: "tensorrt" or "tensorrt_rtx".
        precision: One of PRECISIONS.
        device: Number of the GPU.
        cache_dir: Folder of compiled engines; None: the user's cache.
        graphs: Replay captured CUDA graphs; off, every run enqueues its kernels one by one (for comparison in tests).

    Raises:
        BundleError: the bundle does not hold that precision.
        EngineError: library, GPU or engine cannot be used.
    """
    cuda = _device_of(backend, device)
    opened: list[TensorRTEngine] = []
    try:
        library = load_library(backend)
        if library.is_rtx:
            library.compute_capability(cuda.compute_capability)  # refuse an unsupported GPU before any work
        cache = EngineCache(cache_dir)
        for graph in GRAPHS:
            opened.append(_open_one(bundle, graph, precision, library, cuda, cache, graphs))
    except BaseException:
        for engine in opened:
            engine.close()
        cuda.close()
        raise
    ground_encoder, aerial_encoder, decoder = opened
    return EngineSet(ground_encoder, aerial_encoder, decoder, ground_encoder.description, on_close=cuda.close)


def _device_of(backend: str, device: int) -> CudaDevice:
    """The GPU, looked for first: a library takes a hundred megabytes, which a machine without a GPU would never use.

    Raises:
        EngineError: the library is not installed, or the GPU cannot be used.
    """
    try:
        return CudaDevice(device)
    except BackendUnavailable:
        if not is_installed(backend):
            load_library(backend)  # for its error
        raise


def _open_one(
    bundle: ModelBundle,
    graph: str,
    precision: str,
    library: Library,
    cuda: CudaDevice,
    cache: EngineCache,
    graphs: bool,
) -> TensorRTEngine:
    cuda.make_current()
    compile_here = functools.partial(
        compile_engine,
        bundle,
        graph,
        precision,
        library,
        cache,
        Target.of(cuda),
    )
    compiled = compile_here()
    try:
        return TensorRTEngine(bundle, compiled, library, cuda, cache, graphs=graphs)
    except EngineError as error:
        if compiled.seconds > 0:
            raise  # fresh from the builder: another build would give the same
        # The checksum holds, yet the library refuses it: a driver update, for example.
        logger.warning("%s: %s; building it again", compiled.path, error)
    return TensorRTEngine(bundle, compile_here(rebuild=True), library, cuda, cache, graphs=graphs)


@dataclass(frozen=True)
class DeviceArray:
    """An output left on the GPU."""

    device: CudaDevice
    buffer: DeviceBuffer
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    def numpy(self) -> Float32:
        self.device.make_current()
        host = np.empty(self.shape, self.dtype)
        self.device.copy_to_host(host, self.buffer.pointer)
        self.device.synchronize()
        return host.astype(np.float32, copy=False)


@dataclass
class _Lane:
    """An execution context of one optimisation profile, with its buffers for the profile's largest batch.

    Addresses stay the same as long as the lane exists. On the lane for single images the shapes do too, so that its
    captured graph can be replayed.
    """

    context: Any
    most: int
    """Largest batch of the profile."""
    device: dict[str, DeviceBuffer]
    pinned: dict[str, PinnedArray] = field(default_factory=dict)
    batch: int = 0
    """The batch that the context's shapes are set to; 0: none yet."""
    runs: int = 0
    graph: CudaGraph | None = None
    captures_left: int = CAPTURE_ATTEMPTS
    next_capture: int = 2
    """The run after which the next capture is tried."""


class TensorRTEngine:
    """One graph as a TensorRT engine. Not safe for use from two threads at once."""

    def __init__(
        self,
        bundle: ModelBundle,
        compiled: CompiledEngine,
        library: Library,
        device: CudaDevice,
        cache: EngineCache,
        *,
        graphs: bool = True,
    ) -> None:
        """Raises EngineError when the library does not take the plan, BundleError when the manifest says otherwise."""
        self._graph = compiled.key.graph
        self._library = library
        self._device = device
        self._cache = cache
        self._use_graphs = graphs
        self._log = library.logger()
        self._runtime = library.module.Runtime(self._log)
        if self._runtime is None:
            raise EngineError(f"{library.backend} has no runtime here ({self._log.last_error}); is there a GPU?")
        self._engine = self._runtime.deserialize_cuda_engine(compiled.plan)
        if self._engine is None:
            raise EngineError(f"{compiled.path}: {library.backend} does not take this engine ({self._log.last_error})")
        self._inputs: list[TensorSpec] = []
        self._outputs: list[TensorSpec] = []
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            is_input = self._engine.get_tensor_mode(name) == library.module.TensorIOMode.INPUT
            dtype = np.dtype(library.module.nptype(self._engine.get_tensor_dtype(name)))
            spec = TensorSpec(name, dtype, tuple(self._engine.get_tensor_shape(name))[1:])
            (self._inputs if is_input else self._outputs).append(spec)
        precision, onnx_path = compiled.key.precision, bundle.graph_path(self._graph, compiled.key.precision)
        check_interface(bundle.manifest, self._graph, precision, onnx_path, self._inputs, self._outputs)
        self._lanes: dict[int, _Lane] = {}
        self._runtime_cache_key = dataclasses.replace(
            compiled.key, part="runtime", gpu=device.model, driver=device.driver_version
        )
        self._runtime_config = self._make_runtime_config()
        self._stored_runtime_cache = b""
        self.description = (
            f"{library.backend} {library.version}, {device.name} (compute capability "
            f"{'.'.join(map(str, device.compute_capability))}), {precision}"
        )

    def run(self, inputs: Mapping[str, Input], outputs: Collection[str] | None = None) -> Mapping[str, Float32]:
        return self.run_resident(inputs, (), outputs)[0]

    def run_resident(
        self, inputs: Mapping[str, Input], resident: Collection[str], outputs: Collection[str] | None = None
    ) -> tuple[Mapping[str, Float32], Mapping[str, ResidentArray]]:
        if self._engine is None:
            raise EngineError(f"{self._graph}: the engine is closed; open the engines again")
        batch = check_inputs(self._graph, self._inputs, inputs)
        wanted = check_outputs(self._graph, self._outputs, resident, outputs)
        for name, value in inputs.items():
            if not isinstance(value, np.ndarray) and not (
                isinstance(value, DeviceArray) and value.device is self._device
            ):
                raise EngineError(f"{self._graph}: input {name!r} is a resident of another set's engine")
        self._device.make_current()
        host: dict[str, Float32] = {}
        kept: dict[str, DeviceArray] = {}
        for spec in self._outputs:
            if spec.name in wanted:
                host[spec.name] = np.empty((batch, *spec.shape), np.float32)
            if spec.name in resident:
                buffer = self._device.allocate(batch * spec.row_bytes)
                kept[spec.name] = DeviceArray(self._device, buffer, (batch, *spec.shape), spec.dtype)
        most = MAX_BATCH[self._graph]
        for start in range(0, batch, most):
            self._run_piece(slice(start, min(start + most, batch)), inputs, host, kept)
        return host, kept

    def close(self) -> None:
        if self._engine is None:
            return
        self._device.make_current()
        self._device.synchronize()
        self._store_runtime_cache()
        for lane in self._lanes.values():
            if lane.graph is not None:
                lane.graph.free()
            for pinned in lane.pinned.values():
                pinned.free()
        self._lanes.clear()  # contexts before the engine, the engine before the runtime
        self._engine = None
        self._runtime_config = None
        self._runtime = None

    def _run_piece(
        self, rows: slice, inputs: Mapping[str, Input], host: dict[str, Float32], kept: dict[str, DeviceArray]
    ) -> None:
        """Run `rows` of the batch axis, at most MAX_BATCH of them, and fill them into the outputs."""
        batch = rows.stop - rows.start
        lane = self._lane(batch)
        for spec in self._inputs:
            value, target = inputs[spec.name], lane.device[spec.name].pointer
            if isinstance(value, DeviceArray):
                self._copy_resident(spec, value, target, rows)
            else:
                staged = self._pinned(lane, spec)[:batch]
                staged[...] = np.asarray(value)[rows]  # to float16 where the graph wants that
                self._device.copy_to_device(target, staged)
        self._launch(lane, batch)
        for spec in self._outputs:
            source = lane.device[spec.name].pointer
            if spec.name in kept:
                offset = rows.start * spec.row_bytes
                self._device.copy_on_device(kept[spec.name].buffer.pointer + offset, source, batch * spec.row_bytes)
            if spec.name in host:
                self._device.copy_to_host(self._pinned(lane, spec)[:batch], source)
        # Only now may the next run use the pinned arrays, also when nothing is copied to the host.
        self._device.synchronize()
        for spec in self._outputs:
            if spec.name in host:
                host[spec.name][rows] = self._pinned(lane, spec)[:batch]

    def _copy_resident(self, spec: TensorSpec, value: DeviceArray, target: int, rows: slice) -> None:
        """Queue the copy of `rows` of a resident into an input's buffer."""
        if value.dtype != spec.dtype:
            raise EngineError(
                f"{self._graph}: resident {spec.name!r} is {value.dtype}, the graph takes {spec.dtype}; open all three "
                "engines in one precision"
            )
        source = value.buffer.pointer + rows.start * spec.row_bytes
        self._device.copy_on_device(target, source, (rows.stop - rows.start) * spec.row_bytes)

    def _launch(self, lane: _Lane, batch: int) -> None:
        """Put the graph's kernels on the stream.

        One by one; for single images as a captured CUDA graph from the third run on. Launching hundreds of small
        kernels is a good part of a single image's time and little of a batch's. The first run lets TensorRT do its
        deferred work, which must not happen during a capture.
        """
        if lane.graph is not None:
            lane.graph.launch()
            return
        if lane.batch != batch:
            for spec in self._inputs:
                if not lane.context.set_input_shape(spec.name, (batch, *spec.shape)):
                    raise EngineError(f"{self._graph}: TensorRT refuses batch {batch} ({self._log.last_error})")
            lane.batch = batch
        self._enqueue(lane)
        lane.runs += 1
        if lane.runs == 1:
            self._device.synchronize()
            self._store_runtime_cache()
        elif lane.runs >= lane.next_capture and lane.captures_left > 0 and self._captures(lane):
            self._device.synchronize()
            self._capture(lane)

    def _captures(self, lane: _Lane) -> bool:
        """Whether the lane's kernels are to be captured: of single images, where the library does not do it itself."""
        return lane.most == 1 and self._use_graphs and not self._library.is_rtx

    def _capture(self, lane: _Lane) -> None:
        """Capture the lane's kernels as a CUDA graph for later runs.

        The present run has been enqueued already, so a failure does not harm it: it is logged, and tried again later.
        """
        try:
            lane.graph = self._device.capture(lambda: self._enqueue(lane))
        except EngineError as error:
            lane.captures_left -= 1
            lane.next_capture = lane.runs + RUNS_BETWEEN_CAPTURES
            logger.warning(
                "%s: its kernels cannot be captured as a CUDA graph (%s); %s",
                self._graph,
                error,
                f"trying again after {RUNS_BETWEEN_CAPTURES} images"
                if lane.captures_left
                else "single images go on without one, a little slower",
            )
        else:
            logger.debug("%s: captured a CUDA graph", self._graph)

    def _enqueue(self, lane: _Lane) -> None:
        if not lane.context.execute_async_v3(self._device.stream_handle):
            raise EngineError(f"{self._graph}: TensorRT failed ({self._log.last_error}); see `nvidia-smi`")

    def _lane(self, batch: int) -> _Lane:
        """The lane for a batch size, made when it is first needed: 0 for single images, 1 for the rest."""
        profile = 0 if batch == 1 else 1
        if profile not in self._lanes:
            self._lanes[profile] = self._make_lane(profile, 1 if profile == 0 else MAX_BATCH[self._graph])
        return self._lanes[profile]

    def _make_lane(self, profile: int, most: int) -> _Lane:
        # ON_PROFILE_CHANGE: activations for the lane's own batch sizes. The default is the largest of all profiles, for
        # every context: hundreds of megabytes that single images never use.
        if self._runtime_config is None:
            strategies = self._library.module.ExecutionContextAllocationStrategy
            context = self._engine.create_execution_context(strategies.ON_PROFILE_CHANGE)
        else:
            context = self._engine.create_execution_context(self._runtime_config)
        if context is None:
            raise EngineError(
                f"{self._graph}: no execution context ({self._log.last_error}); is the GPU's memory full?"
            )
        if not context.set_optimization_profile_async(profile, self._device.stream_handle):
            raise EngineError(f"{self._graph}: no optimisation profile {profile}; run `unifygeo compile --rebuild`")
        specs: Sequence[TensorSpec] = (*self._inputs, *self._outputs)
        device = {spec.name: self._device.allocate(most * spec.row_bytes) for spec in specs}
        for name, buffer in device.items():
            if not context.set_tensor_address(name, buffer.pointer):
                raise EngineError(
                    f"{self._graph}: TensorRT refuses the memory of {name} ({self._log.last_error}); run "
                    "`unifygeo compile --rebuild`"
                )
        return _Lane(context, most, device)

    def _pinned(self, lane: _Lane, spec: TensorSpec) -> npt.NDArray[Any]:
        """The staging array of a tensor, made when the tensor first crosses to or from the host."""
        if spec.name not in lane.pinned:
            lane.pinned[spec.name] = self._device.pinned((lane.most, *spec.shape), spec.dtype)
        return lane.pinned[spec.name].array

    def _make_runtime_config(self) -> Any:
        """How tensorrt_rtx runs the engine; None with tensorrt.

        It compiles its kernels on first use, so they are kept. It also captures graphs itself, once its specialised
        kernels have replaced the general ones.
        """
        if not self._library.is_rtx:
            return None
        config = self._engine.create_runtime_config()
        runtime_cache = None if config is None else config.create_runtime_cache()
        if config is None or runtime_cache is None:
            raise EngineError(f"{self._graph}: {self._library.backend} cannot run it ({self._log.last_error})")
        stored = self._cache.load(self._runtime_cache_key)
        if stored is not None and not runtime_cache.deserialize(stored):
            logger.warning("%s: the cache of compiled kernels does not fit; they are compiled again", self._graph)
        if not config.set_runtime_cache(runtime_cache):
            logger.warning("%s: compiled kernels cannot be kept; every start compiles them again", self._graph)
        module = self._library.module
        strategies = module.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if self._use_graphs else strategies.DISABLED
        config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
        return config

    def _store_runtime_cache(self) -> None:
        """Keep the kernels that tensorrt_rtx has compiled so far, if there are new ones."""
        if self._runtime_config is None:
            return
        runtime_cache = self._runtime_config.get_runtime_cache()
        serialized = None if runtime_cache is None else runtime_cache.serialize()
        content = b"" if serialized is None else bytes(serialized)
        if content and content != self._stored_runtime_cache:
            try:
                self._cache.store(self._runtime_cache_key, content)
            except EngineError as error:  # the next start compiles them again
                logger.warning("%s: compiled kernels are not kept: %s", self._graph, error)
            self._stored_runtime_cache = content
