"""The four losses of Eq. 5, in float32.

Positions are (row, column) as fractions of the tile's side from its upper left corner, 0 … 1: pixel coordinates of a
P × P map are position · P − 0.5 (integer coordinates are pixel centres).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unifygeo_training.distributed import gathered, rank

MATCHING_TEMPERATURE = 0.1
POSITIVE_THRESHOLD = 1e-2
"""Threshold on the Gaussian label, whose peak is 1: pixels above it are positives."""
LABEL_SMOOTHING = 0.1
MAX_SCALE = 100.0


def gaussian_label(position: Tensor, size: int, sigma: float | Tensor) -> Tensor:
    """Gaussian of peak 1 around each position (N, 2), sampled at the pixels of a size × size map: (N, size, size).

    sigma: pixels of that map (4 at the published 384), of all positions or of each one (N,).
    """
    pixel = torch.arange(size, device=position.device, dtype=torch.float32)
    row, column = (position.float() * size - 0.5).unbind(dim=1)
    variance = sigma[:, None] ** 2 if isinstance(sigma, Tensor) else sigma**2
    by_row = torch.exp(-((pixel - row[:, None]) ** 2) / (2 * variance))
    by_column = torch.exp(-((pixel - column[:, None]) ** 2) / (2 * variance))
    return by_row[:, :, None] * by_column[:, None, :]


def level_weights(label: Tensor, size: int) -> Tensor:
    """Weights w of Eq. 8 at one level: the label max-pooled to size × size, cut at 1e-2, sum 1: (N, size, size)."""
    pooled = F.adaptive_max_pool2d(label, size)
    kept = torch.where(pooled > POSITIVE_THRESHOLD, pooled, torch.zeros_like(pooled))
    return kept / kept.sum(dim=(1, 2), keepdim=True)


def trust(sigma: Tensor, label_sigma: float) -> Tensor:
    """How much each position counts among those of a batch: s² / (s² + σ²), 1 for an exact one.

    sigma: (N,), standard deviations σ of the positions. label_sigma: s, that of an exact position's label, in the same
    unit: the width at which the label itself is as wrong as the position.
    """
    return label_sigma**2 / (label_sigma**2 + sigma**2)


def distribution_loss(logits: Tensor, label: Tensor, counts: Tensor | None = None) -> Tensor:
    """L_D (Eq. 7): cross-entropy of D = softmax(logits) against the label normalised to sum 1. Both (N, P, P).

    counts: here and below (N,), how much each query counts in the mean (`trust`); None: all the same.
    """
    target = label.flatten(1) / label.flatten(1).sum(dim=1, keepdim=True)
    return _mean(-(target * logits.float().flatten(1).log_softmax(dim=1)).sum(dim=1), counts)


def matching_loss(match: Tensor, weights: Tensor, counts: Tensor | None = None) -> Tensor:
    """L_M at one level (Eq. 8): match: cosines (N, S, S) on the own tile; weights: (N, S, S), sum 1."""
    log_probability = (match.float().flatten(1) / MATCHING_TEMPERATURE).log_softmax(dim=1)
    return _mean(-(weights.flatten(1) * log_probability).sum(dim=1), counts)


def reranking_loss(
    f0: Tensor, match_map: Tensor, weights: Tensor, log_scale: Tensor, counts: Tensor | None = None
) -> Tensor:
    """L_R: f_g⁰ against the positions of every tile in the batch, all ranks included, as one softmax.

    f0: (N, C). match_map: (N, C, S, S), unit length over C. weights: (N, S, S), level 0 of the own tile.
    """
    tiles = gathered(match_map)  # (M, C, S, S)
    count, own = len(f0), rank() * len(f0)
    scores = torch.einsum("nc,mcp->nmp", f0.float(), tiles.float().flatten(2)) * scale(log_scale)
    log_probability = scores.flatten(1).log_softmax(dim=1).view_as(scores)
    index = torch.arange(count, device=f0.device)
    return _mean(-(weights.flatten(1) * log_probability[index, own + index]).sum(dim=1), counts)


def _mean(losses: Tensor, counts: Tensor | None) -> Tensor:
    return losses.mean() if counts is None else (counts * losses).sum() / counts.sum()


def retrieval_loss(ground: Tensor, aerial: Tensor, log_scale: Tensor) -> Tensor:
    """L_G (Eq. 6): symmetric InfoNCE with label smoothing, negatives from all ranks. Both (N, C), unit length."""
    target = torch.arange(len(ground), device=ground.device) + rank() * len(ground)
    factor = scale(log_scale)
    to_aerial = factor * ground.float() @ gathered(aerial).float().T
    to_ground = factor * aerial.float() @ gathered(ground).float().T
    return 0.5 * (
        F.cross_entropy(to_aerial, target, label_smoothing=LABEL_SMOOTHING)
        + F.cross_entropy(to_ground, target, label_smoothing=LABEL_SMOOTHING)
    )


def scale(log_scale: Tensor) -> Tensor:
    """Inverse temperature from its learnable logarithm, at most 100 (a temperature of 0.01)."""
    return log_scale.float().exp().clamp(max=MAX_SCALE)
