"""ONNX Runtime's execution providers: found or refused with a remedy, opened with options that they know.

No GPU is needed. That the options do what they say is for `pytest -m gpu` (test_engines_gpu.py).
"""

from __future__ import annotations

import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from bundles import random_bundle

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference import onnx_providers
from unifygeo_ros.inference.bundle import GROUND_FEATURES, PYRAMID, ModelBundle
from unifygeo_ros.inference.engine import BackendUnavailable
from unifygeo_ros.inference.onnx_providers import Provider, find_provider, provider_options
from unifygeo_ros.inference.onnxruntime_engine import OnnxRuntimeEngine
from unifygeo_ros.inference.select import AUTOMATIC, BACKENDS, open_engines

KNOWN_OPTIONS = {
    # `strings libonnxruntime_providers_tensorrt.so` of the wheel onnxruntime-gpu 1.31.1
    "onnx_tensorrt": """device_id trt_max_workspace_size trt_fp16_enable trt_bf16_enable trt_int8_enable trt_dla_enable
        trt_engine_cache_enable trt_engine_cache_path trt_engine_cache_prefix trt_timing_cache_enable
        trt_timing_cache_path trt_force_timing_cache trt_context_memory_sharing_enable trt_cuda_graph_enable
        trt_profile_min_shapes trt_profile_opt_shapes trt_profile_max_shapes trt_builder_optimization_level""",
    # tensorrt_rtx_provider_options.h of the wheel onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0
    "onnx_tensorrt_rtx": """device_id nv_max_workspace_size nv_max_shared_mem_size nv_profile_min_shapes
        nv_profile_opt_shapes nv_profile_max_shapes nv_multi_profile_enable nv_runtime_cache_path enable_cuda_graph
        nv_persistent_context_memory""",
    "onnx_cuda": "device_id use_tf32 gpu_mem_limit arena_extend_strategy cudnn_conv_algo_search",
    "onnx_cpu": "",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return random_bundle(tmp_path_factory.mktemp("bundle"))


def images(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)}


@pytest.mark.parametrize("backend", list(KNOWN_OPTIONS))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_options_are_texts_that_the_provider_knows(
    bundle: ModelBundle, tmp_path: Path, backend: str, precision: str
) -> None:
    for graph in bundle.manifest.graphs:
        options = provider_options(Provider(backend, 0), bundle, graph, precision, tmp_path)
        assert set(options) <= set(KNOWN_OPTIONS[backend].split())
        assert all(isinstance(value, str) for value in options.values())


def test_options_of_tensorrt(bundle: ModelBundle, tmp_path: Path) -> None:
    options = provider_options(Provider("onnx_tensorrt", 2), bundle, "decoder", "fp16", tmp_path)
    folder = options.pop("trt_engine_cache_path")
    assert options.pop("trt_timing_cache_path") == folder
    assert Path(folder).parent == tmp_path
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    pyramid = "pyramid0:{0}x64x8x8,pyramid1:{0}x32x16x16,pyramid2:{0}x32x32x32,pyramid3:{0}x32x32x32"
    shapes = "f0:{0}x64,f1:{0}x32,f2:{0}x32,f3:{0}x32," + pyramid
    assert options == {
        "device_id": "2",
        "trt_max_workspace_size": "1073741824",
        "trt_fp16_enable": "1",
        "trt_int8_enable": "0",
        "trt_profile_min_shapes": shapes.format(1),
        "trt_profile_opt_shapes": shapes.format(1),
        "trt_profile_max_shapes": shapes.format(8),
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_context_memory_sharing_enable": "1",
    }


def test_options_of_the_tensorrt_rtx_plugin(bundle: ModelBundle, tmp_path: Path) -> None:
    """The device is chosen by its handle, and inputs are separated by semicolons."""
    provider = Provider("onnx_tensorrt_rtx", 0, ("a device",))
    options = provider_options(provider, bundle, "aerial_encoder", "fp32", tmp_path)
    assert options["nv_profile_min_shapes"] == options["nv_profile_opt_shapes"] == "image:1x64x64x3"
    assert options["nv_profile_max_shapes"] == "image:32x64x64x3"
    assert "device_id" not in options
    decoder = provider_options(provider, bundle, "decoder", "fp32", tmp_path)
    assert decoder["nv_profile_min_shapes"].startswith("f0:1x64;f1:1x32;")


def test_fp32_on_cuda_is_not_tf32(bundle: ModelBundle, tmp_path: Path) -> None:
    options = provider_options(Provider("onnx_cuda", 1), bundle, "decoder", "fp32", tmp_path)
    assert options == {"device_id": "1", "use_tf32": "0"}


def test_each_graph_precision_bundle_and_release_has_its_own_folder(
    bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = random_bundle(tmp_path / "other", seed=1)
    provider = Provider("onnx_tensorrt", 0)

    def folder(bundle: ModelBundle, graph: str = "decoder", precision: str = "fp16") -> str:
        return provider_options(provider, bundle, graph, precision, tmp_path / "cache")["trt_engine_cache_path"]

    folders = [folder(bundle), folder(bundle, "ground_encoder"), folder(bundle, precision="fp32"), folder(other)]
    monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    folders.append(folder(bundle))
    assert len(set(folders)) == len(folders)


def test_folder_that_others_can_write_is_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(EngineError, match="others can write it"):
        provider_options(Provider("onnx_tensorrt", 0), bundle, "decoder", "fp16", tmp_path / "cache")


def test_folder_of_the_users_own_is_closed_to_others(bundle: ModelBundle, tmp_path: Path) -> None:
    """The provider writes its files with the umask's mode."""
    arguments = (Provider("onnx_tensorrt", 0), bundle, "decoder", "fp16", tmp_path)
    folder = Path(provider_options(*arguments)["trt_engine_cache_path"])
    folder.chmod(0o755)
    provider_options(*arguments)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_provider_that_does_not_load_is_an_error_and_no_fallback(bundle: ModelBundle, tmp_path: Path) -> None:
    """ONNX Runtime itself would take the CPU with a warning."""
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has it")
    provider = Provider("onnx_tensorrt", 0)
    with pytest.raises(EngineError, match=r"TensorrtExecutionProvider.*"):
        OnnxRuntimeEngine(bundle, "decoder", precision="fp32", provider=provider, cache_dir=tmp_path)


def test_auto_does_not_try_the_providers_of_tensorrt() -> None:
    assert set(BACKENDS) - set(AUTOMATIC) == {"onnx_tensorrt", "onnx_tensorrt_rtx"}


# Libraries that pip has installed -------------------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An ONNX Runtime with the providers for GPUs; what is loaded before a session is opened."""
    loaded: list[str] = []
    names = [*onnx_providers.PROVIDERS.values()]

    def preload_dlls(cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: str | None = None) -> None:
        print("Failed to load libfoo.so")
        loaded.append("cuda" * cuda + " cudnn" * cudnn)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls, raising=False)
    monkeypatch.setattr(onnx_providers.importlib, "import_module", loaded.append)
    return loaded


@pytest.mark.parametrize(
    ("backend", "expected"),
    [("onnx_cuda", ["cuda cudnn"]), ("onnx_tensorrt", ["cuda cudnn", "tensorrt"]), ("onnx_cpu", [])],
)
def test_cuda_and_tensorrt_of_pip_are_loaded_before_the_session(
    loaded: list[str], capsys: pytest.CaptureFixture[str], backend: str, expected: list[str]
) -> None:
    """The system's loader does not look into site-packages; what ONNX Runtime prints about it does not reach stdout."""
    assert find_provider(backend, 0) == Provider(backend, 0)
    assert loaded == expected
    assert not capsys.readouterr().out


def test_libraries_that_are_not_there_are_left_to_the_system(
    loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.delattr(onnxruntime, "preload_dlls")  # ONNX Runtime before 1.21
    monkeypatch.setattr(onnx_providers.importlib, "import_module", absent)
    assert find_provider("onnx_tensorrt", 1) == Provider("onnx_tensorrt", 1)
    assert loaded == []


def test_onnxruntime_preloads_without_arguments() -> None:
    """The real function, where there is no CUDA."""
    if not hasattr(onnxruntime, "preload_dlls"):
        pytest.skip("ONNX Runtime before 1.21")
    onnxruntime.preload_dlls()


# The plugin of TensorRT-RTX, over a stand-in -------------------------------------------------------------------------


class Plugin:
    """The plugin's module and ONNX Runtime's registry of plugins."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.registered: list[tuple[str, str]] = []
        self.error: Exception | None = None

    def get_library_path(self) -> str:
        return "/plugin.so"

    def register(self, name: str, path: str) -> None:
        assert not self.registered, "a library can be registered once in a process"
        if self.error is not None:
            raise self.error
        self.registered.append((name, path))

    def devices(self) -> list[Any]:
        own = [types.SimpleNamespace(ep_name="NvTensorRTRTXExecutionProvider", number=n) for n in range(self.gpus)]
        return [types.SimpleNamespace(ep_name="CPUExecutionProvider"), *(own if self.registered else [])]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Plugin:
    plugin = Plugin(gpus=2)
    monkeypatch.setitem(sys.modules, onnx_providers.PLUGIN, plugin)  # type: ignore[arg-type]
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", plugin.register, raising=False)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", plugin.devices, raising=False)
    return plugin


def test_plugin_is_registered_once_and_its_gpu_taken_by_number(plugin: Plugin) -> None:
    for number in (0, 1, 1):
        provider = find_provider("onnx_tensorrt_rtx", number)
        assert [device.number for device in provider.plugin_devices] == [number]
        assert provider.memory == ("cuda", number)
    assert plugin.registered == [("NvTensorRTRTXExecutionProvider", "/plugin.so")]


def test_plugin_without_a_driver_is_unavailable(plugin: Plugin) -> None:
    plugin.error = RuntimeError("libcuda.so.1: cannot open shared object file")
    with pytest.raises(BackendUnavailable, match=r"cannot be loaded \(libcuda.*install NVIDIA's driver"):
        find_provider("onnx_tensorrt_rtx", 0)


def test_plugin_without_a_gpu_is_unavailable(plugin: Plugin) -> None:
    plugin.gpus = 0
    with pytest.raises(BackendUnavailable, match="finds no GPU that it supports"):
        find_provider("onnx_tensorrt_rtx", 0)


def test_gpu_that_the_plugin_does_not_have_is_refused(plugin: Plugin) -> None:
    with pytest.raises(EngineError, match="GPU 2 does not exist for NvTensorRTRTXExecutionProvider, there are 2"):
        find_provider("onnx_tensorrt_rtx", 2)


def test_onnxruntime_without_plugins_is_recognised(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(BackendUnavailable, match=r"takes no plugins; pip install .* onnxruntime 1\.24 or newer"):
        find_provider("onnx_tensorrt_rtx", 0)


@pytest.mark.parametrize(("backend", "package"), [("onnx_tensorrt", "onnxruntime-gpu"), ("onnx_tensorrt_rtx", "rtx")])
def test_missing_provider_is_named_with_its_package(bundle: ModelBundle, backend: str, package: str) -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("has a GPU")
    with pytest.raises(BackendUnavailable, match=f"pip install .*{package}"):
        open_engines(bundle, backend=backend)


# Batches longer than the profile -------------------------------------------------------------------------------------


@pytest.fixture
def narrow(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Engines on the CPU that take two images at once."""
    monkeypatch.setattr(Provider, "largest_batch", lambda provider, graph: 2)
    return open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_long_batches_are_run_in_pieces(bundle: ModelBundle, narrow: Any, batch: int) -> None:
    whole = open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1)
    whole.aerial_encoder._most = None
    expected = whole.aerial_encoder.run(images(batch))
    actual = narrow.aerial_encoder.run(images(batch))
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-5, err_msg=name)
    assert set(narrow.aerial_encoder.run(images(batch), ("descriptor",))) == {"descriptor"}


def test_long_batches_of_residents_cross_to_the_host(bundle: ModelBundle, narrow: Any) -> None:
    whole = open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1)
    whole.aerial_encoder._most = whole.decoder._most = None
    maps = whole.aerial_encoder.run_resident(images(5), PYRAMID, ())[1]
    features = {name: np.ones((5, maps[f"pyramid{i}"].shape[1]), np.float32) for i, name in enumerate(GROUND_FEATURES)}
    expected = whole.decoder.run({**features, **maps})["logits"]
    np.testing.assert_allclose(narrow.decoder.run({**features, **maps})["logits"], expected, atol=1e-4)


def test_more_residents_than_the_profile_takes_are_refused(narrow: Any) -> None:
    with pytest.raises(EngineError, match="residents of at most 2 images at once, not 3; give fewer"):
        narrow.aerial_encoder.run_resident(images(3), PYRAMID)


def test_open_engines_logs_graph_precision_and_provider(bundle: ModelBundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        open_engines(bundle, backend="onnx_cpu", threads=1).close()
    assert "Opening ground_encoder fp32 with CPUExecutionProvider" in caplog.text
