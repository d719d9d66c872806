"""The camera's mount out of the static transforms that a bag holds."""

from __future__ import annotations

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.evaluation.recordings.recorded_rig import RecordedRig
from unifygeo_ros.evaluation.recordings.static_transforms import MOVING_TOPIC, TOPIC, StaticTransforms
from unifygeo_ros.localization.camera_mount import mount_from_transform, rig_mount
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.parameters.settings import Settings


def panorama_mount(settings: Settings, transforms: StaticTransforms, rig: RecordedRig | None) -> CameraMount:
    """The mount of a drive's panoramas: that of the rig, of `camera_frame`, or of the parameters.

    Args:
        settings: Of the node.
        transforms: Those of the recorded drive.
        rig: Whose images make the panoramas; None: one camera takes them.

    Raises:
        ConfigurationError: Two of them are given, or the bag does not hold the mount.
    """
    node = settings.node
    if rig is not None:
        if node.camera_frame:
            raise ConfigurationError(
                f"both a rig and camera_frame ({node.camera_frame}) are given; a rig's mounts are in the rig file or "
                "in TF"
            )
        return rig_mount(settings.camera, rig.rig)
    if node.camera_frame:
        return recorded_mount(transforms, settings.camera, node.base_frame, node.camera_frame)
    return settings.camera


def recorded_mount(
    transforms: StaticTransforms, camera: CameraMount, base_frame: str, camera_frame: str
) -> CameraMount:
    """Take the mount from the recorded base_frame → camera_frame, as the node takes it from TF.

    Args:
        transforms: Those of the recorded drive.
        camera: What TF does not know stays as it is here.
        base_frame: Frame of the vehicle.
        camera_frame: Frame of the camera, x through the image's centre column and z up.

    Raises:
        ConfigurationError: The bag does not connect the frames, or the camera's frame cannot be a mount.
    """
    transform = transforms.transform(base_frame, camera_frame)
    if transform is None and camera_frame in transforms.moving_frames():
        raise ConfigurationError(
            f"the bag has {camera_frame} in {MOVING_TOPIC}, not in {TOPIC}: a replay takes a mount that does not move; "
            "give it by camera.x_m, camera.y_m and camera.yaw_rad"
        )
    if transform is None:
        raise ConfigurationError(
            f"{TOPIC} does not connect {camera_frame} with {base_frame}; frames there: "
            f"{', '.join(sorted(transforms.frames)) or 'none'}; give the mount by camera.x_m, camera.y_m and "
            "camera.yaw_rad"
        )
    return mount_from_transform(camera, transform, camera_frame)
