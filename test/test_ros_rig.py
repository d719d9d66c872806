"""The node with a rig, over DDS: four cameras that expose one after the other, and what happens when they fail."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import yaml
from rig_drives import CAMERAS, FOCAL, HEIGHT, RIG_FILE, WIDTH, camera_pixels, optical_link
from ros_drive import FACING_NORTH, Vehicle, domain_id, end_node, make_region, png_message, running, start_node, values
from sensor_msgs.msg import CameraInfo, CompressedImage
from worlds import World

from unifygeo_ros.aerial.index import open_index

PLACE = (11.0, -7.0)
NORTH = math.pi / 2


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    folder = tmp_path_factory.mktemp("region")
    (folder / "rig.yaml").write_text(yaml.safe_dump(RIG_FILE, sort_keys=False))
    return make_region(folder)


def topic(name):
    return f"/{name}/image_raw/compressed"


@contextmanager
def rig_running(region, folder, topic_of=topic, **parameters):
    """A vehicle with an active node that listens to its four cameras."""
    domain = domain_id()
    given = {**region.parameters, **FACING_NORTH, "autostart": True, "rig.wait_s": 0.3, **parameters}
    node = start_node(domain, given, folder)
    vehicle = Vehicle(domain)
    try:
        for name in CAMERAS:
            publisher = vehicle.publisher(topic_of(name), CompressedImage)
            vehicle.wait_for(publisher.get_subscription_count, f"subscription of {name}", 120.0)
        yield vehicle
    finally:
        vehicle.close()
        end_node(node)


def show(vehicle, region, names=tuple(CAMERAS), black=(), topic_of=topic, step_s=0.1):
    """One round of the cameras; returns the stamp of the front camera."""
    stamp_ns = vehicle.next_stamp(step_s)
    for name in names:
        pixels = camera_pixels(region.world, *PLACE, NORTH, name).astype(np.int16)
        pixels += np.random.default_rng(stamp_ns + hash(name) % 1000).integers(-2, 3, pixels.shape, dtype=np.int16)
        pixels = np.clip(pixels, 0, 255).astype(np.uint8) * (name not in black)
        exposed_ns = stamp_ns + round(CAMERAS[name][0] * 1e9)
        vehicle.publish(topic_of(name), png_message(pixels), exposed_ns, f"{name}_optical", kind=CompressedImage)
    return stamp_ns


def error_m(region, fix):
    east, north = World.in_map(open_index(region.index).frame, *PLACE)
    return math.hypot(fix.pose.pose.position.x - east, fix.pose.pose.position.y - north)


def test_node_with_a_rig_gives_fixes_and_names_an_unplugged_camera(region, tmp_path):
    with rig_running(region, tmp_path, **{"rig.file": str(region.bundle.parent / "rig.yaml")}) as vehicle:
        for _ in range(3):
            fix = vehicle.fix_for(show(vehicle, region))
            assert error_m(region, fix) < 2.5
        status = vehicle.wait_for_status("camera", lambda s: "camera.left" in values(s), "the rig's cameras")
        assert status.message == "images arrive"
        assert values(status)["camera.left"].startswith("seen, brightness × ")
        others = [name for name in CAMERAS if name != "left"]
        for _ in range(4):
            fix = vehicle.fix_for(show(vehicle, region, others))
        assert error_m(region, fix) < 4.0
        status = vehicle.wait_for_status("camera", lambda s: "left: no image" in s.message, "the missing camera")
        assert status.message.startswith("cameras missing in the panorama: left: no image")
        assert vehicle.fix_for(show(vehicle, region))
        vehicle.wait_for_status("camera", lambda s: "missing" not in s.message, "its return")


def test_black_cameras_cost_their_sectors_and_all_of_them_the_fix(region, tmp_path):
    with rig_running(region, tmp_path, **{"rig.file": str(region.bundle.parent / "rig.yaml")}) as vehicle:
        assert vehicle.fix_for(show(vehicle, region, black=("right",)))
        # Shown on and on: on a slow machine the fix takes so long that the camera counts as silent, no longer as black.
        timer = vehicle.node.create_timer(0.5, lambda: show(vehicle, region, black=("right",)))
        vehicle.wait_for_status("camera", lambda s: "right: black, mean brightness" in s.message, "the black camera")
        vehicle.node.destroy_timer(timer)
        stamp_ns = show(vehicle, region, black=tuple(CAMERAS))
        vehicle.rejection_of(stamp_ns, "black_image")


def camera_info():
    info = CameraInfo(width=WIDTH, height=HEIGHT, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [FOCAL, 0.0, (WIDTH - 1) / 2, 0.0, FOCAL, (HEIGHT - 1) / 2, 0.0, 0.0, 1.0]
    return info


def without_lenses(folder):
    cameras = {
        name: {key: value for key, value in camera.items() if key != "lens"}
        for name, camera in RIG_FILE["cameras"].items()
    }
    (folder / "mounts.yaml").write_text(yaml.safe_dump({"cameras": cameras}, sort_keys=False))
    return folder / "mounts.yaml"


@contextmanager
def publishing_camera_infos(vehicle):
    def publish():
        for name in CAMERAS:
            topic = f"/{name}/camera_info"
            vehicle.publish(topic, camera_info(), vehicle.stamp_ns, f"{name}_optical", kind=CameraInfo)

    timer = vehicle.node.create_timer(0.1, publish)
    yield
    vehicle.node.destroy_timer(timer)


def test_lenses_that_the_rig_file_leaves_out_come_from_camera_info(region, tmp_path):
    """RIG_FILE's topics are /NAME/image_raw/compressed, so their CameraInfo is on /NAME/camera_info."""
    domain = domain_id()
    vehicle = Vehicle(domain)
    parameters = {"rig.file": str(without_lenses(tmp_path)), "tf_timeout_s": 60.0, "rig.wait_s": 2.0, "autostart": True}
    node = start_node(domain, {**region.parameters, **FACING_NORTH, **parameters}, tmp_path)
    try:
        with publishing_camera_infos(vehicle):
            for name in CAMERAS:
                publisher = vehicle.publisher(topic(name), CompressedImage)
                vehicle.wait_for(publisher.get_subscription_count, f"subscription of {name}", 120.0)
        assert error_m(region, vehicle.fix_for(show(vehicle, region))) < 2.5
    finally:
        vehicle.close()
        end_node(node)


def test_named_cameras_are_found_by_camera_info_and_tf(region, tmp_path):
    pytest.importorskip("tf2_ros")
    from geometry_msgs.msg import TransformStamped
    from tf2_ros import StaticTransformBroadcaster

    def beside(name):
        return f"/{name}/image/compressed"

    domain = domain_id()
    vehicle = Vehicle(domain)
    links = []
    for name in CAMERAS:
        recorded = optical_link(name)
        link = TransformStamped(child_frame_id=recorded.child_frame_id)
        link.header.frame_id = "base_link"
        for part, fields in (("translation", "xyz"), ("rotation", "xyzw")):
            for field in fields:
                setattr(getattr(link.transform, part), field, getattr(getattr(recorded.transform, part), field))
        links.append(link)
    broadcaster = StaticTransformBroadcaster(vehicle.node)
    broadcaster.sendTransform(links)

    parameters = {"rig.cameras": ", ".join(CAMERAS), "tf_timeout_s": 60.0, "rig.wait_s": 2.0, "autostart": True}
    node = start_node(domain, {**region.parameters, **FACING_NORTH, **parameters}, tmp_path)
    try:
        with publishing_camera_infos(vehicle):
            for name in CAMERAS:
                publisher = vehicle.publisher(beside(name), CompressedImage)
                vehicle.wait_for(publisher.get_subscription_count, f"subscription of {name}", 120.0)
        fix = vehicle.fix_for(show(vehicle, region, topic_of=beside))
        assert error_m(region, fix) < 2.5
    finally:
        vehicle.close()
        end_node(node)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"rig.file": "/no/rig.yaml"}, "/no/rig.yaml: cannot be read"),
        (
            {"rig.file": "mounts.yaml", "tf_timeout_s": 0.5},
            "camera front: no CameraInfo on /front/camera_info",
        ),
        ({"rig.cameras": "front", "camera_frame": "front_optical"}, "both a rig and camera_frame (front_optical)"),
    ],
)
def test_rig_that_cannot_be_used_fails_the_configuration_with_the_reason(region, tmp_path, parameters, words):
    if parameters.get("rig.file") == "mounts.yaml":
        parameters = {**parameters, "rig.file": str(without_lenses(tmp_path))}
    domain = domain_id()
    node = start_node(domain, {**region.parameters, **FACING_NORTH, **parameters}, tmp_path)
    vehicle = Vehicle(domain)
    try:
        assert not vehicle.change_state("configure")
        status = vehicle.wait_for_status("node", lambda s: "configuration failed" in s.message, "the reason")
        assert words in status.message
    finally:
        vehicle.close()
        end_node(node)


def test_one_panoramic_camera_is_as_before(region, tmp_path):
    with running(region, tmp_path, {}) as vehicle:
        assert vehicle.fix_for(vehicle.show(region.panorama(PLACE)))
        assert "camera.front" not in values(vehicle.status("camera"))
