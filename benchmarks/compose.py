"""What composing a rig's images costs, without decoding (`python benchmarks/compose.py`).

Six cameras of 1920×1080 (config/rigs/six_pinholes.yaml), decoded as small as the panorama allows. "moved": all cameras
but the first exposed at another instant, so that their sampling positions are computed again for every panorama, as
while driving. "bare remap": OpenCV's `remap` of as many pixels as the cameras contribute, with ready positions and
without averaging, blending and weights: about the least that any composing costs. Least processor time of the rounds,
on one core, all in turn.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
from measuring import describe_machine

from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.images.files import decode_image
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.panorama import composed_columns
from unifygeo_ros.rig.composer import CameraView, Composer
from unifygeo_ros.rig.description import read_rig
from unifygeo_ros.rig.rig import Rig

RIG = Path(__file__).parents[1] / "config" / "rigs" / "six_pinholes.yaml"
GROUNDS = {
    "the demo's network": (GroundSpec(96, 320, math.pi / 4, -math.pi / 4, 20), 12.0),
    "published size": (GroundSpec(384, 768, math.pi / 2, -math.pi / 2, 24), 25.0),
}
"""Input of the network, and the milliseconds that composing for it may take."""


def main() -> int:
    """Run the benchmark; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rig = read_rig(RIG).rig()
    print(f"{describe_machine('numpy')}, OpenCV {cv2.__version__}")
    noise = np.random.default_rng(0).integers(0, 256, (135, 240, 3), np.uint8)
    data = cv2.imencode(".jpg", cv2.resize(noise, (1920, 1080), interpolation=cv2.INTER_CUBIC))[1].tobytes()
    print("| for | columns | moved | limit | at one instant | bare remap | decoding six JPEGs |")
    print("|" + "---|" * 7)
    kept = True
    for name, (ground, limit_ms) in GROUNDS.items():
        columns, costs = compose_for(rig, ground, data, args.rounds)
        cells = [f"{costs['moved']:.1f} ms", f"{limit_ms:g} ms"]
        cells += [f"{costs[key]:.1f} ms" for key in ("standing", "remap", "decode")]
        print(f"| {name} | {columns} | {' | '.join(cells)} |")
        kept &= costs["moved"] <= limit_ms
    return 0 if kept else 1


def compose_for(rig: Rig, ground: GroundSpec, jpeg: bytes, rounds: int) -> tuple[int, dict[str, float]]:
    """Columns of the panorama for a network, and what each part costs (ms). jpeg: the image of every camera."""
    composer = Composer(rig, composed_columns(ground))
    widths = {camera.name: composer.least_width(camera.name) for camera in rig.cameras}
    images = {name: decode_image(jpeg, name, width) for name, width in widths.items()}
    standing = {name: CameraView(image) for name, image in images.items()}
    moved = {name: CameraView(image, Pose2(0.3, 0.0, 0.01)) for name, image in images.items()}
    moved[rig.cameras[0].name] = standing[rig.cameras[0].name]
    remaps = []
    for name, strip in composer.strips(standing).items():
        rows, columns = strip.weight.shape
        height, width = images[name].shape[:2]
        x, y = np.meshgrid(np.linspace(0, width - 1, columns), np.linspace(0, height - 1, rows))
        first, second = cv2.convertMaps(np.float32(x), np.float32(y), cv2.CV_16SC2)
        remaps.append((images[name], first, second))
    costs = least_ms(
        {
            "moved": lambda: composer.compose(moved),
            "standing": lambda: composer.compose(standing),
            "remap": lambda: [cv2.remap(image, x, y, cv2.INTER_LINEAR) for image, x, y in remaps],
            "decode": lambda: [decode_image(jpeg, name, width) for name, width in widths.items()],
        },
        rounds,
    )
    return composer.width, costs


def least_ms(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least processor time of each, milliseconds; all are run in turn."""
    found = dict.fromkeys(functions, math.inf)
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.thread_time()
            function()
            found[name] = min(found[name], 1e3 * (time.thread_time() - started))
    return found


if __name__ == "__main__":
    sys.exit(main())
