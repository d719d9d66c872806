"""Training on VIGOR, CVUSA and CVACT: folders made by hand, no real images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from pydantic import TypeAdapter
from small_centre_aligned import make_cvact_list, make_cvusa
from small_runs import SMALL, Dots, small_config
from small_vigor import STREET_TILES, make_vigor_street, write_image

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_training.cli import main
from unifygeo_training.configuration import check_settings, read_settings
from unifygeo_training.data.hard_negatives import ComparablePairs
from unifygeo_training.data.split import CrossViewSplit
from unifygeo_training.data.split_pairs import CentreAlignedConfig, Exclusions, SplitPairs, VigorConfig
from unifygeo_training.data.towns import TownsConfig
from unifygeo_training.data.vigor import load_vigor
from unifygeo_training.fit import Run, fit
from unifygeo_training.fit_config import DataConfig, FitConfig
from unifygeo_training.judging.evaluation_set import JudgedSplit
from unifygeo_training.model import NetworkConfig

QUERIES = STREET_TILES + 1  # of a city
RETRIEVAL_ALONE = {"distribution": 0, "matching": 0, "reranking": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vigor")
    make_vigor_street(folder)
    return folder


@pytest.fixture(scope="module")
def split(root: Path) -> CrossViewSplit:
    return load_vigor(root, "cross-area", "train")


@pytest.fixture(scope="module")
def pairs(split: CrossViewSplit) -> SplitPairs:
    return SplitPairs(split, SMALL)


def _vigor(folder: Path, **changes: object) -> dict[str, object]:
    return {"kind": "vigor", "folder": str(folder), "area": "cross-area", **changes}


# -- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "row", "column"),
    [
        (0, 360 / 640, 380 / 640),  # 40 px below and 60 px right of the centre, 320 px from the edges
        (7, 430 / 640, 380 / 640),
        (8, 290 / 640, 300 / 640),  # 30 px above, 20 px left
        (QUERIES + 3, 390 / 640, 380 / 640),  # in the second city
    ],
)
def test_positions_by_hand(pairs: SplitPairs, query: int, row: float, column: float) -> None:
    assert pairs.read(query, np.random.default_rng()).position == pytest.approx((row, column))


def test_position_is_where_the_tile_shows_it(root: Path, split: CrossViewSplit, tmp_path: Path) -> None:
    """A white spot painted into the file where the label file's numbers say the camera is."""
    image = np.zeros((640, 640, 3), np.uint8)
    image[320 + 60 - 20 : 320 + 60 + 20, 320 + 60 - 20 : 320 + 60 + 20] = 255  # query 2: d_row 60, d_col −60
    assert cv2.imwrite(str(tmp_path / "tile.png"), image)
    gallery = tuple(tmp_path / "tile.png" if n == 2 else file for n, file in enumerate(split.gallery))
    pair = SplitPairs(dataclasses.replace(split, gallery=gallery), SMALL).read(2, np.random.default_rng())
    rows, columns = np.nonzero(pair.tile[:, :, 0] > 127)
    size = pair.tile.shape[0]
    assert size == SMALL.aerial_size
    assert (rows.mean() + 0.5) / size == pytest.approx(pair.position[0], abs=0.01)
    assert (columns.mean() + 0.5) / size == pytest.approx(pair.position[1], abs=0.01)


def test_images_are_those_that_are_judged(split: CrossViewSplit, pairs: SplitPairs) -> None:
    judged = JudgedSplit(split, SMALL)
    for query in (0, 8, QUERIES + 7):
        pair = pairs.read(query, np.random.default_rng())
        assert np.array_equal(pair.panorama, judged.ground_image(query))
        assert np.array_equal(pair.tile, judged.aerial_image(int(split.positives[query])))


def _false_negatives(batch: list[int]) -> list[tuple[int, int]]:
    """Pairs (a, b) of a batch where b's tile holds a's camera, in pixels along the street, from how it was made."""

    def tile(query: int) -> int:
        return query % QUERIES % STREET_TILES

    def camera(query: int) -> int:
        return 320 * tile(query) + (-20 if query % QUERIES == 8 else 60)

    return [
        (a, b)
        for a in batch
        for b in batch
        if a != b and a // QUERIES == b // QUERIES and abs(camera(a) - 320 * tile(b)) < 320
    ]


def _without_semi_positives(split: CrossViewSplit) -> CrossViewSplit:
    return dataclasses.replace(split, tiles=split.tiles[:, :1], offsets_px=split.offsets_px[:, :1])


@pytest.mark.parametrize("by", ["labels and coordinates", "labels", "coordinates"])
def test_no_tile_twice_and_no_false_negative(split: CrossViewSplit, by: str) -> None:
    """By labels alone, and by coordinates alone; the last tile of a street is excluded by its neighbour's labels."""
    if by == "labels":
        split = dataclasses.replace(split, gallery_lat_lon=np.full_like(split.gallery_lat_lon, np.nan))
    if by == "coordinates":
        split = _without_semi_positives(split)
    pairs = SplitPairs(split, SMALL)
    seen = set()
    for seed in range(200):
        batch = pairs.draw(np.random.default_rng(seed), 4)
        seen |= set(batch)
        assert len(batch) == 4
        assert len(set(split.positives[batch])) == 4
        assert not _false_negatives(batch)
        others = {query: set(split.positives[batch]) - {split.positives[query]} for query in batch}
        assert not any(others[query] & set(split.tiles[query]) for query in batch)
    assert seen == set(range(2 * QUERIES))


def test_without_the_rule_batches_have_false_negatives() -> None:
    """The oracle of the last test can find them."""
    rng = np.random.default_rng(0)
    assert any(_false_negatives(rng.choice(2 * QUERIES, 4, replace=False).tolist()) for _ in range(20))


def test_excluded_pairs_by_hand(pairs: SplitPairs) -> None:
    """Query 2 stands on tiles 2 and 3. Tile 2 is a semi-positive of query 1, tile 3 the positive of query 3."""
    excluded = [other for other in range(2 * QUERIES) if pairs.tiles(None).excludes(2, [other])]
    assert excluded == [1, 2, 3]
    assert pairs.tiles(None).excludes(0, [8])  # the same tile
    assert pairs.tiles(None).excludes(8, [5, QUERIES, 0])
    assert not pairs.tiles(None).excludes(8, [5, QUERIES])
    assert not pairs.tiles(None).excludes(8, [])


def test_neighbours_that_do_not_hold_the_camera_stay_negatives(split: CrossViewSplit) -> None:
    """Tiles 0 and 1 overlap by half. Query 8 stands 20 px left of tile 0's centre, 20 px off tile 1; query 0, 60 px
    right of it, on tile 1; query 1 stands off tile 0."""
    exclusions = Exclusions(_without_semi_positives(split))
    assert not exclusions.excludes(8, [1])
    assert not exclusions.excludes(1, [8])
    assert exclusions.excludes(0, [1])
    assert exclusions.excludes(1, [0])
    assert Exclusions(split).excludes(8, [1])  # the labels name tile 1


def test_batches_depend_on_the_seed_alone(root: Path, pairs: SplitPairs) -> None:
    again = SplitPairs(load_vigor(root, "cross-area", "train"), SMALL)
    draws = [[p.draw(np.random.default_rng((0, step)), 4) for step in range(5)] for p in (pairs, again)]
    assert draws[0] == draws[1]
    assert len({tuple(batch) for batch in draws[0]}) > 1


def test_batch_for_which_there_is_no_room_is_an_error(pairs: SplitPairs) -> None:
    with pytest.raises(ConfigurationError, match=r"room for \d of 12 queries"):
        pairs.draw(np.random.default_rng(0), 12)


def test_camera_outside_its_positive_is_refused(split: CrossViewSplit) -> None:
    offsets = split.offsets_px.copy()
    offsets[3, 0, 1] = 321
    offsets[5, 0, 0] = np.nan
    with pytest.raises(InputError, match="2 of 18 cameras lie outside their positive tiles, Abc3"):
        SplitPairs(dataclasses.replace(split, offsets_px=offsets), SMALL)


def test_centre_aligned_cameras_stand_in_the_middle(tmp_path: Path) -> None:
    make_cvusa(tmp_path, 3)
    network = SMALL.model_copy(update={"ground_elevation_top_deg": 32.0, "ground_elevation_bottom_deg": -32.0})
    pairs = CentreAlignedConfig(kind="cvusa", folder=tmp_path).open(network)
    assert sorted(pairs.draw(np.random.default_rng(0), 3)) == [0, 1, 2]
    pair = pairs.read(1, np.random.default_rng())
    assert pair.position == (0.5, 0.5)
    assert pair.panorama.shape == (32, 64, 3)
    with pytest.raises(InputError, match="use a network config for this data set"):
        CentreAlignedConfig(kind="cvusa", folder=tmp_path).open(SMALL)


def test_cvact(tmp_path: Path) -> None:
    make_cvact_list(tmp_path)
    for name in ("first", "third"):
        write_image(tmp_path / f"ANU_data_small/streetview/{name}_grdView.jpg", 832, 1664)
        write_image(tmp_path / f"ANU_data_small/satview_polish/{name}_satView_polish.jpg", 1200, 1200)
    pairs = CentreAlignedConfig(kind="cvact", folder=tmp_path).open(SMALL)
    assert len(pairs) == 2
    assert pairs.read(1, np.random.default_rng()).tile.shape == (64, 64, 3)


# -- configs ----------------------------------------------------------------------------------------------------------


def test_kind_says_what_the_data_are() -> None:
    assert isinstance(small_config().data, TownsConfig)
    assert isinstance(small_config(data=_vigor(Path("vigor"))).data, VigorConfig)
    aligned = small_config(data={"kind": "cvact", "folder": "x"}, losses=RETRIEVAL_ALONE)
    assert aligned.data.describe() == "CVACT train"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_vigor(Path("x"), city="Chicago"), "unknown key data.city"),
        (_vigor(Path("x"), area="everywhere"), "data.area is 'everywhere'"),
        ({"kind": "vigor", "folder": "x"}, "data.area is"),
        ({"folder": "x", "last_seed": 1, "area": "cross-area"}, "unknown key data.area"),
        ({"kind": "kitti", "folder": "x"}, "data is .*'towns', 'vigor', 'cvusa', 'cvact'"),
        (
            {"kind": "cvusa", "folder": "x"},
            "losses is .*CVUSA train has every camera in the middle.*distribution, matching",
        ),
    ],
)
def test_data_that_do_not_fit_are_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_settings({"data": data, "steps": 1}, FitConfig, "fit.yaml")


@pytest.mark.parametrize(
    ("name", "data", "pairs"),
    [
        ("vigor_same_area", {"kind": "vigor", "folder": "VIGOR", "area": "same-area"}, 52609),
        ("vigor_cross_area", {"kind": "vigor", "folder": "VIGOR", "area": "cross-area"}, 51520),
        ("cvusa", {"kind": "cvusa", "folder": "CVUSA"}, 35532),
        ("cvact", {"kind": "cvact", "folder": "CVACT"}, 35532),
    ],
)
def test_shipped_configs_are_the_published_recipe(name: str, data: dict[str, str], pairs: int) -> None:
    """Section IV-C: batch 64, 40 epochs, one of warm-up, AdamW at 4.5e-4 with weight decay 0.04, Eq. 5's weights."""
    config = read_settings(Path(__file__).resolve().parents[1] / f"configs/{name}.yaml", FitConfig)
    assert config.pretrained
    assert config.data == TypeAdapter(DataConfig).validate_python(data)
    assert (config.optimiser.learning_rate, config.optimiser.weight_decay) == (4.5e-4, 0.04)
    assert config.batch_size == 64
    assert config.optimiser.warmup_steps == pairs // 64
    assert config.steps in (40 * (pairs // 64), 40 * pairs // 64)
    assert (config.losses.retrieval, config.losses.reranking) == (100, 1)
    network, centred = config.network.model_dump(exclude_unset=True), name.startswith("cv")
    if centred:
        assert (config.losses.distribution, config.losses.matching) == (0, 0)  # nothing to learn on centred tiles
        assert (config.network.ground_height, config.network.ground_width) == (140, 768)  # section IV-A
        assert network.keys() <= {"ground_height", "ground_elevation_top_deg", "ground_elevation_bottom_deg"}
    else:
        assert (config.losses.distribution, config.losses.matching) == (1, 10)
        assert config.network == NetworkConfig()
    assert config.network.aerial_size == 384


# -- runs -------------------------------------------------------------------------------------------------------------


def _same_bits(a: Path, b: Path) -> bool:
    first, second = (torch.load(path, weights_only=True)["model"] for path in (a, b))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_run_on_vigor_that_was_killed_ends_with_the_same_bits(root: Path, tmp_path: Path) -> None:
    """Two steps drawn at random, two by descriptor; killed among the first and among the others."""
    hard = {"from_step": 2, "every": 2, "pool": 4, "take": 2}
    config = small_config(data=_vigor(root), hard_negatives=hard, losses={"retrieval_from_step": 1})
    pairs = config.data.open(config.network)
    assert isinstance(pairs, ComparablePairs)
    whole = fit(config, pairs, tmp_path / "whole")
    for stop in (1, 3):
        fit(config, config.data.open(config.network), tmp_path / "parts", stop_after=stop)
    assert _same_bits(whole, fit(config, config.data.open(config.network), tmp_path / "parts"))
    assert torch.load(whole, weights_only=True)["trained_on"] == "VIGOR cross-area train (corrected labels)"


def test_command_trains_on_a_folder_given_to_it(root: Path, tmp_path: Path) -> None:
    config = small_config(data=_vigor(Path("nowhere")), steps=2)
    (tmp_path / "fit.yaml").write_text(config.model_dump_json())  # JSON is YAML
    command = ["fit", str(tmp_path / "fit.yaml"), "--output", str(tmp_path / "run")]
    assert main(command) == 2
    assert main([*command, "--data", str(root)]) == 0
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert state["step"] == 2
    assert state["config"]["data"]["folder"] == str(root)


def test_retrieval_run_on_cvusa(tmp_path: Path) -> None:
    make_cvusa(tmp_path / "cvusa", 4)
    network = SMALL.model_dump() | {"ground_elevation_top_deg": 32.0, "ground_elevation_bottom_deg": -32.0}
    data = {"kind": "cvusa", "folder": tmp_path / "cvusa"}
    losses = {"distribution": 0, "matching": 0, "reranking": 1}  # which tile: the re-ranking loss has an answer here
    config = small_config(network=network, data=data, losses=losses, steps=2)
    before = Run(config, Fabric(accelerator="cpu", devices=1)).network.state_dict()
    state = torch.load(fit(config, config.data.open(config.network), tmp_path / "run"), weights_only=True)
    assert state["step"] == 2
    assert state["trained_on"] == "CVUSA train"
    for part in ("ground.fine_head.down.weight", "aerial.fine_head.down.weight", "decoder.projectors.0.reduce.weight"):
        assert not torch.equal(state["model"][part], before[part])


def test_another_area_is_another_run(root: Path, tmp_path: Path) -> None:
    config = small_config(data=_vigor(root))
    fit(config, config.data.open(config.network), tmp_path, stop_after=1)
    other = small_config(data=_vigor(root, area="same-area"))
    with pytest.raises(InputError, match="another data than"):
        fit(other, config.data.open(config.network), tmp_path)


def test_checkpoint_from_before_there_were_kinds_is_continued(tmp_path: Path) -> None:
    path = fit(small_config(), Dots(), tmp_path, stop_after=1)
    state = torch.load(path, weights_only=True)
    assert state["config"]["data"].pop("kind") == "towns"
    torch.save(state, path)
    assert torch.load(fit(small_config(), Dots(), tmp_path, stop_after=2), weights_only=True)["step"] == 2
