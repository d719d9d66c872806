"""Distillation: a network that is being trained is also taught what a larger one answers to the same batch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training import losses
from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.decoder import Decoded
from unifygeo_training.model.network import UnifyGeo


class DistillationConfig(BaseModel):
    """Who teaches, and how much that counts. Each term has the weight of the loss that it stands beside (Eq. 5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: Path
    """A checkpoint or bundle. Tiles and D must be of the student's size, panoramas of its elevations."""
    weight: float = Field(default=0.5, gt=0.0)
    """Of the teacher's answers; those of Eq. 5 keep the weight 1."""
    descriptor_temperature: float = Field(default=0.03, gt=0.0)
    """Of the teacher's similarities. Its own is in no bundle, and one that a training starts with makes all tiles
    alike."""


class Teacher:
    """A network in evaluation mode that answers batches of the student's. Not a module: nothing of it is trained."""

    def __init__(self, network: UnifyGeo, student: NetworkConfig, descriptor_temperature: float) -> None:
        """Raises ConfigurationError where the answers of both cannot be compared."""
        theirs = network.config
        for name in (
            "aerial_size",
            "metres_per_pixel",
            "output_stride",
            "ground_elevation_top_deg",
            "ground_elevation_bottom_deg",
        ):
            if getattr(theirs, name) != getattr(student, name):
                raise ConfigurationError(
                    f"network.{name}: the teacher has {getattr(theirs, name)}, the student {getattr(student, name)}; "
                    "they must be equal, or leave `distillation` out"
                )
        self.descriptor_temperature = descriptor_temperature
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, panorama: Tensor, tile: Tensor, *, descriptor: bool) -> tuple[Tensor | None, Decoded]:
        """Descriptors' similarities (N, N), ground by aerial, over their temperature, and the teacher's decoding.

        Inputs as `Objective`; the panorama is resized to what the teacher takes.
        """
        network = self.network
        size = (network.config.ground_height, network.config.ground_width)
        if panorama.shape[1:3] != size:
            planes = panorama.permute(0, 3, 1, 2).float()
            panorama = F.interpolate(planes, size, mode="bilinear").permute(0, 2, 3, 1)
        ground = network.encode_ground(panorama, descriptor=descriptor)
        aerial = network.encode_aerial(tile, descriptor=descriptor)
        alike = None
        if ground.descriptor is not None and aerial.descriptor is not None:
            alike = ground.descriptor.float() @ aerial.descriptor.float().T / self.descriptor_temperature
        return alike, network.decode(ground.levels, aerial.pyramid)


def taught_distribution(logits: Tensor, taught: Tensor) -> Tensor:
    """Cross-entropy of the student's D against the teacher's. Both (N, P, P)."""
    return _cross_entropy(logits.flatten(1), taught.flatten(1))


def taught_matching(match: Tensor, taught: Tensor) -> Tensor:
    """The same of one level's matching volumes (N, S, S), as distributions at the temperature of L_M."""
    return _cross_entropy(
        match.flatten(1) / losses.MATCHING_TEMPERATURE, taught.flatten(1) / losses.MATCHING_TEMPERATURE
    )


def taught_descriptors(ground: Tensor, aerial: Tensor, log_scale: Tensor, taught: Tensor) -> Tensor:
    """Which tiles of the batch each panorama resembles, and the reverse, against the teacher's (N, N).

    Similarities, not the descriptors: those of two networks have different widths. ground, aerial: (N, C), unit length.
    """
    alike = losses.scale(log_scale) * ground.float() @ aerial.float().T
    return 0.5 * (_cross_entropy(alike, taught) + _cross_entropy(alike.T, taught.T))


def _cross_entropy(logits: Tensor, taught: Tensor) -> Tensor:
    """Mean over rows, both float (N, K)."""
    return -(taught.float().softmax(dim=1) * logits.float().log_softmax(dim=1)).sum(dim=1).mean()
