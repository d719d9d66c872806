"""The images of a rig as files: which file is whose, and what is refused."""

import cv2
import numpy as np
import pytest

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.rig.description import CameraDescription, RigDescription
from unifygeo_ros.rig.folder import read_folder

RIG = RigDescription(
    (CameraDescription("up", "/dual"), CameraDescription("down", "/dual"), CameraDescription("back", "/back"))
)


def write(path, grey):
    cv2.imwrite(str(path), np.full((4, 6, 3), grey, np.uint8))


def test_cameras_of_one_topic_share_the_file_that_has_the_name_of_one_of_them(tmp_path):
    write(tmp_path / "down.png", 40)
    write(tmp_path / "BACK.png", 90)  # another name
    write(tmp_path / "back.PNG", 70)
    (tmp_path / "front.txt").write_text("no image")
    found = read_folder(tmp_path, RIG)
    assert {name: int(pixels[0, 0, 0]) for name, pixels in found.items()} == {"up": 40, "down": 40, "back": 70}


def test_two_files_of_one_topic_are_those_of_their_cameras(tmp_path):
    write(tmp_path / "up.png", 10)
    write(tmp_path / "down.png", 40)
    found = read_folder(tmp_path, RIG)
    assert {name: int(pixels[0, 0, 0]) for name, pixels in found.items()} == {"up": 10, "down": 40}


def test_folder_without_images_and_a_file_in_place_of_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="no image of up, down, back; name each file after its camera"):
        read_folder(tmp_path, RIG)
    write(tmp_path / "up.png", 10)
    with pytest.raises(InputError, match=r"up\.png: cannot be read as a folder .*one image for each camera"):
        read_folder(tmp_path / "up.png", RIG)
    with pytest.raises(InputError, match="none: cannot be read as a folder"):
        read_folder(tmp_path / "none", RIG)
    (tmp_path / "up.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"up\.png"):
        read_folder(tmp_path, RIG)
