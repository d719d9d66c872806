"""What decoding a large JPEG costs, whole and reduced, and what the panorama loses (`python benchmarks/decode.py`).

Give photographed panoramas as arguments; without any, one of 7680×3840 pixels is made here, of noise blurred by two
pixels: more detail than a photograph has. The ground input is the model's of `--model`, or of the published size.
Exits with 1 where the reduced panorama differs by more than MEAN_LIMIT in the mean.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import cv2
import numpy as np
from measuring import describe_machine, measure, verdict

from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource
from unifygeo_ros.images.files import decode_image
from unifygeo_ros.inference.bundle import GroundSpec, load_bundle
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.panorama import enough_columns, prepare_panorama

MEAN_LIMIT = 2.0
"""Grey values of 255. Photographs stay below 1, noise that fills the whole range below 2."""

PUBLISHED = GroundSpec(384, 768, math.pi / 2, -math.pi / 2, 24)
HEADING = Heading(0.3, 0.01, HeadingSource.CONSTANT)


def made_here() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (3840, 7680, 3), np.uint8)
    detailed = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)
    return cv2.imencode(".jpg", detailed, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("panoramas", type=Path, nargs="*")
    parser.add_argument("--model", type=Path, help="a model bundle, for its ground input")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    ground = load_bundle(args.model).manifest.ground if args.model else PUBLISHED
    images = {path.name: path.read_bytes() for path in args.panoramas} or {"made here": made_here()}
    print(f"{describe_machine('numpy')}, OpenCV {cv2.__version__}")
    kept = True
    for name, data in images.items():
        kept &= compare(name, data, ground, args.rounds)
    return 0 if kept else 1


def compare(name: str, data: bytes, ground: GroundSpec, rounds: int) -> bool:
    least = enough_columns(ground)
    full, reduced = decode_image(data, name), decode_image(data, name, least)
    costs = measure(
        {"full": lambda: decode_image(data, name), "reduced": lambda: decode_image(data, name, least)}, rounds
    )
    ratio = costs["full"].processor / costs["reduced"].processor
    print(
        f"{name}: {full.shape[1]}×{full.shape[0]}, {len(data) / 1e6:.1f} MB, for {ground.width}×{ground.height}: "
        f"decoded to {reduced.shape[1]}×{reduced.shape[0]} in {1e3 * costs['reduced'].processor:.0f} instead of "
        f"{1e3 * costs['full'].processor:.0f} ms, {ratio:.1f} times as fast"
    )
    kept = True
    for way, tilt_rad in (("level", 0.0), ("tilted", 0.1)):
        made = [
            prepare_panorama(CameraImage(pixels, 1, tilt_rad, tilt_rad), ground, CameraMount(), HEADING).pixels
            for pixels in (full, reduced)
        ]
        difference = np.abs(made[0].astype(int) - made[1])
        text = f"panorama, {way}: 99.9% differ by at most {np.quantile(difference, 0.999):.0f}, mean"
        kept &= verdict(text, float(difference.mean()), MEAN_LIMIT)
    return kept


if __name__ == "__main__":
    sys.exit(main())
