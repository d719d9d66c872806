"""INT8 graphs: which layers are quantised, what they compute, and that a loss of accuracy is refused."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from exported import random_network
from onnx import TensorProto, helper, numpy_helper
from small_runs import SMALL

import unifygeo_training.quantise.graph
from unifygeo_ros.core.errors import BundleError, ConfigurationError, InputError
from unifygeo_ros.inference.bundle import GRAPHS, GROUND_FEATURES, PYRAMID, Calibration, ModelBundle, load_bundle
from unifygeo_ros.inference.engine_cache import EngineCache
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.inference.tensorrt_engine import Target, compile_engine
from unifygeo_ros.inference.tensorrt_library import load_library
from unifygeo_training.cli import main
from unifygeo_training.export import BundleText, export_bundle
from unifygeo_training.model import UnifyGeo
from unifygeo_training.parity import check_parity
from unifygeo_training.quantise import bundle as quantise
from unifygeo_training.quantise import timing
from unifygeo_training.quantise.bundle import PAIRS, Accuracy, Limits, quantise_bundle
from unifygeo_training.quantise.graph import QuantisedGraph, output_errors, quantise_graph, within_budget
from unifygeo_training.quantise.timing import LEAST_ROUNDS, in_turn
from unifygeo_training.unfold import network_of_bundle
from unifygeo_training.weights import BundleNetwork

ROOT = Path(__file__).resolve().parents[2]
TILES, SPACING_M = 24, 32.0
BUDGET = 0.2
"""Of random networks, whose outputs depend on details that trained ones ignore."""


class Noise:
    """Tiles of coloured noise in a row; each panorama has the colours of its tile."""

    name = "noise"

    def __init__(self, queries: int = 2 * PAIRS + 16) -> None:
        rng = np.random.default_rng(0)
        colours = rng.uniform(40, 215, (TILES, 1, 1, 3))
        self._tiles = np.clip(colours + rng.normal(0, 40, (TILES, 64, 64, 3)), 0, 255).astype(np.uint8)
        self.tiles = rng.integers(0, TILES, (queries, 1))
        panoramas = colours[self.tiles[:, 0]] + rng.normal(0, 40, (queries, 32, 64, 3))
        self._panoramas = np.clip(panoramas, 0, 255).astype(np.uint8)
        self.offsets_m = rng.uniform(-12, 12, (queries, 2))
        self.side_m = np.full(TILES, 64.0)

    def ground_image(self, query: int) -> np.ndarray:
        return self._panoramas[query]

    def aerial_image(self, tile: int) -> np.ndarray:
        return self._tiles[tile]

    def displacement_m(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.stack([(np.asarray(end) - start) * SPACING_M, np.zeros(len(start))], axis=1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    output, text = tmp_path_factory.mktemp("parent") / "small", BundleText("small", "Apache-2.0", "nothing")
    calibration = Calibration(distribution_temperature=0.7)
    with random_network() as network:
        return export_bundle(network, output, text, precisions=("fp32",), calibration=calibration)


@pytest.fixture(scope="module")
def int8(parent: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    anything = Limits(100, 100, 1000)
    output = tmp_path_factory.mktemp("int8") / "small-int8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantise, "LEAST_WITHIN_PERCENT", 0.0)  # a random network localizes nothing
        return quantise_bundle(parent, [Noise()], output, name="small-int8", limits=anything, error_budget=BUDGET)


@pytest.fixture
def graphs_of_before(int8: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs are not made again, which takes most of the time."""

    def read(file: Path, *_: object, where_faster: bool) -> QuantisedGraph:
        model = onnx.load(int8.graph_path(file.name.split(".")[0], "int8"))
        return QuantisedGraph(model, {}, () if where_faster else ("any",), 0.0)

    monkeypatch.setattr(quantise, "quantise_graph", read)


# Which layers ---------------------------------------------------------------------------------------------------------


def test_errors_of_layers_add_in_squares_at_every_output() -> None:
    errors = {"a": {"d": 0.04, "m": 0.01}, "b": {"d": 0.03, "m": 0.0}, "c": {"d": 0.0, "m": 0.06}}
    assert within_budget(errors, 0.0499) == ("b",)
    assert within_budget(errors, 0.0501) == ("a", "b")  # √(0.03² + 0.04²), and c alone is too much
    assert within_budget(errors, 0.0609) == ("a", "b", "c")  # √(0.01² + 0.06²) = 0.0608 of m
    assert within_budget({"a": {"d": np.inf}, "b": {"d": 0.5}}, 0.1) == ()


def test_output_errors_by_hand() -> None:
    expected = {"f0": np.array([[3.0, 4.0]]), "logits": np.log([[[1.0, 3.0]]])}
    found = {"f0": np.array([[3.0, 4.5]]), "logits": np.log([[[1.0, 1.0]]]) + 7}
    errors = output_errors(found, expected)
    assert errors["f0"] == pytest.approx(0.1)  # 0.5 of 5
    assert errors["logits"] == pytest.approx(np.hypot(0.25, 0.25) / np.hypot(0.25, 0.75))  # ½ ½ for ¼ ¾
    assert output_errors({"f0": np.array([[np.nan, 4.0]])}, {"f0": expected["f0"]}) == {"f0": np.inf}


def _two_products(folder: Path, outlier: float) -> Path:
    """y = x·A + (x scaled, its first channel by `outlier`)·B, where B does not look at that channel."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 16, 16)).astype(np.float32)
    b[0] = 0
    scale = np.ones(16, np.float32)
    scale[0] = outlier
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["xa"], name="plain"),
        helper.make_node("Mul", ["x", "scale"], ["scaled"], name="scaling"),
        helper.make_node("MatMul", ["scaled", "B"], ["xb"], name="with_outlier"),
        helper.make_node("Add", ["xa", "xb"], ["y"], name="sum"),
    ]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 16])  # noqa: E731
    constants = [numpy_helper.from_array(v, n) for n, v in (("A", a), ("B", b), ("scale", scale))]
    graph = helper.make_graph(nodes, "two", [value("x")], [value("y")], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "two.onnx")
    return folder / "two.onnx"


@pytest.mark.parametrize(("outlier", "kept"), [(2.0, ()), (1000.0, ("with_outlier",))])
def test_layer_that_quantisation_destroys_stays_in_fp32(tmp_path: Path, outlier: float, kept: tuple[str, ...]) -> None:
    """A channel 1000 times the others leaves them less than one step of an int8 that has one scale for all."""
    x = np.random.default_rng(1).normal(size=(32, 4, 16)).astype(np.float32)
    found = quantise_graph(_two_products(tmp_path, outlier), [{"x": row[None]} for row in x], {"x": x}, 0.1)
    assert found.kept == kept
    assert set(found.quantised) == {"plain", "with_outlier"} - set(kept)
    assert found.error < 0.02
    if kept:
        assert found.errors["with_outlier"]["y"] > 0.5


def test_budget_that_no_layer_keeps_is_refused(tmp_path: Path) -> None:
    x = np.ones((4, 4, 16), np.float32) * np.linspace(0.1, 1, 16, dtype=np.float32)
    with pytest.raises(InputError, match=r"least sensitive of 2 layers makes an error of .* give a larger --error-bud"):
        quantise_graph(_two_products(tmp_path, 2.0), [{"x": x[:1]}], {"x": x}, 1e-9)


@pytest.mark.parametrize(
    ("cost", "where_faster", "taken"),
    [
        ({"plain": -1, "with_outlier": 2}, False, ("plain", "with_outlier")),
        ({"plain": -1, "with_outlier": 2}, True, ("plain",)),
        ({"plain": -1, "with_outlier": -2}, True, ("plain", "with_outlier")),
        ({"plain": -1, "with_outlier": 1, "together": -1}, True, ("plain", "with_outlier")),
        ({"plain": -1, "with_outlier": 2, "together": -1}, True, ("plain",)),  # 9 ms, both 10 ms
        ({"plain": 1, "with_outlier": 2}, True, ()),
        ({"plain": -0.6, "with_outlier": -0.05}, True, ("plain", "with_outlier")),
        ({"plain": -0.6, "with_outlier": -0.05, "together": 0.1}, True, ("plain",)),
        ({"plain": -0.6, "with_outlier": -0.2, "together": 0.1}, True, ("plain", "with_outlier")),
        ({"plain": -0.4, "with_outlier": 0}, True, ()),
        ({"plain": 1, "with_outlier": 2, "together": -4}, True, ("plain", "with_outlier")),
        ({"plain": 1, "with_outlier": 2, "together": -3}, True, ()),
    ],
)
def test_layers_that_cost_time_stay_in_fp32_where_time_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cost: dict[str, float],
    where_faster: bool,
    taken: tuple[str, ...],
) -> None:
    """With made-up costs: 10 ms, and so much more with each layer in INT8, and with both."""

    def int8_layers(model: onnx.ModelProto) -> set[str]:
        made_by = {output: node.op_type for node in model.graph.node for output in node.output}
        return {n.name for n in model.graph.node if n.op_type == "MatMul" and made_by.get(n.input[1]) is not None}

    def made_up(first: onnx.ModelProto, second: onnx.ModelProto, feed: dict[str, np.ndarray]) -> tuple[float, float]:
        assert not int8_layers(first)
        assert feed["x"].shape == (1, 4, 16)
        found = int8_layers(second)
        both = cost.get("together", 0) if len(found) == 2 else 0
        return 0.010, 0.010 + 0.001 * (sum(cost[name] for name in found) + both)

    monkeypatch.setattr(unifygeo_training.quantise.graph, "processor_s", made_up)
    x = np.random.default_rng(1).normal(size=(32, 4, 16)).astype(np.float32)
    feeds = [{"x": row[None]} for row in x]
    found = quantise_graph(_two_products(tmp_path, 2.0), feeds, {"x": x}, 0.1, where_faster=where_faster)
    assert set(found.quantised) == int8_layers(found.model) == set(taken)
    assert set(found.kept) == {"plain", "with_outlier"} - set(taken)
    both = cost.get("together", 0) if len(taken) == 2 else 0
    assert found.milliseconds == pytest.approx((10, 10 + sum(cost[name] for name in taken) + both))
    assert (found.error > 0) == bool(taken)


def test_times_are_those_of_the_processor_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST_S", 0.2)
    order = []

    def work(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            end_s = time.process_time() + seconds
            while time.process_time() < end_s:
                pass
            time.sleep(0.001)  # takes time, but not the processor's

        return run

    before_s, after_s = in_turn(work("before", 0.002), work("after", 0.003))
    assert before_s == pytest.approx(0.002, rel=0.2)
    assert after_s == pytest.approx(0.003, rel=0.2)
    assert order[:4] == ["before", "after"] * 2
    assert order.count("before") == order.count("after") >= 0.2 / 0.006
    order.clear()
    monkeypatch.setattr(timing, "LEAST_S", 0.0)
    in_turn(work("before", 0.0), work("after", 0.0))
    assert order == ["before", "after"] * (LEAST_ROUNDS + 1)


# What they compute ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _outputs(network: UnifyGeo | BundleNetwork) -> dict[str, np.ndarray]:
    """Of images that were not used for the ranges. The decoder gets the network's own features."""
    data = Noise()
    queries = [3, 5, 8, 13, 21]
    ground = network.encode_ground(torch.from_numpy(np.stack([data.ground_image(q) for q in queries])))
    tiles = torch.from_numpy(np.stack([data.aerial_image(int(data.tiles[q, 0])) for q in queries]))
    aerial = network.encode_aerial(tiles)
    decoded = network.decode(ground.levels, aerial.pyramid)
    named = {"ground descriptor": ground.descriptor, "aerial descriptor": aerial.descriptor, "M": aerial.match_map}
    named |= dict(zip((*GROUND_FEATURES, *PYRAMID), (*ground.levels, *aerial.pyramid), strict=True))
    return {name: value.numpy() for name, value in {**named, "logits": decoded.logits}.items()}


def test_int8_computes_what_its_own_fp32_graphs_compute(parent: ModelBundle, int8: ModelBundle) -> None:
    """To a few percent; graphs of other weights, or that answer every image alike, are ten times further off."""
    expected, found = _outputs(BundleNetwork(parent)), _outputs(BundleNetwork(int8))
    torch.manual_seed(1)
    strangers = _outputs(UnifyGeo(SMALL).eval())
    errors, others = output_errors(found, expected), output_errors(strangers, expected)
    for name in expected:
        assert 0 < errors[name] < 0.1, name
        if name != "logits":  # D of a random network is nearly flat, whatever the weights
            assert others[name] > 5 * errors[name], name
        varying = expected[name] - expected[name].mean(axis=0)
        deviation = (found[name] - found[name].mean(axis=0)) - varying
        assert np.mean(deviation**2) < 0.1 * np.mean(varying**2), name


@pytest.mark.parametrize("graph", GRAPHS)
def test_quantised_layers_are_what_tensorrt_takes(parent: ModelBundle, int8: ModelBundle, graph: str) -> None:
    """Symmetric int8, weights per output channel, no quantised biases, standard operators of the exported opset.

    Depthwise and transposed convolutions are left out."""
    model = onnx.load(int8.graph_path(graph, "int8"))
    exported = onnx.load(parent.graph_path(graph, "fp32"))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version <= exported.ir_version
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantising = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quantising:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    made_by = {output: node for node in model.graph.node for output in node.output}
    layers = 0
    for node in model.graph.node:
        kernel = made_by.get(node.input[1]) if len(node.input) > 1 else None
        if kernel is not None and kernel.op_type == "DequantizeLinear" and kernel.input[0] in constants:
            layers += 1
            assert node.op_type in ("Conv", "MatMul")
            assert all(attribute.i == 1 for attribute in node.attribute if attribute.name == "group")
            assert len(node.input) == 2
            weight = constants[kernel.input[0]]
            assert weight.dtype == np.int8
            assert constants[kernel.input[1]].shape == (weight.shape[0 if node.op_type == "Conv" else 1],)
    step = int8.manifest.lineage[-1]["graphs"][graph]
    assert layers == step["int8_layers"] > 0


def test_engines_take_the_int8_graphs_of_a_bundle_that_holds_no_others(int8: ModelBundle) -> None:
    """They compute what the graph says, in float after each DequantizeLinear, also where sums of products of int8
    would overflow 16 bits, as they do in these random layers on CPUs without VNNI."""
    panorama = Noise().ground_image(3)[None]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(int8.graph_path("ground_encoder", "int8")), options, providers=["CPUExecutionProvider"]
    )
    with open_engines(int8, backend="onnx_cpu", threads=1) as engines:
        assert engines.description.endswith("int8")
        found = engines.ground_encoder.run({"image": panorama})
    names = [output.name for output in session.get_outputs()]
    for name, value in zip(names, session.run(None, {"image": panorama}), strict=True):
        np.testing.assert_allclose(found[name], value, atol=0.02 * np.abs(value).max())


# The bundle -----------------------------------------------------------------------------------------------------------


def test_manifest_says_precision_parent_data_and_accuracy(parent: ModelBundle, int8: ModelBundle) -> None:
    manifest = load_bundle(int8.path).manifest
    assert {graph: set(files) for graph, files in manifest.graphs.items()} == {graph: {"int8"} for graph in GRAPHS}
    assert sorted(file.name for file in int8.path.iterdir()) == [
        "aerial_encoder.int8.onnx", "decoder.int8.onnx", "ground_encoder.int8.onnx", "manifest.json"
    ]  # fmt: skip
    assert manifest.weights_sha256 == parent.manifest.weights_sha256
    assert manifest.calibration == parent.manifest.calibration
    assert manifest.calibrated
    (step,) = manifest.lineage
    assert step["made_by"] == "unifygeo-train export --quantise"
    assert step["parent_sha256"] == parent.manifest.sha256
    assert step["data"] == "noise: 32 pairs, 48 judged"
    assert step["where_faster"] is False
    for graph in GRAPHS:
        before_ms, after_ms = step["graphs"][graph]["milliseconds"]
        assert after_ms > 0
        assert 0 < before_ms < 1000
    assert step["limits"] == {"recall_5_points": 100, "within_5_m_points": 100, "median_m": 1000}
    judged = quantise._accuracy(BundleNetwork(int8), [_others()])
    assert step["accuracy"]["int8"] == dataclasses.asdict(judged)
    assert step["accuracy"]["fp32"] == dataclasses.asdict(quantise._accuracy(BundleNetwork(parent), [_others()]))


@torch.no_grad()
def test_on_a_parents_index_the_gallery_alone_is_the_parents(parent: ModelBundle, int8: ModelBundle) -> None:
    index, robot = BundleNetwork(parent), BundleNetwork(int8)
    mixed = quantise._OnIndexOf(index, robot)
    panorama, tile = (torch.from_numpy(image[None]) for image in (Noise().ground_image(0), Noise().aerial_image(0)))
    ours, theirs = mixed.encode_ground(panorama), robot.encode_ground(panorama)
    assert torch.equal(ours.descriptor, theirs.descriptor)
    gallery, wanted, other = (one.encode_aerial(tile) for one in (mixed, index, robot))
    assert torch.equal(gallery.descriptor, wanted.descriptor)
    assert torch.equal(gallery.match_map, wanted.match_map)
    assert not torch.equal(gallery.descriptor, other.descriptor)
    decoded = mixed.encode_aerial(tile, descriptor=False)
    assert all(torch.equal(a, b) for a, b in zip(decoded.pyramid, other.pyramid, strict=True))
    assert not torch.equal(decoded.pyramid[0], wanted.pyramid[0])
    logits = [one.decode(theirs.levels, other.pyramid).logits for one in (mixed, robot, index)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def _others() -> quantise._Queries:
    """The queries that the ranges were not taken from, chosen here again."""
    data = Noise()
    taken = {round(k * (len(data.tiles) - 1) / (PAIRS - 1) - 0.499) for k in range(PAIRS)}
    return quantise._Queries(data, np.array([q for q in range(len(data.tiles)) if q not in taken]))


def test_bundle_info_shows_the_accuracy(int8: ModelBundle, capsys: pytest.CaptureFixture[str]) -> None:
    from unifygeo_ros.cli import main as robot

    assert robot(["bundle", "info", str(int8.path)]) == 0
    printed = capsys.readouterr().out
    found = int8.manifest.lineage[0]["accuracy"]["int8_on_fp32_index"]
    (line,) = [line for line in printed.splitlines() if line.startswith("  int8 on fp32 index")]
    assert f"R@5 {found['recall_5']:.1f}%" in line
    assert f"median {found['median_m']:.3f} m" in line


def test_losses_are_judged_against_each_limit() -> None:
    before, limits = Accuracy(90.0, 80.0, 0.40), Limits(1.0, 2.0, 0.03)
    assert before.losses(Accuracy(89.0, 78.0, 0.43), limits) == []
    assert before.losses(Accuracy(100.0, 100.0, 0.0), limits) == []
    assert before.losses(Accuracy(88.9, 78.0, 0.43), limits) == ["R@5 90.00% → 88.90% (at most 1% worse)"]
    assert before.losses(Accuracy(89.0, 77.9, 0.43), limits) == ["within 5 m 80.00% → 77.90% (at most 2% worse)"]
    assert before.losses(Accuracy(89.0, 78.0, 0.44), limits) == ["median 0.40 m → 0.44 m (at most 0.03 m worse)"]
    assert len(before.losses(Accuracy(np.nan, np.nan, np.nan), limits)) == 3


def _worse_robot(judged: list[Accuracy]) -> Callable[..., Accuracy]:
    return lambda *_: judged.pop(0)


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ([(90, 19, 0.4), (90, 19, 0.4), (90, 19, 0.4)], r"^19\.0% of the fp32 graphs' answers lie within 5 m, too few"),
        (
            [(90, 80, 0.4), (88, 80, 0.4), (90, 80, 0.4)],
            r"too much accuracy: R@5 90\.00% → 88\.00%.*--error-budget.*--accept-loss",
        ),
        ([(90, 80, 0.4), (90, 80, 0.4), (90, 78, 0.4)], r"on an index that the fp32 graphs made: within 5 m 80\.00%"),
    ],
)
def test_loss_beyond_the_limits_is_refused_and_leaves_nothing(
    parent: ModelBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    graphs_of_before: None,
    judged: list[tuple[float, float, float]],
    message: str,
) -> None:
    monkeypatch.setattr(quantise, "_accuracy", _worse_robot([Accuracy(*values) for values in judged]))
    with pytest.raises(InputError, match=f"{message}.*; nothing was written"):
        quantise_bundle(parent, [Noise()], tmp_path / "int8", name="int8", error_budget=BUDGET)
    assert list(tmp_path.iterdir()) == []


def test_bundle_that_would_not_be_faster_is_refused(
    parent: ModelBundle, tmp_path: Path, graphs_of_before: None
) -> None:
    with pytest.raises(InputError, match="no layer is faster in INT8 on this processor; use the fp32 bundle"):
        quantise_bundle(parent, [Noise()], tmp_path / "int8", name="int8", where_faster=True)
    assert list(tmp_path.iterdir()) == []


def test_too_little_data_and_parents_without_fp32_are_refused(
    parent: ModelBundle, int8: ModelBundle, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="63 panoramas are too few"):
        quantise_bundle(parent, [Noise(63)], tmp_path / "a", name="a")
    with pytest.raises(ConfigurationError, match="exists"):
        quantise_bundle(parent, [Noise()], int8.path, name="a")
    with pytest.raises(BundleError, match="is not there in fp32, only in"):
        quantise_bundle(int8, [Noise()], tmp_path / "b", name="b")
    with pytest.raises(InputError, match="from which no network can be rebuilt"):
        network_of_bundle(int8)
    nothing = np.zeros((1, 32, 64, 3), np.uint8)
    with pytest.raises(InputError, match="holds int8 graphs alone; the parity is that of the bundle it was made of"):
        check_parity(UnifyGeo(SMALL), int8, nothing, nothing, "nothing")
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_what_does_not_belong_to_int8(
    parent: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "int8")]
    data = tmp_path / "town"
    data.mkdir()
    for more, message in (
        (["--error-budget", "0.1"], "give --quantise DATA, too"),
        (["--quantise", str(data), "--compact"], "leave --precision and --compact out"),
        (["--quantise", str(data), "--precision", "fp16"], "leave --precision and --compact out"),
        (["--quantise", str(data), "--licence", "MIT"], "are those of the bundle"),
        (["--quantise", str(data), "--error-budget", "-1"], "--error-budget is -1, must be above 0"),
        (["--quantise", str(data), "--accept-loss", "1", "1", "nan"], "must be three numbers of at least 0"),
        (["--quantise", str(data)], "is no cached town"),
    ):
        assert main(["export", str(parent.path), *output, *more]) == 2, more
        assert message in capsys.readouterr().err, more
    assert [path.name for path in tmp_path.iterdir()] == ["town"]
    record = {"seed": 1000}
    (data / "town.json").write_text(json.dumps(record))
    assert main(["export", str(parent.path), *output, "--quantise", str(data)]) == 2


# The shipped model ----------------------------------------------------------------------------------------------------


FEW = Limits(3.0, 3.0, 0.03)
"""Of the demo's 116 queries each is 0.9 points: by chance two or three differ, which the default limits refuse."""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """The shipped model in INT8, by the command, on the demo's drive: 162 images and the town's imagery."""
    folder = tmp_path_factory.mktemp("shipped")
    drive = {
        "bag": str(ROOT / "demo/drive/bag"),
        "imagery": str(ROOT / "demo/drive/town.tif"),
        "truth_topic": "/ground_truth/odometry",
    }
    (folder / "drives.yaml").write_text(yaml.safe_dump({"drives": [{**drive, "set": {"camera.x_m": 0.2}}]}))
    command = ["export", str(ROOT / "models/towns-atto"), "--quantise", str(folder / "drives.yaml")]
    command += ["--accept-loss", *map(str, dataclasses.astuple(FEW))]
    assert main([*command, "--output", str(folder / "towns-atto-int8")]) == 0
    return load_bundle(folder / "towns-atto-int8")


@pytest.mark.slow
def test_shipped_model_localizes_as_well_in_int8(shipped: ModelBundle) -> None:
    """Within the limits that the command keeps; most layers are in INT8 and the files are half as large."""
    (step,) = shipped.manifest.lineage[-1:]
    before, after = (Accuracy(**step["accuracy"][name]) for name in ("fp32", "int8"))
    assert before.recall_5 > 80
    assert before.within_5_m > 70
    assert before.losses(after, FEW) == []
    assert {name: graph["int8_layers"] for name, graph in step["graphs"].items() if name != "decoder"} == {
        "ground_encoder": 36,
        "aerial_encoder": 33,
    }
    assert 0 < step["graphs"]["decoder"]["int8_layers"] <= 7
    sizes = [sum(f.stat().st_size for f in path.iterdir()) for path in (shipped.path, ROOT / "models/towns-atto")]
    assert sizes[0] < 0.7 * sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("compute_capability", [(8, 6), (8, 9), (12, 0)])
@pytest.mark.parametrize("graph", GRAPHS)
def test_tensorrt_rtx_builds_the_int8_graphs_with_int8_weights(
    shipped: ModelBundle, tmp_path: Path, graph: str, compute_capability: tuple[int, int]
) -> None:
    """By the product's own code. TensorRT-RTX shows an engine's layers on a GPU alone; without one the plan is searched
    for the weights of the matrix products, which it holds as they are in the graph: int8, and not as floats."""
    pytest.importorskip("tensorrt_rtx_bindings")
    library, cache = load_library("tensorrt_rtx"), EngineCache(tmp_path / "cache")
    built = compile_engine(shipped, graph, "int8", library, cache, Target(compute_capability))
    model = onnx.load(shipped.graph_path(graph, "int8"))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    products = 0
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants or constants[node.input[0]].ndim != 2:
            continue
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        products += 1
        assert weight.tobytes() in built.plan, node.name
        assert (weight.astype(np.float32) * scale).tobytes() not in built.plan, node.name
    assert products == (0 if graph == "decoder" else 24)
    assert len(built.plan) > 1_000_000
