"""What a panorama's own metadata says of its geometry: Google's Photo Sphere XMP (GPano), and EXIF's GPS tags.

Sources: https://developers.google.com/streetview/spherical-metadata for GPano; EXIF 2.3, section 4.6.6, for GPS.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any

from unifygeo_ros.core.errors import InputError

_GPS_IFD = 0x8825
_IMG_DIRECTION_REF, _IMG_DIRECTION = 16, 17
_XMP_JPEG = b"http://ns.adobe.com/xap/1.0/\x00"


@dataclass(frozen=True)
class Crop:
    """Where an image lies in the full sphere, in pixels of the full sphere."""

    full_width: int
    full_height: int
    left: int
    top: int
    width: int
    height: int

    @property
    def is_full(self) -> bool:
        return (self.width, self.height, self.left, self.top) == (self.full_width, self.full_height, 0, 0)


@dataclass(frozen=True)
class PanoramaMetadata:
    """Geometry of a panorama as its file states it. None: not stated."""

    heading_deg: float | None = None
    """Compass heading of the full sphere's middle column, clockwise from north."""
    heading_is_magnetic: bool = False
    """Whether that is magnetic north; else true north."""
    pitch_deg: float | None = None
    """How far the middle of the image looks above the horizon."""
    roll_deg: float | None = None
    """Rotation of the camera about its viewing direction, clockwise as seen from behind it: the horizon turns
    counter-clockwise in the image."""
    crop: Crop | None = None


def read_metadata(data: bytes, name: str) -> PanoramaMetadata:
    """The metadata of a JPEG or PNG.

    Where GPano and EXIF both state a heading, GPano's is taken: it is that of the image's middle by definition, and
    true north.

    Args:
        data: the file's content.
        name: of the file, for messages.

    Raises:
        InputError: a value is no number or impossible, or Pillow is not installed.
    """
    gps, xmp = _gps_and_xmp(data, name)
    values = {tag: _number(xmp, tag, name) for tag in (*_POSE_TAGS, *_CROP_TAGS)}
    crop = None
    if all(values[tag] is not None for tag in _CROP_TAGS):
        crop = Crop(*(round(values[tag]) for tag in _CROP_TAGS))  # type: ignore[arg-type]
        _check_crop(crop, name)
    heading, pitch, roll = (values[tag] for tag in _POSE_TAGS)
    magnetic = False
    if heading is None and _IMG_DIRECTION in gps:
        heading = _finite(gps[_IMG_DIRECTION], "GPSImgDirection", name)
        magnetic = str(gps.get(_IMG_DIRECTION_REF, "T")).strip("\x00 ").upper() == "M"
    return PanoramaMetadata(heading, magnetic, pitch, roll, crop)


_POSE_TAGS = ("PoseHeadingDegrees", "PosePitchDegrees", "PoseRollDegrees")
_CROP_TAGS = (
    *("FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaLeftPixels", "CroppedAreaTopPixels"),
    *("CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels"),
)


def _gps_and_xmp(data: bytes, name: str) -> tuple[dict[int, Any], str]:
    """EXIF's GPS tags and the XMP packet; empty where there are none."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f"{name}: reading its metadata takes Pillow ({error}); pip install pillow, or the extra tools of "
            "unifygeo_ros"
        ) from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            gps = dict(image.getexif().get_ifd(_GPS_IFD))
            # JPEG keeps it in a segment, PNG in a text chunk; releases of Pillow differ in what they put into `info`.
            segments = [content for marker, content in getattr(image, "applist", ()) if marker == "APP1"]
            packets = [content[len(_XMP_JPEG) :] for content in segments if content.startswith(_XMP_JPEG)]
            packet = packets[0] if packets else image.info.get("XML:com.adobe.xmp", image.info.get("xmp", b""))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: its metadata cannot be read ({error}); remove or repair it") from error
    return gps, packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet)


def _number(xmp: str, tag: str, name: str) -> float | None:
    """A GPano value, which stands as an attribute or as an element."""
    found = re.search(rf"GPano:{tag}\s*(?:=\s*[\"']([^\"']*)[\"']|>([^<]*)<)", xmp)
    return None if found is None else _finite(found[1] if found[1] is not None else found[2], f"GPano:{tag}", name)


def _finite(value: Any, tag: str, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name}: {tag} is {value!r}, must be a finite number; correct the metadata")
    return number


def _check_crop(crop: Crop, name: str) -> None:
    inside = (
        crop.width > 0
        and crop.height > 0
        and crop.left >= 0
        and crop.top >= 0
        and crop.left + crop.width <= crop.full_width
        and crop.top + crop.height <= crop.full_height
    )
    if not inside:
        raise InputError(
            f"{name}: its GPano area of {crop.width}x{crop.height} pixels at {crop.left}, {crop.top} does not lie in "
            f"the full sphere of {crop.full_width}x{crop.full_height}; correct the metadata"
        )
