"""From a bag to what it says of the set-up: opens everything that the estimate needs."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from unifygeo_ros.aerial.regions import open_map
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.paths import folder_option
from unifygeo_ros.evaluation.mounting.collect import BagImages, collect
from unifygeo_ros.evaluation.mounting.estimate import MOST_IMAGES, DriveEstimate, estimate_drive
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.evaluation.recordings.recorded_mount import recorded_mount
from unifygeo_ros.evaluation.recordings.static_transforms import RecordedFrames, StaticTransforms
from unifygeo_ros.evaluation.replay import choose_topics
from unifygeo_ros.inference.bundle import check_calibrated, load_bundle
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.parameters.engines import open_configured_engines
from unifygeo_ros.parameters.settings import Settings


@dataclass(frozen=True)
class MountRequest:
    """What to estimate from."""

    bag: Path
    index: Path | None
    """None: the parameter's."""
    model: Path | None
    """None: the parameter's."""
    settings: Settings
    """Of the node."""
    image_topic: str | None = None
    """None: found by type."""
    odometry_topic: str | None = None
    """None: found by type."""
    imu_topic: str | None = None
    """None: found by type; "none": left out."""
    max_frames: int | None = None
    """Only so many images."""
    images: int = MOST_IMAGES
    """That are aligned, at most."""
    quiet: bool = False


def estimate_mount(request: MountRequest) -> tuple[DriveEstimate, Settings]:
    """The estimate, and the settings that it corrects: those given, with the camera's mount of TF where it is used.

    Raises:
        ConfigurationError: The settings are of several cameras.
        InputError: The bag lacks odometry, places or motion.
    """
    settings = request.settings
    if settings.rig:
        raise ConfigurationError(
            "a rig is configured; the mounts of several cameras are in the rig file or in TF, and `unifygeo rig check` "
            "judges them. Give the parameters of one panoramic camera"
        )
    node = settings.node
    bundle = load_bundle(folder_option(request.model, node.bundle, "--model", "bundle"))
    check_calibrated(bundle, node.accept_uncalibrated)
    index_path = folder_option(request.index, node.index, "--index", "index")
    index = open_map(index_path, bundle=bundle, search_device=node.index_search, gpu=node.device)
    index.open_gpu_search()
    bag = Bag(request.bag)
    transforms = StaticTransforms(bag)
    topics = choose_topics(
        bag, image=request.image_topic, odometry=request.odometry_topic, imu=request.imu_topic, truth_from_file=True
    )
    if topics.odometry is None:
        raise InputError(
            f"{request.bag}: has no odometry, which the images are compared with; name it by --odometry-topic"
        )
    frames = RecordedFrames(transforms, node.base_frame, node.input_frames)
    if node.camera_frame:
        camera = recorded_mount(transforms, settings.camera, node.base_frame, node.camera_frame)
        settings = dataclasses.replace(settings, camera=camera)
    images = min(topics.image_count, request.max_frames or topics.image_count)
    hidden = True if request.quiet else None  # None: shown on a terminal only
    with open_configured_engines(bundle, node) as engines:
        localizer = Localizer(index, bundle, engines, settings.localizer, settings.camera)
        with tqdm(total=images, unit="image", desc="localize", disable=hidden, file=sys.stderr) as bar:

            def localized(seen: bool) -> None:
                bar.update()

            drive = collect(bag, topics, localizer, settings, frames, max_frames=request.max_frames, progress=localized)
        pictures = BagImages(bag, topics.image.name, localizer.enough_columns)
        with tqdm(unit="image", desc="align", disable=hidden, file=sys.stderr) as bar:

            def aligned() -> None:
                bar.update()

            estimate = estimate_drive(
                drive,
                pictures,
                index,
                settings.camera,
                settings.odometry,
                most_images=request.images,
                progress=aligned,
            )
    return dataclasses.replace(estimate, warnings=(*estimate.warnings, *bag.problems)), settings
