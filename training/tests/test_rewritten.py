"""A bundle of before, its graphs written anew: the same weights, the same answers, fewer passes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.inference.bundle import (
    MANIFEST_NAME,
    GraphFile,
    ModelBundle,
    load_bundle,
    sha256_of_file,
)
from unifygeo_training import rewritten
from unifygeo_training.cli import main

SHIPPED = Path(__file__).parents[2] / "models" / "towns-atto"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """The shipped bundle as it was exported first."""
    folder = tmp_path_factory.mktemp("before") / "bundle"
    shutil.copytree(SHIPPED, folder)
    return _of_before(load_bundle(folder))


def _of_before(bundle: ModelBundle) -> ModelBundle:
    """GELU as PyTorch exports it, and the images' normalisation before the change of the axes, as once it was."""
    graphs: dict[str, dict[str, GraphFile]] = {}
    for graph, files in bundle.manifest.graphs.items():
        for precision, file in files.items():
            model = onnx.load(bundle.path / file.file, load_external_data=False)
            _undo(model)
            onnx.save(model, bundle.path / file.file)
            hashed = dataclasses.replace(file, sha256=sha256_of_file(bundle.path / file.file))
            graphs.setdefault(graph, {})[precision] = hashed
    manifest = dataclasses.replace(bundle.manifest, graphs=graphs)
    (bundle.path / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return load_bundle(bundle.path)


def _undo(model: onnx.ModelProto) -> None:
    users = {name: node for node in model.graph.node for name in node.input}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Erf":  # (x · (1 + erf)) · ½ → x · (½ · (1 + erf))
            one = users[node.output[0]]
            outer = users[one.output[0]]
            halved = users[outer.output[0]]
            (x,) = (name for name in outer.input if name != one.output[0])
            (half,) = (name for name in halved.input if name != outer.output[0])
            outer.input[:], halved.input[:] = [half, one.output[0]], [x, outer.output[0]]
    cast = next((node for node in model.graph.node if node.op_type == "Cast" and node.input[0] == "image"), None)
    if cast is None:
        return
    turned = users[cast.output[0]]
    mul = users[turned.output[0]]
    add = users[mul.output[0]]
    assert [turned.op_type, mul.op_type, add.op_type] == ["Transpose", "Mul", "Add"]
    for node in (mul, add):
        (name,) = (name for name in node.input if name in constants)
        flat = numpy_helper.from_array(numpy_helper.to_array(constants[name]).reshape(-1), f"{node.name}.of_colours")
        constants[name].CopyFrom(flat)
        node.input[:] = [flat.name if value == name else value for value in node.input]
    planes = add.output[0]
    mul.input[:] = [cast.output[0] if name == turned.output[0] else name for name in mul.input]
    turned.input[0], add.output[0], turned.output[0] = "normalised", "normalised", planes
    nodes = [node for node in model.graph.node if node is not turned]
    nodes.insert(nodes.index(add) + 1, turned)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _order(bundle: ModelBundle, graph: str, precision: str) -> list[str]:
    """The operators from the image on."""
    model = onnx.load(bundle.graph_path(graph, precision), load_external_data=False)
    users = {name: node for node in model.graph.node for name in node.input}
    (node,) = (node for node in model.graph.node if node.op_type == "Cast" and node.input[0] == "image")
    chain = [node]
    while len(chain) < 4:
        chain.append(users[chain[-1].output[0]])
    return [node.op_type for node in chain]


def _run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_bundle_of_before_is_written_as_exports_are_now(parent: ModelBundle, tmp_path: Path, precision: str) -> None:
    assert main(["export", str(parent.path), "--output", str(tmp_path / "anew")]) == 0
    bundle = load_bundle(tmp_path / "anew")
    for graph in ("ground_encoder", "aerial_encoder"):
        assert _order(parent, graph, precision) == ["Cast", "Mul", "Add", "Transpose"]
        assert _order(bundle, graph, precision) == ["Cast", "Transpose", "Mul", "Add"]
    size = bundle.manifest.ground
    image = np.random.default_rng(0).integers(0, 256, (2, size.height, size.width, 3), np.uint8)
    before, after = (_run(b.graph_path("ground_encoder", precision), {"image": image}) for b in (parent, bundle))
    for expected, found in zip(before, after, strict=True):
        assert found.dtype == expected.dtype
        tolerance = {"fp32": 1e-6, "fp16": 4e-3}[precision]
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_weights_calibration_and_all_else_stay(parent: ModelBundle, tmp_path: Path) -> None:
    bundle = rewritten.rewrite_bundle(parent, tmp_path / "anew", name="anew")
    assert bundle.manifest.weights_sha256 == parent.manifest.weights_sha256
    same = dataclasses.replace(
        bundle.manifest, name=parent.manifest.name, graphs=parent.manifest.graphs, lineage=parent.manifest.lineage
    )
    assert same == parent.manifest
    assert bundle.manifest.lineage[-1]["parent_sha256"] == parent.manifest.sha256
    weights = "weights.float16.bin"
    assert (bundle.path / weights).read_bytes() == (parent.path / weights).read_bytes()


def test_gelu_is_one_node_for_onnx_runtime_again(parent: ModelBundle, tmp_path: Path) -> None:
    bundle = rewritten.rewrite_bundle(parent, tmp_path / "anew", name="anew")
    for one, erf in ((parent, True), (bundle, False)):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        path = str(one.graph_path("ground_encoder", "fp32"))
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert ("Erf" in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}) is erf


def test_graphs_that_compute_something_else_are_refused(
    parent: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "node_add.of_colours":
                tensor.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(tensor), tensor.name))

    monkeypatch.setattr(rewritten, "rewrite_floats", wrong)
    with pytest.raises(InputError, match="rewritten, its fp32 graphs differ by"):
        rewritten.rewrite_bundle(parent, tmp_path / "anew", name="anew")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_rewritten_is_refused(
    parent: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(parent.path), "--output", str(tmp_path / "anew"), "--compact"]) == 2
    assert "leave --precision, --compact" in capsys.readouterr().err
    int8 = {graph: {"int8": files["fp32"]} for graph, files in parent.manifest.graphs.items()}
    quantised = dataclasses.replace(parent, manifest=dataclasses.replace(parent.manifest, graphs=int8))
    with pytest.raises(ConfigurationError, match="holds graphs in int8"):
        rewritten.rewrite_bundle(quantised, tmp_path / "anew", name="anew")
    with pytest.raises(ConfigurationError, match="exists"):
        rewritten.rewrite_bundle(parent, parent.path, name="anew")
