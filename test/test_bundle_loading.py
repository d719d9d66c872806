"""Loading of model bundles: every damage is one BundleError, and nothing outside the folder is read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundles import random_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unifygeo_ros.core.errors import BundleError
from unifygeo_ros.inference.bundle import MANIFEST_NAME, GraphFile, ModelBundle, load_bundle, sha256_of_file
from unifygeo_ros.inference.select import open_engines

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return random_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def scratch(original: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose manifest each example overwrites."""
    return Path(shutil.copytree(original.path, tmp_path_factory.mktemp("scratch") / "bundle"))


def manifest_text(bundle: ModelBundle) -> str:
    return (bundle.path / MANIFEST_NAME).read_text(encoding="utf-8")


def load_or_refuse(folder: Path, data: bytes) -> ModelBundle | None:
    """Load with another manifest; anything but a bundle or a BundleError fails the test."""
    (folder / MANIFEST_NAME).write_bytes(data)
    try:
        return load_bundle(folder)
    except BundleError as error:
        message = str(error)
    assert str(folder) in message
    assert ";" in message  # what is wrong; what to do
    return None


def test_a_manifest_survives_the_round_trip(original: ModelBundle) -> None:
    assert load_bundle(original.path).manifest == original.manifest


@FUZZ
@given(data=st.data())
def test_flipped_bytes_in_the_manifest(original: ModelBundle, scratch: Path, data: st.DataObject) -> None:
    content = bytearray(manifest_text(original).encode())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4, unique=True)):
        content[position] ^= data.draw(st.integers(1, 255))
    load_or_refuse(scratch, bytes(content))


@FUZZ
@given(length=st.integers(0, 3000))
def test_truncated_manifests(original: ModelBundle, scratch: Path, length: int) -> None:
    content = manifest_text(original).encode()
    if length < len(content) - 1:  # the last byte is the final newline
        assert load_or_refuse(scratch, content[:length]) is None


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


@FUZZ
@given(data=st.data())
def test_odd_values_anywhere(original: ModelBundle, scratch: Path, data: st.DataObject) -> None:
    raw = json.loads(manifest_text(original))
    path = data.draw(st.sampled_from(leaves(raw)[1:]))
    target = raw
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = data.draw(ODD)
    bundle = load_or_refuse(scratch, json.dumps(raw).encode())
    if bundle is not None:  # what was let through must be usable
        manifest = bundle.manifest
        assert manifest.ground.width % manifest.ground.columns == 0
        assert all(channels % manifest.ground.columns == 0 for channels, _ in manifest.pyramid)
        assert manifest.aerial.side_m > 0


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "", "null", '{"format": "unifygeo-bundle"}'])
def test_hostile_json(original: ModelBundle, scratch: Path, text: str) -> None:
    assert load_or_refuse(scratch, text.encode()) is None


@pytest.mark.parametrize(
    "name", ["../secret.onnx", "/etc/hostname", "sub/decoder.onnx", "..", ".", "", "a\\b", "a\0b", None, 7]
)
def test_files_outside_the_bundle_are_not_read(original: ModelBundle, scratch: Path, name: Any) -> None:
    (scratch.parent / "secret.onnx").write_bytes(b"secret")
    raw = json.loads(manifest_text(original))
    raw["graphs"]["decoder"]["fp32"] = {"file": name, "sha256": sha256_of_file(scratch.parent / "secret.onnx")}
    assert load_or_refuse(scratch, json.dumps(raw).encode()) is None


def test_a_bundle_of_links_loads(original: ModelBundle, tmp_path: Path) -> None:
    """As `colcon build --symlink-install` leaves it."""
    for file in original.path.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert load_bundle(tmp_path).manifest == original.manifest


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "folder"])
def test_damaged_graphs_are_refused(original: ModelBundle, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(original.path, tmp_path / "bundle"))
    file = folder / original.manifest.graphs["decoder"]["fp16"].file
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "folder":
        file.mkdir()
    with pytest.raises(BundleError, match=r"decoder\.fp16\.onnx.*copy the (whole )?bundle again"):
        load_bundle(folder)


def test_a_missing_precision_is_named(original: ModelBundle, scratch: Path) -> None:
    raw = json.loads(manifest_text(original))
    for files in raw["graphs"].values():
        del files["fp16"]
    bundle = load_or_refuse(scratch, json.dumps(raw).encode())
    assert bundle is not None
    with pytest.raises(BundleError, match=r"is not there in fp16, only in \['fp32'\]"):
        open_engines(bundle, backend="onnx_cpu", precision="fp16")
    del raw["graphs"]["decoder"]["fp32"]
    assert load_or_refuse(scratch, json.dumps(raw).encode()) is None


def test_a_single_precision_serves_auto(original: ModelBundle, scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = json.loads(manifest_text(original))
    for files in raw["graphs"].values():
        del files["fp32"]
    bundle = load_or_refuse(scratch, json.dumps(raw).encode())
    assert bundle is not None
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        assert engines.description.endswith("fp16")
    assert "holds no fp32 graphs; fp16 is used" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"descriptor_dim": 31}, "outputs are descriptor float32 N×32 where the manifest promises descriptor .* N×31"),
        ({"distribution_size": 33}, "outputs are logits float32 N×32×32 where"),
        ({"pyramid": ((64, 8), (32, 16), (32, 32), (32, 16))}, "pyramid3 float32 N×32×32×32 where"),
    ],
)
def test_a_manifest_that_promises_other_tensors_is_refused(
    original: ModelBundle, changes: dict[str, Any], message: str
) -> None:
    bundle = ModelBundle(original.path, dataclasses.replace(original.manifest, **changes))
    with pytest.raises(BundleError, match=message):
        open_engines(bundle, backend="onnx_cpu", threads=1)


def test_a_graph_of_the_other_precision_is_refused(original: ModelBundle) -> None:
    graphs = {name: dict(files) for name, files in original.manifest.graphs.items()}
    graphs["decoder"]["fp32"] = GraphFile(**dataclasses.asdict(graphs["decoder"]["fp16"]))
    bundle = ModelBundle(original.path, dataclasses.replace(original.manifest, graphs=graphs))
    with pytest.raises(BundleError, match="f0 float16 N×64"):
        open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1)
