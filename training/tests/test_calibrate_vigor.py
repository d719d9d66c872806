"""Calibration on a VIGOR folder, with a bundle and with imported weights: the folder shows a procedural town."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from published_names import published_name
from small_runs import SMALL

from unifygeo_ros.core.arrays import Float64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.inference.bundle import GROUND_FEATURES, PYRAMID, load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_training.cli import main
from unifygeo_training.data.split import METRES_PER_DEGREE
from unifygeo_training.data.vigor import METRES_PER_PIXEL, load_vigor
from unifygeo_training.judging.evaluation_set import JudgedSplit
from unifygeo_training.judging.region import Region
from unifygeo_training.model import UnifyGeo
from unifygeo_training.towns.light import draw_appearance
from unifygeo_training.towns.orthophoto import crop_tile, render_orthophoto
from unifygeo_training.towns.pairs import street_positions
from unifygeo_training.towns.panorama import View, light_stage, render_panorama, set_stage
from unifygeo_training.towns.town import build_town
from unifygeo_training.weights import open_weights

SHIPPED = Path(__file__).parents[2] / "models" / "towns-atto"
SIZE_M, GROUND_SAMPLING_M, PANORAMAS = 300.0, 0.25, 16
CITIES_AT = {"SanFrancisco": (37.75, -122.43), "Chicago": (41.88, -87.65)}


@pytest.fixture
def town_root(tmp_path: Path) -> Path:
    """The test part of cross-area: the same town in both cities."""
    town = build_town(903, SIZE_M, GROUND_SAMPLING_M)
    rng = np.random.default_rng(0)
    light = draw_appearance(rng)
    lit = light_stage(set_stage(town), light)
    cameras = street_positions(rng, town, PANORAMAS)
    view = View(256, 512, np.pi / 2, -np.pi / 2)
    panoramas = [render_panorama(lit, x, y, view, height_m=2.0, noise_seed=n) for n, (x, y) in enumerate(cameras)]
    return write_cities(tmp_path / "vigor", render_orthophoto(town, light), cameras, panoramas)


def write_cities(root: Path, above: UInt8, cameras: Float64, panoramas: Sequence[UInt8]) -> Path:
    """The same place as the test part of cross-area in both cities, tiles half a side apart."""
    for city, (latitude, longitude) in CITIES_AT.items():
        scale = METRES_PER_PIXEL[city]
        side = 640 * scale
        along = np.arange(side / 2, SIZE_M - side / 2 + 1e-6, side / 2)
        centres = np.array([(x, y) for y in along for x in along])

        def name_of(x: float, y: float, where: tuple[float, float] = (latitude, longitude)) -> tuple[float, float]:
            east_m = METRES_PER_DEGREE * math.cos(math.radians(where[0]))
            return where[0] + y / METRES_PER_DEGREE, where[1] + x / east_m

        tiles = ["satellite_{:.10f}_{:.10f}.png".format(*name_of(x, y)) for x, y in centres]
        for folder in (root / city / "panorama", root / city / "satellite", root / "splits_new" / city):
            folder.mkdir(parents=True)
        for (x, y), tile in zip(centres, tiles, strict=True):
            image = crop_tile(above, GROUND_SAMPLING_M, x, y, 640, side)
            cv2.imwrite(str(root / city / "satellite" / tile), image[..., ::-1])
        rows = []
        for number, ((x, y), panorama) in enumerate(zip(cameras, panoramas, strict=True)):
            file = "p{}_,{:.8f},{:.8f},.jpg".format(number, *name_of(x, y))
            cv2.imwrite(str(root / city / "panorama" / file), panorama[..., ::-1])
            nearest = np.argsort(np.abs(centres - (x, y)).max(axis=1), kind="stable")[:4]
            # d_row counts down, d_col to the left.
            labels = [f"{tiles[t]} {(centres[t, 1] - y) / scale} {(centres[t, 0] - x) / scale}" for t in nearest]
            rows.append(" ".join([file, *labels]))
        (root / "splits_new" / city / "satellite_list.txt").write_text("\n".join(tiles))
        (root / "splits_new" / city / "pano_label_balanced.txt").write_text("\n".join(rows))
    return root


@pytest.mark.slow
def test_bundle_is_calibrated_on_vigor(town_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped model on the town: it finds most places, and the copy of the bundle holds what was fitted."""
    output, copy = tmp_path / "calibration.json", tmp_path / "calibrated"
    arguments = ["calibrate", str(SHIPPED), str(town_root), "--dataset", "vigor-cross-area", "--output", str(output)]
    assert main([*arguments, "--queries", "12", "--bundle", str(copy)]) == 0
    report = json.loads(output.read_text())
    assert report["queries"] == 12
    assert "12 queries on the 49 tiles around" in report["data"]
    assert report["right_share"] > 0.5
    assert report["answers"]["confidence"]["right"] > 0.5
    manifest = load_bundle(copy).manifest
    assert manifest.calibrated
    assert manifest.calibration.distribution_temperature == report["calibration"]["distribution_temperature"]
    assert manifest.calibration != load_bundle(SHIPPED).manifest.calibration
    assert manifest.weights_sha256 == load_bundle(SHIPPED).manifest.weights_sha256
    capsys.readouterr()
    assert main([*arguments, "--bundle", str(copy)]) == 2
    assert "exists" in capsys.readouterr().err


def test_region_is_one_citys_neighbouring_tiles_and_the_queries_on_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (round(SIZE_M / GROUND_SAMPLING_M),) * 2 + (3,), dtype=np.uint8)
    cameras = rng.uniform(50.0, SIZE_M - 50.0, (PANORAMAS, 2))
    root = write_cities(tmp_path / "vigor", noise, cameras, [np.zeros((256, 512, 3), np.uint8)] * PANORAMAS)
    data = JudgedSplit(load_vigor(root, "cross-area", "test"), SMALL)
    region = Region(data, tiles=16, queries=5, seed=3)
    assert len({data.split.gallery[row].parent for row in region.rows}) == 1
    assert len(region.side_m) == 16
    assert 1 <= len(region.queries) <= 5
    rows = region.tiles[:, 0]
    assert (region.rows[rows] == data.split.positives[region.queries]).all()
    np.testing.assert_array_equal(region.offsets_m, data.offsets_m[region.queries])
    known = region.tiles >= 0
    np.testing.assert_array_equal(region.rows[region.tiles[known]], data.tiles[region.queries][known])
    np.testing.assert_array_equal(region.aerial_image(3), data.aerial_image(int(region.rows[3])))


def test_open_weights_recognises_each_kind_by_content(tmp_path: Path) -> None:
    network = UnifyGeo(SMALL.model_copy(update={"output_stride": 1}))
    config = tmp_path / "network.yaml"
    config.write_text(json.dumps(network.config.model_dump(mode="json")))
    torch.save({"network": network.config.model_dump(mode="json"), "model": network.state_dict()}, tmp_path / "a.pt")
    published = {published_name(name): value for name, value in network.state_dict().items()}
    torch.save(published, tmp_path / "b.pth")
    for file, network_file, kind in (("a.pt", None, "checkpoint"), ("b.pth", config, "published")):
        weights = open_weights(tmp_path / file, network_file)
        assert weights.kind == kind
        assert torch.equal(weights.network.decoder.output[0].weight, network.decoder.output[0].weight)
    with pytest.raises(InputError, match="do not fit the network"):
        open_weights(tmp_path / "b.pth")  # of another size than the published one
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        open_weights(tmp_path)


@torch.inference_mode()
def test_bundle_weights_compute_what_its_graphs_do() -> None:
    network, bundle = open_weights(SHIPPED).network, load_bundle(SHIPPED)
    rng = np.random.default_rng(0)
    panorama, tile = (rng.integers(0, 256, (1, *size, 3), np.uint8) for size in ((96, 320), (192, 192)))
    ground, aerial = network.encode_ground(torch.from_numpy(panorama)), network.encode_aerial(torch.from_numpy(tile))
    with open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1) as engines:
        of_ground, of_aerial = (
            engines.ground_encoder.run({"image": panorama}),
            engines.aerial_encoder.run({"image": tile}),
        )
        inputs = {name: of_ground[name] for name in GROUND_FEATURES} | {name: of_aerial[name] for name in PYRAMID}
        logits = engines.decoder.run(inputs)["logits"]
    expected = network.decode(ground.levels, aerial.pyramid).logits
    for found, meant in (
        (of_ground["descriptor"], ground.descriptor),
        (of_aerial["descriptor"], aerial.descriptor),
        (of_aerial["match_map"], aerial.match_map.permute(0, 2, 3, 1)),
        (logits, expected),
    ):
        assert np.abs(found - meant.numpy()).max() < 1e-3 * float(meant.abs().max())
