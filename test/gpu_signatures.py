"""Signatures of what the engines use of TensorRT and CUDA, as the real bindings state them in their docstrings.

`gpu_signatures.json` holds them as text, by library and version, so that calls can be checked where a library is not
installed: the wheels of TensorRT 10.3 are for Python 3.10 and older. `python test/gpu_signatures.py NAME` prints the
entry of the library installed here; NAME is tensorrt_bindings, tensorrt_rtx_bindings or cuda.bindings.driver. The
bindings of TensorRT are opened over empty libraries, so that neither a GPU nor TensorRT itself is needed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping

TABLE = Path(__file__).with_suffix(".json")

USED = {
    "ILogger": "__init__ log Severity",
    "Builder": "__init__ create_network create_builder_config create_optimization_profile build_serialized_network",
    "INetworkDefinition": "num_inputs get_input",
    "IOptimizationProfile": "set_shape",
    "IBuilderConfig": "set_memory_pool_limit clear_flag add_optimization_profile progress_monitor "
    "create_timing_cache set_timing_cache",
    "IProgressMonitor": "__init__ phase_start step_complete phase_finish",
    "OnnxParser": "__init__ parse_from_file num_errors get_error",
    "ITimingCache": "serialize",
    "Runtime": "__init__ deserialize_cuda_engine",
    "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype get_tensor_shape "
    "create_execution_context",
    "IExecutionContext": "set_optimization_profile_async set_input_shape set_tensor_address execute_async_v3",
    "ExecutionContextAllocationStrategy": "ON_PROFILE_CHANGE",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "MemoryPoolType": "WORKSPACE",
    "BuilderFlag": "TF32",
    "TensorIOMode": "INPUT OUTPUT",
}
"""What the engines use of TensorRT's Python API, by class."""

USED_OF_RTX = {
    "IBuilderConfig": "num_compute_capabilities set_compute_capability",
    "ICudaEngine": "create_runtime_config",
    "IRuntimeConfig": "create_runtime_cache set_runtime_cache get_runtime_cache cuda_graph_strategy "
    "set_execution_context_allocation_strategy",
    "IRuntimeCache": "serialize deserialize",
    "CudaGraphStrategy": "WHOLE_GRAPH_CAPTURE DISABLED",
    "ComputeCapability": "SM89",
}
"""What they use of tensorrt_rtx beside that."""

USED_OF_CUDA = (
    "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxSetCurrent", "cuStreamCreate", "cuStreamDestroy",
    "cuStreamSynchronize", "cuStreamBeginCapture", "cuStreamEndCapture", "cuMemAlloc", "cuMemFree", "cuMemHostAlloc",
    "cuMemFreeHost", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync", "cuGraphInstantiate",
    "cuGraphDestroy", "cuGraphExecDestroy", "cuGraphLaunch",
)  # fmt: skip
"""The functions of CUDA's driver API that are called."""

_SYMBOLS = (
    "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL "
    "createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getNvOnnxParserVersion initLibNvInferPlugins "
    "getPluginRegistry getBuilderPluginRegistry getLogger getInferLibVersion"
)

Signatures = Mapping[str, list[str]]
"""Class.attribute → the signature of each overload; ["attribute"] for what is not a function."""


def table() -> dict[str, dict[str, list[str]]]:
    """The committed signatures: library and version → signatures."""
    return dict(json.loads(TABLE.read_text(encoding="utf-8")))


def stated(module: Any, used: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """The signatures in a module's docstrings. Raises AttributeError for what the module does not have."""
    found = {}
    for classes in used:
        for owner, names in classes.items():
            for name in names.split():
                found[f"{owner}.{name}"] = _overloads(name, getattr(getattr(module, owner), name))
    return found


def _overloads(name: str, member: Any) -> list[str]:
    if not callable(member) or isinstance(member, type):
        return ["attribute"]
    lines = re.findall(rf"^(?:\d+\. )?{name}(\(.*\)(?: -> .*)?)$", member.__doc__ or "", re.MULTILINE)
    texts = [re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", line) for line in lines]  # module paths
    return [text for text in texts if text != "(*args, **kwargs)"]


def stated_of_driver(driver: Any, names: Iterable[str]) -> dict[str, list[str]]:
    """The signatures in the docstrings of `cuda.bindings.driver`'s functions."""
    return {name: [getattr(driver, name).__doc__.splitlines()[0].removeprefix(name)] for name in sorted(names)}


def load_bindings(name: str, folder: Path) -> Any:
    """Import `tensorrt_bindings` over empty libraries, which a C compiler makes in `folder`; others as they are."""
    if name == "tensorrt_bindings":
        version = importlib.metadata.version
        installed = [d for d in ("tensorrt_cu13_bindings", "tensorrt_cu12_bindings") if _has(d)]
        major = version(installed[0]).split(".")[0]
        source = folder / "empty.c"
        source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in _SYMBOLS.split()))
        for library in ("libnvinfer.so", "libnvinfer_plugin.so", "libnvonnxparser.so"):
            path = folder / f"{library}.{major}"
            soname = f"-Wl,-soname,{path.name}"
            subprocess.run(["cc", "-shared", "-fPIC", soname, "-o", str(path), str(source)], check=True)
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module(name)


def _has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def installed(name: str) -> tuple[str, dict[str, list[str]]]:
    """The table's entry of a library that is installed here: its key, its signatures."""
    with tempfile.TemporaryDirectory() as folder:
        module = load_bindings(name, Path(folder))
        if name == "cuda.bindings.driver":
            return f"cuda.bindings {importlib.metadata.version('cuda-bindings')}", stated_of_driver(
                module, USED_OF_CUDA
            )
        rtx = name == "tensorrt_rtx_bindings"
        version = ".".join(module.__version__.split(".")[:3])
        return (
            f"{'tensorrt_rtx' if rtx else 'tensorrt'} {version}",
            stated(module, (USED, USED_OF_RTX) if rtx else (USED,)),
        )


# Calls checked against signatures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parameter:
    name: str
    kind: str
    optional: bool


def hold_to(owner: type, name: str, signatures: Iterable[Signatures]) -> None:
    """Make every method of a stand-in's class refuse calls that the real class `name` of any library would refuse.

    Raises AssertionError for a method that a real class does not have.
    """
    for attribute, member in list(vars(owner).items()):
        private = attribute.startswith("_") and attribute != "__init__"
        if private or not callable(member) or isinstance(member, type):
            continue
        overloads = []
        for known in signatures:
            texts = known.get(f"{name}.{attribute}")
            if texts is None and attribute == "__init__":
                break  # made by the library itself, in a way of its own
            assert texts is not None, f"the stand-in has {name}.{attribute}, the table of real signatures has not"
            overloads.append(texts)
        else:
            setattr(owner, attribute, checked(member, f"{name}.{attribute}", overloads, method=True))


def checked(call: Callable[..., Any], name: str, libraries: list[list[str]], *, method: bool = False) -> Any:
    """`call`, refusing with TypeError what no overload of one of the libraries takes, and returning only what its
    signature says."""
    parsed = [[_parse(text) for text in overloads] for overloads in libraries]

    @functools.wraps(call)
    def checking(*arguments: Any, **keywords: Any) -> Any:
        given = arguments[1:] if method else arguments
        for overloads in parsed:
            if not any(_fits(parameters, given, keywords) for parameters, _ in overloads):
                raise TypeError(f"{name} called with {given} {keywords}, takes {libraries}")
        result = call(*arguments, **keywords)
        kinds = {kind for overloads in parsed for _, kind in overloads}
        assert kinds != {"bool"} or isinstance(result, bool), f"{name} gives a bool, the stand-in {result!r}"
        assert kinds != {"None"} or result is None, f"{name} gives None, the stand-in {result!r}"
        return result

    return checking


def _parse(text: str) -> tuple[list[_Parameter], str]:
    body, _, result = text.partition(") -> ") if ") -> " in text else (text[:-1], "", "")
    parts, depth = [""], 0
    for character in body[1:]:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    parameters = []
    for part in filter(None, (part.strip() for part in parts)):
        head, has_default, _ = part.partition(" = ")
        name, colon, kind = head.partition(": ")
        if not colon:  # of CUDA, as in C: "size_t bytesize", "hStream"
            kind, _, name = head.rpartition(" ")
        if name != "self":
            parameters.append(_Parameter(name, kind, bool(has_default)))
    return parameters, result


def _fits(parameters: list[_Parameter], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    kinds = {parameter.name: parameter for parameter in parameters}
    signature = inspect.Signature(
        [
            inspect.Parameter(
                parameter.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if parameter.optional else inspect.Parameter.empty,
            )
            for parameter in parameters
        ]
    )
    try:
        bound = signature.bind(*arguments, **keywords)
    except TypeError:
        return False
    return all(_is(value, kinds[name].kind) for name, value in bound.arguments.items())


def _is(value: Any, kind: str) -> bool:
    if kind in ("int", "size_t", "unsigned int", "unsigned long long") or "SupportsI" in kind:
        return isinstance(value, int)
    if kind in ("str", "bool"):
        return type(value).__name__ == kind
    if kind.lower() == "buffer":
        return isinstance(value, (bytes, bytearray, memoryview))
    if kind == "Dims":
        return isinstance(value, tuple)
    if kind == "ExecutionContextAllocationStrategy" or kind.startswith("CU"):
        return type(value).__name__ == kind
    if kind == "IRuntimeConfig":
        return type(value).__name__ == "RuntimeConfig"
    return True


if __name__ == "__main__":
    key, entry = installed(sys.argv[1])
    print(json.dumps({key: entry}, indent=2))
