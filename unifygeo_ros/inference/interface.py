"""The tensors of a bundle's graphs, as its manifest promises them."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.errors import BundleError
from unifygeo_ros.inference.bundle import GROUND_FEATURES, PYRAMID, BundleManifest
from unifygeo_ros.inference.engine import TensorSpec


def expected_inputs(manifest: BundleManifest, graph: str, precision: str) -> tuple[TensorSpec, ...]:
    """Inputs of one graph (see `unifygeo_ros.inference.bundle`)."""
    if graph == "ground_encoder":
        return (_spec("image", np.uint8, manifest.ground.height, manifest.ground.width, 3),)
    if graph == "aerial_encoder":
        return (_spec("image", np.uint8, manifest.aerial.size, manifest.aerial.size, 3),)
    return (*_f(manifest, precision), *_pyramid(manifest, precision))


def expected_outputs(manifest: BundleManifest, graph: str, precision: str) -> tuple[TensorSpec, ...]:
    """Outputs of one graph (see `unifygeo_ros.inference.bundle`)."""
    descriptor = _spec("descriptor", np.float32, manifest.descriptor_dim)
    if graph == "ground_encoder":
        return (descriptor, *_f(manifest, precision))
    if graph == "aerial_encoder":
        size, channels = manifest.match_size, manifest.match_channels
        match_map = _spec("match_map", _float(precision), size, size, channels)
        return (descriptor, match_map, *_pyramid(manifest, precision))
    return (_spec("logits", np.float32, manifest.distribution_size, manifest.distribution_size),)


def check_interface(
    manifest: BundleManifest,
    graph: str,
    precision: str,
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    """Compare what an engine found in a graph with what the manifest promises. Raises BundleError."""
    pairs = (
        ("inputs", inputs, expected_inputs(manifest, graph, precision)),
        ("outputs", outputs, expected_outputs(manifest, graph, precision)),
    )
    for what, found, expected in pairs:
        if set(found) != set(expected):
            raise BundleError(
                f"{path}: its {what} are {_listed(set(found) - set(expected))} where the manifest promises "
                f"{_listed(set(expected) - set(found))}; export the bundle again"
            )


def _f(manifest: BundleManifest, precision: str) -> list[TensorSpec]:
    return [_spec(name, _float(precision), c) for name, (c, _) in zip(GROUND_FEATURES, manifest.pyramid, strict=True)]


def _pyramid(manifest: BundleManifest, precision: str) -> list[TensorSpec]:
    return [_spec(name, _float(precision), c, s, s) for name, (c, s) in zip(PYRAMID, manifest.pyramid, strict=True)]


def _float(precision: str) -> npt.DTypeLike:
    return np.float16 if precision == "fp16" else np.float32


def _spec(name: str, dtype: npt.DTypeLike, *shape: int) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


def _listed(specs: set[TensorSpec]) -> str:
    named = sorted(f"{spec.name} {spec.dtype} {'×'.join(map(str, ('N', *spec.shape)))}" for spec in specs)
    return ", ".join(named) or "nothing"
