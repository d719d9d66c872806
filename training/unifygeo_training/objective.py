"""The network and its losses as one module: a batch goes in, the terms of Eq. 5 come out."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training import losses
from unifygeo_training.distillation import Teacher, taught_descriptors, taught_distribution, taught_matching
from unifygeo_training.model.network import UnifyGeo

PUBLISHED_SIZE = 384
SMALLEST_SIGMA_PX = 0.25
"""Of D: a narrower label can pass between four pixels without reaching the threshold of L_M on any."""


class LossConfig(BaseModel):
    """Weights of Eq. 5; 0 switches a term off, which gives the ablation rows of Tables V–VII."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    distribution: float = Field(default=1.0, ge=0.0)
    retrieval: float = Field(default=100.0, ge=0.0)
    matching: float = Field(default=10.0, ge=0.0)
    reranking: float = Field(default=1.0, ge=0.0)
    gaussian_sigma: float = Field(default=4.0, gt=0.0)
    """Standard deviation of the label, in pixels of a tile of 384; scaled with the distribution's size."""
    retrieval_from_step: int = Field(default=0, ge=0)
    """L_G joins at this step, with heads that no gradient has touched before. Training from scratch with all terms at
    once collapses the global descriptors; pretrained trunks can start at 0."""
    retrieval_ramp_steps: int = Field(default=0, ge=0)

    def retrieval_at(self, step: int) -> float:
        """α at a step: 0 before `retrieval_from_step`, then rising linearly over the ramp."""
        since = step - self.retrieval_from_step
        if since < 0:
            return 0.0
        return self.retrieval * min(1.0, (since + 1) / (self.retrieval_ramp_steps + 1))


class Objective(nn.Module):
    """Eq. 5, and what a teacher adds. The forward pass runs under the trainer's autocast; the losses are float32."""

    def __init__(
        self, network: UnifyGeo, config: LossConfig, teacher: Teacher | None = None, teacher_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.teacher, self.teacher_weight = teacher, teacher_weight
        size = network.config.distribution_size
        self.sigma_px = config.gaussian_sigma * size / PUBLISHED_SIZE
        if self.sigma_px < SMALLEST_SIGMA_PX:
            raise ConfigurationError(
                f"losses.gaussian_sigma {config.gaussian_sigma:g} is {self.sigma_px:.3f} pixels of a distribution of "
                f"{size} × {size}, must be at least {SMALLEST_SIGMA_PX}; set it to "
                f"{SMALLEST_SIGMA_PX * PUBLISHED_SIZE / size:g} or more"
            )

    def forward(
        self, panorama: Tensor, tile: Tensor, position: Tensor, alpha: float, sigma: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch. Shapes are those of `Pair`, with a batch dimension.

        alpha is the weight of L_G; 0 skips the semantic heads. With sigma (N,), a position that is not exact has a
        wider label and counts less in all terms but L_G (`losses.trust`). position may be the bits of the float32
        numbers as int32 (`exact`).

        Returns:
            Scalars: "loss" (with gradient), each term unweighted and the descriptors' effective rank (detached). The
            teacher's terms are T_G, T_D and T_M.
        """
        config, network = self.config, self.network
        position = position.view(torch.float32) if position.dtype == torch.int32 else position
        detailed = config.distribution > 0 or config.matching > 0 or config.reranking > 0
        ground = network.encode_ground(panorama, descriptor=alpha > 0)
        aerial = network.encode_aerial(tile, descriptor=alpha > 0)
        decoded = network.decode(ground.levels, aerial.pyramid) if detailed else None
        taught = None if self.teacher is None else self.teacher(panorama, tile, descriptor=alpha > 0)
        terms: list[tuple[str, float, Tensor]] = []
        with torch.autocast(panorama.device.type, enabled=False):
            if ground.descriptor is not None and aerial.descriptor is not None:
                loss = losses.retrieval_loss(ground.descriptor, aerial.descriptor, network.retrieval_scale)
                terms.append(("L_G", alpha, loss))
            if decoded is not None:
                size = network.config.distribution_size
                label_sigma_px: float | Tensor = self.sigma_px
                counts = None
                if sigma is not None:
                    sigma_px = sigma.float() * size
                    label_sigma_px = torch.hypot(sigma_px, sigma_px.new_tensor(self.sigma_px))
                    counts = losses.trust(sigma_px, self.sigma_px)
                label = losses.gaussian_label(position, size, label_sigma_px)
                weights = [losses.level_weights(label, match.shape[-1]) for match in decoded.matches]
                terms.append(("L_D", config.distribution, losses.distribution_loss(decoded.logits, label, counts)))
                matching = [losses.matching_loss(m, w, counts) for m, w in zip(decoded.matches, weights, strict=True)]
                terms.append(("L_M", config.matching, torch.stack(matching).sum()))
                if config.reranking > 0:
                    loss = losses.reranking_loss(
                        ground.levels[0], aerial.match_map, weights[0], network.reranking_scale, counts
                    )
                    terms.append(("L_R", config.reranking, loss))
            if taught is not None:
                alike, answer = taught
                weight = self.teacher_weight
                if alike is not None and ground.descriptor is not None and aerial.descriptor is not None:
                    loss = taught_descriptors(ground.descriptor, aerial.descriptor, network.retrieval_scale, alike)
                    terms.append(("T_G", weight * alpha, loss))
                if decoded is not None:
                    loss = taught_distribution(decoded.logits, answer.logits)
                    terms.append(("T_D", weight * config.distribution, loss))
                    matching = [taught_matching(*both) for both in zip(decoded.matches, answer.matches, strict=True)]
                    terms.append(("T_M", weight * config.matching, torch.stack(matching).sum()))
            total = torch.stack([weight * loss for _, weight, loss in terms if weight > 0]).sum()
        values = {"loss": total, **{name: loss.detach() for name, _, loss in terms}}
        if aerial.descriptor is not None:
            values["effective_rank"] = effective_rank(aerial.descriptor.detach())
        return values


def exact(position: Tensor) -> Tensor:
    """The bits of float32 numbers as int32.

    Fabric casts the floating-point inputs of a module to the run's precision: in bfloat16 a position has steps of 1/256
    of the tile, 1.5 pixels of 384.
    """
    return position.float().view(torch.int32)


def effective_rank(descriptors: Tensor) -> Tensor:
    """How many directions the descriptors (N, C) of a batch use, 1 … N: exp of the entropy of their centred spectrum.

    A handful for a large batch means that the global descriptors have collapsed.
    """
    centred = descriptors.float() - descriptors.float().mean(dim=0)
    energy = torch.linalg.eigvalsh(centred @ centred.T).clamp(min=0.0)
    share = energy / energy.sum().clamp(min=1e-12)
    return torch.exp(-torch.special.xlogy(share, share).sum())
