"""`unifygeo index update` and `merge`, compared with a build of the same imagery from the start."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from bundles import random_bundle
from imagery_files import textured, town, write_geotiff
from rasterio.transform import Affine

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.imagery import ImageryOptions
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.aerial.merge import merge_indexes
from unifygeo_ros.aerial.partial import PartialIndex
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.aerial.update import update_index
from unifygeo_ros.cli import main
from unifygeo_ros.core.errors import ConfigurationError, EngineError, IndexFormatError, InputError
from unifygeo_ros.core.geodesy import Datum
from unifygeo_ros.inference.select import open_engines

DATUM = Datum(48.5, 9.0)
ALONE = BuildSettings(batch_size=1, shard_tiles=20, stride=0.7, minimum_coverage=0.4)
"""A tile encoded alone gets the same bytes whatever is encoded before and after it."""
SIDE_M = 32.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return random_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def engines(bundle):
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        yield engines


def picture_of(path):
    with rasterio.open(path) as dataset:
        return np.moveaxis(dataset.read(), 0, -1), dataset.transform


def write_part(path, picture, transform, rows, columns):
    return write_geotiff(path, picture[rows, columns], "EPSG:32632",
                         transform @ Affine.translation(columns.start or 0, rows.start or 0))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One town as two files, north.tif and south.tif."""
    folder = tmp_path_factory.mktemp("imagery")
    picture, transform = picture_of(town(folder.parent / "town.tif"))
    write_part(folder / "north.tif", picture, transform, slice(0, 150), slice(None))
    write_part(folder / "south.tif", picture, transform, slice(150, None), slice(None))
    return folder


@pytest.fixture(scope="module")
def changed(folder, tmp_path_factory):
    """The same with new houses in the south-west, and a strip in the north-east that is not known any more."""
    target = tmp_path_factory.mktemp("changed")
    north, transform = picture_of(folder / "north.tif")
    north[:, 230:] = 0
    write_geotiff(target / "north.tif", north, "EPSG:32632", transform)
    south, transform = picture_of(folder / "south.tif")
    south[100:140, 20:60] = textured(40, 40, seed=9)
    write_geotiff(target / "south.tif", south, "EPSG:32632", transform)
    return target


@pytest.fixture(scope="module")
def earlier(folder, bundle, engines, tmp_path_factory):
    output = tmp_path_factory.mktemp("earlier") / "index"
    return build_index([folder], bundle, engines, output, datum=DATUM, settings=ALONE)


@pytest.fixture(scope="module")
def fresh(changed, bundle, engines, tmp_path_factory):
    output = tmp_path_factory.mktemp("fresh") / "index"
    return build_index([changed], bundle, engines, output, datum=DATUM, settings=ALONE)


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def test_update_equals_a_build_of_the_changed_imagery_and_encodes_changed_tiles_only(
    earlier, fresh, changed, bundle, engines, tmp_path
):
    before = contents(earlier.path)
    settings = BuildSettings(batch_size=1, shard_tiles=20)  # stride and coverage are the earlier index's
    report = update_index(earlier.path, [changed], bundle, engines, tmp_path / "index", settings=settings)
    assert contents(report.path) == contents(fresh.path)
    assert contents(earlier.path) == before
    old, new = open_index(earlier.path), open_index(fresh.path)
    pixels = {tuple(old.centres_m[i]): old.tile_png(i) for i in range(len(old))}
    differing = sum(pixels.get(tuple(new.centres_m[i])) != new.tile_png(i) for i in range(len(new)))
    assert report.encoded == differing
    assert 5 < differing < len(new) / 2
    assert len(new) < len(old)


def test_update_with_batches_equals_a_build_to_rounding(earlier, fresh, changed, bundle, engines, tmp_path):
    report = update_index(earlier.path, [changed], bundle, engines, tmp_path / "index")
    one, other = open_index(report.path, verify=True), open_index(fresh.path)
    for name in ("tiles", "skipped", "imagery", "stride_m", "minimum_coverage", "datum"):
        assert getattr(one.manifest, name) == getattr(other.manifest, name)
    np.testing.assert_array_equal(one.centres_m, other.centres_m)
    np.testing.assert_allclose(one.descriptors.verify(), other.descriptors.verify(), atol=1e-6)
    np.testing.assert_allclose(one.match_maps.verify(), other.match_maps.verify(), atol=1e-3)
    assert [one.tile_png(i) for i in range(len(one))] == [other.tile_png(i) for i in range(len(other))]


def test_update_of_unchanged_imagery_encodes_nothing(earlier, folder, bundle, engines, tmp_path):
    report = update_index(earlier.path, [folder], bundle, engines, tmp_path / "index",
                          settings=BuildSettings(shard_tiles=20))  # fmt: skip
    assert report.encoded == 0
    assert contents(report.path) == contents(earlier.path)


def test_update_takes_in_imagery_beyond_the_earlier_index(earlier, folder, bundle, engines, tmp_path):
    """Of another resolution, beside and over the town; named last, it lies below."""
    _, transform = picture_of(folder / "north.tif")
    wide = transform @ Affine.translation(200, 0) @ Affine.scale(0.5)
    write_geotiff(tmp_path / "east.tif", textured(300, 500, seed=4), "EPSG:32632", wide)
    sources = [folder, tmp_path / "east.tif"]
    report = update_index(earlier.path, sources, bundle, engines, tmp_path / "index", settings=ALONE)
    whole = build_index(sources, bundle, engines, tmp_path / "whole", datum=DATUM, settings=ALONE)
    assert contents(report.path) == contents(whole.path)
    assert earlier.tiles / 2 < report.tiles - report.encoded < earlier.tiles


class Failing:
    """The real encoder, which fails in its n-th run."""

    def __init__(self, engine, run):
        self._engine, self._left = engine, run
        self.description = engine.description

    def run(self, *args, **options):
        self._left -= 1
        if self._left == 0:
            raise EngineError("the power is gone")
        return self._engine.run(*args, **options)


def test_interrupted_update_leaves_the_earlier_index_and_goes_on(earlier, fresh, changed, bundle, engines, tmp_path):
    before = contents(earlier.path)
    settings = BuildSettings(batch_size=1, shard_tiles=10)
    failing = replace(engines, aerial_encoder=Failing(engines.aerial_encoder, 6))
    with pytest.raises(EngineError, match="the power is gone"):
        update_index(earlier.path, [changed], bundle, failing, tmp_path / "index", settings=settings)
    assert (tmp_path / "index.partial" / "journal.jsonl").exists()
    assert not (tmp_path / "index").exists()
    assert contents(earlier.path) == before
    open_index(earlier.path, bundle=bundle, verify=True)
    # Not under the name of another task: a build of the same imagery does not take the half of the update for its own.
    with pytest.raises(ConfigurationError, match="an interrupted build with other imagery, model or settings"):
        build_index(
            [changed], bundle, engines, tmp_path / "index", datum=DATUM, settings=replace(ALONE, shard_tiles=10)
        )
    report = update_index(earlier.path, [changed], bundle, engines, tmp_path / "index", settings=settings)
    assert contents(report.path) == contents(fresh.path)


def test_update_of_deep_imagery_keeps_the_scale(bundle, engines, tmp_path):
    """The percentiles of the changed imagery are others; with them every tile would change."""
    picture, transform = picture_of(town(tmp_path / "town.tif"))
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    deep = picture.astype(np.uint16) * 30
    write_geotiff(tmp_path / "before" / "a.tif", deep, "EPSG:32632", transform)
    deep[250:, 250:] = 60_000
    deep[:20, :20] = np.arange(400).reshape(20, 20, 1) * 100
    write_geotiff(tmp_path / "after" / "a.tif", deep, "EPSG:32632", transform)
    before = build_index([tmp_path / "before"], bundle, engines, tmp_path / "index", datum=DATUM, settings=ALONE)
    updated = update_index(before.path, [tmp_path / "after"], bundle, engines, tmp_path / "updated", settings=ALONE)
    assert updated.encoded < updated.tiles / 2
    (raster,) = open_index(before.path).manifest.imagery["rasters"]
    options = ImageryOptions(scale=tuple(raster["scale"]))
    fresh = build_index([tmp_path / "after"], bundle, engines, tmp_path / "fresh", datum=DATUM, settings=ALONE,
                        options=options)  # fmt: skip
    assert contents(updated.path) == contents(fresh.path)


def test_index_says_its_precision_and_serves_another_of_the_same_weights_but_no_update(
    bundle, engines, folder, tmp_path
):
    """INT8 graphs search what fp32 graphs encoded (docs/reference/index_format.md), but one index has one encoder."""
    build_index([folder / "north.tif"], bundle, engines, tmp_path / "fp32", datum=DATUM, settings=ALONE)
    graphs = {graph: {"int8": files["fp32"]} for graph, files in bundle.manifest.graphs.items()}
    int8 = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    index = open_index(tmp_path / "fp32", bundle=int8)
    assert index.manifest.encoder.endswith("CPU, fp32")
    with open_engines(int8, backend="onnx_cpu", threads=1) as other:
        assert other.aerial_encoder.description.endswith("CPU, int8")
        with pytest.raises(ConfigurationError, match=r"was encoded by .* fp32, this run uses .* int8"):
            update_index(index.path, [folder / "north.tif"], int8, other, tmp_path / "updated")


def test_update_refuses_other_encoders_other_weights_and_a_damaged_index(
    earlier, folder, changed, bundle, engines, tmp_path
):
    other = replace(engines, aerial_encoder=Failing(engines.aerial_encoder, 0))
    other.aerial_encoder.description = "another backend"
    with pytest.raises(ConfigurationError, match=r"this run uses another backend, which gives slightly other features"):
        update_index(earlier.path, [changed], bundle, other, tmp_path / "index")
    stranger = random_bundle(tmp_path / "stranger", seed=1)
    with pytest.raises(IndexFormatError, match="made with the weights"):
        update_index(earlier.path, [changed], stranger, engines, tmp_path / "index")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name, content in contents(earlier.path).items():
        (damaged / name).write_bytes(content)
    pixels = bytearray((damaged / "pixels.bin").read_bytes())
    pixels[len(pixels) // 2] ^= 1
    (damaged / "pixels.bin").write_bytes(pixels)
    with pytest.raises(IndexFormatError, match=r"pixels\.bin: tile \d+ does not match its checksum"):
        update_index(damaged, [folder], bundle, engines, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_update_without_the_imagery_of_a_part_drops_its_tiles(earlier, folder, bundle, engines, tmp_path):
    """A file that is gone from the folder: its tiles are not kept from the earlier index."""
    report = update_index(earlier.path, [folder / "north.tif"], bundle, engines, tmp_path / "index")
    old, new = open_index(earlier.path), open_index(report.path)
    assert new.centres_m[:, 1].min() > 5 - SIDE_M / 2
    gone = {tuple(centre) for centre in old.centres_m} - {tuple(centre) for centre in new.centres_m}
    assert report.dropped == len(gone) > 10


def test_update_with_imagery_of_another_place_is_refused(earlier, folder, bundle, engines, tmp_path):
    picture, transform = picture_of(folder / "north.tif")
    write_geotiff(tmp_path / "far.tif", picture, "EPSG:32632", Affine.translation(0, 9000) @ transform)
    with pytest.raises(ConfigurationError, match=f"none of its {earlier.tiles} tiles lies in this imagery"):
        update_index(earlier.path, [tmp_path / "far.tif"], bundle, engines, tmp_path / "index")
    assert not list(tmp_path.glob("index*"))


# -- merge ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(tmp_path_factory, bundle, engines):
    """A town as west.tif and east.tif, which overlap by more than a tile, and an index of each and of both."""
    folder = tmp_path_factory.mktemp("halves")
    picture, transform = picture_of(town(folder / "town.tif"))
    write_part(folder / "west.tif", picture, transform, slice(None), slice(0, 200))
    write_part(folder / "east.tif", picture, transform, slice(None), slice(130, 320))
    for name, files in (("west", ["west"]), ("east", ["east"]), ("whole", ["west", "east"])):
        build_index([folder / f"{file}.tif" for file in files], bundle, engines, folder / name, datum=DATUM,
                    settings=ALONE)  # fmt: skip
    return folder


@pytest.mark.parametrize("order", [("west", "east"), ("east", "west")])
def test_merge_of_overlapping_halves_equals_one_build_over_both(halves, tmp_path, order):
    report = merge_indexes([halves / name for name in order], tmp_path / "merged")
    merged, whole = contents(report.path), contents(halves / "whole")
    for name in ("tiles.bin", "descriptors.f32", "match_maps.f16", "pixels.bin"):
        assert merged[name] == whole[name], name
    manifest = open_index(report.path, verify=True).manifest
    files = [file for raster in manifest.imagery["rasters"] for file in raster["files"]]
    assert files == [f"{name}.tif" for name in order]
    assert report.tiles < sum(open_index(halves / name).manifest.tiles for name in order)


def test_merge_continues_after_an_interruption(halves, tmp_path, monkeypatch):
    whole = merge_indexes([halves / "west", halves / "east"], tmp_path / "whole")
    monkeypatch.setattr("unifygeo_ros.aerial.merge.SHARD_TILES", 16)
    appended = []
    real = PartialIndex.append

    def stopping(partial, *args):
        if len(appended) == 3:
            raise ConfigurationError("the disk is full")
        appended.append(1)
        real(partial, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PartialIndex, "append", stopping)
        with pytest.raises(ConfigurationError, match="the disk is full"):
            merge_indexes([halves / "west", halves / "east"], tmp_path / "merged")
    assert len((tmp_path / "merged.partial" / "journal.jsonl").read_text().splitlines()) == 3
    with pytest.raises(ConfigurationError, match="an interrupted build with other"):
        merge_indexes([halves / "east", halves / "west"], tmp_path / "merged")
    merged = merge_indexes([halves / "west", halves / "east"], tmp_path / "merged")
    assert contents(merged.path) == contents(whole.path)


def test_merge_takes_the_tile_that_knows_more_and_an_update_completes_the_seam(halves, bundle, engines, tmp_path):
    """Halves without overlap: tiles on the seam know a part, until the index is updated with both files."""
    picture, transform = picture_of(halves / "town.tif")
    files = [write_part(tmp_path / f"{name}.tif", picture, transform, slice(None), columns)
             for name, columns in (("west", slice(0, 150)), ("east", slice(150, 320)))]  # fmt: skip
    parts = [build_index([file], bundle, engines, tmp_path / file.stem, datum=DATUM, settings=ALONE) for file in files]
    merged = open_index(merge_indexes([part.path for part in parts], tmp_path / "merged").path)
    known = np.array([np.count_nonzero(merged.tile_pixels(i).any(-1)) for i in range(len(merged))])
    for part in parts:
        index = open_index(part.path)
        for tile in range(len(index)):
            place = np.flatnonzero(np.all(merged.centres_m == index.centres_m[tile], axis=1))
            assert known[place] >= np.count_nonzero(index.tile_pixels(tile).any(-1))
    whole = build_index(files, bundle, engines, tmp_path / "whole", datum=DATUM, settings=ALONE)
    updated = update_index(merged.path, files, bundle, engines, tmp_path / "updated", settings=ALONE)
    assert contents(updated.path) == contents(whole.path)
    assert 0 < updated.encoded < updated.tiles / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datum": Datum(48.5, 9.0005)}, r"datum is .*9\.0,.* and .*9\.0005.*--datum"),
        ({"settings": replace(ALONE, stride=1.0)}, r"stride_m is 22\.4 and 32.*--stride"),
        ({"settings": replace(ALONE, minimum_coverage=0.9)}, r"minimum_coverage is 0\.4 and 0\.9"),
    ],
)  # fmt: skip
def test_merge_refuses_indexes_that_do_not_fit(halves, bundle, engines, tmp_path, change, message):
    other = {"datum": DATUM, "settings": ALONE} | change
    build_index([halves / "east.tif"], bundle, engines, tmp_path / "other", **other)
    with pytest.raises(ConfigurationError, match=message):
        merge_indexes([halves / "west", tmp_path / "other"], tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))


def test_merge_refuses_other_weights_and_a_single_index(halves, tmp_path):
    stranger = random_bundle(tmp_path / "stranger", seed=1)
    with open_engines(stranger, backend="onnx_cpu", threads=1) as engines:
        build_index([halves / "east.tif"], stranger, engines, tmp_path / "other", datum=DATUM, settings=ALONE)
    with pytest.raises(ConfigurationError, match=r"weights_sha256 is .* and .*the other's model"):
        merge_indexes([halves / "west", tmp_path / "other"], tmp_path / "merged")
    with pytest.raises(ConfigurationError, match="1 index given; name at least two"):
        merge_indexes([halves / "west"], tmp_path / "merged")


def test_commands_update_and_merge(halves, earlier, changed, fresh, bundle, tmp_path, capsys):
    model = ["--model", str(bundle.path), "--backend", "onnx_cpu", "--output", str(tmp_path / "updated")]
    assert main(["index", "update", str(earlier.path), str(changed / "*.tif"), *model]) == 0
    told = capsys.readouterr().out
    assert f"{fresh.tiles} tiles" in told
    assert f"taken from {earlier.path}" in told
    assert f"; {earlier.tiles - fresh.tiles} tiles of that index are not in this one, for lack of imagery" in told
    assert main(["index", "update", str(earlier.path), str(changed / "*.jpg"), *model]) == 2
    assert main(["index", "merge", str(halves / "west"), str(halves / "east"), "-o", str(tmp_path / "merged")]) == 0
    assert json.loads((tmp_path / "merged" / "manifest.json").read_text())["tiles"] == len(open_index(halves / "whole"))
    assert main(["index", "merge", str(halves / "west"), str(tmp_path), "-o", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


def test_pattern_that_fits_no_file_is_refused(bundle, engines, tmp_path):
    with pytest.raises(InputError, match=r"\*\*/\*\.tif: no file fits this pattern"):
        build_index([tmp_path / "**" / "*.tif"], bundle, engines, tmp_path / "index")
