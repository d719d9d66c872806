"""The config file of `unifygeo-train fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from unifygeo_training.data.augmentation import AugmentationConfig
from unifygeo_training.data.hard_negatives import HardNegativesConfig
from unifygeo_training.data.split_pairs import CentreAlignedConfig, VigorConfig
from unifygeo_training.data.towns import TownsConfig
from unifygeo_training.distillation import DistillationConfig
from unifygeo_training.drives.pairs import DrivesConfig
from unifygeo_training.model import lite_trunk
from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.objective import LossConfig


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OptimiserConfig(_Settings):
    """AdamW with linear warm-up and cosine decay to zero, both counted in steps."""

    learning_rate: float = Field(default=4.5e-4, gt=0.0)
    trunk_rate: float = Field(default=1.0, gt=0.0)
    """Of the learning rate, for the trunks: below 1, pretrained ones keep more of what they know."""
    weight_decay: float = Field(default=0.04, ge=0.0)
    warmup_steps: int = Field(default=500, ge=0)
    clip_norm: float = Field(default=100.0, gt=0.0)
    """Largest norm of a gradient. Gradients have norms of 150 to 400 with the weights of Eq. 5; a clip at 1 would make
    every step the same length."""


class HardwareConfig(_Settings):
    """Devices, precision and processes of a run."""

    accelerator: str = "auto"
    """As Lightning Fabric understands them."""
    devices: int | Literal["auto"] = "auto"
    """As Lightning Fabric understands them."""
    nodes: int = Field(default=1, ge=1)
    """As Lightning Fabric understands them."""
    strategy: str = "auto"
    """As Lightning Fabric understands them."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    """As Lightning Fabric understands them."""
    compile: bool = False
    threads: int = Field(default=0, ge=0)
    """Threads of the CPU's arithmetic, 0: torch's default."""
    workers: int = Field(default=2, ge=0)
    """Processes that prepare batches."""


DataConfig = Annotated[Union[TownsConfig, VigorConfig, CentreAlignedConfig, DrivesConfig], Field(discriminator="kind")]


def with_kind(data: Any) -> Any:
    """The section `data` of a config that may be older than the choice between kinds: then it is of towns."""
    return {"kind": "towns", **data} if isinstance(data, dict) else data


class FitConfig(_Settings):
    """Everything that decides a training run."""

    network: NetworkConfig = NetworkConfig()
    pretrained: bool = False
    start_from: Path | None = None
    """A checkpoint or a bundle of the same network whose weights are the initial ones; the optimiser starts afresh. A
    bundle's batch norms are folded into its weights and stay as they are (`unifygeo_training.unfold`)."""
    trunk_weights: Path | None = None
    """A file of an EfficientNet-Lite's weights, from which both trunks start; of the backbones
    `unifygeo_training.model.lite_trunk.NAMES` alone. `start_from` overrides it."""
    frozen_maps: int = Field(default=0, ge=0, le=lite_trunk.MAPS)
    """How many of the trunks' maps (1/4, 1/8, 1/16) stay as they start, with the norms of all three: what is
    learnt from rendered images then cannot undo what photographs taught. Of the same backbones."""
    distillation: DistillationConfig | None = None
    """None: nobody teaches."""
    data: DataConfig
    """A data set of the kind that its key `kind` names; towns if it has none."""
    augmentation: AugmentationConfig = AugmentationConfig()
    losses: LossConfig = Field(default=LossConfig(), validate_default=True)
    hard_negatives: HardNegativesConfig | None = None
    """None: the data set draws all batches."""
    optimiser: OptimiserConfig = OptimiserConfig()
    hardware: HardwareConfig = HardwareConfig()
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=2)
    """Over all devices."""
    steps: int = Field(ge=1)
    """Optimiser steps of the whole run."""
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)

    @field_validator("data", mode="before")
    @classmethod
    def _has_a_kind(cls, value: Any) -> Any:
        return with_kind(value)

    @field_validator("trunk_weights", "frozen_maps")
    @classmethod
    def _fit_the_trunk(cls, value: Path | int | None, info: ValidationInfo) -> Path | int | None:
        network = info.data.get("network")
        if value and network is not None and network.backbone not in lite_trunk.NAMES:
            raise ValueError(
                f"is of other trunks than network.backbone {network.backbone}; set that to one of "
                f"{', '.join(lite_trunk.NAMES)}, or leave {info.field_name} out"
            )
        return value

    @field_validator("losses")
    @classmethod
    def _positions_are_known(cls, value: LossConfig, info: ValidationInfo) -> LossConfig:
        data = info.data.get("data")
        if data is None or data.tells_positions:
            return value
        # The re-ranking loss asks which tile of the batch, and has an answer to learn.
        wrong = [name for name in ("distribution", "matching") if getattr(value, name) > 0]
        if wrong:
            raise ValueError(
                f"{data.describe()} has every camera in the middle of its tile, the only place that "
                f"{', '.join(wrong)} would learn to look at; set each of them to 0"
            )
        return value

    @field_validator("hard_negatives")
    @classmethod
    def _descriptors_are_trained(
        cls, value: HardNegativesConfig | None, info: ValidationInfo
    ) -> HardNegativesConfig | None:
        if value is None or "losses" not in info.data:
            return value
        losses = info.data["losses"]
        if losses.retrieval == 0:
            raise ValueError("losses.retrieval 0 never trains the descriptors; leave one of the two out")
        if value.from_step <= losses.retrieval_from_step and info.data.get("start_from") is None:
            raise ValueError(
                f"from_step must be above losses.retrieval_from_step {losses.retrieval_from_step}: until then no "
                "gradient has touched the descriptors"
            )
        return value

    def ablation(self) -> dict[str, bool]:
        """What this config trains, as `unifygeo_training.judging.tables.Ablation` names it."""
        losses = self.losses
        return {
            "retrieval": losses.retrieval > 0,
            "localization": losses.distribution > 0,
            "matching": losses.matching > 0,
            "reranking_loss": losses.reranking > 0,
        }
