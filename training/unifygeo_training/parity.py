"""Does the bundle compute what the network computes? ONNX Runtime against torch, on real images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import onnxruntime
import torch

from unifygeo_ros.core.arrays import Array, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.inference.bundle import FLOAT_PRECISIONS, GRAPHS, GROUND_FEATURES, PYRAMID, ModelBundle
from unifygeo_training.model import UnifyGeo

TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}
"""Largest deviation of any output, relative to that output's largest value."""
MOVED_TOLERANCE = {"fp32": 0.0, "fp16": 0.02}
"""Largest share of answers that may move by more than a pixel of D: near-ties between distant modes can flip."""


@dataclass(frozen=True)
class PrecisionParity:
    """Deviations of one precision."""

    deviation: dict[str, float]
    """For each output its largest deviation relative to the output's largest value."""
    cosine: float
    """Smallest cosine between descriptors."""
    answers_moved: float
    """Share of pairs whose most probable pixel moved by more than one pixel."""
    passed: bool


@dataclass(frozen=True)
class ParityReport:
    """Deviations with their tolerances."""

    weights_sha256: str
    pairs: int
    """How many panoramas, each with its tile."""
    data: str
    tolerance: dict[str, float]
    moved_tolerance: dict[str, float]
    precisions: dict[str, PrecisionParity]

    @property
    def passed(self) -> bool:
        return all(precision.passed for precision in self.precisions.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


@torch.inference_mode()
def check_parity(network: UnifyGeo, bundle: ModelBundle, panoramas: UInt8, tiles: UInt8, data: str) -> ParityReport:
    """Run the whole chain in every precision of the bundle. panoramas (n, H, W, 3), tiles (n, L, L, 3), RGB.

    Each precision's decoder gets that precision's own features: the deviations of the logits are those of the chain.

    Raises:
        InputError: the bundle holds INT8 graphs alone, which do not compute what the network computes.
    """
    available = set.intersection(*(set(files) for files in bundle.manifest.graphs.values()))
    if available.isdisjoint(FLOAT_PRECISIONS):
        raise InputError(
            f"{bundle.path}: holds {', '.join(sorted(available))} graphs alone; the parity is that of the bundle it "
            "was made of, its accuracy stands in its lineage (`unifygeo bundle info`)"
        )
    network = network.eval()
    ground = network.encode_ground(torch.from_numpy(panoramas))
    aerial = network.encode_aerial(torch.from_numpy(tiles))
    assert ground.descriptor is not None
    assert aerial.descriptor is not None
    logits = network.decode(ground.levels, aerial.pyramid).logits
    expected: dict[str, Array] = {
        "ground descriptor": ground.descriptor.numpy(),
        **{name: f.numpy() for name, f in zip(GROUND_FEATURES, ground.levels, strict=True)},
        "aerial descriptor": aerial.descriptor.numpy(),
        "match_map": aerial.match_map.permute(0, 2, 3, 1).numpy(),  # NCHW → NHWC
        **{name: p.numpy() for name, p in zip(PYRAMID, aerial.pyramid, strict=True)},
        "logits": logits.numpy(),
    }
    return ParityReport(
        weights_sha256=bundle.manifest.weights_sha256,
        pairs=len(panoramas),
        data=data,
        tolerance=TOLERANCE,
        moved_tolerance=MOVED_TOLERANCE,
        precisions={
            precision: compare(expected, run_chain(bundle, precision, panoramas, tiles), precision)
            for precision in FLOAT_PRECISIONS
            if precision in available
        },
    )


def run_chain(bundle: ModelBundle, precision: str, panoramas: UInt8, tiles: UInt8) -> dict[str, Array]:
    """All outputs of the three graphs in ONNX Runtime on the CPU, by the names of `check_parity`."""
    sessions = {
        graph: onnxruntime.InferenceSession(
            str(bundle.graph_path(graph, precision)), providers=["CPUExecutionProvider"]
        )
        for graph in GRAPHS
    }
    ground = dict(
        zip(
            ("ground descriptor", *GROUND_FEATURES),
            sessions["ground_encoder"].run(None, {"image": panoramas}),
            strict=True,
        )
    )
    aerial_names = ("aerial descriptor", "match_map", *PYRAMID)
    aerial = dict(zip(aerial_names, sessions["aerial_encoder"].run(None, {"image": tiles}), strict=True))
    features = {name: value for name, value in {**ground, **aerial}.items() if name in (*GROUND_FEATURES, *PYRAMID)}
    (logits,) = sessions["decoder"].run(None, features)
    return {**ground, **aerial, "logits": logits}


def compare(expected: Mapping[str, Array], found: Mapping[str, Array], precision: str) -> PrecisionParity:
    """Deviations of one precision's outputs, judged by its tolerances."""
    deviation = {
        name: float(np.abs(found[name].astype(np.float64) - value).max() / np.abs(value).max())
        for name, value in expected.items()
    }
    cosine = min(
        float((found[name].astype(np.float64) * expected[name]).sum(axis=1).min())
        for name in ("ground descriptor", "aerial descriptor")
    )
    size = expected["logits"].shape[-1]
    before, after = (
        np.stack(np.divmod(logits.reshape(len(logits), -1).argmax(axis=1), size))
        for logits in (expected["logits"], found["logits"])
    )
    moved = float(np.mean(np.abs(after - before).max(axis=0) > 1))
    # A NaN compares as false and so does not pass.
    passed = all(value <= TOLERANCE[precision] for value in deviation.values()) and moved <= MOVED_TOLERANCE[precision]
    return PrecisionParity(deviation, cosine, moved, passed)
