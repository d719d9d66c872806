"""An INT8 bundle of an fp32 one: written only if it localizes about as well."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from unifygeo_ros.core.arrays import Array, Float64, Int64, UInt8
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.inference.bundle import (
    GRAPHS,
    GROUND_FEATURES,
    MANIFEST_NAME,
    PYRAMID,
    GraphFile,
    ModelBundle,
    load_bundle,
    sha256_of_file,
)
from unifygeo_training.files import locked, new_folder
from unifygeo_training.judging.evaluation_set import EvaluationSet
from unifygeo_training.judging.judge import QueryResults, judge
from unifygeo_training.model.decoder import Decoded
from unifygeo_training.model.network import Aerial, Ground
from unifygeo_training.quantise.graph import PERCENTILE, Arrays, QuantisedGraph, quantise_graph
from unifygeo_training.weights import BundleNetwork

logger = logging.getLogger(__name__)

PAIRS = 32
"""Panoramas, each with its tile, that the ranges of the activations are taken from. They are not judged."""
SENSITIVITY_PAIRS = 8
"""Of them, those on which the layers' errors are measured."""
ERROR_BUDGET = 0.15
"""Default of the largest error that the layers of one graph may make together, relative to its outputs."""
WITHIN_M = 5.0
LEAST_WITHIN_PERCENT = 20.0
"""Answers of the fp32 graphs within WITHIN_M, under which data tell nothing about a loss."""


@dataclass(frozen=True)
class Limits:
    """The largest loss of accuracy with which a bundle is written."""

    recall_5_points: float = 1.0
    """Of R@5, in points of percent."""
    within_5_m_points: float = 1.0
    """Of the share of answers within 5 m, in points of percent."""
    median_m: float = 0.03
    """Of the median error on the positive tile, metres."""


@dataclass(frozen=True)
class Accuracy:
    """How well a bundle localizes single images."""

    recall_5: float
    """Queries with their tile among the nearest five, percent."""
    within_5_m: float
    """Queries whose answer lies within 5 m of the truth, whichever tile won, percent."""
    median_m: float
    """Median error on the positive tile, metres."""

    @classmethod
    def of(cls, results: Sequence[QueryResults]) -> Accuracy:
        """Of all queries together."""
        found = np.concatenate([(r.nearest[:, :5] == r.positives[:, None]).any(axis=1) for r in results])
        final_m = np.concatenate([r.errors_m["final"] for r in results])
        metric_m = np.concatenate([r.errors_m["metric"] for r in results])
        return cls(100 * float(found.mean()), 100 * float((final_m <= WITHIN_M).mean()), float(np.median(metric_m)))

    def losses(self, other: Accuracy, limits: Limits) -> list[str]:
        """In words, what of this one the other has lost beyond the limits."""
        return [
            f"{what} {before:.2f}{unit} → {after:.2f}{unit} (at most {limit:g}{unit} worse)"
            for what, before, after, sign, limit, unit in (
                ("R@5", self.recall_5, other.recall_5, -1, limits.recall_5_points, "%"),
                ("within 5 m", self.within_5_m, other.within_5_m, -1, limits.within_5_m_points, "%"),
                ("median", self.median_m, other.median_m, 1, limits.median_m, " m"),
            )
            if not sign * (after - before) <= limit + 1e-9
        ]


def quantise_bundle(
    parent: ModelBundle,
    sets: Sequence[EvaluationSet],
    output: Path | str,
    *,
    name: str,
    limits: Limits = Limits(),
    error_budget: float = ERROR_BUDGET,
    where_faster: bool = False,
) -> ModelBundle:
    """Write a bundle of INT8 graphs, complete or not at all.

    Weights and calibration are the parent's. What was done, and the accuracy before and after, stands in the
    manifest's lineage.

    Args:
        parent: A bundle with fp32 graphs.
        sets: Panoramas and tiles with the truth. PAIRS of them give the ranges of the activations, all others are
            judged.
        output: Folder of the bundle; must not exist.
        name: Of the bundle, in its manifest.
        limits: On the loss of accuracy, of the INT8 bundle alone and on an index that the parent made.
        error_budget: As in `quantise_graph`.
        where_faster: As in `quantise_graph`.

    Raises:
        ConfigurationError: `output` exists, or the parent holds no fp32 graphs.
        InputError: too little data, the accuracy would suffer beyond the limits, or nothing would become faster.
    """
    output = Path(output)
    if output.exists():
        raise ConfigurationError(f"{output} exists; remove it or choose another --output")
    for graph in GRAPHS:
        parent.graph_path(graph, "fp32")
    chosen, remaining = _split(sets)
    judged = [_Queries(data, rows) for data, rows in zip(sets, remaining, strict=True) if len(rows)]
    before = BundleNetwork(parent, "fp32")
    with locked(output), new_folder(output) as folder:
        quantised = {
            graph: quantise_graph(
                parent.graph_path(graph, "fp32"),
                [_rows(feeds, slice(row, row + 1)) for row in range(PAIRS)],
                _rows(feeds, slice(None, None, PAIRS // SENSITIVITY_PAIRS)),
                error_budget,
                where_faster=where_faster,
            )
            for graph, feeds in _feeds(before, sets, chosen).items()
        }
        if not any(found.quantised for found in quantised.values()):
            raise InputError("no layer is faster in INT8 on this processor; use the fp32 bundle; nothing was written")
        graphs = {graph: {"int8": _write(folder, graph, found.model)} for graph, found in quantised.items()}
        bundle = ModelBundle(folder, dataclasses.replace(parent.manifest, name=name, graphs=graphs))
        after = BundleNetwork(bundle, "int8")
        accuracy = {
            "fp32": _accuracy(before, judged),
            "int8": _accuracy(after, judged),
            "int8_on_fp32_index": _accuracy(_OnIndexOf(before, after), judged),
        }
        for what, found in accuracy.items():
            logger.info("%s: R@5 %.1f%%, within 5 m %.1f%%, median %.3f m", what, *dataclasses.astuple(found))
        _check(accuracy, limits)
        step = {
            "made_by": "unifygeo-train export --quantise",
            "parent_sha256": parent.manifest.sha256,
            "data": f"{', '.join(data.name for data in sets)}: {PAIRS} pairs, {sum(map(len, remaining))} judged",
            "method": f"onnxruntime {onnxruntime.__version__}: activations per tensor, {PERCENTILE}th percentile; "
            "weights per channel; symmetric",
            "error_budget": error_budget,
            "where_faster": where_faster,
            "graphs": {graph: _described(found) for graph, found in quantised.items()},
            "accuracy": {what: dataclasses.asdict(found) for what, found in accuracy.items()},
            "limits": dataclasses.asdict(limits),
        }
        manifest = dataclasses.replace(bundle.manifest, lineage=(*parent.manifest.lineage, step))
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        load_bundle(folder)
    return load_bundle(output)


def _split(sets: Sequence[EvaluationSet]) -> tuple[list[Int64], list[Int64]]:
    """Of each set the queries for the ranges, PAIRS of all evenly spread, and the others."""
    counts = [len(data.tiles) for data in sets]
    total = sum(counts)
    if total < 2 * PAIRS:
        raise InputError(
            f"{total} panoramas are too few to quantise: {PAIRS} are needed for the ranges and as many to be judged; "
            "give more data"
        )
    if not all(np.isfinite(data.offsets_m).all() for data in sets):
        raise InputError("the data tell no positions, so accuracy cannot be judged; give towns or drives")
    taken = np.zeros(total, np.bool_)
    taken[np.linspace(0, total - 1, PAIRS).astype(int)] = True
    parts = np.split(taken, np.cumsum(counts)[:-1])
    return [np.flatnonzero(part) for part in parts], [np.flatnonzero(~part) for part in parts]


def _feeds(network: BundleNetwork, sets: Sequence[EvaluationSet], chosen: Sequence[Int64]) -> dict[str, Arrays]:
    """Inputs of each graph: PAIRS panoramas, their tiles, and what the encoders make of both."""
    pairs = [(data, int(query)) for data, rows in zip(sets, chosen, strict=True) for query in rows]
    panoramas = np.stack([data.ground_image(query) for data, query in pairs])
    tiles = np.stack([data.aerial_image(int(data.tiles[query, 0])) for data, query in pairs])
    levels = network.encode_ground(torch.from_numpy(panoramas)).levels
    pyramid = network.encode_aerial(torch.from_numpy(tiles)).pyramid
    features = {n: v.numpy() for n, v in zip((*GROUND_FEATURES, *PYRAMID), (*levels, *pyramid), strict=True)}
    return {"ground_encoder": {"image": panoramas}, "aerial_encoder": {"image": tiles}, "decoder": features}


def _rows(feeds: Arrays, rows: slice) -> dict[str, Array]:
    return {name: np.ascontiguousarray(value[rows]) for name, value in feeds.items()}


def _write(folder: Path, graph: str, model: onnx.ModelProto) -> GraphFile:
    file = folder / f"{graph}.int8.onnx"
    onnx.save(model, file)
    return GraphFile(file.name, sha256_of_file(file))


def _described(graph: QuantisedGraph) -> dict[str, object]:
    return {
        "int8_layers": len(graph.quantised),
        "kept_in_fp32": list(graph.kept),
        "error": round(graph.error, 5),
        "milliseconds": [round(cost_ms, 3) for cost_ms in graph.milliseconds],
    }


def _accuracy(network: nn.Module, sets: Sequence[EvaluationSet]) -> Accuracy:
    results = []
    for data in sets:
        with tempfile.TemporaryDirectory() as scratch:
            results.append(judge(network, data, Path(scratch), batch=8, workers=1).results)
    return Accuracy.of(results)


def _check(accuracy: dict[str, Accuracy], limits: Limits) -> None:
    """Raise InputError if either use of the INT8 graphs loses more than the limits allow, or nothing can be lost."""
    if not accuracy["fp32"].within_5_m >= LEAST_WITHIN_PERCENT:
        raise InputError(
            f"{accuracy['fp32'].within_5_m:.1f}% of the fp32 graphs' answers lie within {WITHIN_M:g} m, too few for a "
            f"loss to be seen (at least {LEAST_WITHIN_PERCENT:g}%); give data on which they localize; nothing was "
            "written"
        )
    for what in ("int8", "int8_on_fp32_index"):
        lost = accuracy["fp32"].losses(accuracy[what], limits)
        if lost:
            where = "" if what == "int8" else " on an index that the fp32 graphs made"
            raise InputError(
                f"INT8 loses too much accuracy{where}: {'; '.join(lost)}. Keep more layers in fp32 by a smaller "
                "--error-budget, or accept the loss by --accept-loss; nothing was written"
            )


class _Queries:
    """An `EvaluationSet` with some of another's queries."""

    def __init__(self, data: EvaluationSet, rows: Int64) -> None:
        self._data, self._rows = data, rows
        self.name = data.name
        self.side_m = data.side_m
        self.tiles: Int64 = data.tiles[rows]
        self.offsets_m: Float64 = data.offsets_m[rows]

    def ground_image(self, query: int) -> UInt8:
        return self._data.ground_image(int(self._rows[query]))

    def aerial_image(self, tile: int) -> UInt8:
        return self._data.aerial_image(tile)

    def displacement_m(self, start: Int64, end: Int64) -> Float64:
        return self._data.displacement_m(start, end)


class _OnIndexOf(nn.Module):
    """Searches the index of one bundle with another one, as a robot does that was given a new bundle only.

    `judge` encodes the gallery with descriptors, and the tiles that are decoded without.
    """

    def __init__(self, index: BundleNetwork, robot: BundleNetwork) -> None:
        super().__init__()
        self.config, self.descriptor_dim, self.pyramid_shape = robot.config, robot.descriptor_dim, robot.pyramid_shape
        self._index, self._robot = index, robot

    def encode_ground(self, image: Tensor, *, descriptor: bool = True) -> Ground:
        return self._robot.encode_ground(image, descriptor=descriptor)

    def encode_aerial(self, image: Tensor, *, descriptor: bool = True) -> Aerial:
        return (self._index if descriptor else self._robot).encode_aerial(image, descriptor=descriptor)

    def decode(self, levels: tuple[Tensor, ...], pyramid: tuple[Tensor, ...]) -> Decoded:
        return self._robot.decode(levels, pyramid)
