"""The node's states over real DDS: what configuration refuses, every transition, and a clean end in each state."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy
from builtin_interfaces.msg import Time
from bundles import random_bundle
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_drive import (
    END_TIMEOUT_S,
    FACING_NORTH,
    Vehicle,
    domain_id,
    end_node,
    make_region,
    stamp_of,
    start_node,
    values,
)
from rosgraph_msgs.msg import Clock

import unifygeo_ros.ros.node
import unifygeo_ros.ros.rare_events
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.localization.panorama import enough_columns
from unifygeo_ros.ros.node import LocalizerNode
from unifygeo_ros.ros.rare_events import OPEN_S
from unifygeo_ros.ros.to_messages import jpeg_message

PLACE = (-20.0, 11.0)


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    return make_region(tmp_path_factory.mktemp("region"))


@pytest.fixture
def start(tmp_path, region):
    """start(changes) → node process and vehicle; everything is ended afterwards."""
    running = []

    def start(changes=None, domain=None):
        domain = domain or domain_id()
        node = start_node(domain, {**region.parameters, **FACING_NORTH, **(changes or {})}, tmp_path)
        vehicle = Vehicle(domain)
        running.append((node, vehicle))
        return node, vehicle

    yield start
    for node, vehicle in running:
        vehicle.close()
        end_node(node)


def localizes(vehicle, region):
    """Whether images lead to a fix; the first may be lost while publishers and subscribers find each other."""
    shown = set()
    for _ in range(10):
        shown.add(vehicle.show(region.panorama(PLACE)))
        vehicle.spin(0.5)
        if any(stamp_of(fix) in shown for fix in vehicle.received["~/fix"]):
            return True
    return False


def wait_for_listening(vehicle):
    publisher = vehicle.publisher(vehicle.image_topic)
    vehicle.wait_for(publisher.get_subscription_count, "image subscription", 30.0)


def test_configuration_refuses_what_cannot_work_and_recovers(start, region, tmp_path):
    """One node after one mistake after the other; the parameters can be corrected without a restart."""
    node, vehicle = start({"bundle": ""})
    stranger = random_bundle(tmp_path / "stranger", seed=5)
    broken = random_bundle(tmp_path / "broken", seed=6)
    graph = broken.graph_path("decoder", "fp32")
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    mistakes = [
        ({}, "the parameter bundle is empty"),
        ({"bundle": "/nowhere"}, "/nowhere"),
        ({"bundle": str(broken.path)}, "SHA-256"),
        ({"bundle": str(stranger.path)}, stranger.manifest.weights_sha256[:12]),
        ({"bundle": str(region.bundle), "index": "/nowhere"}, "/nowhere"),
        ({"index": str(region.index), "backend": "onnx_cuda"}, "CUDA"),
        ({"backend": "onnx_cpu", "camera_frame": "camera_link"}, "tf2_ros|TF"),
        ({"camera_frame": "", "camera.mask_path": "/nowhere.png"}, "/nowhere.png"),
    ]
    for changes, why in mistakes:
        for name, value in changes.items():
            assert vehicle.set_parameter(name, value).successful
        assert not vehicle.change_state("configure")
        assert vehicle.state() == "unconfigured"
        status = vehicle.wait_for_status("node", lambda s: s.level == b"\x02", "error")
        assert any(word in status.message for word in why.split("|")), status.message
        assert status.message.removeprefix("configuration failed: ") in node.output()
    assert vehicle.set_parameter("camera.mask_path", "").successful
    vehicle.bring_up()
    assert localizes(vehicle, region)


def test_all_transitions_twice_and_impossible_ones(start, region):
    _, vehicle = start()
    for _ in range(2):
        assert not vehicle.change_state("activate")  # not from here; rclpy alone would die of it
        assert vehicle.state() == "unconfigured"
        assert not vehicle.enable(True).success
        assert not vehicle.trigger().success
        vehicle.bring_up()
        assert localizes(vehicle, region)
        assert vehicle.change_state("deactivate")
        vehicle.clear()
        vehicle.show(region.panorama(PLACE))
        vehicle.spin(0.3)
        assert not vehicle.received["~/fix"]
        assert vehicle.change_state("activate")
        wait_for_listening(vehicle)
        assert localizes(vehicle, region)
        assert vehicle.change_state("deactivate")
        assert vehicle.change_state("cleanup")
    shutdown = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_UNCONFIGURED_SHUTDOWN))
    assert vehicle.call(ChangeState, "~/change_state", shutdown).success
    assert vehicle.state() == "finalized"


def test_fifty_cleanups_and_then_a_clock_that_goes_back(start, region):
    """rcl's clock keeps a bare pointer to each jump callback; one that outlives its handle is a crash."""
    node, vehicle = start({"use_sim_time": True})
    for cycle in range(50):
        assert vehicle.change_state("configure"), f"cycle {cycle}: {node.output()}"
        assert vehicle.change_state("cleanup")
    clock = vehicle.publisher("/clock")
    vehicle.wait_for(clock.get_subscription_count, "clock subscription")
    for second in (100, 101, 50, 51, 10):
        clock.publish(Clock(clock=Time(sec=second)))
        vehicle.spin(0.2)
    assert vehicle.change_state("configure")
    for second in (100, 50):
        clock.publish(Clock(clock=Time(sec=second)))
        vehicle.spin(0.2)
    status = vehicle.wait_for_status("node", lambda s: values(s)["clock_jumps"] != "0", "clock jump")
    assert status.message == "inactive"
    assert node.running


@pytest.fixture
def local_node(region, monkeypatch):
    """The node in this process, for faults that no message can cause."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain_id())
    overrides = [Parameter(name, value=value) for name, value in region.parameters.items()]
    node = LocalizerNode(context=context, parameter_overrides=overrides)
    yield node
    node.close()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_events_are_waited_for_after_each_diagnostics_alone(local_node, monkeypatch):
    """Each of them would cost a wait for a message as much as a subscription does."""
    now_s = time.monotonic() + 3600.0
    monkeypatch.setattr(unifygeo_ros.ros.rare_events.time, "monotonic", lambda: now_s)
    assert local_node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert local_node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    executor = SingleThreadedExecutor(context=local_node.context)
    waited_for = lambda: [event for event in local_node.waitables if executor.can_execute(event)]  # noqa: E731
    assert len(list(local_node.waitables)) > 20
    now_s += 1.0
    assert waited_for() == []
    assert len([sub for sub in local_node.subscriptions if executor.can_execute(sub)]) >= 4
    local_node._publish_diagnostics()
    assert waited_for() == list(local_node.waitables)
    now_s += 0.9 * OPEN_S
    assert waited_for() == list(local_node.waitables)
    now_s += 0.2 * OPEN_S
    assert waited_for() == []
    executor.shutdown()


def broken(*_args, **_keywords):
    raise RuntimeError("thrown by the test")


@pytest.mark.parametrize(
    ("transition", "what", "state", "problem"),
    [
        ("configure", "_load", "unconfigured", "configure failed with RuntimeError: thrown by the test"),
        ("activate", "Inputs", "inactive", "activate failed with RuntimeError: thrown by the test"),
        ("deactivate", "_stop", "unconfigured", "deactivate failed with RuntimeError: thrown by the test"),
        ("cleanup", "_unload", "unconfigured", "cleanup failed with RuntimeError: thrown by the test"),
    ],
)
def test_exception_in_a_transition_is_reported_and_the_node_goes_on(
    local_node, monkeypatch, transition, what, state, problem
):
    """rclpy swallows it: the state in the diagnostics must be the node's all the same, and the next try succeeds."""
    before = {"configure": [], "activate": ["configure"], "cleanup": ["configure"]}
    for earlier in before.get(transition, ["configure", "activate"]):
        assert getattr(local_node, f"trigger_{earlier}")() == TransitionCallbackReturn.SUCCESS
    thrown = []

    def once(*arguments, **keywords):
        monkeypatch.undo()
        thrown.append(True)
        broken()

    monkeypatch.setattr(local_node if hasattr(local_node, what) else unifygeo_ros.ros.node, what, once)
    assert getattr(local_node, f"trigger_{transition}")() != TransitionCallbackReturn.SUCCESS
    assert thrown
    assert local_node._state_machine.current_state[1] == state  # rclpy has no other way without a service call
    (status,) = (s for s in local_node.report() if s.name.endswith(": node"))
    assert (values(status)["state"], status.message, status.level) == (state, problem, b"\x02")
    if state == "unconfigured":
        assert local_node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert local_node.trigger_activate() == TransitionCallbackReturn.SUCCESS


@pytest.mark.parametrize(
    ("state", "number"),
    [
        ("unconfigured", signal.SIGINT),
        ("inactive", signal.SIGINT),
        ("active", signal.SIGINT),
        ("active", signal.SIGTERM),
    ],
)
def test_signal_ends_the_node_cleanly_in_every_state(start, region, state, number):
    node, vehicle = start()
    if state == "unconfigured":
        vehicle.state()
    elif state == "inactive":
        assert vehicle.change_state("configure")
    else:
        vehicle.bring_up()
        assert localizes(vehicle, region)
        vehicle.show(region.panorama(PLACE))  # and one in work
    assert node.stop(number, END_TIMEOUT_S) == 0
    assert "Traceback" not in node.output()


def test_interrupt_during_the_imports(start):
    node, _ = start()
    status = Path(f"/proc/{node.pid}/status")
    catches_sigterm = 1 << (signal.SIGTERM - 1)  # Python itself does not; the program's first statement does
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text()).group(1), 16) & catches_sigterm:
        time.sleep(0.005)
    assert node.stop(signal.SIGINT, END_TIMEOUT_S) == 0
    assert "Traceback" not in node.output()


@pytest.mark.parametrize("delay_s", [0.2, 0.5, 0.9, 1.4, 2.2])
def test_two_signals_at_any_moment_of_the_start_end_it_cleanly(start, delay_s):
    """As launch and systemd send them: one to the group, and one to the process."""
    node, _ = start({"autostart": True})
    status = Path(f"/proc/{node.pid}/status")
    catches_sigterm = 1 << (signal.SIGTERM - 1)
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text()).group(1), 16) & catches_sigterm:
        time.sleep(0.005)
    time.sleep(delay_s)
    os.kill(node.pid, signal.SIGINT)
    time.sleep(0.05)
    assert node.stop(signal.SIGTERM, END_TIMEOUT_S) == 0, node.output()
    assert "Traceback" not in node.output()


def test_signal_before_rclpy_has_its_handlers_ends_the_node():
    code = """
import os, signal, sys, rclpy
init = rclpy.init
def signalled(args=None):
    os.kill(os.getpid(), signal.SIGTERM)
    init(args=args)
rclpy.init = signalled
from unifygeo_ros.ros.localizer_node import main
sys.exit(main())
"""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain_id())}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0


def test_parameter_of_another_node_is_named_in_the_log_and_ignored(start):
    node, vehicle = start({"frequency": 30.0})
    assert vehicle.state() == "unconfigured"
    assert "The parameter frequency is not a parameter of this node; it is ignored" in node.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_a_load_that_never_ends(start, region, tmp_path, number):
    """The manifest is a pipe into which nobody writes: the loader hangs in open(), as it could in a driver."""
    bundle = tmp_path / "hanging"
    bundle.mkdir()
    os.mkfifo(bundle / "manifest.json")
    node, vehicle = start({"bundle": str(bundle), "autostart": True})
    vehicle.wait_for_status("node", lambda s: s.message == "configuring: bundle", "loading")
    began = time.monotonic()
    assert node.stop(number, END_TIMEOUT_S) == 0
    assert time.monotonic() - began < 10.0
    assert "Traceback" not in node.output()


def test_autostart_that_fails_reports_why_and_can_be_corrected(start, region):
    _, vehicle = start({"autostart": True, "index": "/nowhere"})
    vehicle.wait_for_status("node", lambda s: s.level == b"\x02" and "/nowhere" in s.message, "error")
    assert vehicle.set_parameter("index", str(region.index)).successful
    vehicle.bring_up()
    assert localizes(vehicle, region)


def test_killed_and_restarted_it_localizes_again(start, region):
    node, vehicle = start({"autostart": True})
    wait_for_listening(vehicle)
    assert localizes(vehicle, region)
    node.stop(signal.SIGKILL)
    _, again = start({"autostart": True}, domain=vehicle.domain)
    wait_for_listening(again)
    assert localizes(again, region)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"camera.x_m": 1}, "camera.x_m"),
        ({"localizer.candidates": 0}, "localizer.candidates"),
        ({"backend": "abacus"}, "abacus"),
        ({"session.heading_sorce": "imu"}, "did you mean session.heading_source?"),
        ({"camera.x": 0.2}, "did you mean camera.x_m?"),
        ({"bundel": "/x"}, "did you mean bundle?"),
    ],
)
def test_parameter_file_that_cannot_be_used_ends_it_with_the_reason(start, change, why):
    node, _ = start(change)
    assert node.wait(30) == 2
    assert why in node.output()
    assert "Traceback" not in node.output()


def test_deactivation_fails_while_an_image_hangs(
    local_node,
):
    """An engine that hangs cannot be freed: the node gives it up rather than wait for ever."""
    for transition in ("configure", "activate"):
        assert getattr(local_node, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS
    given_up = local_node._loaded
    worker = local_node._worker
    end = worker.stop
    worker.stop = lambda timeout_s: not end(timeout_s)  # the thread ends, so that nothing stays behind after the test
    assert local_node.trigger_deactivate() != TransitionCallbackReturn.SUCCESS
    assert local_node._state_machine.current_state[1] == "unconfigured"
    (status,) = (s for s in local_node.report() if s.name.endswith(": node"))
    assert status.message == "the image in work did not end within 5 s; its engines were given up"
    assert (values(status)["state"], status.level, local_node.stuck) == ("unconfigured", b"\x02", True)
    for transition in ("configure", "activate"):
        assert getattr(local_node, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS
    assert local_node._loaded is not given_up
    given_up.close()


def test_period_of_the_diagnostics_is_read_at_configuration(local_node):
    assert all(
        result.successful for result in local_node.set_parameters([Parameter("diagnostics_period_s", value=0.7)])
    )
    assert local_node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert local_node._diagnostics_timer.timer_period_ns == 700_000_000


def test_images_are_decoded_no_larger_than_the_localizer_needs(local_node, region, monkeypatch):
    """The node hands its worker a decoder: 8192 columns become the least that are enough."""
    decoders = []

    class Worker(unifygeo_ros.ros.node.Worker):
        def __init__(self, *arguments):
            decoders.append(arguments[4])
            super().__init__(*arguments)

    monkeypatch.setattr(unifygeo_ros.ros.node, "Worker", Worker)
    for transition in ("configure", "activate"):
        assert getattr(local_node, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS
    enough = enough_columns(load_bundle(region.bundle).manifest.ground)
    pixels = np.random.default_rng(0).integers(0, 256, (4 * enough // 2, 4 * enough, 3), np.uint8)
    assert decoders[0](jpeg_message(pixels, 1, "camera")).pixels.shape == (enough // 2, enough, 3)


def test_this_rclpy_has_the_service_whose_callback_is_guarded(local_node):
    """It is private: where it is missing, an impossible transition may end the node, and the log says so."""
    assert callable(local_node._service_change_state.callback)
