"""What a split on disk tells the judge, in metres, against numbers worked by hand."""

import cv2
import numpy as np
import pytest
from small_centre_aligned import make_cvusa
from small_vigor import make_vigor, make_vigor_street

from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.panorama import prepare_panorama
from unifygeo_training.data.centre_aligned import load_cvusa
from unifygeo_training.data.split_images import SplitImages
from unifygeo_training.data.vigor import load_vigor
from unifygeo_training.judging.evaluation_set import JudgedSplit
from unifygeo_training.model import NetworkConfig

CONFIG = NetworkConfig(backbone="convnext_atto", ground_height=32, ground_width=64, aerial_size=64)
SIDE_M = {"NewYork": 72.47872, "Seattle": 64.52288, "SanFrancisco": 75.61024, "Chicago": 71.20768}
"""640 pixels of 0.113248, 0.100817, 0.118141, 0.111262 m, the scales that the data set's authors give."""


def test_sides_and_offsets_of_each_city_in_metres(tmp_path):
    make_vigor(tmp_path)
    data = JudgedSplit(load_vigor(tmp_path, "same-area", "test", labels="original"), CONFIG)
    cities = [file.parts[-3] for file in data.split.gallery]
    assert data.side_m.tolist() == pytest.approx([SIDE_M[city] for city in cities])
    assert set(cities) == set(SIDE_M)
    # Every camera stands 100 of 640 pixels below and 60 left of its positive's centre: west and south of it.
    expected = [(-60 / 640 * SIDE_M[city], -100 / 640 * SIDE_M[city]) for city in cities[::2]]
    np.testing.assert_allclose(data.offsets_m, expected)


def test_displacement_is_east_and_north_in_metres(tmp_path):
    make_vigor(tmp_path / "north")  # the second tile of a city is half a tile north of the first
    make_vigor_street(tmp_path / "east")  # each tile of a city is half a tile east of the one before
    north = JudgedSplit(load_vigor(tmp_path / "north", "cross-area", "train", labels="original"), CONFIG)
    east = JudgedSplit(load_vigor(tmp_path / "east", "cross-area", "train", labels="corrected"), CONFIG)
    first, second = np.array([0, 1]), np.array([1, 0])
    half = SIDE_M["NewYork"] / 2
    # 0.5%: the labels' coordinates are on a sphere, the judge's on the ellipsoid.
    np.testing.assert_allclose(north.displacement_m(first, second), [[0, half], [0, -half]], atol=0.005 * half)
    np.testing.assert_allclose(east.displacement_m(first, second), [[half, 0], [-half, 0]], atol=0.005 * half)


def test_only_the_elevations_of_the_network_are_cut_from_the_panorama(tmp_path):
    make_cvusa(tmp_path, 1)
    split = load_cvusa(tmp_path, "train")
    # The file's rows 0 … 223 in grey: bands of 28 rows, 8.18° each, of grey 20, 40 … 160 from the top.
    rows = np.repeat(np.arange(1, 9) * 20, 28).astype(np.uint8)
    cv2.imwrite(str(split.ground[0].with_suffix(".png")), np.repeat(rows[:, None, None], 1232, axis=1).repeat(3, 2))
    split.ground[0].with_suffix(".png").rename(split.ground[0])
    whole, half = (
        SplitImages(
            split,
            CONFIG.model_copy(
                update={"ground_elevation_top_deg": top, "ground_elevation_bottom_deg": -top, "ground_height": 32}
            ),
        ).ground_image(0)
        for top in (np.degrees(split.ground_top_rad), np.degrees(split.ground_top_rad) / 2)
    )
    assert whole[:, 0, 0].tolist() == np.repeat(np.arange(1, 9) * 20, 4).tolist()
    assert half[:, 0, 0].tolist() == np.repeat(np.arange(3, 7) * 20, 8).tolist()  # the middle four of eight bands


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_panorama_preparation_of_the_robot_and_of_the_published_weights(tmp_path, resize):
    """Eightfold reduction of noise: area is the mean of 8 × 8 pixels, bilinear that of the four in the middle."""
    make_vigor(tmp_path)
    split = load_vigor(tmp_path, "cross-area", "test", labels="original")
    noise = np.random.default_rng(0).integers(0, 256, (256, 512, 3), np.uint8)
    split.ground[0].unlink()
    cv2.imwrite(str(split.ground[0].with_suffix(".png")), noise[..., ::-1])
    split.ground[0].with_suffix(".png").rename(split.ground[0])
    found = SplitImages(split, CONFIG, resize=resize).ground_image(0)
    blocks = noise.reshape(32, 8, 64, 8, 3)
    wanted = blocks.mean(axis=(1, 3)) if resize == "area" else blocks[:, 3:5, :, 3:5].mean(axis=(1, 3))
    np.testing.assert_allclose(found, wanted, atol=1.0)
    robot = prepare_panorama(CameraImage(noise, 0), CONFIG.ground, CameraMount(), None).pixels
    assert np.array_equal(found, robot) == (resize == "area")
