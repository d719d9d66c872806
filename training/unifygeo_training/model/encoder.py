"""One branch of the encoder: the shared trunk, the fine-grained head, the semantic head with its aggregator."""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.models import is_model_in_modules
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_training.model import lite_trunk
from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.layers import EPS, ChannelNorm32, GeM, LayerNorm32, unit_length

STRIDES = (4, 8, 16)
"""Pixels of the image for one cell of the trunk's maps."""


class Head(nn.Module):
    """Stage-4 downsampling and one ConvNeXt block: (N, C, H, W) → (N, 2C, H/2, W/2)."""

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__()
        self.norm = timm.layers.LayerNorm2d(channels, eps=EPS)
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.block = ConvNeXtBlock(2 * channels, ls_init_value=layer_scale)

    def load_stage(self, stage: nn.Module) -> None:
        """Take the downsampling layer and the first block of a ConvNeXt's stage 4, which the paper duplicates."""
        norm, down = stage.downsample
        self.norm.load_state_dict(norm.state_dict())
        self.down.load_state_dict(down.state_dict())
        self.block.load_state_dict(stage.blocks[0].state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.down(self.norm(x)))


class Aggregator(nn.Module):
    """Self-attention over all positions (Eq. 2), GeM (Eq. 3), LayerNorm, unit length: (N, C, H, W) → (N, C).

    kind: "average" is the paper's ablation without the feature aggregator (Tables V–VII, FA): the mean over all
    positions in the place of attention and GeM. "gem" leaves out the attention alone.
    """

    def __init__(self, channels: int, *, kind: Literal["attention", "gem", "average"]) -> None:
        super().__init__()
        hidden = channels // 2
        self.attention = kind == "attention"
        if self.attention:
            self.query = nn.Conv2d(channels, hidden, 1)
            self.query_norm = ChannelNorm32(hidden)
            self.key = nn.Conv2d(channels, hidden, 1)
            self.key_norm = ChannelNorm32(hidden)
            self.value = nn.Conv2d(channels, hidden, 1)
            self.output = nn.Conv2d(hidden, channels, 1)
            nn.init.zeros_(self.output.weight)  # Φ = G at first: attention enters as it learns
            nn.init.zeros_(self.output.bias)
        self.gem = None if kind == "average" else GeM()
        self.norm = LayerNorm32(channels)

    def forward(self, g: Tensor) -> Tensor:
        if self.attention:
            q = F.relu(self.query_norm(self.query(g))).to(g.dtype).flatten(2)  # (N, C/2, HW)
            k = F.relu(self.key_norm(self.key(g))).to(g.dtype).flatten(2)
            v = self.value(g).flatten(2)
            scores = (q.transpose(1, 2) @ k).float() / q.shape[1] ** 0.5  # (N, HW queries, HW keys)
            attended = v @ scores.softmax(dim=2).to(v.dtype).transpose(1, 2)  # (N, C/2, HW)
            g = g + self.output(attended.unflatten(2, g.shape[2:]))
        pooled = g.float().mean(dim=(2, 3)) if self.gem is None else self.gem(g)
        return unit_length(self.norm(pooled), dim=1)


class Branch(nn.Module):
    """Ground or aerial branch; both have this shape and share no weights."""

    def __init__(self, config: NetworkConfig, *, pretrained: bool) -> None:
        """Make trunk and heads, from timm's weights if `pretrained`, else at random.

        The heads are ConvNeXt blocks: with a trunk of another family they start at random in any case.

        Raises:
            InputError: the weights cannot be had.
            ConfigurationError: timm has no such trunk, or its maps are not those of `features`.
        """
        super().__init__()
        convnext = _is_convnext(config.backbone)
        layout: dict[str, Any] = {}
        if convnext:
            layout = {
                "conv_mlp": False,  # linear layers on NHWC: the published layout; timm's defaults differ
                "ls_init_value": config.layer_scale,
            }
        self.trunk = _trunk(config.backbone, pretrained=pretrained, **layout)
        self.channels: tuple[int, ...] = tuple(self.trunk.feature_info.channels())
        self.fine_head = Head(self.channels[-1], config.layer_scale)
        self.semantic_head = Head(self.channels[-1], config.layer_scale)
        self.aggregator = Aggregator(2 * self.channels[-1], kind=config.aggregator)
        if pretrained and convnext:
            stage = _timm_model(config.backbone, pretrained=True, num_classes=0, **layout).stages[3]
            for head in (self.fine_head, self.semantic_head):
                head.load_stage(stage)
        else:
            self._reset_heads()

    def _reset_heads(self) -> None:
        """Give both heads the trunk's random initialisation."""
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


def _is_convnext(backbone: str) -> bool:
    """Whether a timm model has the blocks of `Head`. ConvNeXt V2 has others."""
    name = backbone.partition(".")[0]
    return is_model_in_modules(name, ["convnext"]) and not name.startswith("convnextv2")


def _trunk(backbone: str, *, pretrained: bool, **options: Any) -> Any:
    """The stages of a timm model that give maps at 1/4, 1/8 and 1/16, as a module."""
    if backbone in lite_trunk.NAMES:
        if pretrained:
            raise ConfigurationError(
                f"pretrained: timm has no weights of {backbone}; leave it out and give a file as trunk_weights"
            )
        return lite_trunk.lite_trunk(backbone)
    problem = "its last four maps cannot be taken"
    try:
        trunk = _timm_model(backbone, pretrained=pretrained, features_only=True, out_indices=(-4, -3, -2), **options)
        strides = tuple(trunk.feature_info.reduction())
        if strides == STRIDES:
            return trunk
        problem = f"its maps have the strides {strides}, not {STRIDES}"
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # timm's, for names and for such models
        problem = str(error) or problem
    raise ConfigurationError(
        f"network.backbone {backbone}: {problem}; take a convolutional model of timm with four stages, "
        "such as convnext_atto or resnet18"
    )


def _timm_model(backbone: str, *, pretrained: bool, **options: Any) -> Any:
    """A timm model. Raises InputError naming the remedy where its pretrained weights cannot be had."""
    if not pretrained:
        return timm.create_model(backbone, **options)
    try:
        return timm.create_model(backbone, pretrained=True, **options)
    except Exception as error:  # of urllib, httpx, huggingface_hub or timm: too many kinds to name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the pretrained weights of {backbone} cannot be had ({reason}); connect to the network once, or copy the "
            "Hugging Face cache of a machine that has them and set HF_HOME to it, or train from scratch with "
            "`--set pretrained=false`"
        ) from error


class Normalise(nn.Module):
    """RGB bytes to what the trunks take: uint8 or float (N, H, W, 3), 0 … 255 → (N, 3, H, W), mean 0, deviation 1."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # Not persistent: the published state dict has none of it, the config carries the numbers.
        self.register_buffer("scale", (1.0 / (255.0 * torch.tensor(std))).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        # First NHWC → NCHW: ONNX Runtime scales planes ten times faster than interleaved colours. In floats, since
        # TensorRT moves no bytes.
        return image.float().permute(0, 3, 1, 2) * self.scale.float() + self.shift.float()
