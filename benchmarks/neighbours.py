"""How far errors reach: are the answers of panoramas that were taken near each other wrong to the same side?

    python benchmarks/neighbours.py models/towns-photo towns-validation/town_00900 towns-test/town_01000

Answers on the positive tile with the exact heading, those within 5 m of the truth, whitened by their own covariances:
1 means that two panoramas are wrong by the same, 0 that their errors have nothing to do with each other. A tracker that
takes them as independent is too sure where the value is above 0 (docs/measurements/sequences.md).
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.localization.decision import position_covariance_m2
from unifygeo_training.calibrate import RIGHT_WITHIN_M, answer_moments, gather
from unifygeo_training.judging.town_set import TownImages
from unifygeo_training.towns.pairs import load_town
from unifygeo_training.weights import open_weights

EDGES_M = (0, 3, 6, 10, 15, 25, 40)


def main() -> None:
    """Print a line for each distance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a calibrated bundle")
    parser.add_argument("towns", type=Path, nargs="+", help="cached towns of `unifygeo-train towns render`")
    options = parser.parse_args()
    weights = open_weights(options.model, None)
    if weights.bundle is None:
        raise SystemExit(f"{options.model} is no bundle: its covariances are not known")
    calibration = weights.bundle.manifest.calibration
    products: dict[tuple[int, int], list[Float64]] = defaultdict(list)
    squares = []
    for folder in options.towns:
        data = TownImages(load_town(folder), weights.network.config)
        evidence = gather(weights.network, data)
        tiles = data.tiles[:, 0]
        place_m = data.displacement_m(np.zeros_like(tiles), tiles) + evidence.offsets_m
        found = [
            answer_moments(evidence, query, logits, calibration.distribution_temperature)
            for query, logits in enumerate(evidence.logits)
        ]
        moments, errors_m = (np.array(values) for values in zip(*found, strict=True))
        right = np.hypot(*errors_m.T) <= RIGHT_WITHIN_M
        covariances = position_covariance_m2(moments[right], np.zeros((right.sum(), 1, 1)), calibration)
        whitened = np.linalg.solve(np.linalg.cholesky(covariances), errors_m[right][..., None])[..., 0]
        squares.append((whitened**2).mean(axis=1))
        east_m, north_m = errors_m[right].mean(axis=0)
        print(f"{folder.name}: {right.sum()} of {len(right)} right, {east_m:.2f} m east, {north_m:.2f} m north")
        a, b = np.triu_indices(right.sum(), 1)
        away_m = np.hypot(*(place_m[right][a] - place_m[right][b]).T)
        product = (whitened[a] * whitened[b]).mean(axis=1)
        for low, high in itertools.pairwise(EDGES_M):
            products[low, high].append(product[(low <= away_m) & (away_m < high)])
    print(f"mean square of the whitened errors: {np.concatenate(squares).mean():.2f}")
    for (low, high), parts in products.items():
        values = np.concatenate(parts)
        error = values.std() / np.sqrt(max(len(values), 1))
        print(f"{low} to {high} m apart: {len(values)} pairs, {values.mean():.2f} ± {error:.2f}")


if __name__ == "__main__":
    main()
