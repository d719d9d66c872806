"""What every inference backend offers: named arrays in, named arrays out."""

from __future__ import annotations

from typing import Any, Mapping, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


class Engine(Protocol):
    """One compiled graph. Not safe for use from two threads at once."""

    @property
    def description(self) -> str:
        """Backend, version, device and precision, for logs and diagnostics."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the graph. Shapes and dtypes as in `unifygeo_ros.inference.bundle`; outputs are float32 and belong to
        the caller. Raises EngineError for a missing, unknown or misshaped input."""
        ...

    def close(self) -> None:
        """Free the device's memory; the engine cannot be used afterwards."""
        ...


class Engines(Protocol):
    """The three engines of one bundle on one device."""

    ground_encoder: Engine
    aerial_encoder: Engine
    decoder: Engine

    def __enter__(self) -> Engines: ...

    def __exit__(self, *exc: Any) -> None: ...
