"""`unifygeo watch`: see what a running node does, or play a finished replay, in a browser."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from pathlib import Path
from typing import Any

PORT = 8360


def add_command(subparsers: Any) -> None:
    watch = subparsers.add_parser(
        "watch",
        help="see a running node, or play a finished replay, in a browser",
        description="Serve a page with the live map on the index's imagery, the fixes with their ellipses, the "
        "hypotheses with their weights, the camera, reasons and rates. It reads only, and serves this machine alone "
        "unless --host says otherwise. Watching a node needs rclpy.",
    )
    watch.add_argument(
        "index",
        type=Path,
        nargs="?",
        metavar="INDEX",
        help="folder of the index or region, for the map (live: the node's own)",
    )
    watch.add_argument(
        "--replay", type=Path, metavar="OUT", help="play what `unifygeo replay --output OUT.mcap` or the demo wrote"
    )
    watch.add_argument("--bag", type=Path, metavar="BAG", help="with --replay: the recorded drive, for the pictures")
    watch.add_argument("--image-topic", metavar="TOPIC", help="the camera's topic, where it is not found by itself")
    watch.add_argument("--node", default="/unifygeo_localizer", metavar="NAME", help="the node to watch (%(default)s)")
    watch.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (%(default)s: this machine only; 0.0.0.0: every network, without a password)",
    )
    watch.add_argument("--port", type=int, default=PORT, help="port; 0: any that is free (%(default)s)")
    watch.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from unifygeo_ros.aerial.regions import open_map
    from unifygeo_ros.core.errors import ConfigurationError
    from unifygeo_ros.watch.server import Source, WatchServer

    if not 0 <= args.port <= 65535:
        raise ConfigurationError(f"--port {args.port}: must be 0 to 65535")
    if args.bag is not None and args.replay is None:
        raise ConfigurationError("--bag is given without --replay; a running node's camera is watched by its topic")
    index = open_map(args.index) if args.index is not None else None
    stop = threading.Event()
    with contextlib.ExitStack() as resources:
        source: Source
        if args.replay is not None:
            from unifygeo_ros.watch.replay import ReplaySource

            source = ReplaySource(args.replay, index, args.bag, args.image_topic)
        else:
            try:
                from unifygeo_ros.watch.live import LiveSource
            except ImportError as error:
                raise ConfigurationError(
                    f"rclpy cannot be imported ({error}); source your ROS 2 installation, or play a finished replay "
                    "with --replay"
                ) from error
            live = LiveSource(args.node, index, args.image_topic)
            resources.callback(live.close)
            source = live
        server = WatchServer(source, args.host, args.port)
        resources.callback(server.stop)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        server.start()
        what = "the replay" if args.replay is not None else args.node
        print(f"Watch {what} at {server.url} (Ctrl-C ends it)", flush=True)
        stop.wait()
    return 0
