"""Python's log messages in the ROS log."""

from __future__ import annotations

import logging

import pytest

from unifygeo_ros.ros.python_logging import logged_by

LOGGER = logging.getLogger("unifygeo_ros.inference.select")


class RosLogger:
    """A node's logger as far as it is used; like rclpy's, it has one method for each level."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, text: str) -> None:
        self.lines.append(("info", text))

    def warning(self, text: str) -> None:
        self.lines.append(("warning", text))

    def error(self, text: str) -> None:
        self.lines.append(("error", text))


def test_each_message_keeps_its_level() -> None:
    ros = RosLogger()
    with logged_by(ros):
        LOGGER.debug("a detail")
        LOGGER.info("Backend %s skipped: %s", "tensorrt", "no GPU")
        LOGGER.warning("a warning")
        LOGGER.error("an error")
    assert ros.lines == [
        ("info", "Backend tensorrt skipped: no GPU"),
        ("warning", "a warning"),
        ("error", "an error"),
    ]


def test_python_logging_leaves_no_handler_behind() -> None:
    package = logging.getLogger("unifygeo_ros")
    before = (package.level, list(package.handlers))
    ros = RosLogger()
    with pytest.raises(KeyError), logged_by(ros):
        raise KeyError
    LOGGER.warning("afterwards")
    assert (package.level, package.handlers) == before
    assert ros.lines == []


def test_other_packages_are_not_forwarded() -> None:
    ros = RosLogger()
    with logged_by(ros):
        logging.getLogger("matplotlib").error("of somebody else")
    assert ros.lines == []


def test_logger_that_fails_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    ros = RosLogger()
    monkeypatch.setattr(ros, "info", lambda text: 1 / 0)
    with logged_by(ros):
        LOGGER.info("lost")


def test_node_says_which_backends_it_skipped_and_why(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The whole way: a real node, configured with backend auto, and its log."""
    pytest.importorskip("rclpy")
    from ros_drive import Vehicle, domain_id, end_node, make_region, start_node

    region = make_region(tmp_path / "region")
    domain = domain_id()
    node = start_node(domain, {**region.parameters, "backend": "auto"}, tmp_path)
    vehicle = Vehicle(domain)
    try:
        assert vehicle.change_state("configure")
        assert vehicle.change_state("cleanup")
    finally:
        vehicle.close()
        end_node(node)
    output = node.output()
    assert "Backend onnx_cuda skipped: this onnxruntime has no CUDAExecutionProvider" in output
    assert "search: exact, CPU" in output
