"""One graph in INT8: which layers stand it, by measurement, and the graph with those quantised.

A quantised layer is a convolution or a matrix product between QuantizeLinear and DequantizeLinear nodes (QDQ): int8
weights with a scale for each output channel, int8 activations with one scale, both symmetric about zero, as TensorRT
wants them. ONNX Runtime computes such layers in integers on the CPU. The work is done by `onnxruntime.quantization`;
here it is decided where.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from unifygeo_ros.core.arrays import Array, Float64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.inference.onnxruntime_engine import session_options
from unifygeo_training.quantise.rewrite import rewrite
from unifygeo_training.quantise.timing import processor_s

logger = logging.getLogger(__name__)

Arrays = Mapping[str, Array]
"""Arrays by the names of a graph's inputs or outputs."""

LAYERS = ("Conv", "MatMul")
"""Operators that are quantised. Not ConvTranspose: ONNX Runtime has no integer kernel for it on the CPU."""

LEAST_CHANNELS = 8
"""Layers with fewer outputs stay in fp32: integer kernels compute 16 at once. The decoder's last convolution, to one
channel, takes 1.3 times as long in int8."""

PERCENTILE = 99.99
"""Share of an activation's values, in percent, that lie within its range; the others are cut off. With the largest
value as the range the encoders' errors are a fifth larger, with the entropy method those of f0 … f3 twice as large."""


LEAST_GAIN_OF_LAYER, LEAST_GAIN = 0.01, 0.05
"""Shares of a graph's time that a layer alone, and all layers together, must save to be worth an error; less may be
noise."""


@dataclass(frozen=True)
class QuantisedGraph:
    """A graph of which some layers are quantised."""

    model: onnx.ModelProto
    errors: dict[str, dict[str, float]]
    """Of each layer that could be: the errors of the graph's outputs with this layer alone quantised."""
    quantised: tuple[str, ...]
    """Names of the layers that are."""
    error: float
    """The largest error of an output, with all of them quantised."""
    milliseconds: tuple[float, float] = (math.nan, math.nan)
    """Of one image before and after, in ONNX Runtime on one thread of this processor."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the layers that stay in fp32, the most sensitive first."""
        return tuple(sorted(set(self.errors) - set(self.quantised), key=lambda name: -max(self.errors[name].values())))


def quantise_graph(
    file: Path, feeds: Sequence[Arrays], judged: Arrays, budget: float, *, where_faster: bool = False
) -> QuantisedGraph:
    """Quantise the layers of a graph that together stay within an error.

    Each layer is quantised alone and the error of the graph's outputs is measured. Errors of many layers add in
    squares, as independent ones do; so the least sensitive layers are taken until the budget is used up.

    Layers that gain from each other's conversions gain less alone. So where time counts, all of these, those that are
    faster alone, and none are compared, and the fastest of the three is taken.

    Args:
        file: An fp32 graph.
        feeds: Inputs, one image each, from which the ranges of the activations are taken.
        judged: Inputs on which errors are measured, in one batch.
        budget: Largest error of an output (`output_errors`) that the layers may make together.
        where_faster: Leave layers in fp32 that are no faster in INT8 on this processor.

    Raises:
        InputError: no layer stays within the budget.
    """
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        model, layers = _prepared(file, scratch)
        ranges = _ranges(model, feeds, scratch)
        expected = _outputs(model, judged)
        errors = {
            layer: output_errors(_outputs(_with_layers(model, [layer], ranges), judged), expected) for layer in layers
        }
        chosen = within_budget(errors, budget)
        if not chosen:
            least = min(max(outputs.values()) for outputs in errors.values())
            raise InputError(
                f"{file.name}: quantised alone, even the least sensitive of {len(errors)} layers makes an error of "
                f"{least:.3g}, more than the budget of {budget:g}; give a larger --error-budget"
            )
        quantised = _with_layers(model, chosen, ranges)
        times_s = processor_s(model, quantised, feeds[0])
        if where_faster:
            alone = {layer: processor_s(model, _with_layers(model, [layer], ranges), feeds[0]) for layer in chosen}
            faster = tuple(layer for layer in chosen if _share(alone[layer]) <= 1 - LEAST_GAIN_OF_LAYER)
            if faster != chosen:
                fewer = _with_layers(model, faster, ranges)
                times_of_fewer_s = processor_s(model, fewer, feeds[0])
                if _share(times_of_fewer_s) < _share(times_s):
                    chosen, quantised, times_s = faster, fewer, times_of_fewer_s
            if _share(times_s) > 1 - LEAST_GAIN:
                chosen, quantised, times_s = (), _with_layers(model, (), ranges), (times_s[0], times_s[0])
        onnx.checker.check_model(quantised, full_check=True)
        error = max(output_errors(_outputs(quantised, judged), expected).values())
        before_ms, after_ms = (1e3 * time_s for time_s in times_s)
        found = QuantisedGraph(quantised, errors, chosen, error, (before_ms, after_ms))
    logger.info(
        "%s: %d of %d layers in int8, error %.3g, %.2f ms → %.2f ms",
        file.name,
        len(found.quantised),
        len(found.errors),
        found.error,
        *found.milliseconds,
    )
    return found


def _share(times_s: tuple[float, float]) -> float:
    """Of the time before, that after."""
    return times_s[1] / times_s[0]


def quantise_all(file: Path, feeds: Sequence[Arrays]) -> onnx.ModelProto:
    """A graph with all layers quantised that can be, whatever it loses: for measuring what that costs and saves."""
    with tempfile.TemporaryDirectory() as temporary:
        model, layers = _prepared(file, Path(temporary))
        return _with_layers(model, layers, _ranges(model, feeds, Path(temporary)))


def within_budget(errors: Mapping[str, Mapping[str, float]], budget: float) -> tuple[str, ...]:
    """The least sensitive layers whose errors together are at most the budget.

    Args:
        errors: By layer and output.
        budget: Of the square root of the sum of squares over the layers, at every output.

    Returns:
        In the order of `errors`.
    """
    total: dict[str, float] = {}
    chosen = set()
    for layer in sorted(errors, key=lambda name: max(errors[name].values())):
        total = {output: total.get(output, 0.0) + error**2 for output, error in errors[layer].items()}
        if not math.sqrt(max(total.values())) <= budget:
            break
        chosen.add(layer)
    return tuple(layer for layer in errors if layer in chosen)


def output_errors(found: Arrays, expected: Arrays) -> dict[str, float]:
    """Of each output the root mean square of the deviation, relative to that of the expected values.

    Of logits (N, P, P) the distribution D is compared: what all logits have in common does not matter. Values that are
    not finite give an infinite error.
    """
    errors = {}
    for name, array in expected.items():
        value = _compared(name, array)
        error = float(np.sqrt(np.mean((_compared(name, found[name]) - value) ** 2) / np.mean(value**2)))
        errors[name] = error if math.isfinite(error) else math.inf
    return errors


def _compared(name: str, value: Array) -> Float64:
    values = np.asarray(value, np.float64).reshape(len(value), -1)
    if name != "logits":
        return values
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _prepared(file: Path, scratch: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The graph with its constants folded, and the names of the layers that can be quantised, in order."""
    simple = scratch / "simple.onnx"
    quant_pre_process(str(file), str(simple), skip_symbolic_shape=True)
    model = onnx.load(simple)
    rewrite(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = tuple(
        node.name
        for node in model.graph.node
        # Not depthwise convolutions: they cost little, and more in integers than in float on the CPU.
        if node.op_type in LAYERS
        and node.input[1] in weights
        and _groups(node) == 1
        and _channels(node, weights[node.input[1]]) >= LEAST_CHANNELS
    )
    _take_biases_out(model, layers)
    # What the optimiser left: domains of operators that the graph does not use, and its own name.
    used = {node.domain for node in model.graph.node}
    opsets = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:], model.metadata_props[:]
    model.opset_import.extend(opsets)
    return model, layers


def _groups(node: onnx.NodeProto) -> int:
    """Of a convolution; 1 for any other node."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """Output channels of a layer."""
    return int(weight.dims[0 if node.op_type == "Conv" else -1])


def _take_biases_out(model: onnx.ModelProto, layers: Collection[str]) -> None:
    """Add the biases of convolutions behind them, in place.

    ONNX Runtime computes a convolution in integers only if its bias is a quantised int32; TensorRT refuses that.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in layers and node.op_type == "Conv" and len(node.input) == 3:
            bias, output = numpy_helper.to_array(constants[node.input.pop()]), node.output[0]
            shaped = numpy_helper.from_array(bias.reshape(1, -1, 1, 1).copy(), f"{node.name}.bias")
            model.graph.initializer.append(shaped)
            node.output[0] = f"{output}.without_bias"
            nodes.append(helper.make_node("Add", [node.output[0], shaped.name], [output], name=f"{node.name}.add"))
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)


class _OneImage(CalibrationDataReader):
    """An image for the library, which holds all activations of those that it is given together."""

    def __init__(self, feed: Arrays) -> None:
        self._feeds = iter([dict(feed)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _ranges(model: onnx.ModelProto, feeds: Sequence[Arrays], scratch: Path) -> TensorsData:
    """The ranges of all layers' inputs and outputs."""
    file = scratch / "prepared.onnx"
    onnx.save(model, file)
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints what it does
        calibrator = create_calibrator(
            file,
            list(LAYERS),
            augmented_model_path=str(scratch / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"percentile": PERCENTILE},
        )
        for feed in feeds:
            calibrator.collect_data(_OneImage(feed))
        return calibrator.compute_data()


def _with_layers(model: onnx.ModelProto, layers: Sequence[str], ranges: TensorsData) -> onnx.ModelProto:
    """A copy of the graph with these layers quantised."""
    if not layers:
        return copy.deepcopy(model)  # the library takes none for all
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "MatMulConstBOnly": True,
        # A matrix product of integers gives float at once; rounding it again would only add an error.
        "OpTypesToExcludeOutputQuantization": ["MatMul"],
    }
    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=list(layers),
        nodes_to_exclude=[],
        op_types_to_quantize=list(LAYERS),
        extra_options=options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _outputs(model: onnx.ModelProto, feed: Arrays) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))
