"""The camera's mount out of recorded transforms, against chains composed by hand."""

import math
import re

import numpy as np
import pytest
from drives import IMAGE, NAVSATFIX, ODOMETRY, STORE, TYPES, header, image, navsatfix, odometry, vector
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Writer

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.evaluation.recordings.recorded_mount import recorded_mount
from unifygeo_ros.evaluation.recordings.static_transforms import StaticTransforms
from unifygeo_ros.evaluation.setup_notes import mount_note, truth_note
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.parameters.settings import NodeConfig, Settings

TF = "tf2_msgs/msg/TFMessage"
LEVEL = (0.0, 0.0, 0.0, 1.0)


def about_z(angle):
    return (0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2))


def bag_with(path, *links, topic="/tf_static"):
    """links: (parent, child, xyz, quaternion), one message each."""
    with Writer(path, version=9) as writer:
        connection = writer.add_connection(topic, TF, typestore=STORE)
        for parent, child, place, (x, y, z, w) in links:
            transform = TYPES["geometry_msgs/msg/Transform"](
                translation=vector(*place), rotation=TYPES["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w)
            )
            stamped = TYPES["geometry_msgs/msg/TransformStamped"](
                header=header(0.0, parent), child_frame_id=child, transform=transform
            )
            message = TYPES[TF](transforms=[stamped])
            writer.write(connection, 1, STORE.serialize_cdr(message, TF))
    return Bag(path)


def test_recorded_mount_composes_a_chain_of_transforms(tmp_path):
    bag = bag_with(
        tmp_path / "bag",
        ("base_link", "mast", (1.0, 2.0, 3.0), about_z(math.pi / 2)),
        ("mast", "camera", (0.5, 0.0, 0.25), about_z(0.3)),
    )
    mount = recorded_mount(StaticTransforms(bag), CameraMount(mask_path="mask.png"), "base_link", "camera")
    # The mast is turned to the left, so half a metre along its x axis is half a metre to the left.
    np.testing.assert_allclose((mount.x_m, mount.y_m), (1.0, 2.5))
    assert mount.yaw_rad == pytest.approx(math.pi / 2 + 0.3)
    assert (mount.upside_down, mount.mask_path) == (False, "mask.png")


def test_frames_below_a_third_one(tmp_path):
    bag = bag_with(
        tmp_path / "bag",
        ("body", "base_link", (1.0, 0.0, 0.0), about_z(math.pi)),
        ("body", "camera", (3.0, 1.0, 2.0), LEVEL),
    )
    mount = recorded_mount(StaticTransforms(bag), CameraMount(), "base_link", "camera")
    # base_link looks backwards: 2 m ahead of it in the body is 2 m behind it.
    np.testing.assert_allclose((mount.x_m, mount.y_m), (-2.0, -1.0), atol=1e-12)
    assert math.cos(mount.yaw_rad - math.pi) == pytest.approx(1.0)


def test_hanging_camera_is_upside_down(tmp_path):
    bag = bag_with(tmp_path / "bag", ("base_link", "camera", (0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0)))
    assert recorded_mount(StaticTransforms(bag), CameraMount(), "base_link", "camera").upside_down


@pytest.mark.parametrize(
    ("frame", "rotation", "words"),
    [("lidar", LEVEL, "does not connect lidar with base_link; frames there: base_link, camera"),
     ("camera", (-0.5, 0.5, -0.5, 0.5), "not an optical frame")],
)  # fmt: skip
def test_recorded_mount_refuses_invalid_transforms(tmp_path, frame, rotation, words):
    bag = bag_with(tmp_path / "bag", ("base_link", "camera", (0.0, 0.0, 1.0), rotation))
    with pytest.raises(ConfigurationError, match=words):
        recorded_mount(StaticTransforms(bag), CameraMount(), "base_link", frame)


def test_mount_that_may_move_is_refused_with_its_topic(tmp_path):
    bag = bag_with(tmp_path / "bag", ("base_link", "camera", (1.0, 0.0, 0.0), LEVEL), topic="/tf")
    with pytest.raises(ConfigurationError, match=r"has camera in /tf, not in /tf_static: .*give it by camera.x_m"):
        recorded_mount(StaticTransforms(bag), CameraMount(), "base_link", "camera")
    with pytest.raises(ConfigurationError, match="/tf_static does not connect lidar with base_link"):
        recorded_mount(StaticTransforms(bag), CameraMount(), "base_link", "lidar")


def bag_with_message(path, topic, kind, message, *links):
    """The bag of `bag_with` and one message on a topic of its own."""
    bag_with(path / "tf", *links)
    with Writer(path / "bag", version=9) as writer:
        with AnyReader([path / "tf"]) as reader:
            for connection, time_ns, data in reader.messages():
                writer.write(writer.add_connection(connection.topic, TF, typestore=STORE), time_ns, data)
        writer.write(writer.add_connection(topic, kind, typestore=STORE), 2, STORE.serialize_cdr(message, kind))
    return Bag(path / "bag")


ANTENNA = ("base_link", "gps", (-0.6, 0.1, 1.8), about_z(math.pi / 2))


@pytest.mark.parametrize(
    ("frame", "links", "words"),
    [
        ("base_link", [ANTENNA], None),
        ("", [ANTENNA], None),
        ("gps", [ANTENNA], r"of the frame gps, .* --truth-x-m -0\.60 --truth-y-m 0\.10\. It is turned by 90\.0°"),
        ("gps", [("base_link", "gps", (0.01, 0.0, 1.8), about_z(0.001))], None),
        ("prism", [ANTENNA], "of the frame prism, .*/tf_static does not connect them. Give its place by --truth-x-m"),
    ],
)
def test_ground_truth_of_another_frame_than_base_link_is_reported(tmp_path, frame, links, words):
    message = odometry(0.0, "map", 0.0, 0.0, 0.0, 0.0, 0.0, 1e-4)
    message.child_frame_id = frame
    bag = bag_with_message(tmp_path, "/truth", ODOMETRY, message, *links)
    note = truth_note(bag, StaticTransforms(bag), bag.topics["/truth"], Settings())
    assert note is None if words is None else re.search(words, note), note


@pytest.mark.parametrize(("links", "words"), [([ANTENNA], r"--truth-x-m -0\.60 --truth-y-m 0\.10\.$"), ([], None)])
def test_antenna_s_place_is_reported_where_tf_static_has_it(tmp_path, links, words):
    bag = bag_with_message(tmp_path, "/truth", NAVSATFIX, navsatfix(0.0, 0.0, 0.0, 0.02), *links)
    note = truth_note(bag, StaticTransforms(bag), bag.topics["/truth"], Settings())
    assert note is None if words is None else re.search(words, note), note


def test_transforms_that_tf2_drops_are_left_out_and_noted(tmp_path):
    """A zero quaternion of a frame that nobody asks for must not end the replay."""
    good = ("base_link", "camera", (0.5, 0.0, 1.0), LEVEL)
    bag = bag_with(
        tmp_path / "bag",
        good,
        ("base_link", "lidar", (0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0)),
        ("base_link", "gps", (math.nan, 0.0, 1.0), LEVEL),
        ("base_link", "camera", (9.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.1)),  # does not replace the good one
        ("base_link", "base_link", (1.0, 0.0, 0.0), LEVEL),
    )
    transforms = StaticTransforms(bag)
    assert transforms.frames == {"base_link", "camera"}
    assert recorded_mount(transforms, CameraMount(), "base_link", "camera").x_m == 0.5
    assert len(bag.problems) == 4
    assert "the transform from 'base_link' to 'lidar' is none; it is left out, as by tf2" in bag.problems[0]


def bag_with_image(path, frame_id, *links):
    message = image(0.0, np.zeros((4, 8, 3), np.uint8))
    message.header.frame_id = frame_id
    return bag_with_message(path, "/image", IMAGE, message, *links)


def test_recorded_mount_that_differs_from_the_parameters_is_reported(tmp_path):
    link = ("base_link", "insta360_link", (0.4, 0.0, 1.5), about_z(math.pi / 2))
    bag = bag_with_image(tmp_path, "/insta360_link", link)
    note = mount_note(bag, StaticTransforms(bag), "/image", Settings())
    assert "insta360_link at x 0.40 m, y 0.00 m, yaw 90.0° on base_link" in note
    assert "--set camera_frame=insta360_link" in note
    same = Settings(camera=CameraMount(x_m=0.4, yaw_rad=math.pi / 2))
    assert mount_note(bag, StaticTransforms(bag), "/image", same) is None
    used = Settings(node=NodeConfig(camera_frame="insta360_link"))
    assert mount_note(bag, StaticTransforms(bag), "/image", used) is None


def test_recorded_mount_that_cannot_be_used_is_reported_too(tmp_path):
    bag = bag_with_image(tmp_path, "optical", ("base_link", "optical", (0.0, 0.0, 1.0), (-0.5, 0.5, -0.5, 0.5)))
    assert "cannot serve as the camera's mount" in mount_note(bag, StaticTransforms(bag), "/image", Settings())


def test_frame_that_is_not_recorded_needs_no_note(tmp_path):
    bag = bag_with_image(tmp_path, "camera", ("base_link", "lidar", (0.0, 0.0, 1.0), about_z(1.0)))
    assert mount_note(bag, StaticTransforms(bag), "/image", Settings()) is None
