"""One branch of the encoder: the shared trunk, the fine-grained head, the semantic head with its aggregator."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.layers import EPS, ChannelNorm32, GeM, LayerNorm32, unit_length


class Head(nn.Module):
    """Stage-4 downsampling and one ConvNeXt block: (N, C, H, W) → (N, 2C, H/2, W/2)."""

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__()
        self.norm = timm.layers.LayerNorm2d(channels, eps=EPS)
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.block = ConvNeXtBlock(2 * channels, ls_init_value=layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.down(self.norm(x)))


class Aggregator(nn.Module):
    """Self-attention over all positions (Eq. 2), GeM (Eq. 3), LayerNorm, unit length: (N, C, H, W) → (N, C).

    attention: off is the ablation without the feature aggregator (Tables V–VII, FA): GeM alone.
    """

    def __init__(self, channels: int, *, attention: bool) -> None:
        super().__init__()
        hidden = channels // 2
        self.attention = attention
        if attention:
            self.query = nn.Conv2d(channels, hidden, 1)
            self.query_norm = ChannelNorm32(hidden)
            self.key = nn.Conv2d(channels, hidden, 1)
            self.key_norm = ChannelNorm32(hidden)
            self.value = nn.Conv2d(channels, hidden, 1)
            self.output = nn.Conv2d(hidden, channels, 1)
            nn.init.zeros_(self.output.weight)  # Φ = G at first: attention enters as it learns
            nn.init.zeros_(self.output.bias)
        self.gem = GeM()
        self.norm = LayerNorm32(channels)

    def forward(self, g: Tensor) -> Tensor:
        if self.attention:
            q = F.relu(self.query_norm(self.query(g))).to(g.dtype).flatten(2)  # (N, C/2, HW)
            k = F.relu(self.key_norm(self.key(g))).to(g.dtype).flatten(2)
            v = self.value(g).flatten(2)
            scores = (q.transpose(1, 2) @ k).float() / q.shape[1] ** 0.5  # (N, HW queries, HW keys)
            attended = v @ scores.softmax(dim=2).to(v.dtype).transpose(1, 2)  # (N, C/2, HW)
            g = g + self.output(attended.unflatten(2, g.shape[2:]))
        return unit_length(self.norm(self.gem(g)), dim=1)


class Branch(nn.Module):
    """Ground or aerial branch; both have this shape and share no weights."""

    def __init__(self, config: NetworkConfig, *, pretrained: bool) -> None:
        super().__init__()
        self.trunk = timm.create_model(
            config.backbone,
            pretrained=pretrained,
            features_only=True,
            out_indices=(0, 1, 2),
            conv_mlp=False,  # linear layers on NHWC: the published layout, whatever the member's own default
            ls_init_value=config.layer_scale,
        )
        self.channels: tuple[int, ...] = tuple(self.trunk.feature_info.channels())
        self.fine_head = Head(self.channels[-1], config.layer_scale)
        self.semantic_head = Head(self.channels[-1], config.layer_scale)
        self.aggregator = Aggregator(2 * self.channels[-1], attention=config.aggregator == "attention")
        self.reset_heads()

    def reset_heads(self) -> None:
        """Give both heads the trunk's initialisation."""
        for head in (self.fine_head, self.semantic_head):
            for module in head.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised image (N, 3, H, W) → F⁰ @ /32, F¹ @ /16, F² @ /8, F³ @ /4, coarsest first."""
        quarter, eighth, sixteenth = self.trunk(image)
        return self.fine_head(sixteenth), sixteenth, eighth, quarter

    def descriptor(self, sixteenth: Tensor) -> Tensor:
        """F¹ → global descriptor v (N, C), float32, unit length."""
        return self.aggregator(self.semantic_head(sixteenth))


class Normalise(nn.Module):
    """RGB bytes to what the trunks take: uint8 or float (N, H, W, 3), 0 … 255 → (N, 3, H, W), mean 0, deviation 1."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # Not persistent: the published state dict has none of it, the config carries the numbers.
        self.register_buffer("scale", 1.0 / (255.0 * torch.tensor(std)), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        scaled = image.float() * self.scale.float() + self.shift.float()
        return scaled.permute(0, 3, 1, 2)  # NHWC → NCHW; on the CPU this is channels_last, without a copy
