"""The worker on its own. The localizer that it gets here is made up: a real one gives no broken fixes and does not fail
on demand."""

import dataclasses
import math
import threading
import types

import numpy as np
import pytest

pytest.importorskip("rclpy")

from ros_drive import values
from sensor_msgs.msg import Image

from unifygeo_ros.conversions.from_messages import camera_image
from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.core.records import Fix, Heading, HeadingSource, Hypothesis, Rejection, RejectionReason
from unifygeo_ros.motion.stamp_error import StampError
from unifygeo_ros.ros.health import Health
from unifygeo_ros.ros.inbox import Frame, Inbox
from unifygeo_ros.ros.sources import SourceWatch, TimeRules
from unifygeo_ros.ros.worker import Worker
from unifygeo_ros.sessions.outcome import Outcome

GOOD = Fix(
    stamp_ns=1,
    east_m=1.0,
    north_m=2.0,
    latitude_deg=48.0,
    longitude_deg=9.0,
    covariance_m2=np.eye(2),
    yaw_rad=0.0,
    yaw_variance_rad2=0.01,
    tile_id=0,
    score=1.0,
    ambiguity=0.0,
    hypotheses=(Hypothesis(1.0, 2.0, 1.0, 0),),
)


OBSERVATION = types.SimpleNamespace(heading=Heading(0.0, 0.01, HeadingSource.IMU))


class Outlet:
    def __init__(self):
        self.fixes = []
        self.threads = set()
        self.observations = []
        self.followed = []
        self.outcomes = []

    def follow(self, outcome):
        self.followed.append(outcome.result)

    def publish_outcome(self, outcome):
        self.outcomes.append(outcome)

    def publish_fix(self, fix):
        self.fixes.append(fix)
        self.threads.add(threading.current_thread())

    def publish_visualization(self, image, outcome):
        self.observations.append(outcome.observation)


def frame(number):
    message = Image(height=8, width=16, encoding="rgb8", step=48, data=bytes(384))
    message.header.stamp.sec = number
    return Frame(message, number * 1_000_000_000, 0.0, 0.0)


@pytest.fixture
def run():
    """run(outcomes) → outlet and the last localization diagnostic, after one frame for each outcome."""

    def run(outcomes, resets=None):
        done = threading.Semaphore(0)
        epochs = iter(resets or [0] * len(outcomes))
        epoch = [0]

        def locate(image):
            epoch[0] = next(epochs)
            outcome = outcomes[image.stamp_ns // 1_000_000_000 - 1]
            done.release()
            if isinstance(outcome, Exception):
                raise outcome
            return Outcome(outcome, image, observation=OBSERVATION if isinstance(outcome, Fix) else None)

        session = types.SimpleNamespace(
            locate=locate, status=lambda: types.SimpleNamespace(resets=epoch[0], track=None)
        )
        log = types.SimpleNamespace(error=lambda text: None)
        health, outlet = Health(), Outlet()
        watch = SourceWatch((), TimeRules(0.2, 0.5, 30.0), 0.0)
        worker = Worker(session, outlet, health, watch, camera_image, log, lambda: False)
        for number in range(1, len(outcomes) + 1):
            worker.inbox.put(frame(number))
            assert done.acquire(timeout=5.0)
        assert worker.stop(5.0)
        status = next(s for s in health.report("n", enabled=True, image_timeout_s=1.0) if s.name == "n: localization")
        return outlet, status

    return run


def at(stamp_ns, **changes):
    return dataclasses.replace(GOOD, stamp_ns=stamp_ns, **changes)


@pytest.mark.parametrize(
    "broken",
    [
        {"covariance_m2": np.array([[math.nan, 0.0], [0.0, 1.0]])},
        {"covariance_m2": -np.eye(2)},
        {"east_m": math.inf},
        {"yaw_variance_rad2": 0.0},
    ],
)
def test_worker_withholds_an_invalid_fix_and_publishes_the_next(run, broken):
    outlet, status = run([at(1), at(2, **broken)])
    assert [fix.stamp_ns for fix in outlet.fixes] == [1]
    assert status.level == b"\x02"
    assert status.message.startswith("fix not published")
    outlet, status = run([at(1), at(2, **broken), at(3)])
    assert [fix.stamp_ns for fix in outlet.fixes] == [1, 3]
    assert values(status)["fixes_not_published"] == "1"
    assert status.level == b"\x00"


def test_worker_publishes_rising_stamps_until_the_session_restarts(run):
    outlet, _ = run([at(5), at(4), at(5), at(6)])
    assert [fix.stamp_ns for fix in outlet.fixes] == [5, 6]
    outlet, _ = run([at(5), at(4)], resets=[0, 1])
    assert [fix.stamp_ns for fix in outlet.fixes] == [5, 4]


def test_engine_that_fails_is_reported_and_does_not_end_the_worker(run):
    outlet, status = run([at(1), EngineError("the GPU is gone")])
    assert status.level == b"\x02"
    assert "the GPU is gone" in status.message
    outlet, status = run([at(1), EngineError("the GPU is gone"), RuntimeError("odd"), at(4)])
    assert [fix.stamp_ns for fix in outlet.fixes] == [1, 4]
    assert values(status)["failures"] == "2"
    assert threading.current_thread() not in outlet.threads


def test_worker_shows_no_earlier_observation_with_a_rejection(run):
    outlet, _ = run([Rejection(1, RejectionReason.FROZEN_IMAGE, "frozen")])
    assert outlet.observations == [None]


def test_pose_follows_rejections_and_the_fixes_that_pass_the_guard(run):
    broken = at(1, east_m=math.nan)
    good, lost = at(2), Rejection(3, RejectionReason.LOST, "lost")
    outlet, _ = run([broken, good, lost])
    assert outlet.followed == [good, lost]
    assert outlet.outcomes == [good, lost]


def test_inbox_keeps_the_newest_and_counts():
    inbox = Inbox()
    assert [inbox.put(frame(number)) for number in (1, 2, 3)] == [False, True, True]
    assert inbox.take().message.header.stamp.sec == 3
    inbox.put(frame(4))
    inbox.clear()
    inbox.put(frame(5))
    assert inbox.take().message.header.stamp.sec == 5
    inbox.close()
    assert inbox.take() is None


@pytest.mark.parametrize(("transport_ms", "late"), [(500.0, False), (1500.0, True)])
def test_fixes_later_than_the_filter_can_go_back_are_a_warning(transport_ms, late):
    """Transport and processing count together; here 1.0 s of processing and a history of 2 s."""
    health = Health()
    for number in range(1, 21):
        timings_ms = {"transport": transport_ms, "arrival_to_fix": 1000.0}
        health.localized(Outcome(at(number), None, observation=OBSERVATION), timings_ms, health.drive)
    report = health.report("n", enabled=True, image_timeout_s=1.0, filter_history_s=2.0)
    (status,) = (s for s in report if s.name == "n: localization")
    assert status.level == (b"\x01" if late else b"\x00")
    assert ("fixes arrive 2.50 s after the exposure (95%), filter_history_s is 2" in status.message) == late
    assert values(status)["delay_s"] == ("2.50" if late else "1.50")
    health.drive_forgotten()
    report = health.report("n", enabled=True, image_timeout_s=1.0, filter_history_s=2.0)
    assert next(s for s in report if s.name == "n: localization").message == "no image yet"


def test_stamp_error_of_the_drive_is_a_camera_warning_until_reset():
    health = Health()
    health.state("active")
    health.image_arrived(ignored=False)
    late = StampError(0.25, 0.02, 30)
    outcome = Outcome(at(1), None, observation=OBSERVATION, stamp_error=late, warnings=("the images are late",))
    health.localized(outcome, {}, health.drive)

    def camera():
        report = health.report("n", enabled=True, image_timeout_s=1.0)
        return next(s for s in report if s.name == "n: camera")

    assert camera().level == b"\x01"
    assert "the images are late" in camera().message
    assert values(camera())["stamps_late_s"] == "0.250 ± 0.020"
    health.drive_forgotten()
    assert camera().level == b"\x00"
    assert values(camera())["stamps_late_s"] == "unknown"
