"""cv_bridge and our own decoding: which one is chosen, and that both give the same pixels where cv_bridge is there."""

import sys
import types

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from sensor_msgs.msg import CompressedImage, Image

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.images.encodings import ENCODINGS
from unifygeo_ros.ros.image_conversion import (
    CV_BRIDGE_ENCODINGS,
    CvBridgeConversion,
    OwnConversion,
    choose_image_conversion,
)

HEIGHT, WIDTH = 6, 8
OWN = OwnConversion("test")


def message(encoding, padding=0, seed=0):
    """An image of noise. padding: bytes after each row."""
    step = WIDTH * CV_BRIDGE_ENCODINGS.get(encoding, 2) + padding
    rows = np.random.default_rng(seed).integers(0, 256, (HEIGHT, step), np.uint8)
    image = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=step, data=rows.tobytes())
    image.header.stamp.sec = 7
    return image


def test_encodings_left_to_cv_bridge_are_known_to_own_decoder():
    assert set(ENCODINGS) >= set(CV_BRIDGE_ENCODINGS)


@pytest.mark.parametrize("padding", [0, 12, 5])
@pytest.mark.parametrize("encoding", sorted(CV_BRIDGE_ENCODINGS))
def test_cv_bridge_and_our_own_decoding_agree(encoding, padding):
    """The real cv_bridge; skipped where a ROS installation has none."""
    cv_bridge = pytest.importorskip("cv_bridge", reason="cv_bridge comes with ROS")
    ours = OWN.camera_image(message(encoding, padding))
    theirs = CvBridgeConversion(cv_bridge.CvBridge()).camera_image(message(encoding, padding))
    assert ours.stamp_ns == theirs.stamp_ns == 7_000_000_000
    tolerance = 1 if "16" in encoding else 0  # cv_bridge rounds, our own code takes the upper byte
    np.testing.assert_allclose(theirs.pixels.astype(int), ours.pixels.astype(int), atol=tolerance)


def test_cv_bridge_and_our_own_debug_image_agree():
    cv_bridge = pytest.importorskip("cv_bridge", reason="cv_bridge comes with ROS")
    pixels = np.random.default_rng(1).integers(0, 256, (16, 32, 3), np.uint8)
    ours = OWN.jpeg(pixels, 9, "base_link")
    theirs = CvBridgeConversion(cv_bridge.CvBridge()).jpeg(pixels, 9, "base_link")
    assert (theirs.format, theirs.header) == (ours.format, ours.header)
    np.testing.assert_array_equal(OWN.camera_image(theirs).pixels, OWN.camera_image(ours).pixels)


# -- which one is chosen; cv_bridge is a stand-in here, so that each way of failing can be had -----------------------


class Bridge:
    """What of cv_bridge is used, by its documentation."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        assert desired_encoding == "rgb8"
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        pixels = rows[:, : 4 * message.width].reshape(message.height, message.width, 4)
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB)

    def cv2_to_compressed_imgmsg(self, pixels, dst_format):
        return CompressedImage(format=dst_format, data=cv2.imencode(f".{dst_format}", pixels)[1].tobytes())


def provide(monkeypatch, bridge):
    monkeypatch.setitem(sys.modules, "cv_bridge", types.SimpleNamespace(CvBridge=bridge))


def test_cv_bridge_that_works_is_chosen_and_gives_the_same_pixels(monkeypatch):
    provide(monkeypatch, Bridge)
    chosen = choose_image_conversion()
    assert chosen.name == "cv_bridge"
    image = message("bgra8")
    np.testing.assert_array_equal(chosen.camera_image(image).pixels, OWN.camera_image(image).pixels)
    pixels = np.full((16, 32, 3), (200, 90, 10), np.uint8)
    assert chosen.jpeg(pixels, 9, "base_link") == OWN.jpeg(pixels, 9, "base_link")


def test_images_that_cv_bridge_does_not_convert_are_decoded(monkeypatch):
    provide(monkeypatch, Bridge)
    chosen = choose_image_conversion()
    big_endian = message("mono16")
    big_endian.is_bigendian = 1
    for other in (
        message("uyvy"),
        message("rgb8", padding=5),
        big_endian,
        OWN.jpeg(np.full((16, 32, 3), 99, np.uint8), 9, ""),
    ):
        np.testing.assert_array_equal(chosen.camera_image(other).pixels, OWN.camera_image(other).pixels)


@pytest.mark.parametrize(
    ("change", "why"), [({"step": 3}, "step 3"), ({"height": 4000}, "bytes"), ({"width": 0}, "size")]
)
def test_message_that_does_not_fit_never_reaches_cv_bridge(change, why):
    class Untouched(Bridge):
        def imgmsg_to_cv2(self, message, desired_encoding):
            raise AssertionError("reached")

    image = message("rgb8")
    for name, value in change.items():
        setattr(image, name, value)
    with pytest.raises(InputError, match=why):
        CvBridgeConversion(Untouched()).camera_image(image)


def test_without_cv_bridge_our_own_code_is_chosen_and_the_reason_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    assert choose_image_conversion().name.startswith("own decoding (cv_bridge cannot be imported: ")


def test_cv_bridge_built_for_another_numpy_is_left_alone(monkeypatch):
    def bridge():
        raise ImportError("numpy.core.multiarray failed to import")

    provide(monkeypatch, bridge)
    name = choose_image_conversion().name
    assert name == "own decoding (cv_bridge cannot be imported: numpy.core.multiarray failed to import)"


def test_cv_bridge_that_fails_or_swaps_colours_is_left_alone(monkeypatch):
    class Failing(Bridge):
        def imgmsg_to_cv2(self, message, desired_encoding):
            raise AttributeError("_ARRAY_API not found")

    class Wrong(Bridge):
        def imgmsg_to_cv2(self, message, desired_encoding):
            return super().imgmsg_to_cv2(message, desired_encoding)[..., ::-1]

    provide(monkeypatch, Failing)
    assert "cv_bridge cannot convert bgra8 to rgb8: _ARRAY_API not found" in choose_image_conversion().name
    provide(monkeypatch, Wrong)
    assert choose_image_conversion().name == "own decoding (cv_bridge converts wrongly)"
