"""The session that a configuration asks for."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Protocol

from unifygeo_ros.aerial.index import TileIndex
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.sequence import SequenceSession
from unifygeo_ros.sessions.session import ImageLocalizer, LocalizationSession
from unifygeo_ros.sessions.single import SingleImageSession
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.region import region_of
from unifygeo_ros.tracking.tracker import Tracker

_LOG = logging.getLogger(__name__)

SINGLE_ONLY = ("prior_sigma_m", "odometry_growth", "speed_sigma_m_s", "last_fix_age_s", "last_fix_failures")
"""Settings of `SessionConfig` that act in mode single only."""


class WholeLocalizer(ImageLocalizer, Protocol):
    """What the factory needs of `unifygeo_ros.localization.localizer.Localizer`."""

    @property
    def index(self) -> TileIndex: ...

    @property
    def bundle(self) -> ModelBundle: ...

    @property
    def mount(self) -> CameraMount: ...


def make_session(
    localizer: WholeLocalizer, config: SessionConfig, tracker_config: TrackerConfig | None = None
) -> LocalizationSession:
    """A `SingleImageSession` or a `SequenceSession`. Settings without effect are logged as warnings.

    Args:
        localizer: asked for each image.
        config: of the session.
        tracker_config: for mode sequence; None: the defaults.
    """
    for sentence in settings_without_effect(config, tracker_config or TrackerConfig()):
        _LOG.warning(sentence)
    if config.mode == "single":
        return SingleImageSession(localizer, config)
    mount = localizer.mount
    tracker = Tracker(
        region_of(localizer.index),
        localizer.bundle.manifest.calibration,
        tracker_config or TrackerConfig(),
        (mount.x_m, mount.y_m),
    )
    return SequenceSession(localizer, config, tracker)


def settings_without_effect(config: SessionConfig, tracker_config: TrackerConfig) -> tuple[str, ...]:
    """Sentences about settings that were changed from their defaults and do nothing in the chosen mode."""
    if config.mode == "single":
        changed = [f"tracker.{name}" for name in _changed(tracker_config)]
        acts = "mode sequence"
    else:
        changed = [f"session.{name}" for name in _changed(config) if name in SINGLE_ONLY]
        acts = "mode single"
    return tuple(f"{name} is set, but acts in {acts} only; session.mode is {config.mode}" for name in changed)


def _changed(settings: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(settings) if getattr(settings, f.name) != f.default]
