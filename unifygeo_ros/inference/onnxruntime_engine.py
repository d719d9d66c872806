"""Engines of ONNX Runtime: on the CPU, on CUDA, and through its TensorRT providers."""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Mapping

import numpy as np
import onnxruntime

from unifygeo_ros.core.arrays import Float32
from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.inference.engine import Input, ResidentArray, TensorSpec, check_inputs, check_outputs
from unifygeo_ros.inference.interface import check_interface
from unifygeo_ros.inference.onnx_providers import Provider, provider_options

logger = logging.getLogger(__name__)

DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
"""ONNX Runtime's names of the element types that the graphs of a bundle have as inputs and outputs."""


CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class OrtArray:
    """An output left in ONNX Runtime's own memory, on its device."""

    value: Any  # onnxruntime.OrtValue

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.value.data_type()]).itemsize

    def numpy(self) -> Float32:
        return np.asarray(self.value.numpy(), np.float32)


def _has_vnni() -> bool:
    """Whether an x86 processor sums products of int8 in 32 bits, as Linux tells it; False where nothing is known."""
    try:
        words = set(CPU_INFO.read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(words & {"avx512_vnni", "avx_vnni"})


def session_options(threads: int = 0) -> onnxruntime.SessionOptions:
    """Options of every session. threads are those of the session's pool; 0: one for each physical core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # The graphs are chains; a second pool for parallel branches only takes cores from the first.
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Idle threads sleep instead of spinning: between two images the vehicle's cores belong to others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not _has_vnni():
        # Sums of products of int8 overflow 16 bits; this takes kernels that are right, and slower.
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return options


@functools.cache
def _register_shared_memory() -> bool:
    """Make the memory that CPU sessions of this process share, once. False where another library has made its own."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # No limit; grow by what is asked for, not by powers of two; the other two as they are by default.
    settings = onnxruntime.OrtArenaCfg(0, 1, -1, -1)
    try:
        onnxruntime.create_and_register_allocator(memory, settings)
    except RuntimeError as error:
        logger.debug("sessions keep memory of their own: %s", error)
        return False
    return True


def share_memory(options: onnxruntime.SessionOptions) -> None:
    """Let a session on the CPU take its activations from memory that all such sessions share.

    The graphs run one after the other, but by default each session keeps the memory of its largest runs for itself, in
    a block for each shape of its inputs. With graphs of the published size, in batches of one and two, a process held
    975 MB; so, 655 MB at the same speed.
    """
    if _register_shared_memory():
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.enable_mem_pattern = False


class OnnxRuntimeEngine:
    """One graph in an ONNX Runtime session. Not safe for use from two threads at once."""

    def __init__(
        self,
        bundle: ModelBundle,
        graph: str,
        *,
        precision: str,
        provider: Provider,
        cache_dir: Path | None = None,
        threads: int = 0,
    ) -> None:
        """Open the session, with no other provider to fall back to.

        Args:
            bundle: The bundle of the graph.
            graph: One of GRAPHS.
            precision: One of PRECISIONS.
            provider: The execution provider.
            cache_dir: Folder of the engines that a TensorRT provider compiles; None: the user's cache.
            threads: As in `session_options`.

        Raises:
            BundleError: the graph is not what the manifest says.
            EngineError: the provider does not load, or cannot run the graph.
        """
        self._graph = graph
        path = bundle.graph_path(graph, precision)
        options = session_options(threads)
        if provider.backend == "onnx_cpu":
            share_memory(options)
        chosen = provider_options(provider, bundle, graph, precision, cache_dir)
        logger.info("Opening %s %s with %s", graph, precision, provider.name)
        try:
            if provider.plugin_devices:
                options.add_provider_for_devices(list(provider.plugin_devices), chosen)
                session = onnxruntime.InferenceSession(str(path), options)
            else:
                session = onnxruntime.InferenceSession(
                    str(path), options, providers=[provider.name], provider_options=[chosen]
                )
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise EngineError(f"{path}: ONNX Runtime cannot load it with {provider.name}: {error}") from error
        # ONNX Runtime falls back to its CPU provider with no more than a log line.
        if provider.name not in session.get_providers():
            raise EngineError(
                f"{path}: ONNX Runtime did not load {provider.name}, only {session.get_providers()}; "
                "repair its libraries (docs/how-to/engines.md) or choose another backend"
            )
        self._session: onnxruntime.InferenceSession | None = session
        self._most = provider.largest_batch(graph)
        self._inputs = [_spec(path, node) for node in self._session.get_inputs()]
        self._outputs = [_spec(path, node) for node in self._session.get_outputs()]
        self._memory = provider.memory
        check_interface(bundle.manifest, graph, precision, path, self._inputs, self._outputs)
        where = "CPU" if provider.backend == "onnx_cpu" else f"{provider.name} device {provider.device}"
        self.description = f"ONNX Runtime {onnxruntime.__version__}, {where}, {precision}"

    def run(self, inputs: Mapping[str, Input], outputs: Collection[str] | None = None) -> Mapping[str, Float32]:
        return self.run_resident(inputs, (), outputs)[0]

    def run_resident(
        self, inputs: Mapping[str, Input], resident: Collection[str], outputs: Collection[str] | None = None
    ) -> tuple[Mapping[str, Float32], Mapping[str, ResidentArray]]:
        if self._session is None:
            raise EngineError(f"{self._graph}: the engine is closed; open the engines again")
        batch = check_inputs(self._graph, self._inputs, inputs)
        wanted = check_outputs(self._graph, self._outputs, resident, outputs)
        if self._most is not None and batch > self._most:
            return self._in_pieces(batch, self._most, inputs, resident, wanted), {}
        binding = self._session.io_binding()
        held = []  # the binding points at the arrays, it does not hold them
        for spec in self._inputs:
            value = inputs[spec.name]
            if isinstance(value, OrtArray):
                binding.bind_ortvalue_input(spec.name, self._in_own_type(spec, value))
            elif isinstance(value, np.ndarray):
                held.append(np.ascontiguousarray(value, spec.dtype))
                binding.bind_cpu_input(spec.name, held[-1])
            else:
                raise EngineError(f"{self._graph}: input {spec.name!r} is a resident of another backend's engine")
        names = [spec.name for spec in self._outputs if spec.name in wanted or spec.name in resident]
        for name in names:
            binding.bind_output(name, *(self._memory if name in resident else ("cpu", 0)))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise EngineError(f"{self._graph}: ONNX Runtime failed: {error}") from error
        values = dict(zip(names, binding.get_outputs(), strict=True))
        host = {name: np.asarray(values[name].numpy(), np.float32) for name in wanted}
        return host, {name: OrtArray(values[name]) for name in resident}

    def _in_pieces(
        self, batch: int, most: int, inputs: Mapping[str, Input], resident: Collection[str], wanted: Collection[str]
    ) -> Mapping[str, Float32]:
        """Run a batch that is longer than the provider's profile piece by piece, through the host."""
        if resident:
            raise EngineError(f"{self._graph}: residents of at most {most} images at once, not {batch}; give fewer")
        arrays = {
            name: value.value.numpy() if isinstance(value, OrtArray) else np.asarray(value)
            for name, value in inputs.items()
        }
        pieces = [
            self.run({name: array[start : start + most] for name, array in arrays.items()}, wanted)
            for start in range(0, batch, most)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in wanted}

    def _in_own_type(self, spec: TensorSpec, value: OrtArray) -> Any:
        actual = DTYPES[value.value.data_type()]
        if actual != spec.dtype:
            raise EngineError(
                f"{self._graph}: resident {spec.name!r} is {np.dtype(actual)}, the graph takes {spec.dtype}; open all "
                "three engines in one precision"
            )
        return value.value

    def close(self) -> None:
        self._session = None


def _spec(path: Path, node: Any) -> TensorSpec:
    """The spec of a session's input or output; only the first axis may be dynamic."""
    fixed = tuple(node.shape[1:])
    if node.type not in DTYPES or not all(isinstance(size, int) for size in fixed):
        raise EngineError(
            f"{path}: {node.name} is {node.type} {node.shape}, bundles hold uint8, float and float16 with a dynamic "
            "first axis alone; export the bundle again"
        )
    return TensorSpec(node.name, np.dtype(DTYPES[node.type]), fixed)
