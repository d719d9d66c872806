"""The session that a configuration asks for."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.settings import setting_fields
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.image_localizer import ImageLocalizer
from unifygeo_ros.sessions.sequence import SequenceSession
from unifygeo_ros.sessions.session import LocalizationSession
from unifygeo_ros.sessions.single import SingleImageSession
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.region import region_of
from unifygeo_ros.tracking.tracker import Tracker

_LOG = logging.getLogger(__name__)

SINGLE_ONLY = ("prior_sigma_m",)
"""Settings of `SessionConfig` that act in mode single only."""


class WholeLocalizer(ImageLocalizer, Protocol):
    """What the factory needs of `unifygeo_ros.localization.localizer.Localizer`."""

    @property
    def index(self) -> MapIndex: ...

    @property
    def bundle(self) -> ModelBundle: ...


def make_session(
    localizer: WholeLocalizer,
    config: SessionConfig,
    tracker_config: TrackerConfig | None = None,
    noise: MotionNoise | None = None,
) -> LocalizationSession:
    """A `SingleImageSession` or a `SequenceSession`. Settings without effect are logged as warnings.

    Args:
        localizer: asked for each image.
        config: of the session.
        tracker_config: for mode sequence; None: the defaults.
        noise: of the odometry; None: the defaults.
    """
    tracker_config, noise = tracker_config or TrackerConfig(), noise or MotionNoise()
    for sentence in settings_without_effect(config, tracker_config, noise):
        _LOG.warning(sentence)
    if config.mode == "single":
        return SingleImageSession(localizer, config, noise)
    mount = localizer.mount
    calibration = localizer.bundle.manifest.calibration
    region = region_of(localizer.index)
    region.prepare()
    tracker = Tracker(region, calibration, tracker_config, (mount.x_m, mount.y_m), noise)
    return SequenceSession(localizer, config, tracker)


def settings_without_effect(
    config: SessionConfig, tracker_config: TrackerConfig, noise: MotionNoise
) -> tuple[str, ...]:
    """Sentences about settings that were changed from their defaults and do nothing in the chosen mode."""
    mode = f"session.mode is {config.mode}"
    if config.mode == "sequence":
        changed = [name for name in _changed(config) if name in SINGLE_ONLY]
        return tuple(f"session.{name} is set, but acts in mode single only; {mode}" for name in changed)
    idle = [f"tracker.{name} is set, but acts in mode sequence only; {mode}" for name in _changed(tracker_config)]
    if config.prior_source != "last_fix":
        acts = "mode sequence or with prior_source last_fix only"
        now = f"{mode}, session.prior_source {config.prior_source}"
        idle += [f"odometry.{name} is set, but acts in {acts}; {now}" for name in _changed(noise)]
    return tuple(idle)


def _changed(settings: Any) -> list[str]:
    return [f.name for f in setting_fields(settings) if getattr(settings, f.name) != f.default]
