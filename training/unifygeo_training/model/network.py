"""UnifyGeo: two branches, one decoder, two temperatures."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.decoder import Decoded, Decoder
from unifygeo_training.model.encoder import Branch, Normalise

INITIAL_TEMPERATURE = 0.07


class Ground(NamedTuple):
    """Outputs of the ground encoder."""

    descriptor: Tensor | None
    """v_g (N, C) float32 unit length, None if not asked for."""
    levels: tuple[Tensor, ...]
    """f_g⁰ … f_g³ (N, C_l), the same."""


class Aerial(NamedTuple):
    """Outputs of the aerial encoder."""

    descriptor: Tensor | None
    """v_a as in Ground."""
    pyramid: tuple[Tensor, ...]
    """F_a⁰ … F_a³ (N, C_l, S_l, S_l)."""
    match_map: Tensor
    """F_a⁰ as the matching sees it, float32 (N, C_0, S_0, S_0), unit length over channels."""


class UnifyGeo(nn.Module):
    """The network. Images are uint8 (N, H, W, 3) RGB, as in the model bundle."""

    def __init__(self, config: NetworkConfig, *, pretrained: bool = False) -> None:
        """pretrained: start trunks and heads from timm's weights. Raises InputError where they cannot be had."""
        super().__init__()
        self.config = config
        self.normalise = Normalise(config.mean, config.std)
        self.ground = Branch(config, pretrained=pretrained)
        self.aerial = Branch(config, pretrained=pretrained)
        trunk = self.aerial.channels
        self.decoder = Decoder(config, (2 * trunk[2], trunk[2], trunk[1], trunk[0]))
        # Log-scales: similarities are multiplied by exp(·), the inverse of the learnable temperatures.
        self.retrieval_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))
        self.reranking_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))

    @property
    def descriptor_dim(self) -> int:
        return 2 * self.ground.channels[-1]

    @property
    def pyramid_shape(self) -> tuple[tuple[int, int], ...]:
        """(channels, rows = columns) of F_a⁰ … F_a³."""
        trunk = self.aerial.channels
        return tuple(zip((2 * trunk[2], trunk[2], trunk[1], trunk[0]), self.config.level_sizes, strict=True))

    def encode_ground(self, image: Tensor, *, descriptor: bool = True) -> Ground:
        f0, sixteenth, _, _ = self.ground.features(self._to_trunk(image))
        return Ground(self.ground.descriptor(sixteenth) if descriptor else None, self.decoder.project(f0))

    def encode_aerial(self, image: Tensor, *, descriptor: bool = True) -> Aerial:
        pyramid = self.aerial.features(self._to_trunk(image))
        return Aerial(
            self.aerial.descriptor(pyramid[1]) if descriptor else None, pyramid, self.decoder.match_map(pyramid[0])
        )

    def decode(self, levels: tuple[Tensor, ...], pyramid: tuple[Tensor, ...]) -> Decoded:
        return self.decoder(levels, pyramid)

    def _to_trunk(self, image: Tensor) -> Tensor:
        return self.normalise(image).to(self.retrieval_scale.dtype)  # float16 in the fp16 export
