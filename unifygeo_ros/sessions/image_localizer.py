"""What the sessions need of the localizer."""

from __future__ import annotations

from typing import Mapping, Protocol, Sequence

from unifygeo_ros.core.records import (
    CameraImage,
    Fix,
    GroundFeatures,
    Heading,
    Observation,
    Prior,
    Query,
    Rejection,
)
from unifygeo_ros.localization.camera_alternatives import Alternative
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig


class ImageLocalizer(Protocol):
    """The part of `unifygeo_ros.localization.localizer.Localizer` that a session calls."""

    @property
    def config(self) -> LocalizerConfig: ...

    @property
    def mount(self) -> CameraMount: ...

    def observe(self, image: CameraImage, query: Query) -> Observation | Rejection: ...

    def decide(self, observation: Observation, query: Query) -> Fix | Rejection: ...

    def camera_fits(
        self,
        image: CameraImage,
        heading: Heading,
        alternatives: Sequence[Alternative],
        configured: GroundFeatures | None,
        prior: Prior | None,
    ) -> Mapping[str, float]: ...
