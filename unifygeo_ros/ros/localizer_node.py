"""The program `localizer_node`: one node, one executor, and a clean end on a signal at any time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Callable


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. Returns the exit status."""
    # ROS and the libraries take a second or more to import; an interrupt during that time leaves nothing to clean up.
    _on_signals(lambda *_: os._exit(0))
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    from unifygeo_ros.core.errors import ConfigurationError
    from unifygeo_ros.ros.node import LocalizerNode

    # rclpy's own handlers, installed by init, end the context and then call these, which keep Python from raising
    # KeyboardInterrupt somewhere in the middle of a callback. A signal that comes before those is remembered.
    asked_to_end = threading.Event()
    _on_signals(lambda *_: asked_to_end.set())
    rclpy.init(args=args)
    if asked_to_end.is_set():
        rclpy.try_shutdown()
        return 0
    node: LocalizerNode | None = None
    executor = SingleThreadedExecutor()
    status = 0
    try:
        node = LocalizerNode()
        executor.add_node(node)
        node.autostart()
        executor.spin()
    except ConfigurationError as error:
        print(f"localizer_node: {error}", file=sys.stderr)
        status = 2
    except Exception:
        # ExternalShutdownException, or an RCLError where the signal came between rclpy's look at the context and its
        # use of it. With the context alive, it is neither.
        if rclpy.ok():
            raise
    finally:
        # From here on there is nothing that another signal could hurry. Those that launch or systemd send to a group
        # and then to each process must not end the interpreter while it finalizes.
        _on_signals(signal.SIG_IGN)
        if node is not None:
            node.close()
        executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        _on_signals(signal.SIG_IGN)  # rclpy has put back what was there before its own handlers
    if node is not None and node.stuck:
        # A library call that cannot be interrupted is still at work in another thread. Ending the interpreter under it
        # would crash; there is nothing left to save.
        sys.stderr.flush()
        os._exit(0)
    return status


def _on_signals(handler: Callable[..., object] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
