"""A graph that computes the same up to rounding, written so that it costs less.

What stands between the layers that INT8 makes fast is in fp32 and costs as much as before; here some of it goes. All is
standard ONNX, and what a pattern does not fit stays as it is.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from unifygeo_ros.core.arrays import Array

BYTE_ZERO = 128.0
"""What a byte of an image is shifted by: the bytes less this are int8, exactly."""

Replacement = tuple[list[onnx.NodeProto], list[onnx.NodeProto]]
"""Nodes that go, and those that come in the place of the last of them."""


def rewrite(model: onnx.ModelProto) -> None:
    """Apply all rewritings, in place, to a graph whose constants are folded."""
    for step in (_normalisation, _gelu, _layer_scale):
        _apply(model, step)


def rewrite_floats(model: onnx.ModelProto) -> None:
    """Apply, in place, what changes no weight, so that graphs in floats can have it.

    What else `rewrite` does would take the weights apart that a compact bundle's graphs share, and from which
    `unifygeo_training.unfold` makes a network again. Weights in a file of their own need not be loaded.
    """
    for step in (_planes_first, _gelu):
        _apply(model, step)


def _normalisation(graph: _Graph, node: onnx.NodeProto) -> Replacement | None:
    """scale · x + shift of an image's bytes: into the convolution that follows, but for a shift by one number.

    Before NHWC → NCHW, as older exports have it, a product with (3,) takes as long as the convolution: its rows have
    but three elements.
    """
    if node.op_type != "Conv" or any(_attribute(node, "pads", ())):
        return None
    turned = graph.chain(node, "Transpose", "Add", "Mul", "Cast")
    if turned and list(_attribute(turned[0], "perm", ())) != [0, 3, 1, 2]:
        return None
    chain = turned[1:] or graph.chain(node, "Add", "Mul", "Transpose", "Cast")[:3]
    if not chain:
        return None
    add, mul, cast = chain  # what the scale multiplies; as exports have it now, the transposed floats
    scale, shift = graph.operand(mul, cast), graph.operand(add, mul)
    weight = graph.constant(node.input[1])
    if scale is None or shift is None or weight is None:
        return None
    colours = weight.shape[1:2] if turned else (*weight.shape[1:2], 1, 1)
    if not scale.shape == shift.shape == colours:
        return None
    scale, shift = scale.reshape(-1), shift.reshape(-1)
    bias = graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros(len(weight))
    if bias is None:
        return None
    channels = (slice(None), None, None)
    offset = (weight * (shift + BYTE_ZERO * scale.astype(np.float64))[channels]).sum(axis=(1, 2, 3))
    zero = graph.add(f"{node.name}.byte_zero", np.float32(BYTE_ZERO))
    centred = f"{node.name}.centred"
    less = helper.make_node("Sub", [cast.output[0], zero], [centred], name=centred)
    kernel = graph.add(f"{node.name}.normalised_weight", weight * scale[channels])
    constants = [kernel, graph.add(f"{node.name}.normalised_bias", bias + offset)]
    conv = _on(node, [node.input[0] if turned else centred, *constants])
    return [mul, add, *turned[:1], node], [less, *(_on(transpose, [centred]) for transpose in turned[:1]), conv]


def _planes_first(graph: _Graph, node: onnx.NodeProto) -> Replacement | None:
    """scale · x + shift of an image before NHWC → NCHW, as older exports have it: after that, as exports have it now.

    With the three colours last, ONNX Runtime computes rows of three elements.
    """
    chain = graph.chain(node, "Add", "Mul", "Cast") if node.op_type == "Transpose" else []
    if not chain or list(_attribute(node, "perm", ())) != [0, 3, 1, 2]:
        return None
    add, mul, cast = chain
    scale, shift = graph.operand(mul, cast), graph.operand(add, mul)
    if scale is None or shift is None or scale.ndim != 1 or scale.shape != shift.shape:
        return None
    planes = _on(node, [cast.output[0]])
    planes.output[0] = f"{node.name}.planes"
    constants = [
        graph.add(f"{old.name}.of_planes", value.reshape(-1, 1, 1), value.dtype)
        for old, value in ((mul, scale), (add, shift))
    ]
    scaled, shifted = _on(mul, [planes.output[0], constants[0]]), _on(add, [mul.output[0], constants[1]])
    shifted.output[0] = node.output[0]
    return [mul, add, node], [planes, scaled, shifted]


def _gelu(graph: _Graph, node: onnx.NodeProto) -> Replacement | None:
    """x · (½ · (1 + erf(x/√2))) as (x · (1 + erf(x/√2))) · ½.

    In this order ONNX Runtime knows GELU, and computes it and the bias before it in one pass instead of six.
    """
    chain = graph.chain(node, "Mul", "Add", "Erf", "Div") if node.op_type == "Mul" else []
    if not chain:
        return None
    half, one, erf, div = chain
    x = _other(node, half)
    factor = _other(half, one)
    as_expected = graph.is_scalar(factor, 0.5) and graph.is_scalar(_other(one, erf), 1.0)
    if not as_expected or div.input[0] != x or not graph.is_scalar(div.input[1], math.sqrt(2)):
        return None
    doubled = helper.make_node("Mul", [x, one.output[0]], list(half.output), name=half.name)
    return [half, node], [doubled, helper.make_node("Mul", [half.output[0], factor], list(node.output), name=node.name)]


def _layer_scale(graph: _Graph, node: onnx.NodeProto) -> Replacement | None:
    """γ of each channel after a linear layer, or after that and a change from NHWC to NCHW: into the layer."""
    if node.op_type != "Mul":
        return None
    turned = graph.chain(node, "Transpose", "Add", "MatMul")
    if turned and list(_attribute(turned[0], "perm", ())) != [0, 3, 1, 2]:
        return None
    chain = turned[1:] or graph.chain(node, "Add", "MatMul")
    if not chain:
        return None
    add, product = chain
    gamma, bias = graph.operand(node, turned[0] if turned else add), graph.operand(add, product)
    weight = graph.constant(product.input[1])
    if gamma is None or bias is None or weight is None or weight.ndim != 2:
        return None
    channels = weight.shape[1]
    if gamma.shape[-3 if turned else -1 :] != ((channels, 1, 1) if turned else (channels,)) or gamma.size != channels:
        return None
    columns = gamma.reshape(-1).astype(np.float64)
    scaled = _on(product, [product.input[0], graph.add(f"{product.name}.scaled_weight", weight * columns)])
    biased = _on(add, [product.output[0], graph.add(f"{add.name}.scaled_bias", bias * columns)])
    last = _on(turned[0], biased.output) if turned else biased
    del last.output[:]
    last.output.extend(node.output)
    return [product, add, *turned[:1], node], [scaled, biased, *([last] if turned else [])]


class _Graph:
    """What a rewriting asks of a graph, and the constants that it adds."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._uses = collections.Counter(name for node in model.graph.node for name in node.input)
        self._uses.update(output.name for output in model.graph.output)
        self._constants = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if tensor.data_location != onnx.TensorProto.EXTERNAL
        }
        self.added: dict[str, Array] = {}

    def constant(self, name: str) -> Array | None:
        return self._constants.get(name)

    def is_scalar(self, name: str, value: float) -> bool:
        """Whether this is a constant of one element with that value."""
        found = self._constants.get(name)
        return found is not None and found.size == 1 and math.isclose(float(found.reshape(-1)[0]), value, rel_tol=1e-6)

    def chain(self, node: onnx.NodeProto, *kinds: str) -> list[onnx.NodeProto]:
        """The nodes of these operators, each of which makes an input for the one before it and for nothing else.

        Empty where they are not there.
        """
        found: list[onnx.NodeProto] = []
        for kind in kinds:
            makers = [self._makers[name] for name in node.input if name in self._makers and self._uses[name] == 1]
            before = [maker for maker in makers if maker.op_type == kind]
            if not before:
                return []
            node = before[0]
            found.append(node)
        return found

    def operand(self, node: onnx.NodeProto, maker: onnx.NodeProto) -> Array | None:
        """The input of a node of two that another node does not make, where it is a constant."""
        return self.constant(_other(node, maker))

    def add(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """A new constant."""
        self.added[name] = np.asarray(value, dtype)
        return name


def _apply(model: onnx.ModelProto, step: Callable[[_Graph, onnx.NodeProto], Replacement | None]) -> None:
    graph = _Graph(model)
    gone: set[str] = set()
    instead: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if replacement := step(graph, node):
            gone.update(old.name for old in replacement[0])
            instead[node.name] = replacement[1]
    nodes = [new for node in model.graph.node for new in instead.get(node.name, [] if node.name in gone else [node])]
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    tensors += [numpy_helper.from_array(value, name) for name, value in graph.added.items()]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)


def _other(node: onnx.NodeProto, maker: onnx.NodeProto) -> str:
    """The input of a node of two that another node does not make; "" where that makes both."""
    return next((name for name in node.input if name not in maker.output), "")


def _on(node: onnx.NodeProto, inputs: Iterable[str]) -> onnx.NodeProto:
    """The same operation of other inputs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(inputs)
    return copy


def _attribute(node: onnx.NodeProto, name: str, default: Iterable[int]) -> Iterable[int]:
    """Of a list of numbers."""
    return next((attribute.ints for attribute in node.attribute if attribute.name == name), default)
