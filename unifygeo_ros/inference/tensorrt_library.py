"""TensorRT's two libraries under one set of names.

* ``tensorrt``: on a Jetson the system's (10.3 in JetPack 6), on other machines NVIDIA's package; up to TensorRT 11.
* ``tensorrt_rtx``: TensorRT for RTX, which installs from PyPI. It builds without a GPU, for a compute capability.

They share one Python API but for three points: `tensorrt` keeps the timings of a build, `tensorrt_rtx` the kernels that
it compiles on first use; only `tensorrt_rtx` builds for another GPU than this machine's; and it captures CUDA graphs
itself.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import platform
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.engine import BackendUnavailable

logger = logging.getLogger(__name__)

OLDEST = (10, 3)
"""Oldest supported version of `tensorrt`: that of JetPack 6."""

MODULES = {
    "tensorrt": (
        ("tensorrt",),
        "on a Jetson use the system's Python packages (docs/how-to/jetson.md), on other machines "
        "`pip install tensorrt-cu13` or cu12",
    ),
    "tensorrt_rtx": (
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),  # the first only re-exports the second, which pip installs alone
        "`pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs`",
    ),
}
"""For each backend the module names, in the order in which they are tried, and the remedy if none is installed."""


@dataclass(frozen=True)
class Library:
    """One of the two libraries, imported."""

    backend: str
    module: Any
    """Its Python module."""
    version: str
    cuda: str = "the system's"
    """The CUDA runtime that it was built for: "13" of a package from PyPI, whose names state it."""

    @property
    def is_rtx(self) -> bool:
        return self.backend == "tensorrt_rtx"

    def logger(self) -> Any:
        """The library's logger, which writes to this module's; `last_error` is its last message of that kind."""
        log = _logger(self.module)
        log.last_error = ""
        return log

    def compute_capability(self, wanted: tuple[int, int]) -> Any:
        """The member of ComputeCapability of tensorrt_rtx. Raises EngineError for one it does not know."""
        name = f"SM{wanted[0]}{wanted[1]}"
        known = self.module.ComputeCapability.__members__
        if name not in known:
            listed = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if n.startswith("SM"))
            raise EngineError(
                f"{self.backend} {self.version} does not build for compute capability {wanted[0]}.{wanted[1]}, only "
                f"for {listed}; use another backend for this GPU"
            )
        return known[name]


_LOGGERS: dict[int, Any] = {}


def _logger(module: Any) -> Any:
    """One logger for each library and process, never freed: TensorRT keeps using the first one that it was given."""
    if id(module) in _LOGGERS:
        return _LOGGERS[id(module)]
    levels = {
        module.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        module.ILogger.Severity.ERROR: logging.ERROR,
        module.ILogger.Severity.WARNING: logging.DEBUG,  # chatter on every build, no action follows from it
        module.ILogger.Severity.INFO: logging.DEBUG,
        module.ILogger.Severity.VERBOSE: logging.NOTSET,
    }

    class Forward(module.ILogger):  # type: ignore[misc]  # the module is known only at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            level = levels[severity]
            if level >= logging.ERROR:
                self.last_error = message
            if level > logging.NOTSET:
                logger.log(level, "%s: %s", module.__name__, message)

    return _LOGGERS.setdefault(id(module), Forward())


def is_installed(backend: str) -> bool:
    """Whether a library's Python module is there; it is not loaded."""
    for name in MODULES[backend][0]:
        with contextlib.suppress(ImportError):
            if name in sys.modules or importlib.util.find_spec(name) is not None:
                return True
    return False


def load_library(backend: str) -> Library:
    """Import a library. Raises BackendUnavailable where it is not installed or too old."""
    names, remedy = MODULES[backend]
    reasons = []
    for name in names:
        try:
            module: ModuleType = importlib.import_module(name)
        except Exception as error:  # ImportError, but also OSError for a library that does not load
            reasons.append(str(error))
            continue
        version = str(getattr(module, "__version__", "0"))
        if backend == "tensorrt" and _numbers(version) < OLDEST:
            raise BackendUnavailable(
                f"tensorrt {version} is too old, {OLDEST[0]}.{OLDEST[1]} or newer is needed; {remedy}"
            )
        return Library(backend, module, version, _cuda_of(backend))
    raise BackendUnavailable(
        f"{backend} cannot be imported on this {platform.machine()} ({'; '.join(reasons)}); {remedy}"
    )


def _cuda_of(backend: str) -> str:
    """The CUDA major version in the name of the installed package; TensorRT 10.13 exists for 12 and for 13."""
    for major in range(20, 10, -1):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(f"{backend}_cu{major}_bindings")
            return str(major)
    return "the system's"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
