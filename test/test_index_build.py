"""Imagery → index → search, with a real encoder; and what a build does when it is interrupted or fed badly."""

import numpy as np
import pytest
from bundles import random_bundle
from imagery_files import town

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.inference.select import open_engines


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return random_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def engines(bundle):
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        yield engines


@pytest.fixture(scope="module")
def imagery(tmp_path_factory):
    return town(tmp_path_factory.mktemp("imagery") / "town.tif")


@pytest.fixture(scope="module")
def built(bundle, engines, imagery, tmp_path_factory):
    output = tmp_path_factory.mktemp("index") / "town"
    return build_index([imagery], bundle, engines, output)


def test_an_index_holds_what_the_encoder_says_of_the_stored_pixels(built, bundle, engines):
    index = open_index(built.path, bundle=bundle, verify=True)
    assert len(index) == built.tiles == built.encoded > 50
    for tile_id in (0, len(index) // 2, len(index) - 1):
        outputs = engines.aerial_encoder.run({"image": index.tile_pixels(tile_id)[None]})
        np.testing.assert_allclose(index.descriptors[tile_id], outputs["descriptor"][0], atol=1e-6)
        np.testing.assert_array_equal(index.match_maps[tile_id], outputs["match_map"][0].astype(np.float16))
        assert index.search(outputs["descriptor"][0], 1).tile_ids[0] == tile_id


def test_search_returns_what_brute_force_returns(built, bundle):
    index = open_index(built.path)
    query = np.random.default_rng(1).normal(size=bundle.manifest.descriptor_dim).astype(np.float32)
    query /= np.linalg.norm(query)
    similarities = index.descriptors.verify() @ query
    best = np.argsort(-similarities, kind="stable")[:7]
    found = index.search(query, 7)
    np.testing.assert_array_equal(found.tile_ids, best)
    np.testing.assert_allclose(found.similarities, similarities[best], atol=1e-6)
    assert len(index.search(query, 10_000).tile_ids) == len(index)
