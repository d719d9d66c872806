"""The node in a region of two indexes, driven across their border, over real DDS."""

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip("rclpy")

from index_parts import subset
from ros_drive import OPEN_GATES, make_region, running, values

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, Query
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer


def test_drive_across_the_border_of_two_indexes_gets_the_fixes_of_one_index(tmp_path):
    whole = make_region(tmp_path)
    index = open_index(whole.index)
    east_half = np.asarray(index.centres_m[:, 0]) > 0
    for name, chosen in (("west", ~east_half), ("east", east_half)):
        subset(index, chosen, tmp_path / "halves" / name)
    region = dataclasses.replace(whole, index=tmp_path / "halves")
    bundle = load_bundle(whole.bundle)
    gates = {name.split(".")[1]: value for name, value in OPEN_GATES.items() if name.startswith("localizer.")}
    query = Query(heading=Heading(math.pi / 2, LocalizerConfig().heading_sigma_rad ** 2, HeadingSource.CONSTANT))
    halves_used = set()
    with (
        open_engines(bundle, backend="onnx_cpu", threads=1) as engines,
        running(region, tmp_path, {}) as vehicle,
    ):
        one = Localizer(index, bundle, engines, LocalizerConfig(**gates))
        for x in range(-36, 37, 8):
            place = (float(x), 10.0)
            pixels = region.panorama(place)
            stamp = vehicle.show(pixels)
            found = vehicle.fix_for(stamp).pose.pose.position
            expected = one.locate(CameraImage(pixels, stamp), query)
            halves_used.add(bool(east_half[expected.tile_id]))
            assert (found.x, found.y) == pytest.approx((expected.east_m, expected.north_m), abs=1e-6), place
        status = vehicle.wait_for_status("node", lambda s: s.message == "active", "active node")
    assert halves_used == {True, False}
    assert values(status)["search"] == "exact, index by index (2), CPU"
