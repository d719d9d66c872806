"""Rewritten graphs: what goes, and that they compute the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from exported import random_network
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from unifygeo_training.export import build_graphs
from unifygeo_training.quantise.rewrite import rewrite, rewrite_floats

CONSTANTS = {
    "scale": np.array([0.01, 0.02, 0.03]),
    "shift": np.array([-1.0, 0.5, 2.0]),
    "scale of planes": np.array([0.01, 0.02, 0.03]).reshape(3, 1, 1),
    "shift of planes": np.array([-1.0, 0.5, 2.0]).reshape(3, 1, 1),
    "kernel": np.random.default_rng(0).normal(size=(4, 3, 2, 2)),
    "bias": np.array([1.0, -2.0, 3.0, 0.5]),
    "A": np.random.default_rng(1).normal(size=(4, 5)),
    "b": np.linspace(-1, 1, 5),
    "gamma": np.array([0.1, 2.0, -1.0, 0.5, 3.0]),
    "gamma of maps": np.array([0.1, 2.0, -1.0, 0.5, 3.0]).reshape(1, 5, 1, 1),
    "half": np.array(0.5),
    "one": np.array(1.0),
    "two": np.array(2.0),
    "root": np.array(math.sqrt(2)),
}


def _model(nodes: list[tuple[str, ...]], kind: int, shape: list[int], **attributes: dict[str, list[int]]):
    """x → y; each node is (operator, inputs …, output), named as its output."""
    made = [helper.make_node(n[0], n[1:-1], [n[-1]], name=n[-1], **attributes.get(n[-1], {})) for n in nodes]
    used = {name for node in nodes for name in node[1:-1]}
    constants = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in CONSTANTS.items() if n in used]
    x, y = (
        helper.make_tensor_value_info("x", kind, shape),
        helper.make_tensor_value_info("y", 1, list("abcd"[: len(shape)])),
    )
    graph = helper.make_graph(made, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def _kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def _image_nodes(**changes: str) -> list[tuple[str, ...]]:
    return [
        ("Cast", "x", "cast"),
        ("Mul", "cast", "scale", "scaled"),
        ("Add", "scaled", "shift", "shifted"),
        ("Transpose", "shifted", "turned"),
        ("Conv", "turned", "kernel", "bias", "y"),
    ]


IMAGE = {"cast": {"to": TensorProto.FLOAT}, "turned": {"perm": [0, 3, 1, 2]}, "y": {"strides": [2, 2]}}


def test_normalisation_goes_into_the_first_convolution() -> None:
    """Against a convolution that is written out; the bytes reach it as integers of −128 … 127."""
    model = _model(_image_nodes(), TensorProto.UINT8, [1, 4, 6, 3], **IMAGE)
    x = np.random.default_rng(2).integers(0, 256, (1, 4, 6, 3), dtype=np.uint8)
    rewrite(model)
    assert _kinds(model) == ["Cast", "Sub", "Transpose", "Conv"]
    assert numpy_helper.to_array(next(t for t in model.graph.initializer if "zero" in t.name)) == 128
    normalised = x * CONSTANTS["scale"] + CONSTANTS["shift"]
    blocks = normalised.reshape(2, 2, 3, 2, 3)  # rows, in a block; columns, in a block; channels
    expected = np.einsum("rackd,odac->ork", blocks.transpose(0, 1, 3, 2, 4), CONSTANTS["kernel"])
    np.testing.assert_allclose(_run(model, x)[0], expected + CONSTANTS["bias"][:, None, None], rtol=1e-4, atol=1e-4)


def test_normalisation_after_the_change_of_the_axes_goes_too() -> None:
    """As exports have it now: planes first."""
    nodes = [
        ("Cast", "x", "cast"),
        ("Transpose", "cast", "turned"),
        ("Mul", "turned", "scale of planes", "scaled"),
        ("Add", "scaled", "shift of planes", "shifted"),
        ("Conv", "shifted", "kernel", "bias", "y"),
    ]
    x = np.random.default_rng(2).integers(0, 256, (1, 4, 6, 3), dtype=np.uint8)
    model = _model(nodes, TensorProto.UINT8, [1, 4, 6, 3], **IMAGE)
    interleaved = _model(_image_nodes(), TensorProto.UINT8, [1, 4, 6, 3], **IMAGE)
    expected = _run(interleaved, x)
    rewrite(model)
    assert _kinds(model) == ["Cast", "Transpose", "Sub", "Conv"]
    np.testing.assert_allclose(_run(model, x), expected, rtol=1e-4, atol=1e-4)


def test_normalisation_stays_before_a_convolution_with_a_border() -> None:
    """What is outside of the image is zero after the normalisation, which no shift of the bias can give."""
    model = _model(_image_nodes(), TensorProto.UINT8, [1, 4, 6, 3], **{**IMAGE, "y": {"pads": [1, 1, 1, 1]}})
    before = _kinds(model)
    rewrite(model)
    assert _kinds(model) == before


GELU = [
    ("Div", "x", "root", "divided"),
    ("Erf", "divided", "erf"),
    ("Add", "erf", "one", "shifted"),
    ("Mul", "half", "shifted", "halved"),
    ("Mul", "x", "halved", "y"),
]


def test_gelu_is_written_as_onnx_runtime_knows_it(tmp_path: Path) -> None:
    model = _model(GELU, TensorProto.FLOAT, [1, 4, 16])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    rewrite(model)
    x = np.linspace(-5, 5, 64, dtype=np.float32).reshape(1, 4, 16)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.reshape(-1).tolist()]
    np.testing.assert_allclose(_run(model, x).reshape(-1), expected, atol=1e-6)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert _kinds(onnx.load(tmp_path / "optimised.onnx")) == ["Gelu"]


@pytest.mark.parametrize(("place", "factor"), [(3, "two"), (2, "half"), (0, "two")])
def test_what_is_no_gelu_stays(place: int, factor: str) -> None:
    nodes = [list(node) for node in GELU]
    nodes[place] = [factor if name in ("half", "one", "root") else name for name in nodes[place]]
    model = _model([tuple(node) for node in nodes], TensorProto.FLOAT, [1, 4, 16])
    before = model.SerializeToString()
    rewrite(model)
    assert [list(n.input) for n in model.graph.node] == [
        list(n.input) for n in onnx.load_from_string(before).graph.node
    ]


LINEAR = [("MatMul", "x", "A", "product"), ("Add", "product", "b", "sum"), ("Mul", "sum", "gamma", "y")]


def test_layer_scale_goes_into_the_layer() -> None:
    model = _model(LINEAR, TensorProto.FLOAT, [2, 3, 4])
    rewrite(model)
    assert _kinds(model) == ["MatMul", "Add"]
    x = np.random.default_rng(3).normal(size=(2, 3, 4)).astype(np.float32)
    expected = (x @ CONSTANTS["A"] + CONSTANTS["b"]) * CONSTANTS["gamma"]
    np.testing.assert_allclose(_run(model, x), expected, rtol=1e-5, atol=1e-5)


def test_layer_scale_goes_through_a_change_of_the_axes() -> None:
    nodes = [*LINEAR[:2], ("Transpose", "sum", "turned"), ("Mul", "turned", "gamma of maps", "y")]
    model = _model(nodes, TensorProto.FLOAT, [2, 3, 3, 4], turned={"perm": [0, 3, 1, 2]})
    rewrite(model)
    assert _kinds(model) == ["MatMul", "Add", "Transpose"]
    x = np.random.default_rng(3).normal(size=(2, 3, 3, 4)).astype(np.float32)
    expected = np.moveaxis((x @ CONSTANTS["A"] + CONSTANTS["b"]) * CONSTANTS["gamma"], 3, 1)
    np.testing.assert_allclose(_run(model, x), expected, rtol=1e-5, atol=1e-5)


def test_scale_of_another_axis_stays() -> None:
    """γ (5,) after NHWC → NCHW is one of columns."""
    nodes = [*LINEAR[:2], ("Transpose", "sum", "turned"), ("Mul", "turned", "gamma", "y")]
    model = _model(nodes, TensorProto.FLOAT, [2, 5, 5, 4], turned={"perm": [0, 3, 1, 2]})
    rewrite(model)
    assert _kinds(model) == ["MatMul", "Add", "Transpose", "Mul"]


def test_layer_whose_output_others_take_keeps_its_scale() -> None:
    model = _model([*LINEAR[:2], ("Mul", "sum", "gamma", "scaled"), ("Add", "scaled", "sum", "y")], 1, [2, 3, 4])
    rewrite(model)
    assert _kinds(model) == ["MatMul", "Add", "Mul", "Add"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """The graphs of a small network as `quantise_graph` gets them."""
    folder, found = tmp_path_factory.mktemp("graphs"), {}
    with random_network() as network:
        for name, model in build_graphs(network, "fp32").items():
            onnx.save(model, folder / "exported.onnx")
            quant_pre_process(str(folder / "exported.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
            found[name] = onnx.load(folder / "prepared.onnx")
    return found


def _random_feeds(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for value in model.graph.input:
        shape = [2, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            yield value.name, rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            yield value.name, rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ["ground_encoder", "aerial_encoder", "decoder"])
def test_exported_graphs_compute_the_same_and_lose_what_can_go(prepared: dict[str, onnx.ModelProto], name: str) -> None:
    before = prepared[name]
    after = onnx.ModelProto()
    after.CopyFrom(before)
    rewrite(after)
    onnx.checker.check_model(after, full_check=True)
    feeds = dict(_random_feeds(before))
    outputs = []
    for model in (before, after):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, feeds))
    for expected, found in zip(*outputs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    if name != "decoder":
        assert _scaled(before) > 2
        assert not _scaled(after)


def _scaled(model: onnx.ModelProto) -> int:
    """Products with a constant of several elements."""
    constants = {tensor.name for tensor in model.graph.initializer if math.prod(tensor.dims) > 1}
    return sum(bool(set(node.input) & constants) for node in model.graph.node if node.op_type == "Mul")


@pytest.mark.parametrize("name", ["ground_encoder", "aerial_encoder"])
def test_exports_in_floats_have_gelu_as_onnx_runtime_knows_it(
    prepared: dict[str, onnx.ModelProto], name: str, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    exported = prepared[name].SerializeToString()
    assert "Erf" in _kinds(onnx.load_from_string(exported))
    onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    kinds = _kinds(onnx.load(tmp_path / "optimised.onnx"))
    assert any(kind.endswith("Gelu") for kind in kinds)
    assert "Erf" not in kinds


def test_colours_are_turned_into_planes_before_they_are_normalised() -> None:
    """To the bit; and without the weights, which are left in their file."""
    model = _model(_image_nodes(), TensorProto.UINT8, [1, 4, 6, 3], **IMAGE)
    x = np.random.default_rng(2).integers(0, 256, (1, 4, 6, 3), dtype=np.uint8)
    expected = _run(model, x)
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    whole = onnx.TensorProto.FromString(kernel.SerializeToString())
    kernel.ClearField("raw_data")
    kernel.data_location = TensorProto.EXTERNAL
    rewrite_floats(model)
    assert _kinds(model) == ["Cast", "Transpose", "Mul", "Add", "Conv"]
    next(tensor for tensor in model.graph.initializer if tensor.name == "kernel").CopyFrom(whole)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(_run(model, x), expected)


def test_constants_of_a_half_precision_graph_stay_so() -> None:
    model = _model(_image_nodes(), TensorProto.UINT8, [1, 4, 6, 3], **{**IMAGE, "cast": {"to": TensorProto.FLOAT16}})
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    rewrite_floats(model)
    assert _kinds(model) == ["Cast", "Transpose", "Mul", "Add", "Conv"]
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
