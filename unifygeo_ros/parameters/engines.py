"""The engines that the node's settings ask for: for the node and for what replays its drives."""

from __future__ import annotations

from unifygeo_ros.core.paths import home_path
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.inference.engine import EngineSet
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.parameters.settings import NodeConfig


def open_configured_engines(bundle: ModelBundle, node: NodeConfig) -> EngineSet:
    """`open_engines` with the backend, precision, device, cache folder and threads of the settings.

    Raises:
        EngineError: the backend cannot run here, or, with "auto", none can.
        BundleError: the bundle does not hold that precision, or its graphs are not what it says.
    """
    return open_engines(
        bundle,
        backend=node.backend,
        precision=node.precision,
        device=node.device,
        cache_dir=home_path(node.cache_dir) if node.cache_dir else None,
        threads=node.threads,
    )
