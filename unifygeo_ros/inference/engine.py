"""What every inference backend offers: named arrays in, named arrays out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, Collection, Mapping, Protocol, Sequence, Union

import numpy as np

from unifygeo_ros.core.arrays import Array, Float32
from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference.bundle import GROUND_FEATURES, PYRAMID, BundleManifest


class BackendUnavailable(EngineError):
    """A backend is not installed here, or there is no GPU for it: nothing is broken."""


class ResidentArray(Protocol):
    """An output left where the engine computed it, for a later `run` of an engine of the same set.

    It belongs to the caller: it stays valid until the engines are closed, and its memory is
    freed with the last reference to it.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device."""
        ...

    def numpy(self) -> Float32:
        """A copy on the host, float32."""
        ...


Input = Union[Array, ResidentArray]


class Engine(Protocol):
    """One compiled graph. Not safe for use from two threads at once."""

    @property
    def description(self) -> str:
        """Backend, version, device and precision, for logs and diagnostics."""
        ...

    def run(self, inputs: Mapping[str, Input], outputs: Collection[str] | None = None) -> Mapping[str, Float32]:
        """Run the graph.

        Args:
            inputs: by name, with shapes and dtypes as in `unifygeo_ros.inference.bundle`; a float input may be float32
                or float16.
            outputs: the names of those that are wanted, None: all.

        Returns:
            The outputs by name, float32 in every precision; they belong to the caller.

        Raises:
            EngineError: an input is missing, unknown or misshaped, or an output is unknown.
        """
        ...

    def run_resident(
        self, inputs: Mapping[str, Input], resident: Collection[str], outputs: Collection[str] | None = None
    ) -> tuple[Mapping[str, Float32], Mapping[str, ResidentArray]]:
        """As `run`, but some outputs stay on the device.

        Args:
            inputs: as `run` takes them.
            resident: the names of outputs that stay on the device.
            outputs: those wanted on the host (too), None: all the others.

        Returns:
            The outputs on the host; and those on the device. Without a device of its own (ONNX Runtime on the CPU) a
            resident is the array in the graph's own precision.
        """
        ...

    def close(self) -> None:
        """Free the device's memory; the engine cannot be used afterwards."""
        ...


@dataclass(frozen=True)
class EngineSet:
    """The three engines of one bundle on one device. Closes them as a context manager."""

    ground_encoder: Engine
    aerial_encoder: Engine
    decoder: Engine
    description: str
    on_close: Callable[[], None] | None = None  # frees what the three share

    def __enter__(self) -> EngineSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def warm_up(self, manifest: BundleManifest) -> None:
        """Run all three engines once, on black images.

        An engine that cannot run fails here, and the first camera image does not pay for what a first run prepares.

        Args:
            manifest: Of the bundle that the engines were opened from.

        Raises:
            EngineError: an engine cannot run.
        """
        ground, aerial = manifest.ground, manifest.aerial
        features = self.ground_encoder.run({"image": np.zeros((1, ground.height, ground.width, 3), np.uint8)})
        maps = self.aerial_encoder.run({"image": np.zeros((1, aerial.size, aerial.size, 3), np.uint8)})
        inputs = {**{name: features[name] for name in GROUND_FEATURES}, **{name: maps[name] for name in PYRAMID}}
        self.decoder.run(inputs)

    def close(self) -> None:
        """Free the engines and what they share."""
        for engine in (self.ground_encoder, self.aerial_encoder, self.decoder):
            engine.close()
        if self.on_close is not None:
            self.on_close()


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """Without the batch axis, which is the first and dynamic."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one element of the batch."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_inputs(graph: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Any]) -> int:
    """Check names, shapes and dtypes of inputs (arrays or residents) against the graph; returns the batch size.

    Raises EngineError.
    """
    wanted = {spec.name for spec in specs}
    if set(inputs) != wanted:
        missing, unknown = sorted(wanted - set(inputs)), sorted(set(inputs) - wanted)
        raise EngineError(f"{graph}: missing inputs {missing}, unknown inputs {unknown}; it takes {sorted(wanted)}")
    batches: dict[str, int] = {}
    for spec in specs:
        value = inputs[spec.name]
        shape = tuple(getattr(value, "shape", ()))
        if shape[1:] != spec.shape or not shape or shape[0] < 1:
            expected = "×".join(map(str, ("N", *spec.shape)))
            actual = "×".join(map(str, shape)) or f"a {type(value).__name__}"
            raise EngineError(f"{graph}: input {spec.name!r} is {actual}, the bundle's graph takes {expected}, N ≥ 1")
        if isinstance(value, np.ndarray) and not _can_become(value.dtype, spec.dtype):
            raise EngineError(f"{graph}: input {spec.name!r} is {value.dtype}, the graph takes {_named(spec.dtype)}")
        batches[spec.name] = int(shape[0])
    if len(set(batches.values())) != 1:
        raise EngineError(f"{graph}: the inputs' batch sizes differ ({batches}); give all the same")
    return next(iter(batches.values()))


def check_outputs(
    graph: str, specs: Sequence[TensorSpec], resident: Collection[str], outputs: Collection[str] | None
) -> set[str]:
    """The names of the outputs that go to the host. Raises EngineError for names that are not outputs."""
    known = {spec.name for spec in specs}
    wanted = known - set(resident) if outputs is None else set(outputs)
    unknown = sorted((wanted | set(resident)) - known)
    if unknown:
        raise EngineError(f"{graph}: no outputs {unknown}; it has {sorted(known)}")
    return wanted


def _can_become(actual: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Images must be uint8; float inputs may come in either precision. Nothing else is converted silently."""
    floats = (np.dtype(np.float32), np.dtype(np.float16))
    return actual == wanted or (wanted in floats and actual in floats)


def _named(dtype: np.dtype[Any]) -> str:
    return str(dtype) if dtype == np.uint8 else "float32 or float16"
