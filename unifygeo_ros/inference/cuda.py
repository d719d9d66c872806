"""The part of CUDA that the TensorRT engines need: one device with its stream, buffers and captured graphs.

It uses the driver API (`cuda.bindings.driver` of the package cuda-python), which needs only the driver's own library:
the same wheel serves a desktop and a Jetson, whose runtime library differs from the one for servers. Nothing here is
imported before a GPU backend is opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.engine import BackendUnavailable

_DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release"))
"""Files whose first line states the driver's version, and a Jetson's release."""

INSTALL = "install NVIDIA's driver and `pip install cuda-bindings` of the driver's major version (12 on JetPack 6)"


def load_driver() -> ModuleType:
    """`cuda.bindings.driver`, initialised. Raises BackendUnavailable where there is no package, driver or GPU."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendUnavailable(f"cuda.bindings cannot be imported ({error}); {INSTALL}") from error
    try:
        (status,) = driver.cuInit(0)
    except Exception as error:  # the package's own type when libcuda.so.1 is not there; it differs between releases
        raise BackendUnavailable(f"the CUDA driver cannot be loaded ({error}); {INSTALL}") from error
    if status != driver.CUresult.CUDA_SUCCESS:
        raise BackendUnavailable(f"the CUDA driver does not start ({status.name}); {INSTALL}")
    module: ModuleType = driver
    return module


class CudaDevice:
    """One GPU: its primary context (the one TensorRT uses), one stream of its own, and memory on it.

    All engines of a set share the device and the stream: what one leaves in memory the next may read without
    waiting, because the stream runs in order.
    """

    def __init__(self, index: int = 0, driver: ModuleType | None = None) -> None:
        """driver: `cuda.bindings.driver`, loaded when None. Raises EngineError."""
        self._driver: Any = load_driver() if driver is None else driver
        count = self._call("cuDeviceGetCount")
        if not 0 <= index < count:
            raise EngineError(f"GPU {index} does not exist, there are {count}; choose a device from 0 to {count - 1}")
        self._device = self._call("cuDeviceGet", index)
        self.name: str = self._call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode()
        self.compute_capability = (
            self._attribute("COMPUTE_CAPABILITY_MAJOR"),
            self._attribute("COMPUTE_CAPABILITY_MINOR"),
        )
        self._multiprocessors = self._attribute("MULTIPROCESSOR_COUNT")
        self._idle: dict[int, list[int]] = {}  # pointers of idle device memory by size, see `allocate`
        self._allocated: set[int] = set()  # all of them, idle or not
        self._closed = False
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        try:
            self.make_current()
            flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
            self._stream = self._call("cuStreamCreate", flags)
        except EngineError:
            self._call("cuDevicePrimaryCtxRelease", self._device)
            raise

    @property
    def model(self) -> str:
        """The GPU's name and its number of multiprocessors.

        All Jetson Orins have one name; they differ in the multiprocessors that they have, or that the power mode has
        left on.
        """
        return f"{self.name}, {self._multiprocessors} multiprocessors"

    @property
    def driver_version(self) -> str:
        """The CUDA version of the driver, its own version where the system states it, and the release of a Jetson."""
        version = int(self._call("cuDriverGetVersion"))
        parts = [f"CUDA {version // 1000}.{version % 1000 // 10}"]
        for path in _DRIVER_FILES:
            with contextlib.suppress(OSError, IndexError):
                parts.append(path.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip())
        return "; ".join(parts)

    @property
    def stream_handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream)

    def make_current(self) -> None:
        """Bind the device to the calling thread; CUDA keeps that per thread. Raises EngineError once it is closed."""
        if self._closed:
            raise EngineError("the engines of this GPU are closed; open them again")
        self._call("cuCtxSetCurrent", self._context)

    def synchronize(self) -> None:
        """Wait until the stream has done all its work."""
        self._call("cuStreamSynchronize", self._stream)

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Device memory, freed with the last reference to it.

        Freed memory is kept by size and used again: the sizes are few (one for each tensor and batch size), cudaMalloc
        and cudaFree would stall the stream, and CUDA's own stream-ordered pools do not exist on every Jetson.
        """
        idle = self._idle.get(nbytes)
        pointer = idle.pop() if idle else int(self._call("cuMemAlloc", nbytes))
        self._allocated.add(pointer)
        return DeviceBuffer(self, pointer, nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> PinnedArray:
        """Page-locked host memory, which the copy engines reach without a detour."""
        return PinnedArray(self, shape, np.dtype(dtype))

    def copy_to_device(self, target: int, source: npt.NDArray[Any]) -> None:
        """Queue a copy of a pinned, contiguous array; it must not change until `synchronize`."""
        self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, self._stream)

    def copy_to_host(self, target: npt.NDArray[Any], source: int) -> None:
        """Queue a copy to a contiguous array; it is there after `synchronize`."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, self._stream)

    def copy_on_device(self, target: int, source: int, nbytes: int) -> None:
        self._call("cuMemcpyDtoDAsync", target, source, nbytes, self._stream)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Record what `enqueue` puts on the stream, without running it."""
        # THREAD_LOCAL: other threads' CUDA calls neither enter the graph nor break it.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(EngineError):  # the capture is void; the first error says why
                self._call("cuStreamEndCapture", self._stream)
            raise
        graph = self._call("cuStreamEndCapture", self._stream)
        try:
            return CudaGraph(self, self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def close(self) -> None:
        """Free the stream and all memory, also that of buffers that are still referenced; they cannot be used any more.

        It must not be left to the end of the context: that is the process's primary one, and TensorRT's runtime keeps
        it alive.
        """
        if self._closed:
            return
        self.make_current()
        self.synchronize()
        self._closed = True
        self._idle.clear()
        while self._allocated:
            self._call("cuMemFree", self._allocated.pop())
        self._call("cuStreamDestroy", self._stream)
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def _release(self, pointer: int, nbytes: int) -> None:
        if not self._closed:  # `close` has freed it already
            self._idle.setdefault(nbytes, []).append(pointer)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, self._device))

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the driver; its first result is the status. Raises EngineError."""
        status, *results = getattr(self._driver, function)(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise EngineError(f"CUDA: {function} failed with {status.name}; see `nvidia-smi` for the GPU's state")
        return results[0] if len(results) == 1 else results


class DeviceBuffer:
    """Device memory with an owner."""

    def __init__(self, device: CudaDevice, pointer: int, nbytes: int) -> None:
        self.pointer = pointer
        self.nbytes = nbytes
        weakref.finalize(self, device._release, pointer, nbytes)


class PinnedArray:
    """Page-locked host memory as a numpy array."""

    def __init__(self, device: CudaDevice, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self._device = device
        self._pointer = device._call("cuMemHostAlloc", nbytes, 0)
        raw = (ctypes.c_uint8 * nbytes).from_address(int(self._pointer))
        self.array: npt.NDArray[Any] = np.frombuffer(memoryview(raw), dtype).reshape(shape)

    def free(self) -> None:
        """The array must not be touched afterwards."""
        self._device._call("cuMemFreeHost", self._pointer)


class CudaGraph:
    """Recorded work that is launched as one."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device = device
        self._executable = executable

    def launch(self) -> None:
        self._device._call("cuGraphLaunch", self._executable, self._device._stream)

    def free(self) -> None:
        self._device._call("cuGraphExecDestroy", self._executable)
