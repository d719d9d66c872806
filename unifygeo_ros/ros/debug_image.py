"""One picture that tells why an image gave the answer it gave."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np

from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.covariance import semi_major_sigma
from unifygeo_ros.core.records import CameraImage, Fix, Observation, Rejection

_HEIGHT = 384
"""Height of a drawn tile in pixels; the camera's strip is as wide as two tiles."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class TilePixels(Protocol):
    """What is needed of the index."""

    def tile_pixels(self, tile_id: int) -> UInt8: ...


def draw_debug_image(
    image: CameraImage, result: Fix | Rejection, observation: Observation | None, index: TilePixels
) -> UInt8:
    """The camera's image, the winning tile beside its heatmap, and the outcome in words: uint8 (H, W, 3) RGB."""
    camera = cv2.resize(image.pixels, (2 * _HEIGHT, _HEIGHT), interpolation=cv2.INTER_AREA)
    rows = [_caption(result), camera]
    if observation is not None:
        distribution = observation.distributions[0]
        tile = cv2.resize(index.tile_pixels(distribution.tile_id), (_HEIGHT, _HEIGHT), interpolation=cv2.INTER_AREA)
        share = distribution.probability / max(float(distribution.probability.max()), np.finfo(np.float32).tiny)
        # The square root shows what is a hundredth as probable as the peak at a tenth of the brightness.
        heat = cv2.resize((255 * np.sqrt(share)).astype(np.uint8), (_HEIGHT, _HEIGHT))
        coloured = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
        rows.append(np.hstack([tile, cv2.addWeighted(tile, 0.4, coloured, 0.6, 0.0)]))
    return np.vstack(rows)


def _caption(result: Fix | Rejection) -> UInt8:
    band = np.zeros((28, 2 * _HEIGHT, 3), np.uint8)
    if isinstance(result, Fix):
        major_m = semi_major_sigma(result.covariance_m2)
        text = f"fix  east {result.east_m:.1f} m  north {result.north_m:.1f} m  sigma {major_m:.1f} m"
        text += f"  ambiguity {result.ambiguity:.2f}"
    else:
        text = f"{result.reason.value}: {result.detail}".encode("ascii", "replace").decode()
    cv2.putText(band, text[:110], (6, 19), _FONT, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return band
