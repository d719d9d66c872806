"""The hand-made bundle of the tests must be able to localize, or tests built on it would prove nothing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from bundles import random_bundle

from unifygeo_ros.inference.bundle import LEVELS
from unifygeo_ros.inference.select import open_engines

CAMERA_HEIGHT_M = 2.0


def smooth_image(size: int, seed: int) -> np.ndarray:
    """Random colours that change over a sixth of the image; uint8 (size, size, 3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)


def panorama_of_ground(aerial: np.ndarray, row: float, col: float, mpp: float, height: int, width: int) -> np.ndarray:
    """What a camera over pixel (row, col) sees of flat ground, ±45°, facing north."""
    azimuth = (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi
    elevation = np.pi / 4 - (np.arange(height) + 0.5) / height * np.pi / 2
    distance = np.where(elevation < 0, CAMERA_HEIGHT_M / np.tan(np.maximum(-elevation, 0.02)), 0.0)[:, None] / mpp
    rows, cols = row - distance * np.cos(azimuth), col + distance * np.sin(azimuth)
    seen = cv2.remap(
        aerial, cols.astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.where(elevation[:, None, None] < 0, seen, 200).astype(np.uint8)


def test_bundle_matches_tile_and_position(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path)
    spec, ground = bundle.manifest.aerial, bundle.manifest.ground
    tiles = np.stack([smooth_image(spec.size, seed) for seed in range(8)])
    rng = np.random.default_rng(0)
    errors, hits = [], 0
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        aerial = engines.aerial_encoder.run({"image": tiles})
        for tile in range(len(tiles)):
            row, col = rng.uniform(20, 44, 2)
            pano = panorama_of_ground(tiles[tile], row, col, spec.metres_per_pixel, ground.height, ground.width)
            features = engines.ground_encoder.run({"image": pano[None]})
            maps = np.einsum("trsc,c->trs", aerial["match_map"], features["f0"][0])
            scores = aerial["descriptor"] @ features["descriptor"][0] + maps.max(axis=(1, 2))
            hits += int(np.argmax(scores)) == tile
            inputs = {f"f{i}": features[f"f{i}"] for i in range(LEVELS)}
            inputs |= {f"pyramid{i}": aerial[f"pyramid{i}"][tile : tile + 1] for i in range(LEVELS)}
            logits = engines.decoder.run(inputs)["logits"][0]
            peak = np.array(np.unravel_index(np.argmax(logits), logits.shape)) + 0.5
            pixel = peak * spec.size / bundle.manifest.distribution_size - 0.5
            errors.append(float(np.hypot(*(pixel - (row, col)))) * spec.metres_per_pixel)
    assert hits >= 7
    assert np.median(errors) < 1.0
    assert max(errors) < 3.0
