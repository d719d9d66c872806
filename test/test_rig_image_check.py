"""Images that show nothing: black and white ones, judged inside what the lens shows."""

import math

import numpy as np
import pytest

from unifygeo_ros.core.records import RejectionReason
from unifygeo_ros.rig.image_check import image_problem
from unifygeo_ros.rig.lenses import FisheyeCircle, Pinhole

PINHOLE = Pinhole(640, 480, 400.0, 400.0, 319.5, 239.5)
CIRCLE = FisheyeCircle(640, 640, 319.5, 319.5, 300.0, math.radians(190))


def image(lens, grey, beyond=0, scale=1):
    """Of one grey value inside the lens' field and another beyond it; scale: by how much smaller than the lens'."""
    height, width = lens.height // scale, lens.width // scale
    row, column = np.mgrid[:height, :width].astype(np.float32) * scale
    shown = lens.margin(column, row) > 0
    return np.where(shown, grey, beyond).astype(np.uint8)[..., None].repeat(3, -1)


@pytest.mark.parametrize("lens", [PINHOLE, CIRCLE], ids=["pinhole", "circle"])
@pytest.mark.parametrize(
    ("grey", "kind", "words"),
    [
        (0, RejectionReason.BLACK_IMAGE, "black, mean brightness 0.0 of 255, minimum_brightness is 8"),
        (6, RejectionReason.BLACK_IMAGE, "black, mean brightness 6.0 of 255"),
        (255, RejectionReason.BAD_IMAGE, "white, mean brightness of its darkest quarter 255.0 of 255, limit 250"),
        (252, RejectionReason.BAD_IMAGE, "white, mean brightness of its darkest quarter 252.0"),
    ],
)
@pytest.mark.parametrize("scale", [1, 4])
def test_black_and_white_images_are_named_with_value_and_limit(lens, grey, kind, words, scale):
    found = image_problem(image(lens, grey, scale=scale), lens, 8.0)
    assert found is not None
    assert found[0] is kind
    assert words.split(" of 255")[0].rsplit(" ", 1)[0] in found[1]
    assert float(found[1].split(" of 255")[0].rsplit(" ", 1)[1]) == pytest.approx(grey, abs=6)  # parts on the circle


@pytest.mark.parametrize("grey", [9, 60, 245])
def test_dark_and_bright_images_are_used(grey):
    assert image_problem(image(PINHOLE, grey), PINHOLE, 8.0) is None
    assert image_problem(image(CIRCLE, grey + 3), CIRCLE, 8.0) is None


def test_lit_corner_at_night_and_a_dark_quarter_in_glare_are_enough():
    night, glare = np.zeros((480, 640, 3), np.uint8), np.full((480, 640, 3), 255, np.uint8)
    night[:240, :320], glare[:240, :320] = 40, 200
    assert image_problem(night, PINHOLE, 8.0) is None
    assert image_problem(glare, PINHOLE, 8.0) is None


def test_white_beyond_the_circle_does_not_make_a_dark_fisheye_bright():
    assert image_problem(image(CIRCLE, 2, beyond=255), CIRCLE, 8.0)[0] is RejectionReason.BLACK_IMAGE
