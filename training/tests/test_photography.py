"""What photographs have and towns lack: values of every change, what stays where it is, and what a rig does not see."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.panorama import prepare_panorama
from unifygeo_training.data import photography
from unifygeo_training.data.augmentation import AugmentationConfig, augment
from unifygeo_training.data.photography import (
    PhotographyConfig,
    blur_along,
    coarser,
    convolved,
    draw_seen,
    hide_unseen,
    mixed_channels,
    photograph_from_above,
    photograph_street,
    toned,
    with_amplitudes,
    with_slope,
    with_statistics,
)

OPTIONS = [name for name in PhotographyConfig.model_fields if name != "styles"]
STREET_ONLY = {"lens", "weather", "motion", "vehicle", "passers", "missing"}
ABOVE_ONLY = {"imagery", "shadows"}


def _picture(height: int = 96, width: int = 320, seed: int = 0) -> np.ndarray:
    """Smooth blobs and noise, uint8."""
    rng = np.random.default_rng(seed)
    blobs = cv2.resize(rng.integers(0, 256, (6, 20, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(blobs.astype(int) + rng.integers(-12, 13, blobs.shape), 0, 255).astype(np.uint8)


def _values(**size: int) -> np.ndarray:
    return _picture(**size).astype(np.float32) / 255


def test_toned_has_the_curve_of_its_formula() -> None:
    line = np.linspace(0, 1, 5, dtype=np.float32)[None, :, None].repeat(3, axis=2)
    assert toned(line, 2.0, 0.5, 1.0, 0.0, 1.0)[0, :, 0] == pytest.approx([0, 0.0625, 0.25, 0.5625, 1])
    assert toned(line, 1.0, 0.5, 2.0, 0.0, 1.0)[0, :, 0] == pytest.approx([0, 0, 0.5, 1, 1])
    assert toned(line, 1.0, 0.5, 1.0, 0.2, 0.7)[0, :, 0] == pytest.approx([0.2, 0.325, 0.45, 0.575, 0.7])


def test_mixed_channels_multiplies_the_matrix_with_each_colour() -> None:
    swapped = mixed_channels(_values(), np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]))
    assert np.array_equal(swapped, _values()[..., ::-1])
    one = mixed_channels(np.array([[[0.1, 0.2, 0.4]]], np.float32), np.array([[1, 2, 0], [0, 1, 1], [0.5, 0, 0]]))
    assert one[0, 0] == pytest.approx([0.5, 0.6, 0.05])


def test_fourier_mixing_takes_amplitudes_and_keeps_phases() -> None:
    own, other = _values(), _values()[::-1, ::-1] * 0.5 + 0.2
    mixed = with_amplitudes(own, other, reach=0.1, share=1.0)
    transform = {
        name: np.fft.fft2(x[..., 1].astype(float)) for name, x in (("own", own), ("other", other), ("mixed", mixed))
    }
    for row, column in ((0, 0), (3, 5), (-9, 20), (9, 32), (0, 31)):  # cycles: below 0.1 of 96 rows and of 320 columns
        assert abs(transform["mixed"][row, column]) == pytest.approx(abs(transform["other"][row, column]), rel=1e-3)
        assert np.angle(transform["mixed"][row, column] / transform["own"][row, column]) == pytest.approx(0, abs=1e-3)
    for row, column in ((10, 0), (0, 33), (30, 100)):
        assert transform["mixed"][row, column] == pytest.approx(transform["own"][row, column], abs=0.05)
    assert with_amplitudes(own, other, 0.1, 0.0) == pytest.approx(own, abs=1e-5)
    half = np.fft.fft2(with_amplitudes(own, other, 0.1, 0.5)[..., 1].astype(float))[3, 5]
    assert abs(half) == pytest.approx((abs(transform["own"][3, 5]) + abs(transform["other"][3, 5])) / 2, rel=1e-3)


def test_slope_raises_high_frequencies_and_keeps_the_mean() -> None:
    wave = (
        np.sin(2 * np.pi * np.arange(320) / 320)[None, :, None]
        + 0.3 * np.sin(2 * np.pi * 100 * np.arange(320) / 320)[None, :, None]
    )
    image = (0.5 + 0.2 * wave * np.ones((96, 1, 3))).astype(np.float32)
    changed = np.fft.rfft(with_slope(image, 0.5)[0, :, 0])
    before = np.fft.rfft(image[0, :, 0])
    assert changed[0] == pytest.approx(before[0], rel=1e-5)
    # Amplitudes go with frequency ^ 0.5: from cycle 1 to cycle 100 the ratio grows tenfold.
    assert abs(changed[100] / changed[1]) / abs(before[100] / before[1]) == pytest.approx(10, rel=1e-3)


def test_statistics_are_moved_by_their_share() -> None:
    image = _values()
    mean, deviation = np.array([0.2, 0.5, 0.7]), np.array([0.1, 0.05, 0.2])
    whole = with_statistics(image, mean, deviation, 1.0)
    assert whole.mean(axis=(0, 1)) == pytest.approx(mean, abs=1e-4)
    assert whole.std(axis=(0, 1)) == pytest.approx(deviation, abs=1e-3)
    half = with_statistics(image, mean, deviation, 0.5)
    assert half.mean(axis=(0, 1)) == pytest.approx((image.mean(axis=(0, 1)) + mean) / 2, abs=1e-4)
    assert half.std(axis=(0, 1)) == pytest.approx((image.std(axis=(0, 1)) + deviation) / 2, abs=1e-3)


def test_convolved_is_the_sum_over_neighbours_and_channels() -> None:
    image, rng = _values(height=12, width=10), np.random.default_rng(5)
    kernel = rng.normal(size=(3, 3, 3, 3)).astype(np.float32)
    found = convolved(image, kernel, 0.25)
    row, column = 4, 7
    for out in range(3):
        total = sum(
            kernel[i, j, c, out] * image[row + i - 1, column + j - 1, c]
            for i in range(3)
            for j in range(3)
            for c in range(3)
        )
        assert found[row, column, out] == pytest.approx(0.75 * image[row, column, out] + 0.25 * total, abs=1e-5)


def test_blur_along_is_a_mean_around_the_circle() -> None:
    image = np.zeros((2, 40, 3), np.float32)
    image[:, 0] = 1.0
    blurred = blur_along(image, 5)
    assert np.flatnonzero(blurred[0, :, 0] > 1e-6).tolist() == [0, 1, 2, 38, 39]
    assert blurred[0, [0, 1, 2, 38, 39], 0] == pytest.approx(0.2)


def test_coarser_removes_what_is_finer_than_its_sampling() -> None:
    stripes = np.tile(np.array([0.0, 1.0], np.float32), 96)[None, :, None] * np.ones((192, 1, 3), np.float32)
    assert coarser(stripes, 2.0) == pytest.approx(0.5, abs=1e-6)
    slow = (0.5 + 0.4 * np.sin(np.arange(192) / 30))[None, :, None] * np.ones((192, 1, 3))
    assert coarser(slow.astype(np.float32), 1.5) == pytest.approx(slow, abs=0.02)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_view_that_it_is_for(option: str) -> None:
    config = PhotographyConfig(**{option: 1.0})
    panorama, tile = _picture(), _picture(192, 192, seed=1)
    plain = AugmentationConfig(
        geometry=False, colour=0, blur=0, sharpen=0, noise=0, jpeg=0, grid_dropout=0, coarse_dropout=0
    )
    street = above = 0
    for seed in range(12):
        changed, from_above, position = augment(
            panorama, tile, (0.3, 0.6), np.random.default_rng(seed), plain.model_copy(update={"photography": config})
        )
        assert position == (0.3, 0.6)
        assert changed.dtype == from_above.dtype == np.uint8
        street += not np.array_equal(changed, panorama)
        above += not np.array_equal(from_above, tile)
    assert (street > 6) == (option not in ABOVE_ONLY)
    assert (above > 6) == (option not in STREET_ONLY)


def test_photography_with_all_options_at_zero_changes_no_pixel() -> None:
    panorama, tile = _picture(), _picture(192, 192)
    rng = np.random.default_rng(0)
    assert np.array_equal(photograph_street(panorama, rng, PhotographyConfig()), panorama)
    assert np.array_equal(photograph_from_above(tile, rng, PhotographyConfig()), tile)


def test_without_photography_random_numbers_are_as_before() -> None:
    """A recipe that does not name it trains on the same pixels as ever."""
    panorama, tile = _picture(), _picture(192, 192)
    plain = augment(panorama, tile, (0.2, 0.4), np.random.default_rng(7), AugmentationConfig())
    rng = np.random.default_rng(7)
    augment(panorama, tile, (0.2, 0.4), rng, AugmentationConfig())
    other = np.random.default_rng(7)
    again = augment(panorama, tile, (0.2, 0.4), other, AugmentationConfig(photography=None))
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))
    assert rng.random() == other.random()


def test_edges_stay_where_they_are() -> None:
    """Labels are true only if no change moves anything: a wall's edge is found in the same column after each of 40."""
    config = PhotographyConfig(tone=1, channels=1, fourier=1, statistics=1, convolution=1, lens=1)
    panorama = np.full((96, 320, 3), 60, np.uint8)
    panorama[:, 160:] = 190
    found = []
    for seed in range(40):
        changed = photograph_street(panorama, np.random.default_rng(seed), config).astype(float)
        step = np.abs(np.diff(changed[20:76].mean(axis=(0, 2)))[100:220])
        found.append(100 + int(np.argmax(step)))
    assert np.mean(np.abs(np.array(found) - 159) <= 1) >= 0.9


def test_passers_stand_below_the_top_and_vehicles_at_the_bottom() -> None:
    image = np.full((96, 320, 3), 0.5, np.float32)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = np.flatnonzero((photography._passers(image, rng) != image).any(axis=(1, 2)))
        assert rows.min() >= 0.38 * 96 - 1
        rows = np.flatnonzero((np.abs(photography._vehicle(image, rng) - image) > 1e-6).any(axis=(1, 2)))
        assert not len(rows) or rows.min() > 96 // 2


def test_unseen_parts_are_filled_as_the_localizer_fills_them() -> None:
    """The same pixels as `prepare_panorama` makes of an image whose `seen` says the same."""
    panorama = _picture(96, 384)
    seen = draw_seen(np.random.default_rng(3), 96, 384)
    assert 0.05 < seen.mean() < 0.95
    ground = GroundSpec(height=96, width=384, elevation_top_rad=np.pi / 4, elevation_bottom_rad=-np.pi / 4, columns=12)
    mount = CameraMount(elevation_top_rad=np.pi / 4, elevation_bottom_rad=-np.pi / 4)
    prepared = prepare_panorama(CameraImage(panorama, 1, seen=seen), ground, mount, None).pixels
    assert np.array_equal(hide_unseen(panorama, seen), prepared)


def test_drawn_fields_are_those_of_vehicles() -> None:
    """Never nothing; a part of the circle, whole columns at a time, in most; only elevations in some."""
    shares, partial, elevations, tops, bottoms = [], 0, 0, [], []
    for seed in range(300):
        seen = draw_seen(np.random.default_rng(seed), 96, 320)
        columns, rows = seen.any(axis=0), seen.any(axis=1)
        assert np.array_equal(seen, rows[:, None] & columns[None])
        if not rows.all():
            top, bottom = np.flatnonzero(rows)[[0, -1]]
            assert rows[top : bottom + 1].all()
            tops.append(45 - top * 90 / 96)
            bottoms.append(45 - (bottom + 1) * 90 / 96)
        shares.append(columns.mean())
        partial += not columns.all()
        elevations += columns.all() and not rows.all()
    assert min(shares) > 0.15
    assert 120 < partial < 180  # of the 60% with sectors, some see all around
    assert 90 < elevations < 150  # 40%
    # Upper limits of 13.5° to 36°, to a row of 0.94°, lower ones likewise.
    assert 13 <= min(tops) < 15 < 34 < max(tops) <= 37
    assert -37 <= min(bottoms) < -34 < -15 < max(bottoms) <= -13


def test_missing_sectors_come_after_noise_and_colour() -> None:
    config = AugmentationConfig(noise=1.0, jpeg=1.0, photography=PhotographyConfig(missing=1.0))
    panorama, _, _ = augment(_picture(), _picture(192, 192), (0.5, 0.5), np.random.default_rng(1), config)
    hidden = (panorama == photography.FILL_RGB).all(axis=2)
    assert hidden.mean() > 0.1


def test_styles_give_their_colours_and_amplitudes(tmp_path: Path) -> None:
    for kind, colour in (("street", (200, 40, 40)), ("above", (30, 160, 60))):
        (tmp_path / kind).mkdir()
        cv2.imwrite(str(tmp_path / kind / "one.png"), np.full((50, 70, 3), colour, np.uint8)[..., ::-1])
    config = PhotographyConfig(styles=tmp_path, statistics=1.0)
    moved = [
        photograph_street(np.full((96, 320, 3), 128, np.uint8), np.random.default_rng(seed), config).mean(axis=(0, 1))
        for seed in range(20)
    ]
    share = (np.array(moved) - 128) / (np.array([200, 40, 40]) - 128)
    assert np.ptp(share, axis=1).max() < 0.02  # all channels go the same way
    assert 0.25 < share.min() < share.max() <= 1.01


def test_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "street").mkdir()
    (tmp_path / "street" / "a.jpg").touch()
    with pytest.raises(ValidationError, match=r"no JPEG or PNG in .*above"):
        PhotographyConfig(styles=tmp_path)
    with pytest.raises(ValidationError):
        PhotographyConfig(tone=1.5)
