"""The camera's mount out of the static transforms that a bag holds."""

from __future__ import annotations

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.evaluation.recordings.static_transforms import MOVING_TOPIC, TOPIC, StaticTransforms
from unifygeo_ros.localization.camera_mount import mount_from_transform
from unifygeo_ros.localization.config import CameraMount


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
