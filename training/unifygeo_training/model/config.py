"""The few numbers from which every member of the family follows."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unifygeo_ros.inference.bundle import AerialSpec, GroundSpec

HEAD_STRIDE = 32
"""Pixels of the image for one cell of the coarsest maps (F⁰ and G)."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class NetworkConfig(BaseModel):
    """Shape of the network. The defaults are the published one (384 × 768 ground, 384 × 384 aerial).

    ground_elevation_*_deg are the elevations that the panorama's rows cover, edge to edge.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "convnext_tiny.fb_in22k_ft_in1k_384"
    """A convolutional model of timm with maps at 1/4, 1/8 and 1/16 (ConvNeXt, ResNet, RegNet, EfficientNet, …), with
    its pretrained tag if it has one; the stages that make these maps are the shared encoder."""
    ground_height: int = Field(default=384, ge=HEAD_STRIDE)
    ground_width: int = Field(default=768, ge=HEAD_STRIDE, multiple_of=HEAD_STRIDE)
    ground_elevation_top_deg: float = Field(default=90.0, gt=-90.0, le=90.0)
    ground_elevation_bottom_deg: float = Field(default=-90.0, ge=-90.0, lt=90.0)
    aerial_size: int = Field(default=384, ge=HEAD_STRIDE, multiple_of=HEAD_STRIDE)
    metres_per_pixel: float = Field(default=0.185, gt=0.0)
    """Of the aerial image as it enters the network."""
    output_stride: Literal[1, 2] = 1
    """Aerial pixels for one pixel of the distribution D."""
    layer_scale: float = Field(default=1e-6, gt=0.0)
    """Initial layer scale of all ConvNeXt blocks that start at random, 0.1 for training from scratch; pretrained
    weights bring their own."""
    aggregator: Literal["attention", "gem", "average"] = "attention"
    """"average" is the paper's ablation without the feature aggregator."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @model_validator(mode="after")
    def _elevations_fall(self) -> NetworkConfig:
        if self.ground_elevation_bottom_deg >= self.ground_elevation_top_deg:
            raise ValueError(
                f"ground_elevation_bottom_deg {self.ground_elevation_bottom_deg} is not below "
                f"ground_elevation_top_deg {self.ground_elevation_top_deg}"
            )
        return self

    @property
    def rows(self) -> int:
        """Rows of the ground branch's coarsest map; strided convolutions drop what is left over (140 → 4)."""
        return self.ground_height // HEAD_STRIDE

    @property
    def columns(self) -> int:
        """Columns of the ground branch's coarsest map: azimuth sectors in each f."""
        return self.ground_width // HEAD_STRIDE

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Rows = columns of the aerial maps, coarsest first."""
        return tuple(self.aerial_size // HEAD_STRIDE * 2**level for level in range(4))

    @property
    def distribution_size(self) -> int:
        """Rows = columns of D."""
        return self.aerial_size // self.output_stride

    @property
    def ground(self) -> GroundSpec:
        return GroundSpec(
            height=self.ground_height,
            width=self.ground_width,
            elevation_top_rad=math.radians(self.ground_elevation_top_deg),
            elevation_bottom_rad=math.radians(self.ground_elevation_bottom_deg),
            columns=self.columns,
        )

    @property
    def aerial(self) -> AerialSpec:
        return AerialSpec(size=self.aerial_size, metres_per_pixel=self.metres_per_pixel)
