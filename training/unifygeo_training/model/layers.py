"""Layers that are always computed in float32, also under bf16 autocast and in an fp16 export."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
"""Of every normalisation layer."""
TINY = 1e-12
"""Least length that anything is divided by."""


def unit_length(x: Tensor, dim: int) -> Tensor:
    """x / |x| along dim, float32. A zero vector stays zero."""
    return F.normalize(x.float(), dim=dim, eps=TINY)


class LayerNorm32(nn.LayerNorm):
    """LayerNorm over the last dimension, computed and returned in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class ChannelNorm32(LayerNorm32):
    """LayerNorm over the channels of a map (N, C, H, W), float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # NCHW → NHWC → NCHW


class GeM(nn.Module):
    """Generalised mean over positions (Eq. 3) with a learnable power: (N, C, H, W) → (N, C), float32."""

    def __init__(self, power: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), power))

    def forward(self, x: Tensor) -> Tensor:
        p = self.p.float()
        return x.float().clamp(min=EPS).pow(p).mean(dim=(2, 3)).pow(1.0 / p)
