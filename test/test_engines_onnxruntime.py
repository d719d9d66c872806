"""ONNX Runtime engines and the choice of backend, on a real bundle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from bundles import random_bundle
from onnx import TensorProto, helper, numpy_helper

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.inference import onnxruntime_engine
from unifygeo_ros.inference.bundle import LEVELS, ModelBundle
from unifygeo_ros.inference.engine import EngineSet
from unifygeo_ros.inference.onnxruntime_engine import session_options, share_memory
from unifygeo_ros.inference.select import open_engines


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return random_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def engines(bundle: ModelBundle, request: pytest.FixtureRequest) -> EngineSet:
    return open_engines(bundle, backend="onnx_cpu", precision=request.param, threads=1)


def images(shape: tuple[int, ...], batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (batch, *shape, 3), dtype=np.uint8)


def test_outputs_have_the_manifests_names_shapes_and_lengths(bundle: ModelBundle, engines: EngineSet) -> None:
    manifest = bundle.manifest
    ground = engines.ground_encoder.run({"image": images((manifest.ground.height, manifest.ground.width))})
    aerial = engines.aerial_encoder.run({"image": images((manifest.aerial.size, manifest.aerial.size))})
    f = {f"f{level}": ground[f"f{level}"] for level in range(LEVELS)}
    pyramid = {f"pyramid{level}": aerial[f"pyramid{level}"] for level in range(LEVELS)}
    logits = engines.decoder.run({**f, **pyramid})["logits"]

    assert set(ground) == {"descriptor", *f}
    assert set(aerial) == {"descriptor", "match_map", *pyramid}
    size, channels = manifest.match_size, manifest.match_channels
    assert aerial["match_map"].shape == (2, size, size, channels)
    assert ground["descriptor"].shape == aerial["descriptor"].shape == (2, manifest.descriptor_dim)
    for level, (depth, side) in enumerate(manifest.pyramid):
        assert f[f"f{level}"].shape == (2, depth)
        assert pyramid[f"pyramid{level}"].shape == (2, depth, side, side)
    assert logits.shape == (2, manifest.distribution_size, manifest.distribution_size)
    assert all(array.dtype == np.float32 for array in (*ground.values(), *aerial.values(), logits))
    for unit in (ground["descriptor"], aerial["descriptor"], aerial["match_map"], *f.values()):
        np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1.0, atol=2e-3)


def test_sessions_that_share_their_memory_do_not_disturb_each_other(bundle: ModelBundle) -> None:
    """Two sets of engines in threads of their own, with residents that outlive the runs after them."""
    manifest = bundle.manifest
    names = [f"pyramid{level}" for level in range(LEVELS)]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1) as engines:
            tiles = rng.integers(0, 256, (12, 1, manifest.aerial.size, manifest.aerial.size, 3), dtype=np.uint8)
            expected = [engines.aerial_encoder.run({"image": tile}) for tile in tiles]
            residents = []
            for batch in (1, 3, 2) * 4:
                tile = tiles[len(residents)]
                engines.aerial_encoder.run({"image": np.concatenate([tiles[0]] * batch)})
                residents.append(engines.aerial_encoder.run_resident({"image": tile}, names, ())[1])
            for wanted, found in zip(expected, residents, strict=True):
                for name in names:
                    np.testing.assert_array_equal(found[name].numpy(), wanted[name])  # type: ignore[attr-defined]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    options = session_options(1)
    share_memory(options)
    assert options.get_session_config_entry("session.use_env_allocators") == "1"
    assert not options.enable_mem_pattern


def test_batch_equals_single(bundle: ModelBundle, engines: EngineSet) -> None:
    batch = images((bundle.manifest.aerial.size, bundle.manifest.aerial.size), 3)
    together = engines.aerial_encoder.run({"image": batch})
    for i in range(3):
        alone = engines.aerial_encoder.run({"image": batch[i : i + 1]})
        for name in together:
            np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-3, atol=1e-3)


def test_residents_chain_as_host_arrays_do(bundle: ModelBundle, engines: EngineSet) -> None:
    ground = {"image": images((bundle.manifest.ground.height, bundle.manifest.ground.width))}
    aerial = {"image": images((bundle.manifest.aerial.size, bundle.manifest.aerial.size))}
    f = [f"f{level}" for level in range(LEVELS)]
    pyramid = [f"pyramid{level}" for level in range(LEVELS)]
    host, kept_f = engines.ground_encoder.run_resident(ground, f)
    rest, kept_pyramid = engines.aerial_encoder.run_resident(aerial, pyramid)
    assert set(host) == {"descriptor"}
    assert set(rest) == {"descriptor", "match_map"}
    chained = engines.decoder.run({**kept_f, **kept_pyramid})["logits"]

    all_ground, all_aerial = engines.ground_encoder.run(ground), engines.aerial_encoder.run(aerial)
    through_host = engines.decoder.run({n: all_ground[n] for n in f} | {n: all_aerial[n] for n in pyramid})["logits"]
    np.testing.assert_array_equal(chained, through_host)
    np.testing.assert_array_equal(kept_f["f0"].numpy(), all_ground["f0"])
    assert kept_f["f0"].shape == all_ground["f0"].shape


def test_only_the_outputs_asked_for_come_back(engines: EngineSet) -> None:
    image = {"image": images((64, 64))}
    assert set(engines.aerial_encoder.run(image, ("descriptor", "match_map"))) == {"descriptor", "match_map"}
    host, kept = engines.aerial_encoder.run_resident(image, ("pyramid0",), ())
    assert host == {}
    assert set(kept) == {"pyramid0"}
    host, kept = engines.aerial_encoder.run_resident(image, ("pyramid0",), ("pyramid0",))
    np.testing.assert_array_equal(host["pyramid0"], kept["pyramid0"].numpy())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "missing inputs \\['image'\\]"),
        ({"image": images((32, 128)), "mask": images((32, 128))}, "unknown inputs \\['mask'\\]"),
        ({"image": images((32, 127))}, "is 2×32×127×3, the bundle's graph takes N×32×128×3"),
        ({"image": images((32, 128))[0]}, "is 32×128×3"),
        ({"image": images((32, 128), 0)}, "N ≥ 1"),
        ({"image": images((32, 128)).astype(np.float32)}, "is float32, the graph takes uint8"),
        ({"image": images((32, 128)).tolist()}, "is a list"),
    ],
)
def test_wrong_inputs_are_refused(engines: EngineSet, inputs: dict, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        engines.ground_encoder.run(inputs)


def test_unequal_batches_and_unknown_residents_are_refused(bundle: ModelBundle, engines: EngineSet) -> None:
    shapes = {f"f{i}": (c,) for i, (c, _) in enumerate(bundle.manifest.pyramid)}
    shapes |= {f"pyramid{i}": (c, s, s) for i, (c, s) in enumerate(bundle.manifest.pyramid)}
    inputs = {name: np.zeros((1 + (name == "f1"), *shape), np.float32) for name, shape in shapes.items()}
    with pytest.raises(EngineError, match="batch sizes differ"):
        engines.decoder.run(inputs)
    with pytest.raises(EngineError, match="no outputs \\['f9'\\]"):
        engines.ground_encoder.run_resident({"image": images((32, 128))}, ["f9"])
    with pytest.raises(EngineError, match="no outputs \\['g0'\\]"):
        engines.ground_encoder.run({"image": images((32, 128))}, ["g0"])


def test_seed_decides_weights_and_outputs(bundle: ModelBundle, tmp_path: Path) -> None:
    other = random_bundle(tmp_path / "other", seed=1)
    same = random_bundle(tmp_path / "same", seed=0)
    assert same.manifest == bundle.manifest
    assert other.manifest.weights_sha256 != bundle.manifest.weights_sha256
    image = {"image": images((64, 64))}
    outputs = [
        open_engines(b, backend="onnx_cpu", threads=1).aerial_encoder.run(image)["descriptor"]
        for b in (bundle, same, other)
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 0.1


def test_closed_engine_refuses_to_run(bundle: ModelBundle) -> None:
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        pass
    with pytest.raises(EngineError, match="closed"):
        engines.ground_encoder.run({"image": images((32, 128))})


def test_unknown_names_are_refused(bundle: ModelBundle) -> None:
    with pytest.raises(EngineError, match="backend 'openvino' is not known; choose one of auto, tensorrt"):
        open_engines(bundle, backend="openvino")
    with pytest.raises(EngineError, match="precision 'fp8' is not known"):
        open_engines(bundle, precision="fp8")


@pytest.mark.parametrize(
    ("flags", "option"), [("avx2 avx512f", "1"), ("avx2 avx_vnni", ""), ("avx512f avx512_vnni", ""), (None, "1")]
)
def test_kernels_that_may_overflow_are_left_out_where_the_processor_has_no_vnni(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, option: str
) -> None:
    """Where nothing is known, too."""
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n")
    monkeypatch.setattr(onnxruntime_engine, "CPU_INFO", tmp_path / "cpuinfo")
    options = session_options(1)
    try:
        found = options.get_session_config_entry("session.x64quantprecision")
    except RuntimeError:  # not set
        found = ""
    assert found == option


def test_sums_of_products_of_int8_do_not_overflow() -> None:
    """Sixty-four products of 127 and 127. As bytes and int8, two of them are more than 16 bits hold."""
    zero = numpy_helper.from_array(np.int8(0), "zero")
    scale = numpy_helper.from_array(np.float32(1), "scale")
    weight = numpy_helper.from_array(np.full((64, 16), 127, np.int8), "weight")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 64), ("y", 16)))
    graph = helper.make_graph(nodes, "products", [x], [y], [zero, scale, weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(1))
    assert (session.run(None, {"x": np.full((1, 64), 127, np.float32)})[0] == 64 * 127 * 127).all()
