"""What networks lose under single changes: what is hidden, what is changed, and the numbers against the judge's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_judging import CONFIG, QUERIES, TILES, RandomSet

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.panorama import FILL_RGB, CameraImage, prepare_panorama
from unifygeo_training.cli import main
from unifygeo_training.data.photography import PhotographyConfig
from unifygeo_training.judging.judge import judge
from unifygeo_training.judging.sensitivity import (
    ABOVE,
    BOTH,
    STREET,
    Change,
    ChangedImages,
    losses,
    missing_parts,
    photographic_changes,
    seen_field,
    turns,
)
from unifygeo_training.model import UnifyGeo
from unifygeo_training.towns.pairs import render_pairs

SHIPPED = Path(__file__).parents[2] / "models" / "towns-atto"
GROUND = GroundSpec(height=96, width=320, elevation_top_rad=math.pi / 4, elevation_bottom_rad=-math.pi / 4, columns=10)


@pytest.fixture(scope="module")
def network() -> UnifyGeo:
    torch.manual_seed(0)
    return UnifyGeo(CONFIG).eval()


@pytest.mark.parametrize("width_deg", [90.0, 180.0, 270.0])
@pytest.mark.parametrize("first", [0.0, 0.41, 0.93])
def test_columns_of_a_field_are_those_within_half_of_it_of_its_middle(first: float, width_deg: float) -> None:
    seen = seen_field(GROUND, first=first, width_deg=width_deg)
    middle = 2 * math.pi * first + math.radians(width_deg) / 2
    for column in range(320):
        azimuth = 2 * math.pi * (column + 0.5) / 320
        inside = math.cos(azimuth - middle) > math.cos(math.radians(width_deg) / 2)
        assert seen[:, column].all() == seen[:, column].any() == inside, column


@pytest.mark.parametrize(("top_deg", "bottom_deg"), [(20, -25), (15, -15), (60, -10)])
def test_rows_of_elevations_are_those_that_the_localizer_fills(top_deg: int, bottom_deg: int) -> None:
    """A white image that shows these elevations alone, as `prepare_panorama` gives it to the network."""
    mount = CameraMount(elevation_top_rad=math.radians(top_deg), elevation_bottom_rad=math.radians(bottom_deg))
    image = np.full((4 * (top_deg - bottom_deg), 4 * 360, 3), 255, np.uint8)
    prepared = prepare_panorama(CameraImage(image, 1), GROUND, mount, None).pixels
    filled = (prepared == FILL_RGB).all(axis=(1, 2))
    assert 5 < filled.sum() < 75
    seen = seen_field(GROUND, top_deg=top_deg, bottom_deg=bottom_deg)
    assert np.array_equal(seen.any(axis=1), ~filled)


def test_missing_parts_hide_what_their_names_say() -> None:
    white = np.full((96, 320, 3), 255, np.uint8)
    hidden = {}
    for change in missing_parts(GROUND):
        assert change.above is None
        pixels = [change.street(white, np.random.default_rng(seed)) for seed in range(8)]
        masks = [(image == FILL_RGB).all(axis=2) for image in pixels]
        assert all(((image == 255).all(axis=2) | mask).all() for image, mask in zip(pixels, masks, strict=True))
        hidden[change.name] = np.mean(masks)
        turns = len({mask.tobytes() for mask in masks})
        assert turns == (1 if change.name.startswith("elevations") else 8), change.name
    assert hidden == pytest.approx(
        {
            "elevations −25° to 20°": 1 - 45 / 90,
            "elevations −15° to 15°": 1 - 30 / 90,
            "270°": 1 / 4,
            "270°, elevations −25° to 20°": 1 - 3 / 4 * 45 / 90,
            "180°": 1 / 2,
            "90°": 3 / 4,
        },
        abs=0.011,  # a row is 0.94° high
    )


def test_panoramas_are_turned_to_the_right() -> None:
    """One bright column at 1/8 of the circle: 90° further it stands at 3/8."""
    image = np.zeros((4, 320, 3), np.uint8)
    image[:, 40] = 255
    lit = {c.name: int(c.street(image, np.random.default_rng(0))[0, :, 0].argmax()) for c in turns() if c.street}
    assert lit == {"turned by 5°": 44, "turned by 10°": 49, "turned by 90°": 120, "turned by 180°": 200}
    assert all(change.above is None for change in turns())


def test_every_photographic_option_is_a_change_of_the_views_that_it_is_about() -> None:
    assert sorted([*BOTH, *STREET, *ABOVE, "styles", "missing"]) == sorted(PhotographyConfig.model_fields)
    noise = np.random.default_rng(0).integers(0, 256, (96, 320, 3), np.uint8)
    panorama = cv2.GaussianBlur(noise, (0, 0), 3.0)
    tile = np.ascontiguousarray(panorama[:, :96])
    for change in photographic_changes():
        assert (change.street is not None) == (change.name in BOTH + STREET), change.name
        assert (change.above is not None) == (change.name in BOTH + ABOVE), change.name
        for draw, image in ((change.street, panorama), (change.above, tile)):
            if draw is not None:
                changed = [draw(image, np.random.default_rng(seed)) for seed in range(6)]
                moved = [np.abs(new.astype(int) - image).mean() for new in changed]
                assert np.median(moved) > 0.1, change.name  # not each draw moves much: a flare needs a sun


def test_nothing_changed_is_what_the_judge_says(network: UnifyGeo, tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    judgement = judge(network, RandomSet(), tmp_path / "judge")
    (row,) = losses(network, RandomSet(), [], tmp_path, panoramas=QUERIES)
    assert row.recall_5 == pytest.approx(judgement.retrieval.recall_5)
    assert row.median_m == pytest.approx(judgement.metric.median_m)
    assert row.within_5_m == pytest.approx(judgement.metric.recall[5.0])


def test_a_change_is_judged_as_a_set_of_changed_images_and_leaves_the_next_row_alone(
    network: UnifyGeo, tmp_path: Path
) -> None:
    """Panoramas upside down, tiles as negatives; then nothing again."""
    data = RandomSet()
    turned = RandomSet()
    turned._ground, turned._aerial = turned._ground[:, ::-1].copy(), 255 - turned._aerial
    (tmp_path / "judge").mkdir()
    expected = judge(network, turned, tmp_path / "judge")
    changes = [
        Change("both", lambda image, rng: image[::-1].copy(), lambda image, rng: 255 - image),
        Change("nothing", lambda image, rng: image),
    ]
    before, both, after = losses(network, data, changes, tmp_path, panoramas=QUERIES)
    assert both.median_m == pytest.approx(expected.metric.median_m)
    assert both.recall_5 == pytest.approx(expected.retrieval.recall_5)
    assert (after.recall_5, after.median_m) == (before.recall_5, before.median_m)
    assert both.recall_5 != before.recall_5


def test_draws_belong_to_the_image_and_the_seed() -> None:
    change = photographic_changes()[0]
    data = RandomSet()
    few, all_of_them = (ChangedImages(data, change, np.array(queries), seed=3) for queries in ([4, 6], range(QUERIES)))
    assert np.array_equal(few.ground_image(1), all_of_them.ground_image(6))
    assert np.array_equal(few.tiles, data.tiles[[4, 6]])
    assert np.array_equal(few.offsets_m, data.offsets_m[[4, 6]])
    assert np.array_equal(few.aerial_image(TILES - 1), all_of_them.aerial_image(TILES - 1))
    other = ChangedImages(data, change, np.array([4, 6]), seed=4)
    assert not np.array_equal(few.ground_image(1), other.ground_image(1))


@pytest.mark.parametrize("panoramas", [0, QUERIES + 1])
def test_more_panoramas_than_there_are_is_an_error(network: UnifyGeo, tmp_path: Path, panoramas: int) -> None:
    with pytest.raises(ConfigurationError, match=f"panoramas {panoramas}: VIGOR same-area of noise has 7"):
        losses(network, RandomSet(), [], tmp_path, panoramas=panoramas)


def test_data_without_positions_is_an_error(network: UnifyGeo, tmp_path: Path) -> None:
    data = RandomSet()
    data.offsets_m = np.full((QUERIES, 2), np.nan)
    with pytest.raises(ConfigurationError, match="does not tell where the cameras are"):
        losses(network, data, [], tmp_path, panoramas=QUERIES)


def test_command_prints_and_writes_one_column_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    town = render_pairs(1004, 24, tmp_path, size_m=210.0, metres_per_pixel=0.35, orthophotos=1)
    arguments = ["sensitivity", str(town), str(SHIPPED), "--only", "missing", "--panoramas", "12"]
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    rows = {row["change"]: row for row in content["networks"][str(SHIPPED)]}
    assert (content["town"], content["panoramas"], content["tiles"]) == (1004, 12, 25)
    assert list(rows) == ["nothing changed", *(change.name for change in missing_parts(GROUND))]
    whole, front = rows["nothing changed"], rows["90°"]
    assert whole["recall_5"] > 85
    assert whole["median_m"] < 1.0 < front["median_m"]
    printed = capsys.readouterr().out
    assert f"| 90° | {front['recall_5']:.1f}%, {front['median_m']:.2f} m, {front['within_5_m']:.1f}% |" in printed
