"""The index's imagery for RViz: the right pixels at the right places, sent once, over real DDS."""

import itertools
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy")

from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_drive import NODE, ROOT, make_region, running
from visualization_msgs.msg import Marker, MarkerArray

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.geodesy import tile_from_map
from unifygeo_ros.ros import orthophoto
from unifygeo_ros.ros.orthophoto import KEPT, NEAR_M, SQUARE_M, Orthophoto, orthophoto_message

LATCHED = QoSProfile(depth=KEPT, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    return make_region(tmp_path_factory.mktemp("region"))


def colour_at(marker, east, north):
    """The texture's pixel at a place of the map, by the triangle that holds it and its texture coordinates; None: none
    does."""
    texture = cv2.imdecode(np.frombuffer(bytes(marker.texture.data), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    origin = np.array([marker.pose.position.x, marker.pose.position.y])
    for first in range(0, len(marker.points), 3):
        corners = origin + [(point.x, point.y) for point in marker.points[first : first + 3]]
        weights = np.linalg.solve(np.vstack([corners.T, np.ones(3)]), [east, north, 1.0])
        if weights.min() >= -1e-9:
            uv = weights @ [(corner.u, corner.v) for corner in marker.uv_coordinates[first : first + 3]]
            row, column = np.minimum((uv[::-1] * texture.shape[:2]).astype(int), np.array(texture.shape[:2]) - 1)
            return texture[row, column].astype(int)
    return None


def check_colours(markers, index):
    """At the middles of the index's tiles, where no other tile's border is near."""
    seen = 0
    for tile, (east, north) in enumerate(np.asarray(index.centres_m).tolist()):
        row, column = tile_from_map(east, north, east, north, index.tile_size, index.metres_per_pixel)
        around = index.tile_pixels(tile)[int(row) - 1 : int(row) + 3, int(column) - 1 : int(column) + 3]
        if not around.any(axis=-1).all():
            continue
        found = [colour for marker in markers if (colour := colour_at(marker, east, north)) is not None]
        assert found, f"no square at {east}, {north}"
        # JPEG, and a pixel beside: the colours change over six metres.
        assert np.abs(found[0] - around.reshape(-1, 3).mean(axis=0)).max() < 40, (east, north)
        seen += 1
    assert seen > 20


def test_squares_over_dds_show_the_imagery_at_its_place_once_and_to_later_viewers(region, tmp_path):
    with running(region, tmp_path, {"diagnostics_period_s": 0.05}) as vehicle:
        received, later = [], []

        def into(squares):
            return lambda message: squares.extend([message] if message.markers[0].action == Marker.ADD else [])

        vehicle.node.create_subscription(MarkerArray, f"{NODE}/orthophoto", into(received), LATCHED)
        vehicle.wait_for(lambda: len(received) >= 4, "four squares about the datum")
        vehicle.node.create_subscription(MarkerArray, f"{NODE}/orthophoto", into(later), LATCHED)
        vehicle.wait_for(lambda: len(later) >= 4, "squares for a later viewer")
        vehicle.spin(0.3)
    markers = [marker for message in received for marker in message.markers]
    assert len({(marker.ns, marker.id) for marker in markers}) == len(markers) == 4
    assert sorted(marker.id for message in later for marker in message.markers) == sorted(m.id for m in markers)
    for marker in markers:
        assert (marker.type, marker.action, marker.header.frame_id) == (Marker.TRIANGLE_LIST, Marker.ADD, "map")
        assert marker.texture_resource.startswith("embedded://")
        assert marker.texture.format == "jpeg"
        assert len(marker.uv_coordinates) == len(marker.points) == 6  # else RViz leaves the texture out
        assert marker.color.a == marker.scale.x == marker.scale.y == marker.scale.z == 1.0
        heights = {marker.pose.position.z + point.z for point in marker.points}
        assert max(heights) - min(heights) < 1e-6
        assert -1.0 < max(heights) < 0.0  # under the heatmap
        for first in (0, 3):  # lit from above: the normals of both triangles point upwards
            a, b, c = (np.array([point.x, point.y]) for point in marker.points[first : first + 3])
            (x, y), (u, v) = b - a, c - a
            assert x * v - y * u > 0
    check_colours(markers, open_index(region.index))


class Publisher:
    """Stands in for rclpy's: counts who listens, keeps what is published."""

    def __init__(self):
        self.listeners, self.published = 0, []

    def get_subscription_count(self):
        return self.listeners

    def publish(self, message):
        self.published.append(message)


@pytest.fixture
def output(monkeypatch):
    """Of an index of 20 km × 20 km, without its pixels; the squares are made at once."""
    publisher = Publisher()
    warnings = []
    node = SimpleNamespace(
        create_publisher=lambda kind, topic, qos: publisher,
        destroy_publisher=lambda publisher: None,
        get_logger=lambda: SimpleNamespace(warning=warnings.append),
    )
    centres = np.array([(-10_000.0, -10_000.0), (10_000.0, 10_000.0)])
    manifest = SimpleNamespace(side_m=70.0)
    index = SimpleNamespace(centres_m=centres, manifest=manifest, metres_per_pixel=0.5)
    shown = np.full((8, 8, 3), 100, np.uint8)
    monkeypatch.setattr(orthophoto, "mosaic", lambda extent, index, empty: shown)
    output = Orthophoto(node, index, "map")
    first = publisher.published.pop(0) if publisher.published else None
    yield SimpleNamespace(output=output, publisher=publisher, warnings=warnings, first=first)
    output.close()


def tend(output, times):
    for _ in range(times):
        output.tend()
        if output._work is not None:
            output._work.exception(10.0)


def corner(message):
    (marker,) = message.markers
    return round(marker.pose.position.x / SQUARE_M), round(marker.pose.position.y / SQUARE_M)


def test_squares_of_an_earlier_index_are_deleted_first(output):
    """The node was configured with another index, which may have another datum, while RViz went on."""
    (first,) = output.first.markers
    assert first.action == Marker.DELETEALL
    assert output.publisher.published == []


def test_nothing_is_made_while_nobody_looks_and_only_squares_near_the_vehicle_then(output):
    tend(output.output, 3)
    assert output.output._work is None
    output.publisher.listeners = 1
    output.output.place_m = (700.0, -300.0)
    tend(output.output, 40)
    cells = [corner(message) for message in output.publisher.published]
    # East −68 … 1468 m and north −1068 … 468 m.
    assert set(cells) == set(itertools.product(range(-1, 3), range(-3, 1)))
    assert len(cells) == 16 <= KEPT
    assert cells[0] == (1, -1)  # the vehicle's own
    output.output.place_m = (700.0 + SQUARE_M, -300.0)
    tend(output.output, 40)
    moved = [corner(message) for message in output.publisher.published[16:]]
    assert set(moved) == {(3, row) for row in range(-3, 1)}  # those that were sent are not sent again


def test_squares_near_any_place_are_no_more_than_are_kept():
    across = [np.ceil((x + NEAR_M) / SQUARE_M) - np.floor((x - NEAR_M) / SQUARE_M) for x in np.linspace(0, 512, 999)]
    assert max(across) ** 2 <= KEPT


def test_damaged_index_is_a_warning_and_the_next_square_follows(output, monkeypatch):
    from unifygeo_ros.core.errors import IndexFormatError

    def damaged(extent, index, empty):
        raise IndexFormatError("pixels.bin: tile 3 does not match its checksum; copy the index again")

    good = orthophoto.mosaic
    monkeypatch.setattr(orthophoto, "mosaic", damaged)
    output.publisher.listeners = 1
    tend(output.output, 2)
    assert output.warnings == [
        "no imagery for RViz: pixels.bin: tile 3 does not match its checksum; copy the index again"
    ]
    monkeypatch.setattr(orthophoto, "mosaic", good)
    tend(output.output, 4)
    assert output.publisher.published


def test_squares_without_imagery_are_not_sent(output, monkeypatch):
    monkeypatch.setattr(orthophoto, "mosaic", lambda extent, index, empty: np.zeros((8, 8, 3), np.uint8))
    output.publisher.listeners = 1
    tend(output.output, 40)
    assert output.publisher.published == []


def test_every_square_of_a_region_has_a_number_of_its_own_in_int32():
    pixels = np.zeros((2, 2, 3), np.uint8)
    cells = [(column, row) for column in (-600, -1, 0, 1, 600) for row in (-600, -1, 0, 1, 600)]
    numbers = {orthophoto_message(pixels, cell, "map").markers[0].id for cell in cells}
    assert len(numbers) == len(cells)


def test_rviz_asks_for_as_many_squares_as_are_kept():
    displays = yaml.safe_load((ROOT / "rviz/unifygeo.rviz").read_text())["Visualization Manager"]["Displays"]
    (display,) = [one for one in displays if one.get("Topic", {}).get("Value") == f"{NODE}/orthophoto"]
    assert display["Topic"]["Durability Policy"] == "Transient Local"
    assert display["Topic"]["Depth"] >= KEPT
    (heatmap,) = [one for one in displays if one["Class"] == "rviz_default_plugins/Map"]
    assert not heatmap["Draw Behind"]  # RViz draws what is behind first: the imagery would cover it
