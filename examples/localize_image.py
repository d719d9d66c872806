"""Localize one 360° image without ROS.

Usage: python localize_image.py INDEX MODEL IMAGE [HEADING_DEG]

HEADING_DEG is where the image's centre column looks, in degrees from north, clockwise. Without it the heading is
searched, which is slower and less certain. `unifygeo locate` is the complete command; this is the library in few lines.
"""

import math
import sys

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.geodesy import yaw_from_azimuth
from unifygeo_ros.core.records import CameraImage, Fix, Heading, HeadingSource, Query
from unifygeo_ros.images.files import read_image
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.localizer import Localizer

index_path, model_path, image_path, *heading_deg = sys.argv[1:]
heading = None
if heading_deg:
    yaw_rad = float(yaw_from_azimuth(math.radians(float(heading_deg[0]))))
    heading = Heading(yaw_rad, math.radians(3.0) ** 2, HeadingSource.CONSTANT)

bundle = load_bundle(model_path)
index = open_index(index_path, bundle=bundle)
with open_engines(bundle, backend="auto") as engines:
    localizer = Localizer(index, bundle, engines)
    result = localizer.locate(CameraImage(read_image(image_path), stamp_ns=0), Query(heading=heading))

if isinstance(result, Fix):
    print(f"{result.latitude_deg:.7f} {result.longitude_deg:.7f}, wrong with probability {result.ambiguity:.3f}")
else:
    print(f"no fix: {result.reason.value}: {result.detail}")
