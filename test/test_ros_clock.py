"""Simulated time: the node lives by /clock, and a bag that starts again from its beginning restarts it."""

import pytest

pytest.importorskip("rclpy")

from ros_drive import make_region, running, stamp_of, values
from rosgraph_msgs.msg import Clock

PLACE = (-20.0, 11.0)
START_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    return make_region(tmp_path_factory.mktemp("region"))


@pytest.fixture(scope="module")
def vehicle(region, tmp_path_factory):
    with running(region, tmp_path_factory.mktemp("node"), {"use_sim_time": True}) as vehicle:
        vehicle.wait_for(vehicle.publisher("/clock").get_subscription_count, "clock subscription")
        yield vehicle


def tick(vehicle, stamp_ns):
    """Set the clock, and wait until the node's diagnostics are stamped by it."""
    message = Clock()
    message.clock.sec, message.clock.nanosec = divmod(stamp_ns, 1_000_000_000)
    vehicle.publisher("/clock").publish(message)
    vehicle.received["/diagnostics"].clear()
    vehicle.wait_for(
        lambda: any(stamp_of(m) == stamp_ns for m in vehicle.received["/diagnostics"]), "diagnostics by the clock"
    )


def test_before_the_first_tick_images_are_from_the_future(vehicle, region):
    status = vehicle.rejection_of(vehicle.show(region.panorama(PLACE), START_NS), "bad_stamp")
    assert "/clock" in status.message


def test_looping_bag_restarts_the_session(vehicle, region):
    jumps = []
    for _loop in range(3):
        for step in range(3):
            stamp = START_NS + step * 2_000_000_000
            tick(vehicle, stamp)
            vehicle.clear()
            vehicle.fix_for(vehicle.show(region.panorama(PLACE), stamp))
        status = vehicle.wait_for_status("node", lambda s: True, "node")
        jumps.append(int(values(status)["clock_jumps"]))
    assert [jump - jumps[0] for jump in jumps] == [0, 1, 2]


def test_image_of_the_future_is_refused(vehicle, region):
    tick(vehicle, START_NS + 10_000_000_000)
    status = vehicle.rejection_of(vehicle.show(region.panorama(PLACE), START_NS + 12_000_000_000), "bad_stamp")
    assert "2.000 s ahead" in status.message
