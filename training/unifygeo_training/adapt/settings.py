"""How the student of `unifygeo-train adapt` learns."""

from __future__ import annotations

from dataclasses import dataclass

from unifygeo_ros.core.settings import check_settings, setting


@dataclass(frozen=True)
class LearnSettings:
    """How the student learns."""

    steps: int = setting(200, "steps of the fine-tuning", minimum=1)
    batch_size: int = setting(
        16, "pairs of a batch, at most: tiles are half a side apart, and a short drive has room for few", minimum=2
    )
    learning_rate: float = setting(5e-5, "largest step of the optimiser", minimum=1e-8, maximum=1.0)
    hidden: float = setting(
        0.7, "share of the panoramas of which the student sees a part alone", minimum=0.0, maximum=1.0
    )
    share: float = setting(
        0.5,
        "of the fine-tuned weights in the result, the rest being the old ones, so that what they knew is kept",
        minimum=0.0,
        maximum=1.0,
    )

    def __post_init__(self) -> None:
        check_settings(self)
