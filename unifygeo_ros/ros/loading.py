"""Files → a session ready to localize, step by step, so that a node can stop between two steps."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Callable, Mapping

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.aerial.regions import open_map
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.paths import home_path
from unifygeo_ros.inference.bundle import check_calibrated, load_bundle
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.parameters.engines import open_configured_engines
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.ros.rig import LiveRig
from unifygeo_ros.sessions.factory import make_session
from unifygeo_ros.sessions.session import LocalizationSession


@dataclass(frozen=True)
class Loaded:
    """All that a configured node holds."""

    session: LocalizationSession
    localizer: Localizer
    index: MapIndex
    identity: Mapping[str, str]
    """What was loaded, for log and diagnostics."""
    rig: LiveRig | None
    """None: one panoramic camera."""
    _resources: contextlib.ExitStack

    def close(self) -> None:
        """Free the engines; no image may be localized any more."""
        self._resources.close()


def load(settings: Settings, mount: CameraMount, rig: LiveRig | None, step: Callable[[str], None]) -> Loaded:
    """Open and check bundle, index and engines.

    step: called with the name of each step before it is taken; what it raises ends the loading, with everything freed.
    Raises an UnifyGeoError naming what is missing or does not fit.
    """
    node = settings.node
    for name, value in (("bundle", node.bundle), ("index", node.index)):
        if not value:
            raise ConfigurationError(f"the parameter {name} is empty; give the folder of the {name}")
    with contextlib.ExitStack() as resources:
        step("bundle")
        bundle = load_bundle(home_path(node.bundle))
        check_calibrated(bundle, node.accept_uncalibrated)
        step("index")
        index = open_map(home_path(node.index), bundle=bundle, search_device=node.index_search, gpu=node.device)
        step("search of the index")
        index.open_gpu_search()
        resources.callback(index.close_search)
        if settings.session.prior_source != "odometry":  # only then every search has a gate
            index.prepare_search()
        step("engines")
        engines = resources.enter_context(open_configured_engines(bundle, node))
        step("first run of the engines")
        engines.warm_up(bundle.manifest)
        step("localizer")
        localizer = Localizer(index, bundle, engines, settings.localizer, mount)
        session = make_session(localizer, settings.session, settings.tracker, settings.odometry)
        datum = index.manifest.datum
        identity = {
            "model": f"{bundle.manifest.name} ({bundle.path})",
            "weights": bundle.manifest.weights_sha256[:16],
            "calibration": bundle.manifest.calibration_text,
            "familiarity": bundle.manifest.familiarity_text,
            "engines": engines.description,
            "index": f"{len(index)} tiles ({index.path})",
            "search": index.search_description,
            **({} if rig is None else {"rig": ", ".join(camera.name for camera in rig.rig.cameras)}),
            "datum": f"{datum.latitude_deg:.7f}, {datum.longitude_deg:.7f}, {datum.height_m:g} m",
        }
        return Loaded(session, localizer, index, identity, rig, resources.pop_all())
