"""ONNX Runtime's execution providers: what each needs, and the options it is opened with.

The names of the options are those of the providers' own option tables (ONNX Runtime 1.31.1, the TensorRT-RTX plugin
0.5.0). What has run with them is listed in docs/how-to/engines.md.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import onnxruntime

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.inference.engine import BackendUnavailable
from unifygeo_ros.inference.engine_cache import default_cache_dir, make_trusted_folder
from unifygeo_ros.inference.interface import expected_inputs
from unifygeo_ros.inference.tensorrt_build import MAX_BATCH, WORKSPACE_BYTES

logger = logging.getLogger(__name__)

PROVIDERS = {
    "onnx_cpu": "CPUExecutionProvider",
    "onnx_cuda": "CUDAExecutionProvider",
    "onnx_tensorrt": "TensorrtExecutionProvider",
    "onnx_tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
}
"""Execution provider by backend."""

INSTALL = {
    "onnx_cpu": "pip install onnxruntime",
    "onnx_cuda": "pip install 'onnxruntime-gpu[cuda,cudnn]' in its place",
    "onnx_tensorrt": "pip install 'onnxruntime-gpu[cuda,cudnn]' instead of onnxruntime, and TensorRT's libraries",
    "onnx_tensorrt_rtx": "pip install onnxruntime-ep-nv-tensorrt-rtx in addition to onnxruntime 1.24 or newer",
}
"""Remedy by backend where its provider is not there."""

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""Python module of the plugin that brings TensorRT-RTX to any ONNX Runtime."""


@dataclass(frozen=True)
class Provider:
    """An execution provider that can be opened here."""

    backend: str
    device: int
    plugin_devices: tuple[Any, ...] = ()
    """ONNX Runtime's handles of a plugin's GPU; empty: the provider is built into ONNX Runtime."""

    @property
    def name(self) -> str:
        return PROVIDERS[self.backend]

    @property
    def memory(self) -> tuple[str, int]:
        """The device that its outputs stay on, as IO binding names it."""
        return ("cpu", 0) if self.backend == "onnx_cpu" else ("cuda", self.device)

    def largest_batch(self, graph: str) -> int | None:
        """The largest batch of its optimisation profile; None: any."""
        return MAX_BATCH[graph] if "tensorrt" in self.backend else None


def find_provider(backend: str, device: int) -> Provider:
    """The execution provider of a backend.

    Args:
        backend: One of PROVIDERS.
        device: Number of the GPU.

    Raises:
        BackendUnavailable: it is not installed here, or finds no driver or no GPU.
        EngineError: the GPU does not exist, though others do.
    """
    name = PROVIDERS[backend]
    available = onnxruntime.get_available_providers()
    if name in available:
        _preload(backend)
        return Provider(backend, device)
    if backend != "onnx_tensorrt_rtx":
        raise BackendUnavailable(f"this onnxruntime has no {name}, only {available}; {INSTALL[backend]}")
    gpus = _plugin_devices(name)
    if not gpus:
        raise BackendUnavailable(f"{PLUGIN} finds no GPU that it supports; it takes RTX GPUs from Ampere on")
    if device >= len(gpus):
        raise EngineError(f"GPU {device} does not exist for {name}, there are {len(gpus)}; choose another device")
    return Provider(backend, device, (gpus[device],))


def _preload(backend: str) -> None:
    """Load the libraries that a built-in provider needs from where pip installs them.

    The system's loader does not look there. What is not there is left to that loader, and what is nowhere is an error
    when the session is opened.
    """
    if backend not in ("onnx_cuda", "onnx_tensorrt"):
        return
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            onnxruntime.preload_dlls()
        if printed.getvalue():
            logger.debug("%s", printed.getvalue().strip())
    if backend == "onnx_tensorrt":
        with contextlib.suppress(Exception):  # the package loads its libraries, or it is not there or does not load
            importlib.import_module("tensorrt")


def _plugin_devices(name: str) -> list[Any]:
    """The plugin's devices, its library registered first. Raises BackendUnavailable."""
    try:
        plugin = importlib.import_module(PLUGIN)
    except Exception as error:  # ImportError, and the errors of its own loading of libraries
        raise BackendUnavailable(f"{PLUGIN} cannot be imported ({error}); {INSTALL['onnx_tensorrt_rtx']}") from error
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise BackendUnavailable(
            f"onnxruntime {onnxruntime.__version__} takes no plugins; {INSTALL['onnx_tensorrt_rtx']}"
        )
    if not _devices(name):  # else another set of engines has registered it: once for a process
        try:
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # ONNX Runtime's own type: no driver, say
            raise BackendUnavailable(f"{name} cannot be loaded ({error}); install NVIDIA's driver") from error
    return _devices(name)


def _devices(name: str) -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


def provider_options(
    provider: Provider, bundle: ModelBundle, graph: str, precision: str, cache_dir: Path | None
) -> dict[str, str]:
    """The options that a graph's session is opened with; a folder for its compiled engines is made where it has any.

    Args:
        provider: The execution provider.
        bundle: The bundle of the graph.
        graph: One of GRAPHS.
        precision: One of PRECISIONS.
        cache_dir: Folder of compiled engines; None: the user's cache.

    Raises:
        EngineError: others than the user can write the folder, or it cannot be made.
    """
    if provider.backend == "onnx_cpu":
        return {}
    if provider.backend == "onnx_cuda":
        return {"device_id": str(provider.device), "use_tf32": "0"}  # "fp32" must mean it
    folder = str(engine_folder(provider, bundle, graph, precision, cache_dir))
    least, most = (_shapes(provider, bundle, graph, precision, batch) for batch in (1, MAX_BATCH[graph]))
    if provider.backend == "onnx_tensorrt_rtx":
        options = {
            "nv_max_workspace_size": str(WORKSPACE_BYTES),
            "nv_profile_min_shapes": least,
            "nv_profile_opt_shapes": least,
            "nv_profile_max_shapes": most,
            "nv_runtime_cache_path": folder,
        }
        return options if provider.plugin_devices else {"device_id": str(provider.device), **options}
    return {
        "device_id": str(provider.device),
        "trt_max_workspace_size": str(WORKSPACE_BYTES),
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_int8_enable": "1" if precision == "int8" else "0",
        "trt_profile_min_shapes": least,
        "trt_profile_opt_shapes": least,
        "trt_profile_max_shapes": most,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        "trt_context_memory_sharing_enable": "1",
    }


def engine_folder(provider: Provider, bundle: ModelBundle, graph: str, precision: str, cache_dir: Path | None) -> Path:
    """The folder of one graph's compiled engines, made and checked.

    Its name holds what the provider does not look at when it takes an engine from it: the graph's content and ONNX
    Runtime's version. The provider itself tells GPUs and profiles apart.
    """
    root = cache_dir or default_cache_dir()
    sha256 = bundle.manifest.graphs[graph][precision].sha256
    weights = bundle.manifest.weights_sha256
    name = f"{provider.backend}-{onnxruntime.__version__}-{graph}-{precision}-{weights[:8]}{sha256[:8]}"
    make_trusted_folder(root)
    make_trusted_folder(root / name, private=True)
    return root / name


def _shapes(provider: Provider, bundle: ModelBundle, graph: str, precision: str, batch: int) -> str:
    """The shapes of a graph's inputs as the providers take them: "f0:1x320,f1:1x160"; the plugin takes ";" for ","."""
    shapes: Mapping[str, tuple[int, ...]] = {
        spec.name: (batch, *spec.shape) for spec in expected_inputs(bundle.manifest, graph, precision)
    }
    between = ";" if provider.plugin_devices else ","
    return between.join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
