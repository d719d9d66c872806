"""The exported bundle in ONNX Runtime and in TensorRT-RTX, both real."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import random_network
from small_runs import SMALL, TOWNS_ATTO

from unifygeo_ros.core.errors import BundleError, ConfigurationError
from unifygeo_ros.inference.bundle import FLOAT_PRECISIONS, GRAPHS, ModelBundle, load_bundle
from unifygeo_training.checkpoint import load_strictly, weights_sha256
from unifygeo_training.export import BundleText, export_bundle
from unifygeo_training.model import NetworkConfig, UnifyGeo
from unifygeo_training.shared_weights import round_to_float16

# What fp16 may cost, relative to the largest value of an output: 2⁻¹¹ a rounding, a few dozen roundings in a row.
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2}


@pytest.fixture(
    scope="module",
    params=[pytest.param(SMALL, id="small"), pytest.param(TOWNS_ATTO, id="atto", marks=pytest.mark.slow)],
)
def network(request: pytest.FixtureRequest) -> Iterator[UnifyGeo]:
    with random_network(request.param) as network:
        yield network


@pytest.fixture(scope="module", params=["plain", "compact"])
def bundle(request: pytest.FixtureRequest, network: UnifyGeo, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    text = BundleText("random", "Apache-2.0", "nothing")
    return export_bundle(
        network, tmp_path_factory.mktemp("export") / "bundle", text, compact=request.param == "compact"
    )


def _session(bundle: ModelBundle, graph: str, precision: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(bundle.graph_path(graph, precision)), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("precision", FLOAT_PRECISIONS)
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_onnx_equals_torch(network: UnifyGeo, bundle: ModelBundle, precision: str, batch: int) -> None:
    rng = np.random.default_rng(batch)
    config = network.config
    panorama = rng.integers(0, 256, (batch, config.ground_height, config.ground_width, 3), dtype=np.uint8)
    tile = rng.integers(0, 256, (batch, config.aerial_size, config.aerial_size, 3), dtype=np.uint8)
    ground = network.encode_ground(torch.from_numpy(panorama))
    aerial = network.encode_aerial(torch.from_numpy(tile))
    logits = network.decode(ground.levels, aerial.pyramid).logits

    dtype = np.float32 if precision == "fp32" else np.float16
    g = _session(bundle, "ground_encoder", precision).run(None, {"image": panorama})
    a = _session(bundle, "aerial_encoder", precision).run(None, {"image": tile})
    levels = {f"f{n}": f.numpy().astype(dtype) for n, f in enumerate(ground.levels)}
    pyramid = {f"pyramid{n}": p.numpy().astype(dtype) for n, p in enumerate(aerial.pyramid)}
    (d,) = _session(bundle, "decoder", precision).run(None, {**levels, **pyramid})

    expected = [ground.descriptor, *ground.levels, aerial.descriptor, aerial.match_map.permute(0, 2, 3, 1)]
    expected += [*aerial.pyramid, logits]
    for ours, theirs in zip([*g, *a, d], expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        error = np.abs(ours.astype(np.float32) - theirs.numpy()).max()
        assert error <= TOLERANCE[precision] * float(theirs.abs().max())
    assert g[0].dtype == a[0].dtype == d.dtype == np.float32
    assert g[1].dtype == a[1].dtype == a[2].dtype == dtype


def test_manifest_rebuilds_the_network(network: UnifyGeo, bundle: ModelBundle) -> None:
    manifest = load_bundle(bundle.path).manifest
    rebuilt = UnifyGeo(NetworkConfig.model_validate(manifest.network))
    load_strictly(rebuilt, network.state_dict(), "the exported network")
    assert weights_sha256(rebuilt) == manifest.weights_sha256
    if network.config == SMALL:
        assert manifest.descriptor_dim == 192
        assert manifest.pyramid == ((192, 2), (96, 4), (64, 8), (32, 16))
        assert manifest.distribution_size == 32
    else:
        assert manifest.descriptor_dim == 320
        assert manifest.pyramid == ((320, 6), (160, 12), (80, 24), (40, 48))
        assert manifest.distribution_size == 96


def test_existing_folder_is_not_overwritten(network: UnifyGeo, bundle: ModelBundle) -> None:
    with pytest.raises(ConfigurationError, match="exists"):
        export_bundle(network, bundle.path, BundleText("random", "Apache-2.0", "nothing"))


def test_export_removes_the_remains_of_a_killed_one(network: UnifyGeo, tmp_path: Path) -> None:
    left = tmp_path / ".bundle.part"
    left.mkdir()
    (left / "decoder.fp32.onnx").write_bytes(b"half of it")
    export_bundle(network, tmp_path / "bundle", BundleText("random", "Apache-2.0", "nothing"), precisions=("fp32",))
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_compact_bundle_is_small(network: UnifyGeo, bundle: ModelBundle) -> None:
    """float16 weights once; less than a third of that for six graphs, folded norms and depthwise kernels in fp32."""
    if bundle.manifest.graphs["decoder"]["fp32"].data_file is None:
        pytest.skip("the plain bundle")
    size = sum(file.stat().st_size for file in bundle.path.iterdir())
    assert size < 1.33 * 2 * sum(value.numel() for value in network.state_dict().values())


def test_kernels_of_grouped_convolutions_are_constants(bundle: ModelBundle) -> None:
    """No node computes them: TensorRT's parser then takes them as weights, not as an input of the convolution."""
    assert bundle.manifest.network is not None
    blocks = {"test_convnext2": 1 + 1 + 1, "convnext_atto": 2 + 2 + 6}[bundle.manifest.network["backbone"]]
    for graph in ("ground_encoder", "aerial_encoder"):
        for precision in FLOAT_PRECISIONS:
            model = onnx.load(bundle.graph_path(graph, precision), load_external_data=False)
            constants = {initializer.name for initializer in model.graph.initializer}
            kernels = [
                node.input[1]
                for node in model.graph.node
                if any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
            ]
            assert len(kernels) == blocks + 2  # one of each block of the trunk, and of each head
            assert constants.issuperset(kernels), (graph, precision)


def test_damaged_weights_file_is_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(bundle.path, copied)
    entry = bundle.manifest.graphs["decoder"]["fp16"]
    file = copied / entry.files[-1][0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=re.escape(file.name)):
        load_bundle(copied)


def test_weights_too_large_for_float16_are_named() -> None:
    network = UnifyGeo(TOWNS_ATTO)
    with torch.no_grad():
        network.decoder.output[0].bias[0] = 1e5
    with pytest.raises(ConfigurationError, match=r"decoder\.output\.0\.bias"):
        round_to_float16(network)


def test_weights_hash_changes_with_any_weight(network: UnifyGeo) -> None:
    before = weights_sha256(network)
    parameter = network.decoder.output[0].bias
    with torch.no_grad():
        parameter[3] += 1e-3
        changed = weights_sha256(network)
        parameter[3] -= 1e-3
    assert changed != before


@pytest.mark.parametrize("precision", FLOAT_PRECISIONS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_build_as_tensorrt_rtx_engines(bundle: ModelBundle, graph: str, precision: str) -> None:
    """Real engines for a compute capability (Ada, SM89) that this machine need not have."""
    if bundle.manifest.graphs["decoder"]["fp32"].data_file is None:
        pytest.skip("the plain bundle, which has the same graphs")
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    definition = builder.create_network(0)  # RTX knows strongly typed networks only
    parser = trt.OnnxParser(definition, logger)
    assert parser.parse_from_file(str(bundle.graph_path(graph, precision))), [
        parser.get_error(n).desc() for n in range(parser.num_errors)
    ]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for n in range(definition.num_inputs):
        tensor = definition.get_input(n)
        shape = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *shape), (1, *shape), (8, *shape))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(definition, config)
    assert engine is not None
    assert engine.nbytes > 1_000_000
