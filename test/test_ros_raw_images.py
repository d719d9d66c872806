"""sensor_msgs/Image over real DDS: every encoding gives the fix of the same pixels; what cannot be read is refused; and
a publisher whose QoS does not fit is reported."""

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from ros_drive import make_region, running, values
from sensor_msgs.msg import Image

PLACE = (-20.0, 11.0)
PADDING = 13  # bytes after each row


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    return make_region(tmp_path_factory.mktemp("region"))


@pytest.fixture(scope="module")
def vehicle(region, tmp_path_factory):
    # The random network knows no colours and finds that a grey image fits a turned camera better.
    parameters = {"image_transport": "raw", "reliability": "reliable", "session.camera_check_images": 0}
    with running(region, tmp_path_factory.mktemp("node"), parameters, "/image") as vehicle:
        yield vehicle


def image_message(samples: np.ndarray, encoding: str) -> Image:
    """samples: uint8 (H, W·bytes a pixel)."""
    height, row_bytes = samples.shape
    padded = np.full((height, row_bytes + PADDING), 77, np.uint8)
    padded[:, :row_bytes] = samples
    bytes_a_pixel = {"mono8": 1, "rgba8": 4, "bgra8": 4, "yuv422": 2, "yuv422_yuy2": 2, "yuyv": 2}.get(encoding, 3)
    return Image(
        height=height, width=row_bytes // bytes_a_pixel, encoding=encoding, step=row_bytes + PADDING,
        data=padded.tobytes(),
    )  # fmt: skip


def encode(pixels: np.ndarray, encoding: str) -> np.ndarray:
    height, width = pixels.shape[:2]
    if encoding in ("yuv422", "yuv422_yuy2", "yuyv"):  # BT.601, limited range, chroma of pairs averaged
        yuv = pixels @ np.array([[65.481, -37.797, 112.0], [128.553, -74.203, -93.786], [24.966, 112.0, -18.214]]) / 255
        luma, chroma = yuv[..., 0] + 16, yuv[..., 1:].reshape(height, width // 2, 2, 2).mean(axis=2) + 128
        packed = np.empty((height, width, 2))
        luma_at, chroma_at = (1, 0) if encoding == "yuv422" else (0, 1)
        packed[..., luma_at] = luma
        packed[..., chroma_at] = chroma.reshape(height, width)
        return np.clip(np.rint(packed), 0, 255).astype(np.uint8).reshape(height, -1)
    layout = {
        "rgb8": pixels,
        "bgr8": pixels[..., ::-1],
        "rgba8": np.dstack([pixels, np.full((height, width), 9, np.uint8)]),
        "bgra8": np.dstack([pixels[..., ::-1], np.full((height, width), 9, np.uint8)]),
        "mono8": cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY),
    }[encoding]
    return np.ascontiguousarray(layout).reshape(height, -1)


def show(vehicle, message):
    stamp = vehicle.next_stamp()
    vehicle.publish("/image", message, stamp)
    return stamp


def place_of(message):
    return message.pose.pose.position.x, message.pose.pose.position.y


@pytest.mark.parametrize("encoding", ["bgr8", "rgba8", "bgra8", "yuv422", "yuv422_yuy2", "yuyv"])
def test_every_encoding_gives_the_same_fix(vehicle, region, encoding):
    pixels = region.panorama(PLACE)
    reference = vehicle.fix_for(show(vehicle, image_message(encode(pixels, "rgb8"), "rgb8")))
    assert vehicle.reset().success  # the same pixels once more are no frozen camera
    fix = vehicle.fix_for(show(vehicle, image_message(encode(pixels, encoding), encoding)))
    tolerance_m = 1.0 if "yu" in encoding else 0.0  # two pixels of D, for what the chroma lost
    assert place_of(fix) == pytest.approx(place_of(reference), abs=tolerance_m)


def test_grey_image_is_localized(vehicle, region):
    grey = cv2.cvtColor(region.panorama(PLACE), cv2.COLOR_RGB2GRAY)
    reference = vehicle.fix_for(show(vehicle, image_message(np.repeat(grey, 3, axis=1), "rgb8")))
    assert vehicle.reset().success
    fix = vehicle.fix_for(show(vehicle, image_message(grey, "mono8")))
    assert place_of(fix) == pytest.approx(place_of(reference), abs=0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"encoding": "32FC1"}, "32FC1"),
        ({"encoding": "h264"}, "h264"),
        ({"encoding": ""}, "encoding"),
        ({"step": 3}, "step"),
        ({"height": 4000}, "bytes"),
        ({"width": 0}, "size"),
    ],
)
def test_raw_image_that_does_not_fit_is_refused(vehicle, region, change, why):
    message = image_message(encode(region.panorama(PLACE), "rgb8"), "rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    assert why in vehicle.rejection_of(show(vehicle, message), "bad_image").message
    vehicle.fix_for(show(vehicle, image_message(encode(region.panorama(PLACE), "rgb8"), "rgb8")))


def test_publisher_with_the_wrong_qos_is_reported(vehicle, region):
    """The node asks for reliable delivery here; a best-effort camera cannot be heard, and the diagnostics say why."""
    vehicle.publisher("/image", reliability="best_effort")
    status = vehicle.wait_for_status("camera", lambda s: "incompatible" in s.message, "incompatible QoS")
    assert status.level > b"\x00"
    assert values(status)["incompatible_qos./image"] == "RELIABILITY"
    assert "set the parameter reliability" in status.message
