"""How fast towns are made and rendered, on one core (`python benchmarks/render_towns.py`).

Prints CPU milliseconds and images a second for each stage: the town, its orthophoto, the shadows of one sun, and
panoramas at the training size and as full spheres, with one and with four rays a pixel. Times are of this process'
CPU, so other load on the machine matters little; the compiler's time is left out.

Exits with 1 when a limit is missed: four rays a pixel cost at most 2.5 × one (what they share is found once), and the
shadows of one sun at most 20% of the panoramas of a training set that share it.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Callable

import cv2
import numpy as np
from measuring import describe_machine, verdict

from unifygeo_training.towns.light import draw_appearance
from unifygeo_training.towns.orthophoto import crop_tile, render_orthophoto
from unifygeo_training.towns.pairs import PAIRS_A_LIGHT, street_positions
from unifygeo_training.towns.panorama import FULL_SPHERE, TRAINING_VIEW, light_stage, render_panorama, set_stage
from unifygeo_training.towns.town import build_town


def cpu_ms(work: Callable[[int], Any], repeats: int) -> float:
    """Mean CPU milliseconds of one call, after one that is not counted (it compiles)."""
    work(0)
    start = time.process_time()
    for k in range(repeats):
        work(k)
    return (time.process_time() - start) / repeats * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--panoramas", type=int, default=100, help="(default: %(default)s)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(args.seed)
    light = draw_appearance(rng)
    town = build_town(args.seed)
    above = render_orthophoto(town, light)
    stage = set_stage(town)
    lit = light_stage(stage, light)
    places = street_positions(rng, town, args.panoramas)
    print(f"town {args.seed}: {town.size_m:.0f} m, {len(town.objects)} solids, {len(town.streets)} streets\n")

    def crop(k: int) -> None:
        x, y = places[k]
        crop_tile(above, 0.2, x, y, 192, 70.0)

    rows = [
        ("town from its seed", cpu_ms(lambda k: build_town(args.seed + k), 2)),
        ("orthophoto, 3000 × 3000", cpu_ms(lambda k: render_orthophoto(town, light), 3)),
        ("shadows of one sun", cpu_ms(lambda k: light_stage(stage, light), 5)),
        ("tile, 192 × 192", cpu_ms(crop, args.panoramas)),
    ]
    for view in (TRAINING_VIEW, FULL_SPHERE):
        for samples in (1, 2):
            name = f"panorama, {view.height} × {view.width}, {samples**2} ray{'s'[: samples > 1]} a pixel"

            def render(k: int, view: Any = view, samples: int = samples) -> None:
                x, y = places[k]
                render_panorama(lit, x, y, view, samples=samples)

            rows.append((name, cpu_ms(render, args.panoramas)))
    for name, ms in rows:
        print(f"{name:40s} {ms:10.1f} ms {1000 / ms:10.1f} a second")
    print(describe_machine("numba", "numpy", "opencv-python"))
    shadows, (one, four, full_one, full_four) = rows[2][1], (ms for _, ms in rows[4:])
    kept = [
        verdict("panorama of training, four rays a pixel / one", four / one, 2.5),
        verdict("full sphere, four rays a pixel / one", full_four / full_one, 2.5),
        verdict("shadows / the panoramas that share them", shadows / (PAIRS_A_LIGHT * four), 0.2),
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
