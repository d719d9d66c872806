"""The images of a rig as files: a folder with one image for each camera, named after it (front.jpg, left.png)."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable

from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.images.files import read_image
from unifygeo_ros.rig.description import RigDescription

SUFFIXES = (".jpg", ".jpeg", ".png")


def image_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The files that are named after these cameras; cameras without one are left out. Raises InputError."""
    try:
        files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read as a folder ({error.strerror}); give a folder with one image for each camera"
        ) from error
    return {name: files[name] for name in names if name in files}


def read_folder(folder: Path, description: RigDescription) -> dict[str, UInt8]:
    """Read the images of a rig's cameras.

    Cameras that share a topic, as the circles of a dual fisheye may do, share one file: it has the name of one of them.

    Args:
        folder: With one image for each camera. A camera without a file is left out.
        description: Names of the cameras, and which of them share one image.

    Returns:
        uint8 (H, W, 3) RGB, by camera.

    Raises:
        InputError: No camera has an image, or one cannot be read.
    """
    names = [camera.name for camera in description.cameras]
    files = image_files(folder, names)
    for camera in description.cameras:
        same = [other.name for other in description.cameras if camera.topic and other.topic == camera.topic]
        shared = next((files[name] for name in same if name in files), None)
        if camera.name not in files and shared is not None:
            files[camera.name] = shared
    if not files:
        raise InputError(f"{folder}: no image of {', '.join(names)}; name each file after its camera")
    read = {path: read_image(path) for path in set(files.values())}
    return {name: read[files[name]] for name in names if name in files}
