"""Gates, searches and the opening of indexes, against brute force in plain numpy."""

import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagery_files import textured

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.aerial.manifest import FileRecord, IndexManifest
from unifygeo_ros.aerial.partial import PartialIndex, Shard
from unifygeo_ros.aerial.regions import RegionIndex
from unifygeo_ros.aerial.search import choose_search
from unifygeo_ros.core.errors import IndexFormatError, InputError, UnifyGeoError
from unifygeo_ros.core.geodesy import Datum
from unifygeo_ros.core.records import Prior

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 16
SIDE_M = 32.0


def unit_rows(count, seed=0, width=WIDTH):
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def manifest_of(tiles, search="exact"):
    return IndexManifest(
        model="made in a test", weights_sha256="0" * 64, encoder="none", datum=Datum(48.5, 9.0), tiles=tiles, skipped=0,
        tile_size=64, metres_per_pixel=SIDE_M / 64, stride_m=16.0, minimum_coverage=0.5, descriptor_dim=WIDTH,
        match_size=2, match_channels=3, imagery={"kind": "none"}, search=search, files={},
    )  # fmt: skip


def write(folder, centres, descriptors, search="exact"):
    """An index of given descriptors at given places, in the order of the index."""
    from unifygeo_ros.aerial.manifest import cell_keys

    order = np.argsort(cell_keys(centres, SIDE_M), kind="stable")
    count = len(order)
    maps = np.random.default_rng(1).normal(size=(count, 2, 2, 3)).astype(np.float16)
    pngs = [cv2.imencode(".png", textured(64, 64, seed))[1].tobytes() for seed in range(16)]
    shard = Shard(centres[order], descriptors[order], maps, tuple(pngs[i % 16] for i in range(count)), 0)
    with PartialIndex(folder, {"made in": "a test"}) as partial:
        partial.append(shard, SIDE_M)
        partial.finish(manifest_of(count, search))
    return open_index(folder)


def grid(rows, columns, stride=16.0):
    north, east = np.mgrid[:rows, :columns] * stride
    return np.stack([east.ravel() - 37.0, north.ravel() - 111.0], axis=-1)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    centres = grid(24, 30)
    # A hole, and a few tiles off the grid, as VIGOR has them.
    centres = centres[np.hypot(*(centres - (150, 100)).T) > 60]
    centres = np.concatenate([centres, np.random.default_rng(2).uniform(-900, -500, (60, 2))])
    return write(tmp_path_factory.mktemp("index") / "i", centres, unit_rows(len(centres)))


positions = st.floats(-1200, 1200)


@st.composite
def gates(draw):
    sigmas = np.array([draw(st.floats(0.05, 400)), draw(st.floats(0.05, 400))])
    angle = draw(st.floats(0, np.pi))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance = turn @ np.diag(sigmas**2) @ turn.T
    covariance = (covariance + covariance.T) / 2
    return Gate(Prior(draw(positions), draw(positions), covariance), draw(st.floats(1, 6)))


def smallest_mahalanobis(gate, centre, side):
    """Densely along the square's edge; 0 if the mean lies inside. Never below the true minimum."""
    mean = np.array([gate.prior.east_m, gate.prior.north_m])
    if np.all(np.abs(mean - centre) <= side / 2):
        return 0.0
    share = np.linspace(-0.5, 0.5, 401) * side
    half = np.full_like(share, side / 2)
    edge = np.concatenate(
        [np.stack(pair, -1) for pair in ((share, half), (share, -half), (half, share), (-half, share))]
    )
    offset = edge + centre - mean
    return float(np.sqrt(np.einsum("ni,ij,nj->n", offset, np.linalg.inv(gate.prior.covariance_m2), offset).min()))


@settings(max_examples=200)
@given(gate=gates(), centre=st.tuples(positions, positions))
def test_gate_touches_agrees_with_sampled_square_edges(gate, centre):
    sampled = smallest_mahalanobis(gate, np.array(centre), SIDE_M)
    touches = bool(gate.touches(np.array([centre]), SIDE_M)[0])
    if sampled <= gate.sigma:
        assert touches
    elif touches:
        # Between two samples at most: half a step of the edge, in standard deviations along the short axis.
        step = SIDE_M / 800 / np.sqrt(np.linalg.eigvalsh(gate.prior.covariance_m2)[0])
        assert sampled <= gate.sigma + step


def test_gate_touches_worked_by_hand():
    gate = Gate(Prior(0.0, 0.0, np.diag([100.0, 4.0])), 3.0)  # 30 m east, 6 m north
    squares = np.array([[45.9, 0.0], [46.1, 0.0], [0.0, 21.9], [0.0, 22.1], [-45.9, 15.9], [46.0, 22.0], [0.0, 0.0]])
    np.testing.assert_array_equal(gate.touches(squares, 32.0), [True, False, True, False, True, False, True])


@settings(max_examples=150)
@given(gate=gates(), k=st.integers(1, 40), seed=st.integers(0, 1000))
def test_gated_search_is_a_filtered_exhaustive_search(index, gate, k, seed):
    inside = np.flatnonzero(gate.touches(index.centres_m, SIDE_M))
    np.testing.assert_array_equal(index.tiles_within(gate), inside)
    query = unit_rows(1, seed)[0]
    similarities = index.descriptors.verify()[inside] @ query
    best = np.argsort(-similarities, kind="stable")[:k]
    found = index.search(query, k, gate)
    np.testing.assert_array_equal(found.tile_ids, inside[best])
    np.testing.assert_allclose(found.similarities, similarities[best], atol=1e-6)


def test_gate_of_a_degenerate_covariance_is_a_line():
    """Perfectly correlated, as covariances that were turned by 45° may be after rounding."""
    along = np.array([[400.0, 400.0], [400.0, 400.0]])
    gate = Gate(Prior(0.0, 0.0, along), 3.0)  # 60 m north-east and south-west
    squares = np.array([[50.0, 50.0], [75.9, 75.9], [76.1, 76.1], [50.0, 17.0], [50.0, 19.0]])
    np.testing.assert_array_equal(gate.touches(squares, 32.0), [True, True, False, False, True])


def test_gate_outside_the_map_holds_no_tile(index):
    found = index.search(unit_rows(1)[0], 5, Gate(Prior(50_000.0, -1e9, np.eye(2)), 4.0))
    assert found.tile_ids.shape == found.similarities.shape == (0,)
    everything = index.tiles_within(Gate(Prior(0.0, 0.0, np.eye(2) * 1e16), 4.0))
    np.testing.assert_array_equal(everything, np.arange(len(index)))


def test_gated_search_reads_only_gated_descriptors(index, monkeypatch):
    """Tiles outside the gate are not even verified, so they were not touched."""
    fresh = open_index(index.path)
    gate = Gate(Prior(100.0, 100.0, np.eye(2) * 25.0), 3.0)
    fresh.search(unit_rows(1)[0], 3, gate)
    np.testing.assert_array_equal(np.flatnonzero(fresh.descriptors.verified), fresh.tiles_within(gate))
    assert 0 < fresh.descriptors.verified.sum() < 30


@pytest.mark.parametrize(
    "covariance", [np.zeros((2, 2)), np.array([[1.0, 2.0], [2.0, 1.0]]), np.full((2, 2), np.nan), np.eye(3),
                   np.array([[1.0, 0.1], [0.2, 1.0]]), np.diag([np.inf, 1.0])])  # fmt: skip
def test_gate_of_a_bad_prior_is_refused(covariance):
    with pytest.raises(InputError, match="covariance"):
        Gate(Prior(0.0, 0.0, covariance), 3.0)


@pytest.mark.parametrize("spoil", [np.nan, np.inf, 0.0, 1.01])
def test_queries_that_are_not_unit_length_are_refused(index, spoil):
    query = unit_rows(1)[0] * np.float32(spoil)
    with pytest.raises(InputError, match="length"):
        index.search(query, 5)
    with pytest.raises(InputError, match="width 16"):
        index.search(unit_rows(1, width=17)[0], 5)
    with pytest.raises(InputError, match="at least 1"):
        index.search(unit_rows(1)[0], 0)


def test_batch_equals_single(index):
    many = index.match_maps[[3, 1, 4]]
    for place, tile_id in enumerate([3, 1, 4]):
        np.testing.assert_array_equal(many[place], index.match_maps[tile_id])
    np.testing.assert_array_equal(index.match_maps[2:5], index.match_maps[np.arange(2, 5)])


@pytest.fixture(scope="module")
def few_are_enough():
    """For IVF-PQ, whose training on ten thousand takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unifygeo_ros.aerial.search.MINIMUM_TRAINING", 1500)
        yield


@pytest.fixture(scope="module")
def large(tmp_path_factory, few_are_enough):
    """Clustered, as descriptors of half-overlapping tiles are."""
    count = 1600
    centres = grid(50, 32)
    descriptors = unit_rows(count // 8, 3).repeat(8, 0) + 0.15 * unit_rows(count, 4)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return write(tmp_path_factory.mktemp("large") / "i", centres, descriptors.astype(np.float32), "ivfpq")


def test_inverted_file_finds_nearly_all_and_its_similarities_are_exact(large):
    descriptors = large.descriptors.verify()
    hits = 0
    for seed in range(50):
        query = descriptors[seed * 31] + 0.1 * unit_rows(1, seed)[0]
        query /= np.linalg.norm(query)
        exact = np.argsort(-(descriptors @ query))[:5]
        found = large.search(query, 5)
        np.testing.assert_allclose(found.similarities, descriptors[found.tile_ids] @ query, atol=1e-6)
        assert np.all(np.diff(found.similarities) <= 0)
        hits += len(set(exact.tolist()) & set(found.tile_ids.tolist()))
    assert hits >= 245  # of 250


def test_search_of_a_region_uses_each_indexes_own_search(index, large, few_are_enough):
    """An exact one and an inverted file together give the best of both."""
    paths = [index.path, large.path]
    region = RegionIndex(index.path.parent, paths, None, open_index)
    assert region.search_description == "exact and ivfpq, index by index (2), CPU"
    descriptors = large.descriptors.verify()
    origins = set()
    for seed in range(20):
        query = (index.descriptors[seed] if seed % 2 else descriptors[seed * 31]) + 0.05 * unit_rows(1, seed)[0]
        query /= np.linalg.norm(query)
        one, other = index.search(query, 5), large.search(query, 5)
        both = [(s, i) for s, i in zip(one.similarities, one.tile_ids, strict=True)]
        both += [(s, i + len(index)) for s, i in zip(other.similarities, other.tile_ids, strict=True)]
        best = sorted(both, key=lambda entry: -entry[0])[:5]
        found = region.search(query, 5)
        np.testing.assert_allclose(found.similarities, [entry[0] for entry in best], atol=1e-6)
        assert set(found.tile_ids.tolist()) == {int(entry[1]) for entry in best}
        origins.add(bool(found.tile_ids[0] < len(index)))
    assert origins == {True, False}


def test_inverted_file_is_the_same_in_every_build(large, tmp_path, few_are_enough):
    again = write(tmp_path / "again", np.array(large.centres_m), np.array(large.descriptors.verify()), "ivfpq")
    assert again.manifest == large.manifest


def test_prepared_search_is_opened_once_and_a_search_that_comes_earlier_waits(index, monkeypatch):
    opened, begun, go_on = [], threading.Event(), threading.Event()
    fresh = open_index(index.path)
    original = fresh._open_search

    def slow():
        opened.append(threading.current_thread().name)
        begun.set()
        assert go_on.wait(10)
        return original()

    monkeypatch.setattr(fresh, "_open_search", slow)
    fresh.prepare_search()
    assert begun.wait(10)
    with ThreadPoolExecutor(1) as pool:
        query = unit_rows(1, seed=5)[0]
        waiting = pool.submit(fresh.search, query, 4)
        assert not wait([waiting], timeout=0.1).done
        go_on.set()
        found = waiting.result(10)
    assert opened == ["index search"]
    similarities = np.asarray(index.descriptors[np.arange(len(index))]) @ query
    assert found.tile_ids.tolist() == np.argsort(-similarities)[:4].tolist()
    fresh.close_search()
    go_on.set()
    assert fresh.search(query, 4).tile_ids.tolist() == found.tile_ids.tolist()
    assert len(opened) == 2


def test_damage_that_the_preparation_meets_is_raised_by_every_search(index, tmp_path):
    damaged = Path(shutil.copytree(index.path, tmp_path / "damaged"))
    content = bytearray((damaged / "descriptors.f32").read_bytes())
    content[-5] ^= 1
    (damaged / "descriptors.f32").write_bytes(content)
    fresh = open_index(damaged)
    fresh.prepare_search()
    for _ in range(2):
        with pytest.raises(IndexFormatError, match=rf"descriptors\.f32: tile {len(index) - 1} does not match"):
            fresh.search(unit_rows(1)[0], 4)


def test_choose_search_is_inverted_above_a_million_tiles():
    assert choose_search(1_000_000) == "exact"
    assert choose_search(1_000_001) == "ivfpq"


def use_everything(folder):
    """As a localizer would, over time."""
    opened = open_index(folder)
    opened.search(unit_rows(1)[0], 5)
    opened.descriptors.verify()
    opened.match_maps.verify()
    for tile_id in range(len(opened)):
        opened.tile_pixels(tile_id)


@pytest.mark.parametrize("name", ["manifest.json", "tiles.bin", "descriptors.f32", "match_maps.f16", "pixels.bin",
                                  "search.faiss"])  # fmt: skip
def test_flipped_byte_in_any_file_is_refused(index, large, tmp_path, name):
    """One copy is spoilt and mended many times."""
    original = (large if name == "search.faiss" else index).path
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    if name != "search.faiss":
        use_everything(folder)
        assert {file.name for file in folder.iterdir()} == {"manifest.json", *index.manifest.files}
    rng = np.random.default_rng(5)
    size = (folder / name).stat().st_size
    for place in [0, size - 1, *rng.integers(0, size, 8).tolist()]:
        with (folder / name).open("r+b") as file:
            file.seek(place)
            before = file.read(1)
            file.seek(place)
            file.write(bytes([before[0] ^ (1 << int(rng.integers(8)))]))
        with pytest.raises(IndexFormatError, match=re.escape(str(folder / name))):
            use_everything(folder)
        with pytest.raises(IndexFormatError, match=re.escape(str(folder / name))):
            open_index(folder, verify=True)
        with (folder / name).open("r+b") as file:
            file.seek(place)
            file.write(before)
    open_index(folder, verify=True)


@settings(max_examples=100)
@given(data=st.data())
def test_manifest_of_any_bytes_is_an_index_error(index, data):
    text = (index.path / "manifest.json").read_text()
    start = data.draw(st.integers(0, len(text) - 1))
    spoilt = text[:start] + data.draw(st.text(max_size=5)) + text[start + data.draw(st.integers(0, 40)) :]
    if spoilt != text:
        with pytest.raises(IndexFormatError):
            IndexManifest.from_json(spoilt, "manifest.json")


def test_manifest_that_contradicts_its_files_is_refused(index, tmp_path):
    """With a valid checksum of itself: only the content is wrong."""
    bad = [
        replace(index.manifest, tiles=index.manifest.tiles + 1),
        replace(index.manifest, search="hnsw"),
        replace(index.manifest, metres_per_pixel=-1.0),
        replace(index.manifest, files={**index.manifest.files, "../evil": FileRecord(1, "0" * 64)}),
    ]
    for manifest in bad:
        with pytest.raises(IndexFormatError, match="malformed"):
            IndexManifest.from_json(manifest.to_json(), "manifest.json")


def test_missing_and_short_files_are_refused(index, tmp_path):
    with pytest.raises(IndexFormatError, match="give a folder that `unifygeo index build` wrote"):
        open_index(tmp_path)
    for name in index.manifest.files:
        folder = tmp_path / name
        folder.mkdir()
        for file in index.path.iterdir():
            if file.name != name:
                (folder / file.name).symlink_to(file)
        with pytest.raises(IndexFormatError, match=f"{name}: cannot be read"):
            open_index(folder)
        (folder / name).write_bytes((index.path / name).read_bytes()[:-1])
        with pytest.raises(UnifyGeoError, match=rf"{name}: \d+ bytes, the manifest says"):
            open_index(folder)


def test_open_index_of_a_million_tiles_reads_no_tile(tmp_path):
    """In a fresh interpreter: how much memory opening adds, measured by the kernel. benchmarks/index_search.py measures
    the time."""
    program = """
import resource, sys
sys.path.insert(0, "benchmarks")
from pathlib import Path
from index_search import resident_mb, sparse_index
from unifygeo_ros.aerial.index import open_index
folder = sparse_index(Path(sys.argv[1]), 1_000_000, descriptor_dim=768, match_size=12, match_channels=768)
before = resident_mb()
index = open_index(folder)
print(len(index), index.match_maps.shape[1:], resident_mb() - before, resident_mb())
"""
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path / "i")], capture_output=True, text=True,
                            cwd=ROOT, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    count, *_, added, resident = result.stdout.split()
    assert int(count) == 1_000_000
    assert float(added) < 100
    assert float(resident) < 300
