"""Imagery → index → search, with a real encoder; and what a build does when it is interrupted or fed badly."""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyproj
import pytest
import rasterio
from bundles import random_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagery_files import textured, town, write_geotiff
from rasterio.transform import from_origin

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.command import _crs_name
from unifygeo_ros.aerial.encoding import _is_flat
from unifygeo_ros.aerial.imagery import TileImage
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.aerial.partial import PartialIndex
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.cli import main
from unifygeo_ros.core.errors import ConfigurationError, EngineError, IndexFormatError, InputError, UnifyGeoError
from unifygeo_ros.core.geodesy import Datum
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


def test_index_holds_the_encodings_of_its_stored_pixels(built, bundle, engines):
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


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


KILLED_BUILDS = """
import os, signal, sys
from pathlib import Path
from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines

imagery, bundle_folder, work = map(Path, sys.argv[1:])
bundle = load_bundle(bundle_folder)
engines = open_engines(bundle, backend="onnx_cpu", threads=1)  # one thread: none is lost in a fork


def build(output, kill_at=None):
    # In a child, which kills itself -9 right before the kill_at-th call that makes something durable.
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    calls = 0

    def counted(function):
        def call(*args, **options):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    os.fsync, Path.rename, Path.unlink = map(counted, (os.fsync, Path.rename, Path.unlink))
    settings = BuildSettings(stride=2.0, shard_tiles=8, batch_size=4)
    build_index([imagery], bundle, engines, output, settings=settings, readers=1)
    os._exit(0)


assert build(work / "whole") == 0
kill_at = 0
while True:
    kill_at += 1
    output, partial = work / str(kill_at), work / f"{kill_at}.partial"
    status = build(output, kill_at)
    if status == 0:  # it has fewer such calls
        break
    assert status == signal.SIGKILL, status
    if output.exists():  # killed between the renaming and its flush to the disk
        assert not partial.exists()
        continue
    if kill_at % 2 and (partial / "journal.jsonl").exists() and not (partial / "manifest.json").exists():
        # What a kill or a power cut in the middle of a write may leave behind.
        for name in ("tiles.bin", "descriptors.f32", "match_maps.f16", "pixels.bin", "journal.jsonl"):
            with (partial / name).open("ab") as file:
                file.write(b'{"shards": 99')
    assert build(output) == 0
    assert not partial.exists()
print(kill_at - 1)
"""


@pytest.mark.slow
def test_build_killed_at_any_moment_resumes_to_the_same_bytes(bundle, imagery, tmp_path):
    result = subprocess.run([sys.executable, "-c", KILLED_BUILDS, str(imagery), str(bundle.path), str(tmp_path)],
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    kills = int(result.stdout)
    assert kills > 15
    whole = contents(tmp_path / "whole")
    assert whole.keys() == {"manifest.json", "tiles.bin", "descriptors.f32", "match_maps.f16", "pixels.bin"}
    for number in range(1, kills + 1):
        assert contents(tmp_path / str(number)) == whole, number


def test_builds_with_different_readers_write_the_same_bytes(built, bundle, engines, imagery, tmp_path):
    again = build_index([imagery], bundle, engines, tmp_path / "again", readers=5)
    assert contents(again.path) == contents(built.path)


def test_build_with_batches_of_one_gives_the_same_index(built, bundle, engines, imagery, tmp_path):
    single = build_index([imagery], bundle, engines, tmp_path / "single", settings=BuildSettings(batch_size=1))
    one, many = open_index(single.path), open_index(built.path)
    np.testing.assert_array_equal(one.centres_m, many.centres_m)
    np.testing.assert_allclose(one.descriptors.verify(), many.descriptors.verify(), atol=1e-6)
    np.testing.assert_allclose(one.match_maps.verify(), many.match_maps.verify(), atol=1e-3)


def test_build_stops_at_a_full_disk_and_resumes(bundle, engines, imagery, tmp_path):
    def build(name):
        return build_index([imagery], bundle, engines, tmp_path / name, settings=BuildSettings(shard_tiles=40))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100_000, 900_000):  # in the first shard, and in a later one
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(
                ConfigurationError, match=r"the disk is full.*free space and start the same build again"
            ):
                build("full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not (tmp_path / "full").exists()
    assert 0 < build("full").encoded < build("whole").encoded
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


class Spoilt:
    """The real encoder, whose output is changed from the n-th run on."""

    def __init__(self, engine, change, run):
        self._engine, self._change, self._left = engine, change, run
        self.description = engine.description

    def run(self, inputs, *args, **options):
        outputs = {name: np.array(value) for name, value in self._engine.run(inputs, *args, **options).items()}
        self._left -= 1
        if self._left <= 0:
            self._change(outputs)
        return outputs

    def close(self):
        pass


def set_first(name, value):
    def change(outputs):
        outputs[name][0, 0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_first("descriptor", np.nan), "descriptor has length nan"),
        (set_first("descriptor", np.inf), "descriptor has length inf"),
        (set_first("descriptor", 2.0), "descriptor has length 2"),
        (set_first("match_map", np.inf), "match map is not finite"),
        (lambda outputs: outputs.pop("match_map"), "match_map is nothing"),
        (lambda outputs: outputs.update(descriptor=outputs["descriptor"][:, 1:]), r"descriptor is \(8, 31\)"),
    ],
)
def test_build_refuses_invalid_encoder_outputs(bundle, engines, imagery, tmp_path, change, message):
    spoilt = replace(engines, aerial_encoder=Spoilt(engines.aerial_encoder, change, run=3))
    with pytest.raises(EngineError, match=message):
        build_index([imagery], bundle, spoilt, tmp_path / "index")
    assert not list(tmp_path.iterdir())  # not one shard was complete, so nothing is left


def test_interrupted_build_resumes_only_with_the_same_plan(bundle, engines, imagery, tmp_path):
    output = tmp_path / "index"
    shards = BuildSettings(shard_tiles=20)
    spoilt = replace(engines, aerial_encoder=Spoilt(engines.aerial_encoder, set_first("descriptor", np.nan), run=12))
    with pytest.raises(EngineError):
        build_index([imagery], bundle, spoilt, output, settings=shards)
    assert (tmp_path / "index.partial" / "journal.jsonl").exists()
    for changed in (
        {"settings": replace(shards, stride=1.0)},
        {"settings": replace(shards, minimum_coverage=0.9)},
        {"datum": Datum(48.5, 9.0)},
    ):
        with pytest.raises(ConfigurationError, match="an interrupted build with other imagery, model or settings"):
            build_index([imagery], bundle, engines, output, **{"settings": shards} | changed)
    other = town(tmp_path / "other.tif", seed=5)
    with pytest.raises(ConfigurationError, match="other imagery"):
        build_index([other], bundle, engines, output, settings=shards)
    damaged = tmp_path / "index.partial" / "match_maps.f16"
    content = damaged.read_bytes()
    damaged.write_bytes(b"\x01" + content[1:])
    with pytest.raises(IndexFormatError, match="does not match the journal"):
        build_index([imagery], bundle, engines, output, settings=shards)
    damaged.write_bytes(content)
    report = build_index([imagery], bundle, engines, output, settings=shards)
    assert 0 < report.encoded < report.tiles
    open_index(output, bundle=bundle, verify=True)


@pytest.fixture(scope="module")
def interrupted(bundle, engines, imagery, tmp_path_factory):
    """A build that stopped after some shards."""
    output = tmp_path_factory.mktemp("interrupted") / "index"
    spoilt = replace(engines, aerial_encoder=Spoilt(engines.aerial_encoder, set_first("descriptor", np.nan), run=12))
    with pytest.raises(EngineError):
        build_index([imagery], bundle, spoilt, output, settings=BuildSettings(shard_tiles=20))
    return output.with_name("index.partial")


@pytest.mark.parametrize("name", ["shards", "tiles", "skipped", "bytes", "sha256", "crc32"])
@pytest.mark.parametrize("change", ["other", "missing"])
def test_changed_journal_is_refused(interrupted, bundle, engines, imagery, tmp_path, name, change):
    shutil.copytree(interrupted, tmp_path / "index.partial")
    journal = tmp_path / "index.partial" / "journal.jsonl"
    *lines, last = journal.read_text().splitlines()
    entries = json.loads(last)
    value = entries.pop(name)
    if change == "other":
        entries[name] = value + 1 if isinstance(value, int) else {**value, "pixels.bin": value["tiles.bin"]}
    journal.write_text("\n".join([*lines, json.dumps(entries)]) + "\n")
    with pytest.raises(IndexFormatError, match=r"journal\.jsonl: damaged .*checksum.*remove .*build again"):
        build_index([imagery], bundle, engines, tmp_path / "index", settings=BuildSettings(shard_tiles=20))
    assert not (tmp_path / "index").exists()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bits_of_a_journal_or_plan_are_refused_or_do_not_matter(interrupted, built, data):
    """Opened only: a PartialIndex goes back to the last line, or raises an error of the project."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(interrupted, Path(name) / "index.partial"))
        whole = (folder / "plan.json").read_text()
        victim = folder / data.draw(st.sampled_from(["plan.json", "journal.jsonl"]))
        content = bytearray(victim.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        victim.write_bytes(content)
        expected = json.loads((interrupted / "journal.jsonl").read_text().splitlines()[-1])
        try:
            with PartialIndex(Path(name) / "index", json.loads(whole)) as partial:
                # A flipped line end joins two lines or cuts one off; the state is then that of a whole line.
                assert (partial.shards, partial.tiles) <= (expected["shards"], expected["tiles"])
        except UnifyGeoError:
            pass


def test_outputs_that_are_taken_are_refused(built, bundle, engines, imagery, tmp_path):
    with pytest.raises(ConfigurationError, match="is there already"):
        build_index([imagery], bundle, engines, built.path)
    strange = tmp_path / "index.partial"
    strange.mkdir()
    (strange / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match=r"holds thesis\.txt"):
        build_index([imagery], bundle, engines, tmp_path / "index")
    assert (strange / "thesis.txt").exists()
    with PartialIndex(tmp_path / "locked", {}), pytest.raises(ConfigurationError, match="another build is writing"):
        PartialIndex(tmp_path / "locked", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        build_index([imagery], bundle, engines, tmp_path / "file" / "index")


def test_other_weights_are_refused_by_both_names(built, tmp_path):
    other = random_bundle(tmp_path / "other", seed=1)
    with pytest.raises(IndexFormatError) as error:
        open_index(built.path, bundle=other)
    index = open_index(built.path)
    for digest in (other.manifest.weights_sha256, index.manifest.weights_sha256):
        assert digest[:12] in str(error.value)


def test_empty_tiles_are_skipped_and_counted(bundle, engines, tmp_path):
    picture = textured(320, 320)
    picture[:, :160] = 0
    picture[:100, 160:] = (90, 120, 30)  # one colour
    with rasterio.open(town(tmp_path / "town.tif"), "r+") as dataset:
        dataset.write(np.moveaxis(picture, -1, 0))
    report = build_index([tmp_path / "town.tif"], bundle, engines, tmp_path / "index")
    index = open_index(report.path)
    assert report.skipped == index.manifest.skipped > 0
    # UTM north and the map's agree here: no tile lies wholly on the black or the plain part.
    assert np.all(index.centres_m[:, 0] >= -0.1)
    assert not np.any((index.centres_m[:, 0] > 16.1) & (index.centres_m[:, 1] > 30 + 16.1))
    with pytest.raises(InputError, match=r"none of .* tiles"):
        build_index([write_geotiff(tmp_path / "plain.tif", np.full((200, 200, 3), 77, np.uint8), "EPSG:32632",
                                   from_origin(500_000, 5_400_000, 0.5, 0.5))],
                    bundle, engines, tmp_path / "plain")  # fmt: skip
    assert not list(tmp_path.glob("plain*partial"))


@pytest.mark.parametrize("amplitude", [0, 1, 2, 3])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_tile_is_flat_where_what_is_known_of_it_varies_by_less_than_a_grey_level(amplitude, channel):
    """In no colour; what is not known does not count."""
    rng = np.random.default_rng(amplitude)
    pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
    valid = rng.random((48, 40)) < 0.7
    pixels[valid] = (200, 3, 90)
    # Half of the pixels are brighter by the amplitude, about: a standard deviation of half of it.
    pixels[:, :, channel][valid] += amplitude * (rng.random(valid.sum()) < 0.5).astype(np.uint8)
    deviation = pixels[valid].astype(np.float64).std(axis=0).max()
    assert abs(deviation - amplitude / 2) < 0.03
    assert _is_flat(TileImage(pixels, valid)) == (deviation < 1)


def test_truncated_source_stops_the_build_with_its_name(bundle, engines, imagery, tmp_path):
    short = tmp_path / "short.tif"
    short.write_bytes(imagery.read_bytes()[:-30_000])
    with pytest.raises(InputError, match=r"short\.tif: cannot be read"):
        build_index([short], bundle, engines, tmp_path / "index")
    assert not list(tmp_path.glob("index*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0.0}, "stride is 0.0"), ({"stride": float("nan")}, "stride is nan"), ({"search": "hnsw"}, "hnsw"),
        ({"minimum_coverage": 0.0}, "coverage is 0.0"), ({"batch_size": 0}, "batch_size is 0"),
        ({"search": "ivfpq"}, "takes 10000 tiles to train"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(bundle, engines, imagery, tmp_path, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        build_index([imagery], bundle, engines, tmp_path / "index", settings=BuildSettings(**settings))


@pytest.mark.parametrize(
    ("crs", "shown"),
    [
        ("EPSG:32632", "EPSG:32632"),
        (pyproj.CRS("EPSG:32632").to_wkt(), "WGS 84 / UTM zone 32N"),
        (pyproj.CRS("+proj=tmerc +lat_0=48.5 +lon_0=9 +ellps=GRS80").to_wkt(), "without a name (Transverse Mercator)"),
    ],
)
def test_info_names_a_crs_in_few_words(crs, shown):
    assert _crs_name(crs) == shown


def test_command_builds_reports_and_draws(bundle, imagery, tmp_path, capsys):
    output = tmp_path / "index"
    command = ["index", "build", str(imagery), "--model", str(bundle.path), "--output", str(output)]
    command += ["--backend", "onnx_cpu", "--stride", "1", "--datum", "48.5,9.0,430", "--bands", "1,2,3"]
    assert main(command) == 0
    assert "tiles" in capsys.readouterr().out
    picture = tmp_path / "coverage.png"
    assert main(["index", "info", str(output), "--verify", "--plot", str(picture)]) == 0
    told = capsys.readouterr().out
    for expected in ("48.5000000, 9.0000000, height 430 m", "town.tif", "EPSG:32632", "every file read and correct"):
        assert expected in told
    drawn = cv2.imread(str(picture))
    assert drawn.shape[0] > 500
    assert drawn.std() > 20
    assert main(command) == 2  # the output is there
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["index", "info", str(empty)]) == 2
    assert str(empty) in capsys.readouterr().err
