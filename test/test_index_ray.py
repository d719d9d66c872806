"""A region encoded by two workers of a real local Ray."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import random_bundle
from imagery_files import town

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.cluster import RayOptions, build_index_on_ray
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.inference.select import open_engines

SETTINGS = BuildSettings(shard_tiles=30)
OPTIONS = RayOptions("local", workers=2, backend="onnx_cpu")


@pytest.fixture(scope="module", autouse=True)
def ray():
    """Skips each test, not the module: launch_testing's pytest plugin would skip the whole folder."""
    return pytest.importorskip("ray")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return random_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def imagery(tmp_path_factory):
    return town(tmp_path_factory.mktemp("imagery") / "town.tif")


@pytest.fixture(scope="module")
def cluster(ray):
    """One for the whole module, since a start takes seconds; the code under test uses a running one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for attempt in range(5):
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
            break
        except Exception:  # Ray gives its processes 30 s to start, whatever else the machine does
            ray.shutdown()
            if attempt == 4:
                raise
    yield
    ray.shutdown()


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def test_two_workers_make_the_same_index_bit_for_bit(cluster, bundle, imagery, tmp_path):
    report = build_index_on_ray([imagery], bundle, tmp_path / "ray", OPTIONS, settings=SETTINGS)
    with open_engines(bundle, backend="onnx_cpu") as engines:
        alone = build_index([imagery], bundle, engines, tmp_path / "alone", settings=SETTINGS)
    assert report.tiles == report.encoded == alone.tiles
    assert report.skipped == alone.skipped
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    open_index(tmp_path / "ray", bundle=bundle, verify=True)


def test_workers_error_is_the_users_error(cluster, bundle, imagery, tmp_path):
    copy = tmp_path / "copy.tif"
    copy.write_bytes(imagery.read_bytes()[:-50_000])  # the last tiles cannot be read
    with pytest.raises(InputError, match=r"copy\.tif: cannot be read") as error:
        build_index_on_ray([copy], bundle, tmp_path / "index", OPTIONS, settings=SETTINGS)
    assert "Traceback" not in str(error.value)
    assert not (tmp_path / "index").exists()


def test_more_workers_than_the_cluster_has_are_refused(cluster, bundle, imagery, tmp_path):
    with pytest.raises(ConfigurationError, match="64 workers asked for, the cluster has 2 processors"):
        build_index_on_ray([imagery], bundle, tmp_path / "index", replace(OPTIONS, workers=64))


def test_address_where_nothing_answers_is_an_error(ray, bundle, imagery, tmp_path):
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(ConfigurationError, match=re.escape("--ray auto: no cluster answers there")):
        build_index_on_ray([imagery], bundle, tmp_path / "index", replace(OPTIONS, address="auto"))
