"""The localization decoder: ground projectors, matching at four levels, upsampling to the distribution D."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.layers import EPS, TINY, ChannelNorm32, LayerNorm32, unit_length


class Projector(nn.Module):
    """F_g⁰ (N, C, rows, columns) → f_g^l (N, columns · channels), float32, unit length.

    1×1 convolution to `channels`, one linear map over the rows shared by columns and channels, flattened
    column-major: rolling the panorama by one column of F_g⁰ rolls f by `channels`.
    """

    def __init__(self, inputs: int, channels: int, rows: int, columns: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, channels, 1)
        self.rows = nn.Conv2d(rows, 1, 1)  # a linear map over rows, written as the published weights have it
        self.norm = LayerNorm32(columns * channels)

    def forward(self, x: Tensor) -> Tensor:
        by_row = self.reduce(x).permute(0, 2, 3, 1)  # (N, channels, rows, columns) → (N, rows, columns, channels)
        collapsed = self.rows(by_row)[:, 0]  # (N, columns, channels)
        return unit_length(self.norm(collapsed.flatten(1)), dim=1)


class Upsample(nn.Module):
    """[M^l, map] → next level's map: transposed convolution ×2, concatenation with the skip, refinement."""

    def __init__(self, channels: int, skip: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels + 1, skip, 2, stride=2)
        self.refine = nn.Sequential(
            nn.Conv2d(2 * skip, skip, 3, padding=1, bias=False),
            nn.BatchNorm2d(skip, eps=EPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(skip, skip, 3, padding=1),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.refine(torch.cat([self.up(x), skip], dim=1))


class Output(nn.Sequential):
    """[M³, map] at a quarter of the aerial size → logits of D at 1 / output_stride."""

    def __init__(self, channels: int, output_stride: int) -> None:
        half = channels // 2
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(channels + 1, half, 2, stride=2),
            nn.BatchNorm2d(half, eps=EPS),
            nn.ReLU(inplace=True),
        ]
        if output_stride == 1:
            layers.append(nn.ConvTranspose2d(half, half // 2, 2, stride=2))
            half //= 2
        layers += [
            nn.Conv2d(half, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8, eps=EPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 1, 3, padding=1),
        ]
        super().__init__(*layers)


class Decoded(NamedTuple):
    """Outputs of the decoder."""

    logits: Tensor
    """(N, P, P) float32, D = softmax over all of them."""
    matches: tuple[Tensor, ...]
    """M⁰ … M³, float32 (N, S_l, S_l), cosines."""


class Decoder(nn.Module):
    """Levels f_g^l (N, C_l) and the aerial pyramid F⁰ … F³ (N, C_l, S_l, S_l) → where on the tile."""

    def __init__(self, config: NetworkConfig, channels: tuple[int, ...]) -> None:
        """channels: of F⁰ … F³."""
        super().__init__()
        columns = config.columns
        odd = [c for c in channels if c % columns]
        if odd:
            raise ValueError(f"map widths {odd} are not multiples of the {columns} columns; change ground_width")
        self.projectors = nn.ModuleList(Projector(channels[0], c // columns, config.rows, columns) for c in channels)
        self.match_norms = nn.ModuleList(ChannelNorm32(c) for c in channels)
        self.upsamples = nn.ModuleList(Upsample(c, skip) for c, skip in itertools.pairwise(channels))
        self.output = Output(channels[-1], config.output_stride)

    def project(self, f0: Tensor) -> tuple[Tensor, ...]:
        """F_g⁰ → f_g⁰ … f_g³."""
        return tuple(projector(f0) for projector in self.projectors)

    def match_map(self, x: Tensor, level: int = 0) -> Tensor:
        """An aerial map as the matching sees it: LayerNorm and unit length over channels, float32."""
        return unit_length(self.match_norms[level](x), dim=1)

    def forward(self, levels: tuple[Tensor, ...], pyramid: tuple[Tensor, ...]) -> Decoded:
        x, matches = pyramid[0], []
        for level, f in enumerate(levels):
            match = _cosines(f, self.match_norms[level](x))
            matches.append(match)
            x = torch.cat([match[:, None], unit_length(x, dim=1)], dim=1).to(x.dtype)
            x = self.upsamples[level](x, pyramid[level + 1]) if level < 3 else self.output(x)
        return Decoded(x[:, 0].float(), tuple(matches))


def _cosines(f: Tensor, x: Tensor) -> Tensor:
    """Of f (N, C), unit length, and a map (N, C, S, S) at each position: float32 (N, S, S).

    The products are divided by the lengths: dividing the map would take C times as many divisions.
    """
    features = x.float().permute(0, 2, 3, 1).flatten(1, 2)  # (N, S², C), as the norm before it has computed them
    products = (features @ f.float()[:, :, None])[..., 0]
    return (products / torch.linalg.vector_norm(features, dim=2).clamp(min=TINY)).unflatten(1, x.shape[2:])
