"""Engines of ONNX Runtime, on the CPU and on CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Mapping

import numpy as np
import onnxruntime

from unifygeo_ros.errors import EngineError
from unifygeo_ros.inference.engine import Array, Float32, Input, ResidentArray, TensorSpec, check_inputs

# ONNX Runtime's names of element types. Only these three cross the borders of a bundle's graphs.
DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class HostArray:
    """A resident of an engine that computes in host memory: the array as the graph gave it."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def numpy(self) -> Float32:
        return self.array.astype(np.float32)


class OnnxRuntimeEngine:
    """One graph in an ONNX Runtime session. Not safe for use from two threads at once."""

    def __init__(
        self, graph: str, path: Path, *, precision: str, provider: str, device: int = 0, threads: int = 0
    ) -> None:
        """provider: an execution provider's name; it must load, there is no other one behind it.

        threads: of the session's pool; 0: one for each physical core. Raises EngineError.
        """
        self._graph = graph
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # The graphs are chains; a second pool for parallel branches only takes cores from the first.
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Idle threads sleep instead of spinning: between two images the vehicle's cores belong to others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        provider_options: list[dict[str, Any]] = (
            [{"device_id": device}] if provider == "CUDAExecutionProvider" else [{}]
        )
        try:
            self._session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
                str(path), options, providers=[provider], provider_options=provider_options
            )
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise EngineError(f"{path}: ONNX Runtime cannot load it with {provider}: {error}") from error
        # ONNX Runtime falls back to its CPU provider with no more than a log line.
        if provider not in self._session.get_providers():
            raise EngineError(
                f"{path}: ONNX Runtime did not load {provider}, only {self._session.get_providers()}; "
                "mend its libraries (docs/engines.md) or choose another backend"
            )
        self._inputs = [_spec(path, node) for node in self._session.get_inputs()]
        self._outputs = [_spec(path, node) for node in self._session.get_outputs()]
        self._output_names = [spec.name for spec in self._outputs]
        where = "CPU" if provider == "CPUExecutionProvider" else f"{provider} device {device}"
        self.description = f"ONNX Runtime {onnxruntime.__version__}, {where}, {precision}"

    def run(self, inputs: Mapping[str, Input]) -> Mapping[str, Float32]:
        return self.run_resident(inputs, ())[0]

    def run_resident(
        self, inputs: Mapping[str, Input], resident: Collection[str]
    ) -> tuple[Mapping[str, Float32], Mapping[str, ResidentArray]]:
        if self._session is None:
            raise EngineError(f"{self._graph}: the engine is closed; open the engines again")
        check_inputs(self._graph, self._inputs, inputs)
        check_resident(self._graph, self._output_names, resident)
        feed = {}
        for spec in self._inputs:
            value = inputs[spec.name]
            if not isinstance(value, (np.ndarray, HostArray)):
                raise EngineError(f"{self._graph}: input {spec.name!r} is a resident of another backend's engine")
            array = value.array if isinstance(value, HostArray) else value
            feed[spec.name] = np.ascontiguousarray(array, spec.dtype)
        try:
            outputs = dict(zip(self._output_names, self._session.run(self._output_names, feed), strict=True))
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise EngineError(f"{self._graph}: ONNX Runtime failed: {error}") from error
        host = {name: array.astype(np.float32, copy=False) for name, array in outputs.items() if name not in resident}
        return host, {name: HostArray(outputs[name]) for name in resident}

    def close(self) -> None:
        self._session = None


def check_resident(graph: str, outputs: Collection[str], resident: Collection[str]) -> None:
    """Refuse names in `resident` that are not outputs. Raises EngineError."""
    unknown = sorted(set(resident) - set(outputs))
    if unknown:
        raise EngineError(f"{graph}: no outputs {unknown} to keep on the device; it has {sorted(outputs)}")


def _spec(path: Path, node: Any) -> TensorSpec:
    """The spec of a session's input or output; only the first axis may be dynamic."""
    fixed = tuple(node.shape[1:])
    if node.type not in DTYPES or not all(isinstance(size, int) for size in fixed):
        raise EngineError(
            f"{path}: {node.name} is {node.type} {node.shape}, bundles hold uint8, float and float16 with a dynamic "
            "first axis alone; export the bundle again"
        )
    return TensorSpec(node.name, np.dtype(DTYPES[node.type]), fixed)
