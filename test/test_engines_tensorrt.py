"""TensorRT without a GPU: real builds by tensorrt_rtx, the cache, the real libraries' API, the engines' bookkeeping."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Callable

import gpu_signatures
import numpy as np
import pytest
from bundles import random_bundle
from fake_gpu import LIBRARIES, FakeDriver, fake_tensorrt

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference import cuda, tensorrt_engine, tensorrt_library
from unifygeo_ros.inference.bundle import (
    FLOAT_PRECISIONS,
    GRAPHS,
    GROUND_FEATURES,
    LEVELS,
    PYRAMID,
    ModelBundle,
    load_bundle,
)
from unifygeo_ros.inference.cuda import CudaDevice
from unifygeo_ros.inference.engine import BackendUnavailable, EngineSet
from unifygeo_ros.inference.engine_cache import EngineCache, EngineKey
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.inference.tensorrt_build import MAX_BATCH, _progress_monitor
from unifygeo_ros.inference.tensorrt_engine import (
    RUNS_BETWEEN_CAPTURES,
    CompiledEngine,
    Target,
    compile_engine,
    engine_key,
    open_tensorrt,
)
from unifygeo_ros.inference.tensorrt_library import Library, load_library


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return random_bundle(tmp_path_factory.mktemp("bundle"))


def images(side: tuple[int, int], batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, *side, 3), dtype=np.uint8)


# Real builds ----------------------------------------------------------------------------------------------------------


def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx_bindings")
    return load_library("tensorrt_rtx")


def compile_ahead(bundle: ModelBundle, cache: Path, **changes: Any) -> CompiledEngine:
    target = Target(changes.pop("compute_capability", (8, 9)))
    graph, precision = str(changes.pop("graph", "decoder")), str(changes.pop("precision", "fp16"))
    return compile_engine(bundle, graph, precision, rtx(), EngineCache(cache), target, **changes)


@pytest.mark.parametrize("precision", FLOAT_PRECISIONS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_builds_for_a_gpu_that_is_not_here(
    bundle: ModelBundle, tmp_path: Path, graph: str, precision: str
) -> None:
    built = compile_ahead(bundle, tmp_path, graph=graph, precision=precision)
    assert built.seconds > 0
    assert len(built.plan) > 10_000
    again = compile_ahead(bundle, tmp_path, graph=graph, precision=precision)
    assert again.seconds == 0
    assert again.plan == built.plan


@pytest.fixture(scope="module")
def built(bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> CompiledEngine:
    return compile_ahead(bundle, tmp_path_factory.mktemp("built"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + b"x",
        lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        lambda data: data.replace(b'"version": "', b'"version": "9', 1),
        lambda data: b"\xff\xfe" + data,
    ],
)
def test_damaged_engine_is_built_again(
    built: CompiledEngine,
    bundle: ModelBundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    copied = Path(shutil.copy(built.path, tmp_path))
    copied.write_bytes(damage(copied.read_bytes()))
    again = compile_ahead(bundle, tmp_path)
    assert again.seconds > 0
    assert "damaged" in caplog.text
    assert EngineCache(tmp_path).load(again.key) == again.plan


def test_stale_engine_is_never_loaded(bundle: ModelBundle, tmp_path: Path) -> None:
    """An engine under another key's name, as after a careless copy, is not taken for that key's."""
    old = compile_ahead(bundle, tmp_path)
    other = random_bundle(tmp_path / "other", seed=1)
    wanted = engine_key(other, "decoder", "fp16", rtx(), Target((8, 9)))
    assert wanted.file_name != old.key.file_name
    shutil.copy(old.path, EngineCache(tmp_path).path(wanted))
    assert compile_ahead(other, tmp_path).seconds > 0


def test_key_holds_all_that_an_engine_depends_on(bundle: ModelBundle, tmp_path: Path) -> None:
    library = Library("tensorrt", fake_tensorrt(FakeDriver()), "10.3.0")
    newer = Library("tensorrt", library.module, "10.4.0")
    other = random_bundle(tmp_path, seed=1)
    orin = Target((8, 7), "Orin", "CUDA 12.6")
    keys = [
        engine_key(bundle, "decoder", "fp16", library, orin),
        engine_key(bundle, "decoder", "fp32", library, orin),
        engine_key(bundle, "ground_encoder", "fp16", library, orin),
        engine_key(bundle, "decoder", "fp16", newer, orin),
        engine_key(bundle, "decoder", "fp16", library, dataclasses.replace(orin, gpu="Orin Nano")),
        engine_key(bundle, "decoder", "fp16", library, dataclasses.replace(orin, driver="CUDA 12.8")),
        engine_key(bundle, "decoder", "fp16", dataclasses.replace(library, cuda="13"), orin),
        engine_key(bundle, "decoder", "fp16", library, dataclasses.replace(orin, compute_capability=(8, 9))),
        engine_key(other, "decoder", "fp16", library, orin),
    ]
    assert len({key.file_name for key in keys}) == len(keys)


def test_two_processes_build_once(bundle: ModelBundle, tmp_path: Path) -> None:
    rtx()
    command = [sys.executable, "-m", "unifygeo_ros.cli", "compile", str(bundle.path), "--backend", "tensorrt_rtx"]
    command += ["--cache", str(tmp_path), "--compute-capability", "8.9"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    output = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert (output.count("built in"), output.count("already there")) == (3, 3)


def test_leftovers_of_a_killed_build_are_swept(bundle: ModelBundle, tmp_path: Path) -> None:
    leftover = tmp_path / ".decoder-fp16-0123.engine.abcd"
    leftover.write_bytes(b"half")
    compile_ahead(bundle, tmp_path)
    assert not leftover.exists()


def test_unwritable_cache_is_an_error(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="give another cache"):
        compile_ahead(bundle, tmp_path / "file" / "cache")


def test_wrong_targets_are_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"does not build for compute capability 8\.7, only for 7\.5, 8\.0, 8\.6, 8\.9"
    ):
        compile_ahead(bundle, tmp_path, compute_capability=(8, 7))


def test_graph_that_cannot_be_parsed_is_an_error(bundle: ModelBundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    loaded = load_bundle(folder)
    loaded.graph_path("decoder", "fp16").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"decoder\.fp16\.onnx: tensorrt_rtx .* cannot parse it"):
        compile_ahead(loaded, tmp_path / "cache")


def test_compile_command(bundle: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rtx()
    from unifygeo_ros.cli import main

    command = ["compile", str(bundle.path), "--backend", "tensorrt_rtx", "--cache", str(tmp_path)]
    assert main([*command, "--compute-capability", "8.9"]) == 0
    assert capsys.readouterr().out.count("built in") == 3
    assert main([*command, "--compute-capability", "8.9"]) == 0
    assert capsys.readouterr().out.count("already there") == 3
    assert main([*command, "--compute-capability", "eight"]) == 2
    assert "--compute-capability is 'eight'" in capsys.readouterr().err


def test_compile_command_prunes(bundle: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rtx()
    from unifygeo_ros.cli import main

    cache = tmp_path / "cache"
    command = ["--backend", "tensorrt_rtx", "--cache", str(cache), "--compute-capability", "8.9"]
    other = random_bundle(tmp_path / "other", seed=1)
    assert main(["compile", str(other.path), *command]) == 0
    old = set(cache.glob("*.engine"))
    capsys.readouterr()
    assert main(["compile", str(bundle.path), *command, "--prune"]) == 0
    printed = capsys.readouterr().out
    assert len(old) == printed.count("removed") == 3
    assert all(f"removed {path}\n" in printed for path in old)
    assert len(set(cache.glob("*.engine")) - old) == 3


def _key(**changes: str) -> EngineKey:
    facts = {
        "graph": "decoder",
        "precision": "fp16",
        "weights_sha256": "a" * 64,
        "graph_sha256": "b" * 64,
        "backend": "tensorrt",
        "version": "10.3",
        "cuda": "12",
        "driver": "CUDA 12.6",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "options": "batch 1",
    }
    return EngineKey(**{**facts, **changes})


def test_pruning_keeps_what_serves_an_engine_that_is_kept(tmp_path: Path) -> None:
    cache, kept = EngineCache(tmp_path / "cache"), _key()
    timing = {"graph": "all", "precision": "all", "weights_sha256": "", "graph_sha256": "", "options": ""}
    serve = [
        kept,
        _key(gpu="Orin Nano"),
        _key(part="runtime"),
        _key(gpu="Orin Nano", part="runtime"),
        _key(driver="CUDA 12.8", part="runtime"),
        _key(part="timing", **timing),
    ]
    others = [
        _key(weights_sha256="c" * 64),
        _key(weights_sha256="c" * 64, part="runtime"),
        _key(precision="fp32"),
        _key(version="10.2"),
        _key(options="batch 2"),
        _key(driver="CUDA 12.4"),
        _key(cuda="13"),
        _key(part="timing", driver="CUDA 12.4", **timing),
        _key(graph="ground_encoder"),
        _key(part="timing", version="10.2", **timing),
        _key(part="timing", compute_capability="8.9", **timing),
    ]
    for key in (*serve, *others):
        cache.store(key, b"plan")
    damaged = cache.folder / "decoder-fp16-0123456789abcdef.engine"
    damaged.write_bytes(b"\xff")
    foreign = cache.folder / "notes.txt"
    foreign.write_text("of somebody else")
    assert set(cache.prune([kept])) == {damaged, *map(cache.path, others)}
    assert {path.name for path in cache.folder.iterdir()} == {
        "build.lock", foreign.name, *(key.file_name for key in serve)
    }  # fmt: skip
    assert cache.prune([kept]) == ()
    assert cache.load(kept) == b"plan"


# Who may write the cache ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o775, 0o1777])
def test_folder_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    cache = EngineCache(tmp_path / "cache")
    cache.store(_key(), b"plan")
    cache.folder.chmod(mode)
    for use in (lambda: cache.load(_key()), lambda: cache.store(_key(), b"plan"), lambda: cache.prune([])):
        with pytest.raises(EngineError, match=rf"mode {mode:04o}\), and an engine is code; `chmod go-w .*cache`"):
            use()
    cache.folder.chmod(0o755)
    assert cache.load(_key()) == b"plan"


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    cache = EngineCache(tmp_path / "cache")
    path = cache.store(_key(), b"plan")
    path.chmod(mode)
    with pytest.raises(EngineError, match="others can write it"):
        cache.load(_key())


@pytest.mark.parametrize("which", ["folder", "file"])
def test_cache_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Root's is trusted: whoever is root can write everything."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    cache = EngineCache(tmp_path / "cache")
    path = cache.store(_key(), b"plan")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cache.load(_key()) == b"plan"
    os.chown(cache.folder if which == "folder" else path, 1234, -1)
    with pytest.raises(EngineError, match=r"belongs to user 1234, not to this one \(1000\).*remove it, or"):
        cache.load(_key())


def test_new_cache_is_private_under_any_umask(tmp_path: Path) -> None:
    old = os.umask(0o002)
    try:
        cache = EngineCache(tmp_path / "a" / "cache")
        path = cache.store(_key(), b"plan")
    finally:
        os.umask(old)
    assert (cache.folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    assert cache.load(_key()) == b"plan"


def test_header_nested_without_end_is_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(tmp_path / "cache")
    path = cache.store(_key(), b"plan")
    path.write_bytes(b"[" * 60_000 + b"\n" + b"plan")
    assert cache.load(_key()) is None
    assert "damaged" in caplog.text
    assert cache.prune([_key()]) == (path,)


@pytest.mark.parametrize(
    ("version", "taken"),
    [("8.6.1", False), ("10.2.0", False), ("10.3.0", True), ("10.13.3.9", True), ("11.4.0.106", True)],
)
def test_tensorrt_older_than_10_3_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
) -> None:
    """8.6 is that of JetPack 5 and 6.0."""
    module = types.ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    if taken:
        assert load_library("tensorrt").version == version
    else:
        message = rf"tensorrt {re.escape(version)} is too old, 10\.3 or newer is needed; .*jetson\.md"
        with pytest.raises(BackendUnavailable, match=message):
            load_library("tensorrt")


def test_auto_loads_no_tensorrt_where_there_is_no_gpu(bundle: ModelBundle) -> None:
    """It takes 100 MB of memory. Where it is not installed either, its own error says so."""
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has NVIDIA's driver")
    program = (
        "import json, logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stderr)\n"
        "from unifygeo_ros.inference.bundle import load_bundle\n"
        "from unifygeo_ros.inference.select import open_engines\n"
        "print(open_engines(load_bundle(sys.argv[1])).description)\n"
        "print([name for name in sys.modules if name.startswith('tensorrt')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle.path)], capture_output=True, text=True, timeout=120, check=True
    )
    description, loaded = done.stdout.splitlines()
    assert description.endswith("CPU, fp32")
    assert loaded == "[]"
    for name, modules in tensorrt_library.MODULES.items():
        installed = any(importlib.util.find_spec(module) for module in modules[0])
        reason = "cuda.bindings cannot be imported|driver" if installed else f"{name} cannot be imported"
        assert re.search(f"Backend {name} skipped: .*({reason})", done.stderr), done.stderr


def test_tensorrt_does_not_build_for_other_machines(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unifygeo_ros.cli import main
    from unifygeo_ros.inference import tensorrt_library

    library = Library("tensorrt", fake_tensorrt(FakeDriver()), "10.3.0")
    monkeypatch.setattr(tensorrt_library, "load_library", lambda name: library)
    assert main(["compile", str(bundle.path), "--backend", "tensorrt", "--compute-capability", "8.7"]) == 2
    assert "builds only for the GPU in its machine" in capsys.readouterr().err


# The real libraries' names --------------------------------------------------------------------------------------------

INSTALL = "python test/gpu_signatures.py {} prints the entry for test/gpu_signatures.json"


def assert_as_in_the_table(name: str) -> None:
    """The table's entry of a library says what the installed one says; a new version gets an entry of its own."""
    key, signatures = gpu_signatures.installed(name)
    assert gpu_signatures.table().get(key) == signatures, f"{key}: {INSTALL.format(name)}"


def test_tensorrt_rtx_has_the_signatures_of_the_table() -> None:
    module = rtx().module
    assert_as_in_the_table("tensorrt_rtx_bindings")
    assert np.dtype(module.nptype(module.DataType.HALF)) == np.float16
    assert np.dtype(module.nptype(module.DataType.UINT8)) == np.uint8


def test_tensorrt_has_the_signatures_of_the_table() -> None:
    """In a process of its own: the real bindings over empty libraries can be looked at, and nothing else."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the empty libraries")
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt_bindings is not installed")
    command = [sys.executable, gpu_signatures.__file__, "tensorrt_bindings"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ((key, signatures),) = json.loads(printed).items()
    assert gpu_signatures.table().get(key) == signatures, f"{key}: {INSTALL.format('tensorrt_bindings')}"


def test_cuda_bindings_have_the_signatures_of_the_table() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    assert_as_in_the_table("cuda.bindings.driver")
    for name in ("CUdevice_attribute", "CUstream_flags", "CUstreamCaptureMode"):
        assert {m.name for m in getattr(FakeDriver, name)} <= {m.name for m in getattr(driver, name)}
    assert driver.CUresult.CUDA_SUCCESS.name == "CUDA_SUCCESS"


def test_table_holds_every_function_of_cuda_that_the_code_calls() -> None:
    source = Path(cuda.__file__).read_text()
    called = set(re.findall(r"\bcu[A-Z]\w+(?=[\"(])", source))
    assert called == set(gpu_signatures.USED_OF_CUDA)


def test_table_covers_the_oldest_tensorrt_and_the_newest() -> None:
    versions = {key.split()[1] for key in gpu_signatures.table() if key.startswith("tensorrt ")}
    assert {version.split(".")[0] for version in versions} == {"10", "11"}
    assert "{}.{}".format(*tensorrt_library.OLDEST) in {version.rpartition(".")[0] for version in versions}


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((7,), {}), ((), {"stream_handle": 7})],
)
def test_calls_that_fit_a_signature_pass(arguments: tuple[int, ...], keywords: dict[str, int]) -> None:
    overloads = gpu_signatures.table()["tensorrt 10.3.0"]["IExecutionContext.execute_async_v3"]
    call = gpu_signatures.checked(lambda *a, **k: True, "execute_async_v3", [overloads])
    assert call(*arguments, **keywords) is True


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((), {}), ((7, 8), {}), ((), {"stream": 7}), (("7",), {}), ((None,), {})],
)
def test_calls_that_fit_no_signature_are_refused(arguments: tuple[Any, ...], keywords: dict[str, int]) -> None:
    overloads = gpu_signatures.table()["tensorrt 10.3.0"]["IExecutionContext.execute_async_v3"]
    call = gpu_signatures.checked(lambda *a, **k: True, "execute_async_v3", [overloads])
    with pytest.raises(TypeError, match="execute_async_v3"):
        call(*arguments, **keywords)


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_methods_that_tensorrt_calls_take_what_it_gives(library: str) -> None:
    """Our logger and progress monitor are called by the library, with positional arguments."""
    module = fake_tensorrt(FakeDriver(), rtx=library == "tensorrt_rtx")
    made = {"ILogger": Library(library, module, "10.3.0").logger(), "IProgressMonitor": _progress_monitor(module, "g")}
    for signatures in LIBRARIES[library]:
        for name, texts in signatures.items():
            owner, _, method = name.partition(".")
            if owner in made and not method.startswith("_") and texts != ["attribute"]:
                given = texts[0].split(") -> ")[0].count(": ") - 1  # without self
                inspect.signature(getattr(made[owner], method)).bind(*range(given))


# The engines' bookkeeping, over the stand-in GPU ----------------------------------------------------------------------


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def driver(backend: str, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    module = fake_tensorrt(driver, rtx=backend == "tensorrt_rtx")
    monkeypatch.setattr(tensorrt_engine, "load_library", lambda name: Library(name, module, "10.3.0"))
    monkeypatch.setattr(tensorrt_engine, "CudaDevice", lambda index: CudaDevice(index, driver))
    return driver


@pytest.fixture
def engines(bundle: ModelBundle, backend: str, driver: FakeDriver, tmp_path: Path) -> EngineSet:
    return open_engines(bundle, backend=backend, precision="fp32", cache_dir=tmp_path)


@pytest.fixture(scope="module")
def reference(bundle: ModelBundle) -> EngineSet:
    return open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1)


def assert_same(actual: dict, expected: dict) -> None:
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == np.float32
        np.testing.assert_allclose(actual[name], array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("batch", [1, 2, 8, 9, 21])
def test_batches_of_any_size(engines: EngineSet, reference: EngineSet, batch: int) -> None:
    assert MAX_BATCH["ground_encoder"] == 8
    for seed in range(5):  # 1 and 2 enqueue, from 3 on the captured graph is replayed
        image = {"image": images((32, 128), batch, seed)}
        assert_same(engines.ground_encoder.run(image), reference.ground_encoder.run(image))


def test_batch_sizes_may_alternate(engines: EngineSet, reference: EngineSet, driver: FakeDriver, backend: str) -> None:
    for seed, batch in enumerate((1, 3, 1, 5, 3, 1, 5, 3, 1, 5, 8, 2)):
        image = {"image": images((64, 64), batch, seed)}
        assert_same(engines.aerial_encoder.run(image), reference.aerial_encoder.run(image))
    captures_itself = backend == "tensorrt_rtx"
    assert (driver.graphs, driver.launches) == ((0, 0) if captures_itself else (1, 2))  # single images alone


def test_fix_chained_on_the_device(bundle: ModelBundle, engines: EngineSet, driver: FakeDriver) -> None:
    reference = open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1)
    pyramids = {}
    for tile in range(3):  # kept on the device, and not overwritten by what runs later
        host, pyramids[tile] = engines.aerial_encoder.run_resident({"image": images((64, 64), 1, tile)}, PYRAMID, ())
        assert host == {}
    for tile in (2, 0, 1, 0):
        ground = {"image": images((32, 128), 1, 10 + tile)}
        on_host, f = engines.ground_encoder.run_resident(ground, GROUND_FEATURES, ("descriptor", "f0"))
        np.testing.assert_array_equal(on_host["f0"], f["f0"].numpy())
        before = dict(driver.copied)
        logits = engines.decoder.run({**f, **pyramids[tile]})
        assert driver.copied["HtoD"] == before["HtoD"]
        assert driver.copied["DtoH"] - before["DtoH"] == logits["logits"].nbytes
        expected_f = reference.ground_encoder.run(ground, GROUND_FEATURES)
        expected = reference.aerial_encoder.run({"image": images((64, 64), 1, tile)}, PYRAMID)
        assert_same(logits, reference.decoder.run({**expected_f, **expected}))
        np.testing.assert_allclose(f["f0"].numpy(), expected_f["f0"], atol=1e-5)


def test_fp16_graphs_take_and_give_float32(
    bundle: ModelBundle, backend: str, driver: FakeDriver, tmp_path: Path
) -> None:
    half = open_engines(bundle, backend=backend, cache_dir=tmp_path)  # precision: auto, fp16 on a GPU
    assert half.description.endswith("fp16")
    expected = open_engines(bundle, backend="onnx_cpu", precision="fp16", threads=1)
    ground = half.ground_encoder.run({"image": images((32, 128), 2)})
    assert_same(ground, expected.ground_encoder.run({"image": images((32, 128), 2)}))
    pyramid = half.aerial_encoder.run({"image": images((64, 64), 2)}, PYRAMID)
    inputs = {**{name: ground[name] for name in GROUND_FEATURES}, **pyramid}
    assert_same(half.decoder.run(inputs), expected.decoder.run(inputs))


def test_graphs_on_and_off_are_equal(bundle: ModelBundle, backend: str, driver: FakeDriver, tmp_path: Path) -> None:
    with open_tensorrt(bundle, backend, "fp32", 0, tmp_path, graphs=False) as plain:
        results = [plain.ground_encoder.run({"image": images((32, 128), 1, seed)}) for seed in range(4)]
    assert driver.launches == 0
    with open_tensorrt(bundle, backend, "fp32", 0, tmp_path) as captured:
        for seed, expected in enumerate(results):
            assert_same(captured.ground_encoder.run({"image": images((32, 128), 1, seed)}), expected)
    assert driver.launches == (0 if backend == "tensorrt_rtx" else 2)


def test_close_frees_all_gpu_memory(engines: EngineSet, driver: FakeDriver) -> None:
    for _ in range(4):
        _, pyramid = engines.aerial_encoder.run_resident({"image": images((64, 64), 1)}, PYRAMID)
        _, f = engines.ground_encoder.run_resident({"image": images((32, 128), 1)}, GROUND_FEATURES)
        engines.decoder.run({**f, **pyramid})
    used = len(driver.device)
    for _ in range(4):  # dropped residents are used again
        _, pyramid = engines.aerial_encoder.run_resident({"image": images((64, 64), 1)}, PYRAMID)
    assert len(driver.device) <= used + LEVELS
    del pyramid, f
    engines.close()
    assert (len(driver.pinned), driver.graphs, driver.contexts) == (0, 0, 0)
    assert len(driver.device) == 0
    engines.close()
    with pytest.raises(EngineError, match="closed"):
        engines.ground_encoder.run({"image": images((32, 128), 1)})


def test_closing_frees_residents_that_are_still_held(engines: EngineSet, driver: FakeDriver) -> None:
    """As when a node is cleaned up whose cache holds pyramids: the context, which others keep alive, frees nothing."""
    held = [engines.aerial_encoder.run_resident({"image": images((64, 64), 1)}, PYRAMID)[1] for _ in range(20)]
    engines.decoder.close()
    engines.close()
    assert driver.device == {}
    with pytest.raises(EngineError, match="are closed; open them again"):
        held[0]["pyramid0"].numpy()
    del held
    assert driver.device == {}


def test_cycles_of_opening_and_closing_leave_no_memory(
    bundle: ModelBundle, backend: str, driver: FakeDriver, tmp_path: Path
) -> None:
    held = []
    for _ in range(5):
        with open_engines(bundle, backend=backend, precision="fp32", cache_dir=tmp_path) as engines:
            engines.warm_up(bundle.manifest)
            held.append(engines.aerial_encoder.run_resident({"image": images((64, 64), 1)}, PYRAMID))
    assert (driver.device, driver.pinned, driver.graphs, driver.contexts) == ({}, {}, 0, 0)


def test_single_images_take_activations_for_single_images(engines: EngineSet, driver: FakeDriver) -> None:
    engines.aerial_encoder.run({"image": images((64, 64), 1)})
    assert driver.activations == [1]
    engines.aerial_encoder.run({"image": images((64, 64), 5)})
    assert driver.activations == [1, 32]


@pytest.mark.parametrize("function", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_capture_that_fails_is_logged_and_tried_again(
    engines: EngineSet,
    reference: EngineSet,
    driver: FakeDriver,
    backend: str,
    caplog: pytest.LogCaptureFixture,
    function: str,
) -> None:
    if backend == "tensorrt_rtx":
        pytest.skip("captures itself")
    driver.failing[function] = 1
    for seed in range(RUNS_BETWEEN_CAPTURES + 4):  # every image is right, whatever becomes of the capture
        image = {"image": images((32, 128), 1, seed)}
        assert_same(engines.ground_encoder.run(image), reference.ground_encoder.run(image))
    assert caplog.text.count("cannot be captured") == 1
    assert function in caplog.text
    assert f"trying again after {RUNS_BETWEEN_CAPTURES} images" in caplog.text
    assert (driver.graphs, driver.launches) == (1, 2)


def test_graph_capture_that_always_fails_is_given_up_and_logged(
    engines: EngineSet, driver: FakeDriver, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    if backend == "tensorrt_rtx":
        pytest.skip("captures itself")
    driver.failing["cuGraphInstantiate"] = 1000
    for _ in range(4 * RUNS_BETWEEN_CAPTURES):
        engines.ground_encoder.run({"image": images((32, 128), 1)})
    assert caplog.text.count("cannot be captured") == 3
    assert caplog.text.count("single images go on without one") == 1


def test_address_that_is_refused_is_an_error(engines: EngineSet, driver: FakeDriver) -> None:
    driver.refused.add("set_tensor_address")
    with pytest.raises(EngineError, match="ground_encoder: TensorRT refuses the memory of image"):
        engines.ground_encoder.run({"image": images((32, 128), 1)})


def test_caches_that_the_library_refuses_are_named(
    bundle: ModelBundle, backend: str, driver: FakeDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver.refused |= {"set_timing_cache", "set_runtime_cache"}
    with open_engines(bundle, backend=backend, precision="fp32", cache_dir=tmp_path) as engines:
        engines.warm_up(bundle.manifest)
    words = {"tensorrt": "takes no timing cache", "tensorrt_rtx": "compiled kernels cannot be kept"}
    assert words[backend] in caplog.text


@pytest.mark.parametrize("change", [{"version": 12080}, {"multiprocessors": 8}])
def test_another_driver_or_power_mode_builds_again(
    bundle: ModelBundle, backend: str, driver: FakeDriver, tmp_path: Path, change: dict[str, int]
) -> None:
    """Engines of tensorrt_rtx serve every GPU and driver; only the kernels that they compile are kept apart."""
    open_engines(bundle, backend=backend, precision="fp32", cache_dir=tmp_path).close()
    before = set(tmp_path.glob("*.engine"))
    for name, value in change.items():
        setattr(driver, name, value)
    open_engines(bundle, backend=backend, precision="fp32", cache_dir=tmp_path).close()
    assert len(set(tmp_path.glob("*.engine")) - before) == (0 if backend == "tensorrt_rtx" else 3)


def test_warm_up_runs_all_three_engines(engines: EngineSet, bundle: ModelBundle, driver: FakeDriver) -> None:
    engines.warm_up(bundle.manifest)
    assert driver.activations == [1, 1, 1]


def test_out_of_gpu_memory_is_an_error(bundle: ModelBundle, backend: str, driver: FakeDriver, tmp_path: Path) -> None:
    driver.memory = 100_000
    with (
        open_engines(bundle, backend=backend, cache_dir=tmp_path) as engines,
        pytest.raises(EngineError, match="cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY"),
    ):
        engines.aerial_encoder.run({"image": images((64, 64), 1)})


def test_wrong_inputs_are_refused(engines: EngineSet, reference: EngineSet) -> None:
    with pytest.raises(EngineError, match="is 1×32×64×3"):
        engines.ground_encoder.run({"image": images((32, 64), 1)})
    _, foreign = reference.ground_encoder.run_resident({"image": images((32, 128), 1)}, GROUND_FEATURES)
    _, pyramid = engines.aerial_encoder.run_resident({"image": images((64, 64), 1)}, PYRAMID)
    with pytest.raises(EngineError, match="'f0' is a resident of another set's engine"):
        engines.decoder.run({**foreign, **pyramid})


def test_engine_that_the_library_refuses_is_built_again(
    bundle: ModelBundle, backend: str, driver: FakeDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_engines(bundle, backend=backend, precision="fp32", cache_dir=tmp_path).close()
    library = tensorrt_engine.load_library(backend)
    key = engine_key(bundle, "decoder", "fp32", library, Target.of(CudaDevice(0, driver)))
    EngineCache(tmp_path).store(key, b"made by another driver")
    open_engines(bundle, backend=backend, precision="fp32", cache_dir=tmp_path).close()
    assert "building it again" in caplog.text
    assert EngineCache(tmp_path).load(key) != b"made by another driver"


def test_kernels_and_timings_are_kept(bundle: ModelBundle, backend: str, engines: EngineSet, tmp_path: Path) -> None:
    engines.ground_encoder.run({"image": images((32, 128), 1)})
    parts = {path.suffix for path in tmp_path.iterdir()}
    assert parts == {".engine", ".lock", ".runtime" if backend == "tensorrt_rtx" else ".timing"}


def test_kernels_that_cannot_be_kept_do_not_stop_a_run(
    bundle: ModelBundle, engines: EngineSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, backend: str
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.write_text("not a folder")
    engines.ground_encoder.run({"image": images((32, 128), 1)})
    engines.close()
    assert ("compiled kernels are not kept" in caplog.text) == (backend == "tensorrt_rtx")


def test_missing_gpu(driver: FakeDriver, bundle: ModelBundle, backend: str) -> None:
    with pytest.raises(EngineError, match="GPU 3 does not exist, there are 1"):
        open_engines(bundle, backend=backend, device=3)


# The choice of backend ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvhost-gpu"), reason="has a GPU")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx", "onnx_cuda", "onnx_tensorrt", "onnx_tensorrt_rtx"])
def test_backend_asked_for_by_name_does_not_fall_back(bundle: ModelBundle, name: str) -> None:
    with pytest.raises(EngineError, match="pip install"):
        open_engines(bundle, backend=name)


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvhost-gpu"), reason="has a GPU")
def test_auto_says_what_it_skipped_and_took(bundle: ModelBundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), open_engines(bundle) as engines:
        assert "CPU, fp32" in engines.description
    for name in ("tensorrt", "tensorrt_rtx", "onnx_cuda"):
        assert f"Backend {name} skipped: " in caplog.text
    assert engines.description in caplog.text


def test_backend_that_fails_to_open_is_skipped_with_a_warning(
    driver: FakeDriver, bundle: ModelBundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise EngineError("the build ran out of memory")

    monkeypatch.setattr(tensorrt_engine, "build_plan", broken)
    monkeypatch.setattr(tensorrt_engine, "EngineCache", lambda folder: EngineCache(Path("/nonexistent")))
    with caplog.at_level(logging.WARNING), open_engines(bundle):
        pass
    assert "Backend tensorrt skipped" in caplog.text
