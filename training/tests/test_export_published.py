"""The published size in TensorRT-RTX: real builds of random weights, for a GPU that need not be here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unifygeo_ros.inference.bundle import GRAPHS, ModelBundle
from unifygeo_ros.inference.engine_cache import EngineCache
from unifygeo_ros.inference.tensorrt_engine import Target, compile_engine
from unifygeo_ros.inference.tensorrt_library import load_library
from unifygeo_training.export import BundleText, export_bundle
from unifygeo_training.model import NetworkConfig, UnifyGeo

PARAMETERS = 57_698_869
"""Of the published network."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    torch.manual_seed(0)
    network = UnifyGeo(NetworkConfig()).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS
    output = tmp_path_factory.mktemp("published") / "bundle"
    return export_bundle(network, output, BundleText("published size", "none", "nothing"), precisions=("fp16",))


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_published_size_builds_with_the_product_s_own_code(
    bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory, graph: str
) -> None:
    """Both profiles, up to batch 32, and the engine found again in the cache. It holds all weights: 2 bytes each."""
    pytest.importorskip("tensorrt_rtx_bindings")
    library, cache = load_library("tensorrt_rtx"), EngineCache(tmp_path_factory.mktemp("cache"))
    built = compile_engine(bundle, graph, "fp16", library, cache, Target((8, 9)))
    assert built.seconds > 0
    weights_bytes = Path(bundle.graph_path(graph, "fp16")).stat().st_size
    assert len(built.plan) > 0.95 * weights_bytes
    assert compile_engine(bundle, graph, "fp16", library, cache, Target((8, 9))).plan == built.plan
    print(f"{graph}: {built.seconds:.1f} s, {len(built.plan) / 1e6:.0f} MB")
