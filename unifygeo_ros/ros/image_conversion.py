"""Image messages ↔ pixels: by cv_bridge where a ROS installation has one that works, else by our own code.

Chosen once, when the node is configured; the log and the diagnostics say which. Both give the same pixels
(test/test_ros_image_conversion.py), except that cv_bridge rounds 16-bit samples and our own code takes the upper byte.
The replay has no ROS and always uses our own.
"""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from unifygeo_ros.conversions.from_messages import camera_image, stamp_ns
from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.images.encodings import check_raw_image
from unifygeo_ros.ros.to_messages import jpeg_message, time_message

CV_BRIDGE_ENCODINGS = {
    **dict.fromkeys(("rgb8", "bgr8"), 3),
    **dict.fromkeys(("rgba8", "bgra8"), 4),
    **dict.fromkeys(("rgb16", "bgr16"), 6),
    **dict.fromkeys(("mono16", "yuv422", "yuv422_yuy2"), 2),
    **dict.fromkeys(("mono8", "bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8"), 1),
}
"""Encodings that every cv_bridge from Humble on converts to rgb8, with the bytes of a pixel."""


class ImageConversion(Protocol):
    """How pixels come out of messages and go into them."""

    @property
    def name(self) -> str:
        """Which one it is, and why, for the log and the diagnostics."""

    def camera_image(self, message: Image | CompressedImage, least_width: int | None = None) -> CameraImage:
        """Decode an image.

        Args:
            message: The image.
            least_width: JPEGs may be decoded smaller, but not narrower than this; None: full size.

        Raises:
            InputError: The image cannot be decoded.
        """

    def jpeg(self, pixels: UInt8, stamp_ns: int, frame_id: str) -> CompressedImage:
        """Encode uint8 (H, W, 3) RGB."""


class OwnConversion:
    """By OpenCV and numpy alone, as in the replay."""

    def __init__(self, why: str) -> None:
        self.name = f"own decoding ({why})"

    def camera_image(self, message: Image | CompressedImage, least_width: int | None = None) -> CameraImage:
        """See `ImageConversion`."""
        return camera_image(message, least_width)

    def jpeg(self, pixels: UInt8, stamp_ns: int, frame_id: str) -> CompressedImage:
        """See `ImageConversion`."""
        return jpeg_message(pixels, stamp_ns, frame_id)


class CvBridgeConversion:
    """Raw images and the debug image by cv_bridge.

    Compressed images are decoded by our own code, which refuses truncated ones: cv_bridge takes what OpenCV makes of
    them.
    """

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge
        self.name = "cv_bridge"

    def camera_image(self, message: Image | CompressedImage, least_width: int | None = None) -> CameraImage:
        """See `ImageConversion`."""
        if hasattr(message, "format") or not self._takes(message):
            return camera_image(message, least_width)
        # cv_bridge raises many kinds of errors for a size that does not fit, or reads beyond the rows.
        check_raw_image(message.data, message.encoding, message.height, message.width, message.step)
        try:
            pixels = self._bridge.imgmsg_to_cv2(message, desired_encoding="rgb8")
        except Exception as error:  # CvBridgeError, and the errors of its C++ part
            raise InputError(f"cv_bridge cannot convert {message.encoding} to rgb8: {error}") from error
        return CameraImage(np.ascontiguousarray(pixels, np.uint8), stamp_ns(message.header))

    @staticmethod
    def _takes(message: Image) -> bool:
        """Whether cv_bridge converts an image correctly.

        It takes a row for a whole number of pixels, so that padding of another length shears the image; and its byte
        swap does not run with numpy 2.
        """
        pixel_bytes = CV_BRIDGE_ENCODINGS.get(message.encoding)
        return pixel_bytes is not None and message.step % pixel_bytes == 0 and not message.is_bigendian

    def jpeg(self, pixels: UInt8, stamp_ns: int, frame_id: str) -> CompressedImage:
        """See `ImageConversion`."""
        message = self._bridge.cv2_to_compressed_imgmsg(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), dst_format="jpeg")
        message.header.stamp, message.header.frame_id = time_message(stamp_ns), frame_id
        return message


def choose_image_conversion() -> ImageConversion:
    """cv_bridge if it can be imported and converts a known image correctly, else our own code."""
    try:
        from cv_bridge import CvBridge

        conversion = CvBridgeConversion(CvBridge())
        # Two pixels in a row that is padded.
        row = [1, 2, 3, 255, 40, 50, 60, 255, 0, 0, 0, 0]
        probe = Image(height=2, width=2, encoding="bgra8", step=len(row), data=bytes(row * 2))
        pixels = conversion.camera_image(probe).pixels
        conversion.jpeg(np.zeros((8, 8, 3), np.uint8), 0, "")
        if pixels.tolist() != [[[3, 2, 1], [60, 50, 40]]] * 2:
            return OwnConversion("cv_bridge converts wrongly")
        return conversion
    except ImportError as error:
        # Also a binary that was built for another numpy.
        return OwnConversion(f"cv_bridge cannot be imported: {error}")
    except Exception as error:
        return OwnConversion(f"cv_bridge fails: {type(error).__name__}: {error}")
