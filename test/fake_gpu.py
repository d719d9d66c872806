"""A GPU made of host memory, and a TensorRT that computes with ONNX Runtime: for machines without a GPU.

The real CUDA and TensorRT cannot run there. What these stand-ins test is the engines' own bookkeeping: what is copied
where and when, which buffers live how long, batches cut into pieces, when a graph is captured and replayed. They keep
the rules that matter for that: work on a stream is done at `cuStreamSynchronize` and no sooner, a capture records and
does not run, allocating or waiting during a capture is an error, a profile takes only its own batch sizes, and memory
that has been freed or was never allocated cannot be used. Every call must fit the signature that the real libraries
state (`gpu_signatures`), in TensorRT 10.3 and 11. Results on a real GPU are tested in test_engines_gpu.py.
"""

from __future__ import annotations

import ctypes
import enum
import types
from pathlib import Path
from typing import Any, Callable

import numpy as np
import onnx
import onnxruntime
from gpu_signatures import checked, hold_to, table

TABLE = table()
LIBRARIES = {
    name: [entry for key, entry in TABLE.items() if key.split()[0] == name]
    for name in ("tensorrt", "tensorrt_rtx", "cuda.bindings")
}
"""The signatures of every version in the table, by library."""


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


OK = CUresult.CUDA_SUCCESS


class FakeDriver:
    """`cuda.bindings.driver`, as far as it is used. memory: bytes on the device."""

    CUresult = CUresult
    CUdevice_attribute = enum.Enum(
        "CUdevice_attribute",
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR "
        "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT",
    )
    CUstream_flags = enum.Enum("CUstream_flags", {"CU_STREAM_NON_BLOCKING": 1})
    CUstreamCaptureMode = enum.Enum("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")

    def __init__(self, memory: int = 1 << 30) -> None:
        self.memory = memory
        self.device: dict[int, ctypes.Array[Any]] = {}
        self.pinned: dict[int, ctypes.Array[Any]] = {}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.graphs = 0  # instantiated and not destroyed
        self.launches = 0
        self.contexts = 0
        self.activations: list[int] = []  # batch sizes that execution contexts have taken memory for
        self.copied = {"HtoD": 0, "DtoH": 0, "DtoD": 0}  # bytes
        self.version = 12060
        self.multiprocessors = 16
        self.failing: dict[str, int] = {}  # function → how many of its next calls fail
        self.refused: set[str] = set()  # methods of TensorRT that answer False or None
        for name in dir(FakeDriver):
            if name.startswith("cu") and name[2].isupper():
                libraries = [entry[name] for entry in LIBRARIES["cuda.bindings"]]
                setattr(self, name, checked(self._failing(name), name, libraries))

    def _failing(self, name: str) -> Callable[..., Any]:
        call = getattr(self, name)

        def failing(*arguments: Any) -> Any:
            if self.failing.get(name, 0) > 0:
                self.failing[name] -= 1
                if name == "cuStreamEndCapture":
                    self.captured = None  # a void capture ends all the same
                return CUresult.CUDA_ERROR_INVALID_VALUE, None
            return call(*arguments)

        return failing

    def cuDriverGetVersion(self) -> tuple[CUresult, int]:
        return OK, self.version

    def cuDeviceGetCount(self) -> tuple[CUresult, int]:
        return OK, 1

    def cuDeviceGet(self, ordinal: int) -> tuple[CUresult, int]:
        return OK, ordinal

    def cuDeviceGetName(self, length: int, device: int) -> tuple[CUresult, bytes]:
        return OK, b"Pretend GPU\0\0\0"

    def cuDeviceGetAttribute(self, attribute: enum.Enum, device: int) -> tuple[CUresult, int]:
        values = {"MAJOR": 8, "MINOR": 9, "COUNT": self.multiprocessors}
        return OK, values[attribute.name.rpartition("_")[2]]

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[CUresult, str]:
        self.contexts += 1
        return OK, "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[CUresult]:
        self.contexts -= 1
        return (OK,)

    def cuCtxSetCurrent(self, context: str) -> tuple[CUresult]:
        return (OK if self.contexts else CUresult.CUDA_ERROR_INVALID_CONTEXT,)

    def cuStreamCreate(self, flags: int) -> tuple[CUresult, int]:
        return OK, 77

    def cuStreamDestroy(self, stream: int) -> tuple[CUresult]:
        return (OK,)

    def cuStreamSynchronize(self, stream: int) -> tuple[CUresult]:
        if self.captured is not None:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        while self.queue:
            self.queue.pop(0)()
        return (OK,)

    def cuMemAlloc(self, size: int) -> tuple[CUresult, int]:
        if self.captured is not None:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 0
        if sum(len(block) for block in self.device.values()) + size > self.memory:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        return OK, self._allocate(self.device, size)

    def cuMemFree(self, pointer: int) -> tuple[CUresult]:
        return (OK if self.device.pop(pointer, None) is not None else CUresult.CUDA_ERROR_INVALID_VALUE,)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[CUresult, int]:
        return OK, self._allocate(self.pinned, size)

    def cuMemFreeHost(self, pointer: int) -> tuple[CUresult]:
        return (OK if self.pinned.pop(pointer, None) is not None else CUresult.CUDA_ERROR_INVALID_VALUE,)

    @staticmethod
    def _allocate(blocks: dict[int, ctypes.Array[Any]], size: int) -> int:
        block = (ctypes.c_uint8 * size)()
        ctypes.memset(block, 0xA5, size)  # what nobody wrote must show
        blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def check(self, pointer: int, size: int) -> None:
        """Refuse device memory outside of every living allocation."""
        inside = any(start <= pointer and pointer + size <= start + len(block) for start, block in self.device.items())
        assert inside, "device memory out of bounds or freed"

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[CUresult]:
        assert any(start <= source < start + len(block) for start, block in self.pinned.items()), "source not pinned"
        return self._copy("HtoD", target, source, size, (target,))

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[CUresult]:
        return self._copy("DtoH", target, source, size, (source,))

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[CUresult]:
        return self._copy("DtoD", target, source, size, (target, source))

    def _copy(self, way: str, target: int, source: int, size: int, on_device: tuple[int, ...]) -> tuple[CUresult]:
        def copy() -> None:
            for pointer in on_device:
                self.check(pointer, size)
            ctypes.memmove(target, source, size)
            self.copied[way] += size

        self.put(copy)
        return (OK,)

    def put(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def cuStreamBeginCapture(self, stream: int, mode: enum.Enum) -> tuple[CUresult]:
        self.captured = []
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> tuple[CUresult, list[Callable[[], None]] | None]:
        captured, self.captured = self.captured, None
        return OK, captured

    def cuGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[CUresult, list[Any]]:
        assert graph, "an empty graph was captured"
        self.graphs += 1
        return OK, list(graph)

    def cuGraphDestroy(self, graph: list[Callable[[], None]]) -> tuple[CUresult]:
        return (OK,)

    def cuGraphExecDestroy(self, executable: list[Callable[[], None]]) -> tuple[CUresult]:
        self.graphs -= 1
        return (OK,)

    def cuGraphLaunch(self, executable: list[Callable[[], None]], stream: int) -> tuple[CUresult]:
        self.launches += 1
        for work in executable:
            self.put(work)
        return (OK,)


NUMPY = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


def fake_tensorrt(driver: FakeDriver, *, rtx: bool = False) -> types.SimpleNamespace:
    """A module like `tensorrt` 10.3 (or like `tensorrt_rtx`) whose plans are ONNX graphs."""

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

        def __init__(self) -> None: ...

    Strategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")

    class Context:
        """Takes memory for activations as the real one does: with STATIC at once, for the largest batch of all
        profiles; with ON_PROFILE_CHANGE for that of its profile."""

        def __init__(self, engine: Engine, strategy: enum.Enum) -> None:
            self.engine, self.addresses, self.profile, self.batch, self.flushed = engine, {}, None, None, None
            self.strategy = strategy
            if strategy is Strategy.STATIC:
                driver.activations.append(32)

        def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
            self.profile = profile
            if self.strategy is Strategy.ON_PROFILE_CHANGE:
                driver.activations.append((1, 32)[profile])
            return profile < 2

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, high = ((1, 1), (2, 32))[self.profile]
            self.batch = shape[0]
            return low <= shape[0] <= high and shape[1:] == self.engine.shapes[name][1:]

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return "set_tensor_address" not in driver.refused

        def execute_async_v3(self, stream: int) -> bool:
            batch, engine = self.batch, self.engine
            if driver.captured is not None and self.flushed != batch:
                return False  # TensorRT: one run without capture must come before, after a change of shapes
            self.flushed = batch

            def view(name: str) -> np.ndarray:
                shape = (batch, *engine.shapes[name][1:])
                size = int(np.prod(shape)) * np.dtype(engine.dtypes[name]).itemsize
                driver.check(self.addresses[name], size)
                raw = (ctypes.c_uint8 * size).from_address(self.addresses[name])
                return np.frombuffer(raw, engine.dtypes[name]).reshape(shape)

            def work() -> None:
                results = engine.session.run(engine.outputs, {name: view(name).copy() for name in engine.inputs})
                for name, result in zip(engine.outputs, results, strict=True):
                    view(name)[...] = result

            driver.put(work)
            return True

    class Engine:
        def __init__(self, plan: bytes) -> None:
            self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
            nodes = (*self.session.get_inputs(), *self.session.get_outputs())
            self.shapes = {node.name: (-1, *node.shape[1:]) for node in nodes}
            self.dtypes = {node.name: NUMPY[node.type] for node in nodes}
            self.inputs = [node.name for node in self.session.get_inputs()]
            self.outputs = [node.name for node in self.session.get_outputs()]
            self.num_io_tensors = len(nodes)

        def get_tensor_name(self, index: int) -> str:
            return (self.inputs + self.outputs)[index]

        def get_tensor_mode(self, name: str) -> str:
            return "input" if name in self.inputs else "output"

        def get_tensor_dtype(self, name: str) -> Any:
            return self.dtypes[name]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.shapes[name]

        def create_execution_context(self, how: Any = Strategy.STATIC) -> Context:
            if not rtx:
                return Context(self, how)
            assert how.cuda_graph_strategy in ("whole", "off")
            how.cache.content = b"kernels"
            return Context(self, how.strategy)

        if rtx:

            def create_runtime_config(self) -> Any:
                return RuntimeConfig()

    class RuntimeCache:
        content = b""

        def deserialize(self, content: bytes) -> bool:
            self.content = content
            return True

        def serialize(self) -> bytes:
            return self.content

    class RuntimeConfig:
        strategy = Strategy.STATIC

        def set_execution_context_allocation_strategy(self, strategy: enum.Enum) -> None:
            self.strategy = strategy

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            self.cache = cache
            return "set_runtime_cache" not in driver.refused

        def get_runtime_cache(self) -> RuntimeCache:
            return self.cache

    class Runtime:
        def __init__(self, logger: ILogger) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            return None if plan == b"made by another driver" else Engine(plan)

    class Tensor:
        def __init__(self, node: onnx.ValueInfoProto) -> None:
            self.name = node.name
            self.shape = (-1, *(d.dim_value for d in node.type.tensor_type.shape.dim[1:]))

    class Network:
        model: onnx.ModelProto

        @property
        def num_inputs(self) -> int:
            return len(self.model.graph.input)

        def get_input(self, index: int) -> Tensor:
            return Tensor(self.model.graph.input[index])

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Network, logger: ILogger) -> None:
            self.network = network

        def parse_from_file(self, path: str) -> bool:
            self.network.model = onnx.load_from_string(Path(path).read_bytes())
            return True

    class TimingCache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content + b"."

    class Config:
        def __init__(self) -> None:
            self.profiles = 0

        def set_memory_pool_limit(self, pool: Any, size: int) -> None: ...

        def clear_flag(self, flag: Any) -> None: ...

        if rtx:

            def set_compute_capability(self, capability: Any, index: int) -> bool:
                return self.num_compute_capabilities == 1 and capability.name == "SM89" and index == 0

        def add_optimization_profile(self, profile: Any) -> int:
            self.profiles += 1
            return self.profiles - 1

        def create_timing_cache(self, content: bytes) -> TimingCache:
            return TimingCache(content)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            return not ignore_mismatch and "set_timing_cache" not in driver.refused

    class Profile:
        def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
            assert all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True))

    class Builder:
        def __init__(self, logger: ILogger) -> None: ...

        def create_network(self, flags: int) -> Network:
            assert flags == 1 << 1
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Any:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes:
            assert config.profiles == 2
            return network.model.SerializeToString()

    class IProgressMonitor:
        def __init__(self) -> None: ...

    for owner, name in {
        ILogger: "ILogger",
        Builder: "Builder",
        Network: "INetworkDefinition",
        Profile: "IOptimizationProfile",
        Config: "IBuilderConfig",
        IProgressMonitor: "IProgressMonitor",
        OnnxParser: "OnnxParser",
        TimingCache: "ITimingCache",
        Runtime: "Runtime",
        Engine: "ICudaEngine",
        Context: "IExecutionContext",
        RuntimeConfig: "IRuntimeConfig",
        RuntimeCache: "IRuntimeCache",
    }.items():
        if rtx or owner not in (RuntimeConfig, RuntimeCache):
            hold_to(owner, name, LIBRARIES["tensorrt_rtx" if rtx else "tensorrt"])
    return types.SimpleNamespace(
        __name__="fake_tensorrt",
        ILogger=ILogger,
        Runtime=Runtime,
        Builder=Builder,
        OnnxParser=OnnxParser,
        IProgressMonitor=IProgressMonitor,
        ExecutionContextAllocationStrategy=Strategy,
        NetworkDefinitionCreationFlag=types.SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=types.SimpleNamespace(WORKSPACE=0),
        BuilderFlag=types.SimpleNamespace(TF32=0),
        TensorIOMode=types.SimpleNamespace(INPUT="input"),
        ComputeCapability=enum.Enum("ComputeCapability", "SM86 SM89"),
        CudaGraphStrategy=types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="off"),
        nptype=lambda dtype: dtype,
    )
