"""The program `localizer_node`: one node, one executor, and a clean end on a signal at any time."""

from __future__ import annotations

import os
import signal
import sys
from typing import Callable


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. Returns the exit status."""
    # ROS and the libraries take a second or more to import; whoever interrupts that has nothing to clean up.
    _on_signals(lambda *_: os._exit(0))
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    from unifygeo_ros.core.errors import ConfigurationError
    from unifygeo_ros.ros.node import LocalizerNode

    # rclpy's own handlers, installed by init, end the context and then call these, which keep Python from raising
    # KeyboardInterrupt somewhere in the middle of a callback.
    _on_signals(lambda *_: None)
    rclpy.init(args=args)
    try:
        node = LocalizerNode()
    except ConfigurationError as error:
        print(f"localizer_node: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        node.autostart()
        executor.spin()
    except Exception:
        # ExternalShutdownException, or an RCLError where the signal came between the executor's look at the context and
        # its use of it. With the context alive, it is neither.
        if rclpy.ok():
            raise
    finally:
        node.close()
        stuck = node.stuck
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    if stuck:
        # A library call that cannot be interrupted is still at work in another thread. Ending the interpreter under it
        # would crash; there is nothing left to save.
        sys.stderr.flush()
        os._exit(0)
    return 0


def _on_signals(handler: Callable[..., object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
