"""The decoder's logits → where in a tile the camera is."""

from __future__ import annotations

import numpy as np

from unifygeo_ros.core.records import Float32


def probabilities(logits: Float32, temperature: float) -> Float32:
    """D = softmax over all pixels of logits / temperature. logits: float32 (P, P), finite. Returns float32 (P, P)."""
    weights = np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)
    return np.asarray(weights / weights.sum(), np.float32)
