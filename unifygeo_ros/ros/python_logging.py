"""Python's log messages in the ROS log: why a backend was skipped, how far the building of engines is."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Iterator

PACKAGE = "unifygeo_ros"


class RosHandler(logging.Handler):
    """Writes log records to a ROS logger.

    Args:
        ros_logger: A node's logger (`Node.get_logger()`).
    """

    def __init__(self, ros_logger: Any) -> None:
        super().__init__(logging.INFO)
        self._logger = ros_logger

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record with the ROS level of its own."""
        try:
            text = self.format(record)
            # One line for each level: rclpy remembers the level of a line of code and refuses another.
            if record.levelno >= logging.ERROR:
                self._logger.error(text)
            elif record.levelno >= logging.WARNING:
                self._logger.warning(text)
            else:
                self._logger.info(text)
        except Exception:  # as the handlers of the standard library do: logging never stops the work
            self.handleError(record)


@contextlib.contextmanager
def logged_by(ros_logger: Any) -> Iterator[None]:
    """Write this package's messages, from INFO upwards, to a ROS logger as long as the context lasts."""
    logger, handler = logging.getLogger(PACKAGE), RosHandler(ros_logger)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
