"""Real pairs: the file, and every number against loops over single tiles and pixels, on a small rendered street."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import Fix, Rejection, RejectionReason
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_training.cli import main
from unifygeo_training.judging.street_pairs import (
    COLUMNS,
    Answers,
    FixCounts,
    StreetJudgement,
    StreetPair,
    _index_of,
    count_fix,
    interval,
    judge_pairs,
    read_pairs,
    report,
    to_json,
)
from unifygeo_training.towns.light import draw_appearance
from unifygeo_training.towns.orthophoto import render_orthophoto, write_geotiff
from unifygeo_training.towns.pairs import street_positions
from unifygeo_training.towns.panorama import View, light_stage, render_panorama, set_stage
from unifygeo_training.towns.scene import geodetic_from_town
from unifygeo_training.towns.town import build_town
from unifygeo_training.weights import open_weights

SHIPPED = Path(__file__).parents[2] / "models" / "towns-atto"
HEADINGS_DEG = (0.0, 70.0, -35.0)
VIEW = View(160, 576, math.radians(50), math.radians(-50))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three panoramas with headings of their own in a town of 240 m."""
    folder = tmp_path_factory.mktemp("pairs")
    town, rng = build_town(1003, 240.0, 0.25), np.random.default_rng(2)
    write_geotiff(folder / "town.tif", render_orthophoto(town, draw_appearance(rng)), town.origin, 0.25)
    lit = light_stage(set_stage(town), draw_appearance(rng))
    positions = street_positions(rng, town, len(HEADINGS_DEG))
    degrees = geodetic_from_town(town.origin, positions)
    with (folder / "pairs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for number, ((x, y), heading) in enumerate(zip(positions, HEADINGS_DEG, strict=True)):
            pixels = render_panorama(lit, x, y, VIEW, azimuth_rad=math.radians(heading))
            cv2.imwrite(str(folder / f"{number}.png"), pixels[..., ::-1])
            writer.writerow((f"{number}.png", "town.tif", *degrees[number], heading, 50, -50))
    return folder


def _judged(folder: Path, **options):
    bundle = load_bundle(SHIPPED)
    with open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1) as engines:
        return judge_pairs(read_pairs(folder), bundle, engines, **options)


@pytest.fixture(scope="module")
def judgement(folder: Path):
    return _judged(folder, tilings=1)


def test_judge_pairs_finds_streets_at_their_headings_only(judgement) -> None:
    """Signs of headings, latitudes and longitudes: with any of them wrong the shipped model would be lost here."""
    upright, turned = judgement.answers[0][0], judgement.answers[90][0]
    assert upright.mass.mean() > 0.25  # tiles that hold the camera at their very edge are among them
    assert upright.reranked_ranks.max() <= 5
    assert turned.mass.mean() < 0.1
    assert upright.strangers_mass.mean() < 0.2


def test_ranks_and_mass_are_those_of_loops_over_tiles_and_pixels(folder: Path, judgement, tmp_path: Path) -> None:
    bundle, network = load_bundle(SHIPPED), open_weights(SHIPPED).network
    with open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1) as engines:
        index = _index_of(folder / "town.tif", bundle, engines, tmp_path / "index", (0.0, 0.0))
    assert judgement.tiles == (len(index),)
    import torch

    encoded = [network.encode_aerial(torch.from_numpy(index.tile_pixels(n)[None].copy())) for n in range(len(index))]
    temperature = bundle.manifest.calibration.distribution_temperature
    for number, pair in enumerate(read_pairs(folder)):
        # The panorama by rolling: 576 columns, north into the middle; elevations of 45° are rows 8 to 152 of 160.
        image = cv2.imread(str(pair.panorama))[..., ::-1]
        exact = -pair.heading_deg / 360 * 576
        low = np.roll(image, -math.floor(exact), axis=1).astype(float)
        high = np.roll(image, -math.floor(exact) - 1, axis=1).astype(float)
        north = low + (exact - math.floor(exact)) * (high - low)
        panorama = cv2.resize(north[8:152].round().astype(np.uint8), (320, 96), interpolation=cv2.INTER_AREA)
        ground = network.encode_ground(torch.from_numpy(np.ascontiguousarray(panorama[None])))
        east, northing = index.frame.map_from_geodetic(pair.latitude_deg, pair.longitude_deg)
        cosines, scores, distances, masses = [], [], [], []
        for tile, aerial in enumerate(encoded):
            cosine = float((ground.descriptor[0] * aerial.descriptor[0]).sum())
            best = float(torch.einsum("chw,c->hw", aerial.match_map[0], ground.levels[0][0]).max())
            cosines.append(cosine)
            scores.append(cosine + best)
            dx, dy = east - index.centres_m[tile, 0], northing - index.centres_m[tile, 1]
            distances.append(max(abs(dx), abs(dy)))
            if distances[-1] <= 35.0:
                logits = network.decode(ground.levels, aerial.pyramid).logits[0].numpy().astype(float) / temperature
                probability = np.exp(logits - logits.max())
                probability /= probability.sum()
                size, mass = len(logits), 0.0
                for row in range(size):
                    for column in range(size):
                        right = (column + 0.5) / size * 70 - 35 - dx
                        up = 35 - (row + 0.5) / size * 70 - dy
                        mass += probability[row, column] if math.hypot(right, up) <= 5.0 else 0.0
                masses.append(mass)
        own = int(np.argmin(distances))
        found = judgement.answers[0][0]
        # The panorama's interpolation differs by a rounding: a rank may move past a neighbour that is as good.
        assert found.cosine_ranks[number] == pytest.approx(1 + sum(c > cosines[own] for c in cosines), abs=1)
        assert found.reranked_ranks[number] == pytest.approx(1 + sum(s > scores[own] for s in scores), abs=1)
        assert found.mass[number] == pytest.approx(np.mean(masses), abs=0.03)


def test_fixes_are_counted_inside_and_outside(judgement) -> None:
    assert set(judgement.fixes) == {"heading, inside", "search, inside"}
    heading = judgement.fixes["heading, inside"]
    assert heading.runs == 3
    assert heading.false == 0
    assert FixCounts(2, 1, 0) + FixCounts(3, 2, 1) == FixCounts(5, 3, 1)


@pytest.mark.parametrize(("inside", "away_m", "false"), [(True, 4.9, 0), (True, 5.1, 1), (False, 0.0, 1)])
def test_count_fix_calls_far_and_foreign_fixes_false(inside: bool, away_m: float, false: int) -> None:
    fix = Fix(1, 10.0 + 0.6 * away_m, 20.0 - 0.8 * away_m, 51.0, 0.0, np.eye(2), 0.0, 0.1, 3, 1.0, 0.05, ())
    assert count_fix(fix, np.array([10.0, 20.0]), is_inside=inside) == FixCounts(1, 1, false)
    rejection = Rejection(1, RejectionReason.AMBIGUOUS, "")
    assert count_fix(rejection, np.array([10.0, 20.0]), is_inside=inside) == FixCounts(1, 0, 0)


def test_distractors_join_the_gallery_and_every_panorama_is_tried_in_them(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tif"
    shutil.copy(folder / "town.tif", copy)
    doubled = _judged(folder, tilings=1, distractors=[copy])
    assert doubled.tiles == (2 * 49,)
    outside = doubled.fixes["heading, outside"]
    assert outside.runs == 3
    assert outside.fixes == outside.false
    assert doubled.fixes["search, outside"].runs == 3
    assert doubled.fixes["heading, inside"].false == 0


def test_tilings_are_shifted_by_half_a_stride(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(SHIPPED)
    with open_engines(bundle, backend="onnx_cpu", precision="fp32", threads=1) as engines:
        first, shifted = (
            _index_of(folder / "town.tif", bundle, engines, tmp_path / f"{n}", (n * 0.5, 0.0)) for n in (0, 1)
        )
    apart = first.frame.map_from_geodetic(*shifted.frame.geodetic_from_map(*shifted.centres_m.T).T)
    phase = (apart[:, 0] - first.centres_m[0, 0]) / 35.0 % 1.0
    assert phase == pytest.approx(0.5, abs=1e-3)
    assert open_index(tmp_path / "1").manifest.tiles == len(shifted)


def test_interval_is_the_binomial_one_for_shares() -> None:
    values = np.repeat([0.0, 1.0], 50)
    mean, low, high = interval(values)
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.012)
    assert interval(np.full(7, 0.3)) == pytest.approx((0.3, 0.3, 0.3))


def test_command_writes_table_and_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["test", str(SHIPPED), "pairs", str(folder), "--tilings", "1", "--json", str(tmp_path / "out.json")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "out.json").read_text())
    mean = content["by_turn_deg"]["0"]["mass_within_5_m"]["mean"]
    assert f"{mean:.3f} (" in printed
    assert content["pairs"] == 3
    assert content["uniform_mass_within_5_m"] == pytest.approx(math.pi * 25 / 4900)
    assert len(content["panoramas"]["180"][0]["mass"]) == 3


def test_report_has_a_line_for_each_turn(judgement) -> None:
    lines = report(judgement).splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:9]] == ["0°", "90°", "180°", "270°", "chance"]
    assert to_json(judgement)["chance_first_five"] == pytest.approx(5 / 49)


def test_report_of_a_single_pair_has_no_stranger() -> None:
    one = Answers(np.array([3]), np.array([6]), np.array([0.25]), np.array([0.25]))
    alone = StreetJudgement(1, 1, (50,), 0.1, 0.016, {turn: [one] for turn in (0, 90, 180, 270)})
    line = report(alone).splitlines()[4]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "0°",
        "0% (0–0)",
        "100% (100–100)",
        "0.250 (0.250–0.250)",
        "–",
    ]
    assert "strangers_mass_within_5_m" not in to_json(alone)["by_turn_deg"]["0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latitude": "91"}, "line 2: latitude is '91', must be a number from -89 to 89 degrees"),
        ({"heading": "north"}, "heading is 'north'"),
        ({"heading": "nan"}, "heading is 'nan'"),
        ({"panorama": "none.png"}, "none.png' does not exist; paths are relative to the folder"),
        ({"aerial": ""}, "aerial "),
        ({"elevation_top": "-60"}, "elevation_top -60 is not above elevation_bottom -50"),
    ],
)
def test_bad_lines_are_named(folder: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    with (folder / "pairs.csv").open() as stream:
        rows = list(csv.DictReader(stream))[:1]
    for name in ("0.png", "town.tif"):
        (tmp_path / name).symlink_to(folder / name)
    with (tmp_path / "pairs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerow(rows[0] | change)
    with pytest.raises(InputError) as caught:
        read_pairs(tmp_path)
    assert message in str(caught.value)


def test_missing_columns_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pairs\.csv: cannot be read"):
        read_pairs(tmp_path)
    (tmp_path / "pairs.csv").write_text("panorama,aerial,latitude,longitude,yaw\n")
    with pytest.raises(InputError, match="has no column heading, and unknown columns yaw"):
        read_pairs(tmp_path)
    (tmp_path / "pairs.csv").write_text("panorama,aerial,latitude,longitude,heading\n")
    with pytest.raises(InputError, match="holds no pair"):
        read_pairs(tmp_path)


def test_elevations_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "pairs.csv").write_text("panorama,aerial,latitude,longitude,heading\na.png,a.png,51.5,-0.1,12\n")
    assert read_pairs(tmp_path) == [StreetPair(tmp_path / "a.png", tmp_path / "a.png", 51.5, -0.1, 12.0)]


def test_camera_off_its_imagery_is_an_error(folder: Path, tmp_path: Path) -> None:
    with (folder / "pairs.csv").open() as stream:
        row = next(csv.DictReader(stream))
    for name in ("0.png", "town.tif"):
        (tmp_path / name).symlink_to(folder / name)
    row["latitude"] = str(float(row["latitude"]) + 0.01)
    (tmp_path / "pairs.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    with pytest.raises(InputError, match="lies on no tile of"):
        _judged(tmp_path, tilings=1)
