"""Augmentation against the renderer: a turned picture is what is seen of a turned world."""

from __future__ import annotations

import numpy as np
import pytest
from town_symmetry import mirrored, turned

from unifygeo_training.data.augmentation import (
    AugmentationConfig,
    augment,
    change_appearance,
    mirror,
    quarter_turns,
)
from unifygeo_training.towns.orthophoto import crop_tile
from unifygeo_training.towns.pairs import street_positions
from unifygeo_training.towns.panorama import set_stage
from unifygeo_training.towns.rays import cast, column_azimuths, row_elevations
from unifygeo_training.towns.scene import GROUND, Town
from unifygeo_training.towns.town import build_town

SIZE, SIDE_M = 64, 70.0
NO_AUGMENTATION = AugmentationConfig(
    geometry=False, colour=0, blur=0, sharpen=0, noise=0, jpeg=0, grid_dropout=0, coarse_dropout=0
)


@pytest.fixture(scope="module")
def town() -> Town:
    return build_town(1004, 280.0)


def _seen_from(town: Town, x: float, y: float) -> np.ndarray:
    """Which solid each pixel of a panorama shows, as a picture: uint8 (96, 320, 3)."""
    azimuths, elevations = column_azimuths(320, 0.0), row_elevations(96, 0.7, -0.7)
    hits = cast(town.objects, set_stage(town).grid, GROUND, x, y, 2.0, azimuths, elevations, 200.0)
    return np.repeat((hits.objects * 37 % 251).astype(np.uint8)[..., None], 3, axis=2)


def _pair(town: Town, camera: tuple[float, float], centre: tuple[float, float]) -> tuple:
    ground = (np.clip(town.ground, 0, 1) * 255).astype(np.uint8) if town.ground.dtype != np.uint8 else town.ground
    resolution = town.size_m / len(ground)
    tile = crop_tile(np.ascontiguousarray(ground[..., :3]), resolution, *centre, SIZE, SIDE_M)
    # From coordinates alone: fractions of the side, down and right from the upper left corner.
    position = (0.5 - (camera[1] - centre[1]) / SIDE_M, 0.5 + (camera[0] - centre[0]) / SIDE_M)
    return _seen_from(town, *camera), tile, position


@pytest.mark.parametrize("kind", ["turned", "mirrored"])
def test_transforms_agree_with_a_transformed_town(town: Town, kind: str) -> None:
    camera = tuple(street_positions(np.random.default_rng(6), town, 1)[0])
    centre = (camera[0] + 13.0, camera[1] - 7.0)
    other = turned(town) if kind == "turned" else mirrored(town)

    def moved(p: tuple[float, float]) -> tuple[float, float]:
        return (town.size_m - p[1], p[0]) if kind == "turned" else (town.size_m - p[0], p[1])

    ours = quarter_turns(*_pair(town, camera, centre), 1) if kind == "turned" else mirror(*_pair(town, camera, centre))
    theirs = _pair(other, moved(camera), moved(centre))
    assert np.mean(ours[0] != theirs[0]) < 5e-3  # rays that graze an edge
    assert np.mean(np.abs(ours[1].astype(int) - theirs[1]) > 2) < 5e-3
    assert ours[2] == pytest.approx(theirs[2])


def test_published_label_rule() -> None:
    """Labels: flip (dr, dc) → (dr, −dc); quarter turn (dr, dc) → (dc, −dr), with row 320 + dr, column 320 − dc."""
    panorama, tile = np.zeros((8, 16, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    dr, dc = 40.0, -90.0

    def position(dr: float, dc: float) -> tuple[float, float]:
        return ((320 + dr) / 640, (320 - dc) / 640)

    assert mirror(panorama, tile, position(dr, dc))[2] == pytest.approx(position(dr, -dc))
    assert quarter_turns(panorama, tile, position(dr, dc), 1)[2] == pytest.approx(position(dc, -dr))


def test_four_turns_or_two_mirrors_are_the_identity() -> None:
    rng = np.random.default_rng(0)
    pair = (
        rng.integers(0, 256, (6, 16, 3), dtype=np.uint8),
        rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),
        (0.3, 0.6),
    )
    turned_four = pair
    for _ in range(4):
        turned_four = quarter_turns(*turned_four, 1)
    for result in (turned_four, quarter_turns(*pair, 4), mirror(*mirror(*pair))):
        np.testing.assert_array_equal(result[0], pair[0])
        np.testing.assert_array_equal(result[1], pair[1])
        assert result[2] == pytest.approx(pair[2])


def test_no_augmentation_leaves_all_as_it_is() -> None:
    rng = np.random.default_rng(1)
    panorama = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    tile = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    a, b, position = augment(panorama, tile, (0.2, 0.7), rng, NO_AUGMENTATION)
    np.testing.assert_array_equal(a, panorama)
    np.testing.assert_array_equal(b, tile)
    assert position == (0.2, 0.7)


@pytest.mark.parametrize("option", ["blur", "sharpen", "noise", "jpeg", "grid_dropout", "coarse_dropout"])
def test_each_option_changes_the_image_and_repeats_with_its_seed(option: str) -> None:
    image = np.random.default_rng(2).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    config = AugmentationConfig(**{**NO_AUGMENTATION.model_dump(), option: 1.0})
    first = change_appearance(image.copy(), np.random.default_rng(3), config)
    second = change_appearance(image.copy(), np.random.default_rng(3), config)
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert np.any(first != image)
    np.testing.assert_array_equal(first, second)


def test_jpeg_keeps_the_channel_order() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 220
    config = AugmentationConfig(**{**NO_AUGMENTATION.model_dump(), "jpeg": 1.0})
    mean = change_appearance(red, np.random.default_rng(0), config).reshape(-1, 3).mean(axis=0)
    assert mean == pytest.approx([220, 0, 0], abs=12)
