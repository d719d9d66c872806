"""Loading of model bundles: every damage is one BundleError, and nothing outside the folder is read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from bundles import random_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagery_files import town

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import TileIndex
from unifygeo_ros.cli import main
from unifygeo_ros.core.errors import BundleError, UnifyGeoError
from unifygeo_ros.core.manifests import CHECKSUM
from unifygeo_ros.inference.bundle import (
    FORMAT,
    MANIFEST_NAME,
    BundleManifest,
    Calibration,
    GraphFile,
    ModelBundle,
    check_calibrated,
    load_bundle,
    migrate_bundle,
    read_manifest,
    sha256_of_file,
)
from unifygeo_ros.inference.select import choose_precision, open_engines
from unifygeo_ros.parameters.settings import NodeConfig, Settings
from unifygeo_ros.ros.loading import load
from unifygeo_ros.sessions.config import SessionConfig

SHIPPED = Path(__file__).parents[1] / "models" / "towns-photo"

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


def sealed(raw: dict[str, Any]) -> bytes:
    """A manifest with these entries whose checksum is right, as somebody who edits it on purpose would write it."""
    raw.pop(CHECKSUM, None)
    try:
        return FORMAT.text_of(raw).encode()
    except ValueError:  # NaN or infinity somewhere: JSON has no such thing, Python's writer does
        return json.dumps({**raw, CHECKSUM: "0" * 64}).encode()


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


def test_manifest_survives_the_round_trip(original: ModelBundle) -> None:
    assert load_bundle(original.path).manifest == original.manifest


@FUZZ
@given(data=st.data())
def test_flipped_bytes_in_the_manifest(original: ModelBundle, scratch: Path, data: st.DataObject) -> None:
    content = bytearray(manifest_text(original).encode())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4, unique=True)):
        content[position] ^= data.draw(st.integers(1, 255))
    load_or_refuse(scratch, bytes(content))


def test_flipped_bits_in_every_byte_of_the_shipped_manifest_are_refused() -> None:
    """Of a byte the bit that makes another digit, of the next the one that changes a letter's case, of the next any."""
    content = (SHIPPED / MANIFEST_NAME).read_bytes()
    BundleManifest.from_json(content.decode(), "whole")
    accepted = []
    for bit in (8 * byte + (0, 5, byte % 8)[byte % 3] for byte in range(len(content))):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            text = flipped.decode()  # as reading the file does
        except UnicodeDecodeError:
            continue
        try:
            BundleManifest.from_json(text, "flipped")
        except BundleError:
            continue
        accepted.append(bit)
    assert accepted == []


@pytest.mark.parametrize("ending", [b"\r\n", b"\r"])
def test_changed_line_ends_are_refused(original: ModelBundle, scratch: Path, ending: bytes) -> None:
    """What copying through an FTP client or an editor does; it is refused on every system alike."""
    assert load_or_refuse(scratch, manifest_text(original).encode().replace(b"\n", ending)) is None


def test_manifest_that_contradicts_its_network_config_is_refused(scratch: Path) -> None:
    raw = json.loads((SHIPPED / MANIFEST_NAME).read_text())
    raw["aerial"]["metres_per_pixel"] *= 2
    raw["ground"]["elevation_top_rad"] /= 2
    with pytest.raises(BundleError, match=r"ground_elevation_top_deg is 22.5 .* metres_per_pixel is 0.729167 in the"):
        BundleManifest.from_json(sealed(raw).decode(), "edited")


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
def test_manifest_with_odd_values_is_read_or_refused(original: ModelBundle, scratch: Path, data: st.DataObject) -> None:
    raw = json.loads(manifest_text(original))
    path = data.draw(st.sampled_from(leaves(raw)[1:]))
    target = raw
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = data.draw(ODD)
    bundle = load_or_refuse(scratch, sealed(raw))
    if bundle is not None:  # what was let through must be usable
        manifest = bundle.manifest
        assert manifest.ground.width % manifest.ground.columns == 0
        assert all(channels % manifest.ground.columns == 0 for channels, _ in manifest.pyramid)
        assert manifest.aerial.side_m > 0


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "", "null", '{"format": "unifygeo-bundle"}'])
def test_hostile_json_manifest_is_refused(original: ModelBundle, scratch: Path, text: str) -> None:
    assert load_or_refuse(scratch, text.encode()) is None


@pytest.mark.parametrize(
    "name", ["../secret.onnx", "/etc/hostname", "sub/decoder.onnx", "..", ".", "", "a\\b", "a\0b", None, 7]
)
def test_files_outside_the_bundle_are_not_read(original: ModelBundle, scratch: Path, name: Any) -> None:
    (scratch.parent / "secret.onnx").write_bytes(b"secret")
    raw = json.loads(manifest_text(original))
    raw["graphs"]["decoder"]["fp32"] = {"file": name, "sha256": sha256_of_file(scratch.parent / "secret.onnx")}
    assert load_or_refuse(scratch, sealed(raw)) is None


def test_bundle_of_links_loads(original: ModelBundle, tmp_path: Path) -> None:
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


def test_missing_precision_is_named(original: ModelBundle, scratch: Path) -> None:
    raw = json.loads(manifest_text(original))
    for files in raw["graphs"].values():
        del files["fp16"]
    bundle = load_or_refuse(scratch, sealed(raw))
    assert bundle is not None
    with pytest.raises(BundleError, match=r"is not there in fp16, only in \['fp32'\]"):
        open_engines(bundle, backend="onnx_cpu", precision="fp16")
    del raw["graphs"]["decoder"]["fp32"]
    assert load_or_refuse(scratch, sealed(raw)) is None


def test_single_precision_serves_auto(original: ModelBundle, scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = json.loads(manifest_text(original))
    for files in raw["graphs"].values():
        del files["fp32"]
    bundle = load_or_refuse(scratch, sealed(raw))
    assert bundle is not None
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        assert engines.description.endswith("fp16")
    assert "holds no fp32 graphs; fp16 is used" in caplog.text


def test_bundle_of_int8_graphs_alone_serves_auto_without_a_warning(
    original: ModelBundle, scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside fp32 or fp16, int8 is taken by name only."""
    raw = json.loads(manifest_text(original))
    for files in raw["graphs"].values():
        files["int8"] = files["fp32"]
    both = load_or_refuse(scratch, sealed(raw))
    assert both is not None
    assert [choose_precision(both, backend, "auto") for backend in ("onnx_cpu", "tensorrt")] == ["fp32", "fp16"]
    assert choose_precision(both, "onnx_cpu", "int8") == "int8"
    for files in raw["graphs"].values():
        del files["fp32"], files["fp16"]
    alone = load_or_refuse(scratch, sealed(raw))
    assert alone is not None
    with open_engines(alone, backend="onnx_cpu", threads=1) as engines:
        assert engines.description.endswith("int8")
    assert choose_precision(alone, "tensorrt", "auto") == "int8"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"descriptor_dim": 31}, "outputs are descriptor float32 N×32 where the manifest promises descriptor .* N×31"),
        ({"distribution_size": 33}, "outputs are logits float32 N×32×32 where"),
        ({"pyramid": ((64, 8), (32, 16), (32, 32), (32, 16))}, "pyramid3 float32 N×32×32×32 where"),
    ],
)
def test_manifest_that_promises_other_tensors_is_refused(
    original: ModelBundle, changes: dict[str, Any], message: str
) -> None:
    bundle = ModelBundle(original.path, dataclasses.replace(original.manifest, **changes))
    with pytest.raises(BundleError, match=message):
        open_engines(bundle, backend="onnx_cpu", threads=1)


def test_graph_of_the_other_precision_is_refused(original: ModelBundle) -> None:
    graphs = {name: dict(files) for name, files in original.manifest.graphs.items()}
    graphs["decoder"]["fp32"] = GraphFile(**dataclasses.asdict(graphs["decoder"]["fp16"]))
    bundle = ModelBundle(original.path, dataclasses.replace(original.manifest, graphs=graphs))
    with pytest.raises(BundleError, match="f0 float16 N×64"):
        open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1)


# External data --------------------------------------------------------------------------------------------------------


def with_external_data(bundle: ModelBundle, folder: Path, *, listed: bool) -> Path:
    """A copy whose fp32 ground encoder keeps its kernels in weights.data."""
    shutil.copytree(bundle.path, folder)
    file = folder / bundle.manifest.graphs["ground_encoder"]["fp32"].file
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="weights.data", size_threshold=256)
    raw = json.loads(manifest_text(bundle))
    entry = raw["graphs"]["ground_encoder"]["fp32"]
    entry["sha256"] = sha256_of_file(file)
    if listed:
        entry |= {"data_file": "weights.data", "data_sha256": sha256_of_file(folder / "weights.data")}
    (folder / MANIFEST_NAME).write_bytes(sealed(raw))
    return folder


def test_weights_in_a_listed_file_are_loaded(original: ModelBundle, tmp_path: Path) -> None:
    bundle = load_bundle(with_external_data(original, tmp_path / "bundle", listed=True))
    open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1).close()


def test_weights_in_a_file_that_the_manifest_does_not_list_are_refused(original: ModelBundle, tmp_path: Path) -> None:
    folder = with_external_data(original, tmp_path / "bundle", listed=False)
    with pytest.raises(BundleError, match=r"takes weights from weights\.data, which the manifest does not list"):
        load_bundle(folder)


def test_link_to_the_weights_alone_is_refused(original: ModelBundle, tmp_path: Path) -> None:
    """ONNX Runtime refuses it too, in words that nobody understands."""
    folder = with_external_data(original, tmp_path / "bundle", listed=True)
    (tmp_path / "store").mkdir()
    (folder / "weights.data").rename(tmp_path / "store" / "weights.data")
    (folder / "weights.data").symlink_to(tmp_path / "store" / "weights.data")
    with pytest.raises(BundleError, match=r"must lie in one folder, but one is a link .*copy both, or link the whole"):
        load_bundle(folder)


# Bundles of the first edition -----------------------------------------------------------------------------------------


def first_edition(bundle: ModelBundle, folder: Path, calibration: Calibration) -> Path:
    """A copy as the first edition wrote it: version 1, no checksum, other names in the confidences."""
    shutil.copytree(bundle.path, folder)
    raw = json.loads(manifest_text(bundle))
    del raw[CHECKSUM]
    raw["format_version"] = 1
    raw["calibration"] = dataclasses.asdict(calibration)
    for name in ("confidence", "searched_confidence"):
        new = raw["calibration"][name]
        raw["calibration"][name] = {
            "bias": new["bias"], "belief": new["belief_weight"], "score": new["score_weight"]
        }  # fmt: skip
    (folder / MANIFEST_NAME).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    return folder


def test_bundle_of_the_first_edition_says_how_to_rewrite_it(original: ModelBundle, tmp_path: Path) -> None:
    folder = first_edition(original, tmp_path / "old", Calibration())
    with pytest.raises(
        BundleError, match=r"format version 1, this release reads 2; .*`unifygeo bundle migrate BUNDLE`"
    ):
        load_bundle(folder)


def test_migrate_keeps_every_value_of_a_calibrated_bundle(original: ModelBundle, tmp_path: Path) -> None:
    calibration = Calibration(
        tile_temperature=0.07, confidence=dataclasses.replace(Calibration().confidence, bias=-2.0, score_weight=3.0)
    )
    folder = first_edition(original, tmp_path / "old", calibration)
    assert main(["bundle", "migrate", str(folder)]) == 0
    expected = dataclasses.replace(original.manifest, calibration=calibration)
    assert load_bundle(folder).manifest == expected
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in original.path.iterdir())


def test_migrate_takes_default_constants_as_uncalibrated(original: ModelBundle, tmp_path: Path) -> None:
    folder = first_edition(original, tmp_path / "old", Calibration())
    assert not migrate_bundle(folder).calibrated
    assert not read_manifest(folder).calibrated


def test_migrate_changes_nothing_where_a_file_is_damaged(original: ModelBundle, tmp_path: Path) -> None:
    folder = first_edition(original, tmp_path / "old", Calibration())
    before = (folder / MANIFEST_NAME).read_bytes()
    (folder / original.manifest.graphs["decoder"]["fp32"].file).write_bytes(b"")
    with pytest.raises(BundleError, match="copy the bundle again"):
        migrate_bundle(folder)
    assert (folder / MANIFEST_NAME).read_bytes() == before


@pytest.mark.parametrize("calibration", [None, 7, {"confidence": {}}, {"tile_temperature": float("nan")}])
def test_migrate_refuses_a_malformed_calibration(original: ModelBundle, tmp_path: Path, calibration: Any) -> None:
    folder = first_edition(original, tmp_path / "old", Calibration())
    raw = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**raw, "calibration": calibration}))
    with pytest.raises(BundleError, match=";"):
        migrate_bundle(folder)


def test_migrate_refuses_a_bundle_of_this_version(original: ModelBundle) -> None:
    with pytest.raises(BundleError, match="format version 2, only version 1 can be migrated"):
        migrate_bundle(original.path)


# Bundles that are not calibrated --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uncalibrated(original: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = Path(shutil.copytree(original.path, tmp_path_factory.mktemp("uncalibrated") / "bundle"))
    manifest = dataclasses.replace(original.manifest, calibrated=False)
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return load_bundle(folder)


def test_manifest_says_that_there_is_no_calibration(
    uncalibrated: ModelBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads(manifest_text(uncalibrated))["calibration"] is None
    assert not uncalibrated.manifest.calibrated
    assert main(["bundle", "info", str(uncalibrated.path)]) == 0
    assert "none: covariances and ambiguities are rough guesses" in capsys.readouterr().out


def test_check_calibrated(original: ModelBundle, uncalibrated: ModelBundle, caplog: pytest.LogCaptureFixture) -> None:
    check_calibrated(original, False)
    assert caplog.text == ""
    with pytest.raises(BundleError, match=r"not calibrated.*unifygeo-train calibrate.*accept_uncalibrated"):
        check_calibrated(uncalibrated, False)
    check_calibrated(uncalibrated, True)
    assert "is not calibrated" in caplog.text


def test_node_locate_and_replay_refuse_an_uncalibrated_bundle(
    uncalibrated: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before they look for anything else; accepted, the next thing is missed: the index."""
    model, index = str(uncalibrated.path), str(tmp_path / "no index")
    for accepted, message in ((False, "not calibrated"), (True, "no index")):
        option = ["--accept-uncalibrated"] * accepted
        assert main(["locate", "image.png", "--index", index, "--model", model, *option]) == 2
        assert message in capsys.readouterr().err
        replay = ["replay", "bag", "--index", index, "--model", model, "--output", str(tmp_path / "out.mcap")]
        assert main([*replay, "--set", f"accept_uncalibrated={accepted}".lower()]) == 2
        assert message in capsys.readouterr().err
        settings = Settings(NodeConfig(bundle=model, index=index, accept_uncalibrated=accepted))
        with pytest.raises(UnifyGeoError, match=message):
            load(settings, settings.camera, None, lambda step: None)


def test_node_names_the_missing_calibration_and_prepares_the_search(
    uncalibrated: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engines(uncalibrated, backend="onnx_cpu", threads=1) as engines:
        build_index([town(tmp_path / "town.tif")], uncalibrated, engines, tmp_path / "index")
    node = NodeConfig(
        bundle=str(uncalibrated.path), index=str(tmp_path / "index"), backend="onnx_cpu", accept_uncalibrated=True
    )
    prepared: list[str] = []
    monkeypatch.setattr(TileIndex, "prepare_search", lambda self: prepared.append(session.prior_source))
    for session in (
        SessionConfig(),
        SessionConfig(mode="single", prior_source="last_fix"),
        SessionConfig(mode="single", prior_source="odometry"),  # every search of it has a gate
    ):
        settings = Settings(node, session=session)
        loaded = load(settings, settings.camera, None, lambda step: None)
        assert loaded.identity["calibration"] == "none: covariances and ambiguities are rough guesses"
        loaded.close()
    assert prepared == ["none", "last_fix"]
