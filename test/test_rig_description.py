"""Rig files and CameraInfo: what they say becomes the rig, and what they cannot say gets one clear error."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.rig.camera_info import lens_of_camera_info
from unifygeo_ros.rig.composer import CameraView, Composer
from unifygeo_ros.rig.description import FramePose, read_rig, rig_file, rig_of_camera_infos
from unifygeo_ros.rig.lenses import Equirectangular, Fisheye, FisheyeCircle, Pinhole

EXAMPLES = sorted((Path(__file__).parents[1] / "config" / "rigs").glob("*.yaml"))
MATRIX = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
RAYS = np.array([[0.0, 0.0, 1.0], [0.3, -0.2, 1.0], [-0.4, 0.3, 1.0]])


def camera_info(**changes):
    fields = {
        "header": SimpleNamespace(frame_id="front_optical"),
        "width": 640,
        "height": 480,
        "distortion_model": "plumb_bob",
        "d": [-0.1, 0.02, 0.001, -0.002, 0.0],
        "k": list(MATRIX),
        "r": np.eye(3).ravel().tolist(),
        "p": [450.0, 0.0, 318.0, 0.0, 0.0, 450.0, 242.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, height=0, width=0),
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [
        ("plumb_bob", [-0.1, 0.02, 0.001, -0.002, 0.003]),
        ("rational_polynomial", [0.3, 0.02, 1e-3, -5e-4, 1e-3, 0.35, 0.05, 2e-3]),
        ("", []),
    ],
)
def test_pinhole_projects_as_opencv_does(model, coefficients):
    lens = lens_of_camera_info(camera_info(distortion_model=model, d=coefficients), "front").lens
    expected = cv2.projectPoints(
        RAYS, np.zeros(3), np.zeros(3), np.array(MATRIX).reshape(3, 3), np.array(coefficients or [0.0] * 4)
    )[0][:, 0]
    np.testing.assert_allclose(lens.project(RAYS)[0], expected, atol=1e-6)


@pytest.mark.parametrize("model", ["equidistant", "fisheye"])
def test_fisheye_projects_as_opencv_does(model):
    coefficients = [-0.02, 0.003, -0.001, 0.0001]
    lens = lens_of_camera_info(camera_info(distortion_model=model, d=coefficients), "front").lens
    expected = cv2.fisheye.projectPoints(
        RAYS[:, None], np.zeros(3), np.zeros(3), np.array(MATRIX).reshape(3, 3), np.array(coefficients)
    )[0][:, 0]
    assert isinstance(lens, Fisheye)
    np.testing.assert_allclose(lens.project(RAYS)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "lens",
    [
        Pinhole(640, 480, 300.0, 305.0, 322.0, 236.0, (-0.12, 0.03, 0.001, -0.0015, -0.002)),
        Pinhole(640, 480, 280.0, 280.0, 320.0, 240.0, (0.3, 0.02, 1e-3, -5e-4, 1e-3, 0.35, 0.05, 2e-3)),
        Fisheye(640, 480, 203.0, 204.0, 318.0, 242.0, (-0.02, 0.003, -0.001, 0.0001), math.radians(190)),
        FisheyeCircle(640, 480, 318.0, 242.0, 230.0, math.radians(200)),
        Equirectangular(640, 480, math.radians(160), math.radians(70), math.radians(-50)),
    ],
    ids=["plumb_bob", "rational_polynomial", "equidistant", "circle", "equirectangular"],
)
def test_unproject_inverts_project_wherever_the_lens_shows_something(lens):
    """`project` is checked against OpenCV above. Half the size moves each pixel edge to half its place."""
    grid = np.stack(np.meshgrid(np.arange(0.0, 640, 7), np.arange(0.0, 480, 7)), axis=-1)
    rays, shown = lens.unproject(grid)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1.0)
    there, valid = lens.project(rays[shown])
    assert valid.all()
    np.testing.assert_allclose(there, grid[shown], atol=1e-3)
    inside = lens.margin(grid[..., 0].astype(np.float32), grid[..., 1].astype(np.float32)) > 0.01
    assert shown[inside].all()
    assert not shown[lens.margin(grid[..., 0].astype(np.float32), grid[..., 1].astype(np.float32)) < -0.01].any()
    half = lens.scaled(0.5)
    assert (half.width, half.height) == (320, 240)
    np.testing.assert_allclose(half.project(rays[shown])[0] + 0.5, (there + 0.5) / 2, atol=1e-6)


def test_region_of_interest_and_binning_move_and_shrink_the_image():
    roi = SimpleNamespace(x_offset=100, y_offset=40, width=400, height=300)
    part = lens_of_camera_info(camera_info(roi=roi, binning_x=2, binning_y=2), "front").lens
    whole = lens_of_camera_info(camera_info(), "front").lens
    assert (part.width, part.height) == (200, 150)
    # The edge of binned pixel i is the edge of pixel 2 i of the region.
    expected = (whole.project(RAYS)[0] + 0.5 - [100, 40]) / 2 - 0.5
    np.testing.assert_allclose(part.project(RAYS)[0], expected, atol=1e-9)


def test_rectified_images_follow_p_and_r_without_distortion():
    turn = cv2.Rodrigues(np.array([0.0, 0.05, 0.0]))[0]
    lens, optical_from_image = lens_of_camera_info(camera_info(r=turn.ravel()), "front", rectified=True)
    assert lens == Pinhole(640, 480, 450.0, 450.0, 318.0, 242.0)
    # R takes the camera's axes to those of the rectified image (sensor_msgs/CameraInfo).
    np.testing.assert_allclose(optical_from_image.T @ RAYS[1], turn @ RAYS[1], atol=1e-12)


def with_k(at, value):
    matrix = list(MATRIX)
    matrix[at] = value
    return matrix


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": with_k(0, 0.0)}, "camera front: .*focal length fx is 0 .*calibrate"),
        ({"k": with_k(4, -510.0)}, "focal length fy is -510"),
        ({"k": with_k(2, math.nan)}, "K of its CameraInfo is not finite"),
        ({"k": [0.0] * 9}, "focal length fx is 0"),
        ({"k": [1.0] * 4}, "4 values, must be 9"),
        ({"width": 0}, "image size 0x480"),
        ({"width": 64, "height": 48}, "principal point 320, 240 is far outside"),
        ({"d": [math.nan] * 5}, "distortion 0 is nan"),
        ({"d": [0.1]}, "1 distortion values"),
        ({"distortion_model": "equidistant"}, "5 distortion values, must be 4"),
        ({"distortion_model": "rational_polynomial", "d": [0.1] * 14}, "14 distortion values.*thin prism"),
        (
            {"distortion_model": "omnidirectional"},
            "'omnidirectional' is not known; known are plumb_bob",
        ),
        ({"distortion_model": ""}, "distortion_model '' is not known"),
        ({"roi": SimpleNamespace(x_offset=600, y_offset=0, width=300, height=480)}, "region of interest 300x480"),
        ({"binning_x": 1000, "binning_y": 1000}, "image size 0x0"),
    ],
)
def test_camera_info_that_cannot_be_gets_one_error_with_the_value(changes, words):
    with pytest.raises(ConfigurationError, match=words):
        lens_of_camera_info(camera_info(**changes), "front")


@pytest.mark.filterwarnings("error")
def test_fuzzed_camera_info_gives_a_lens_that_projects_or_one_error():
    """Some fields at a time get values that drivers have been seen to send, and worse ones."""
    rng = np.random.default_rng(7)
    numbers = [0.0, -1.0, 1e-9, 1e9, 1e300, math.inf, -math.inf, math.nan, 3.0]
    sizes = [0, 1, 2, 7, 640, 4096, 2**31, 2**32 - 1]
    lenses = 0
    for _ in range(400):
        info = camera_info()
        for _ in range(rng.integers(1, 4)):
            name = rng.choice(["k", "p", "r", "d", "width", "height", "binning_x", "distortion_model", "roi", "length"])
            if name in ("k", "p", "r", "d"):
                values = list(getattr(info, name)) or [0.0]
                values[rng.integers(len(values))] = float(rng.choice(numbers))
                setattr(info, name, values)
            elif name == "length":
                info.d = [float(rng.choice(numbers)) for _ in range(rng.integers(0, 15))]
            elif name == "roi":
                info.roi = SimpleNamespace(**{key: int(rng.choice(sizes)) for key in vars(info.roi)})
            elif name == "distortion_model":
                info.distortion_model = str(rng.choice(["", "plumb_bob", "equidistant", "rational_polynomial", "fov"]))
            else:
                setattr(info, name, int(rng.choice(sizes)))
        lens, refusal = None, "camera front: "
        try:
            lens = lens_of_camera_info(info, "front", rectified=bool(rng.integers(2))).lens
        except ConfigurationError as error:
            refusal = str(error)
        assert refusal.startswith("camera front: ")
        assert "\n" not in refusal
        if lens is None:
            continue
        lenses += 1
        pixels, valid = lens.project(RAYS)
        assert np.isfinite(pixels[valid]).all()
        assert lens.width >= 1
    assert 40 < lenses < 360


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_describes_a_rig_that_sees_all_around(path):
    rig = read_rig(path).rig()
    composer = Composer(rig, 64)
    assert len(rig.cameras) == len(read_rig(path).topics())
    views = {c.name: CameraView(np.full((c.lens.height // 8, c.lens.width // 8, 3), 99, np.uint8)) for c in rig.cameras}
    assert composer.compose(views).seen[17].mean() > 0.9  # 6° below the horizon


def write(folder, content):
    path = folder / "rig.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


CAMERA = {
    "topic": "/front/image_raw/compressed",
    "lens": {"model": "pinhole", "width": 640, "height": 480, "fx": 500.0, "fy": 500.0, "cx": 320.0, "cy": 240.0},
    "mount": {"x_m": 1.5, "y_m": 0.5, "z_m": 1.2, "roll_deg": 0, "pitch_deg": 10, "yaw_deg": 90},
}


def test_mount_of_a_rig_file_turns_the_view_left_and_down(tmp_path):
    camera = read_rig(write(tmp_path, {"cameras": {"front": CAMERA}})).rig().cameras[0]
    forward = camera.base_from_optical[:, 2]
    np.testing.assert_allclose(forward, [0, math.cos(math.radians(10)), -math.sin(math.radians(10))], atol=1e-12)
    np.testing.assert_allclose(camera.base_from_optical[:, 0], [1, 0, 0], atol=1e-12)  # the image's right is forward
    assert camera.position_m.tolist() == [1.5, 0.5, 1.2]


def test_rig_takes_from_camera_info_and_tf_what_the_file_leaves_out(tmp_path):
    description = read_rig(write(tmp_path, {"cameras": {"front": {"topic": "/front/image_raw/compressed"}}}))
    turn = cv2.Rodrigues(np.array([-1.2, 1.2, -1.2]))[0]
    rig = description.rig(
        {"/front/camera_info": camera_info()}.get, {"front_optical": FramePose(turn, np.array([1.0, 0, 1.5]))}.get
    )
    assert rig.cameras[0].lens == lens_of_camera_info(camera_info(), "front").lens
    np.testing.assert_allclose(rig.cameras[0].base_from_optical, turn)


def test_missing_camera_info_or_transform_is_named(tmp_path):
    description = read_rig(write(tmp_path, {"cameras": {"front": {"topic": "/front/image_raw"}}}))
    with pytest.raises(ConfigurationError, match=r"camera front: no CameraInfo on /front/camera_info"):
        description.rig()
    with pytest.raises(ConfigurationError, match=r"camera front: no static transform .* 'front_optical'"):
        description.rig({"/front/camera_info": camera_info()}.get)


def test_equirectangular_camera_of_a_rig_file_sees_a_whole_sphere_unless_it_says_otherwise(tmp_path):
    panorama = {**CAMERA, "lens": {"model": "equirectangular", "width": 800, "height": 400}}
    part = {**CAMERA, "lens": {"model": "equirectangular", "width": 700, "height": 200, "field_deg": 210,
                               "elevation_top_deg": 20, "elevation_bottom_deg": -40}}  # fmt: skip
    description = read_rig(write(tmp_path, {"cameras": {"a": panorama, "b": part}}))
    whole, some = (camera.lens for camera in description.rig().cameras)
    assert whole == Equirectangular(800, 400)
    assert some == Equirectangular(700, 200, *map(math.radians, (210, 20, -40)))
    # The file of a recorded rig says the same.
    again = write(tmp_path, rig_file(description.rig(), {"a": "/a", "b": "/b"}))
    for camera, found in zip((whole, some), read_rig(again).rig().cameras, strict=True):
        assert vars(found.lens) == pytest.approx(vars(camera))


def test_calibration_file_of_ros_serves_as_lens(tmp_path):
    (tmp_path / "front.yaml").write_text(
        yaml.safe_dump(
            {
                "image_width": 640,
                "image_height": 480,
                "camera_name": "front",
                "camera_matrix": {"rows": 3, "cols": 3, "data": MATRIX},
                "distortion_model": "plumb_bob",
                "distortion_coefficients": {"rows": 1, "cols": 5, "data": [-0.1, 0.02, 0.001, -0.002, 0.0]},
            }
        )
    )
    camera = {"topic": "/front/image_raw", "calibration": "front.yaml", "mount": CAMERA["mount"]}
    rig = read_rig(write(tmp_path, {"cameras": {"front": camera}})).rig()
    assert rig.cameras[0].lens == lens_of_camera_info(camera_info(), "front").lens


def test_camera_infos_alone_make_a_rig_with_the_names_of_their_namespaces():
    found = rig_of_camera_infos([("/rig/left/camera_info", "/rig/left/image_rect/compressed")], "bag")
    assert (found.cameras[0].name, found.cameras[0].rectified) == ("left", True)
    with pytest.raises(ConfigurationError, match="no CameraInfo"):
        rig_of_camera_infos([], "bag")


def changed(path, value):
    content = copy.deepcopy({"cameras": {"front": CAMERA}})
    at = content
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1], "must map cameras"),
        ({"cameras": {}}, "cameras must map each camera"),
        ({"cameras": {"front": {"topik": "/a"}}}, "camera front: unknown key topik; its keys are topic"),
        (changed(["ground"], 1), "unknown key ground"),
        (changed(["ground_z_m"], "low"), "ground_z_m is 'low', must be a finite number"),
        (changed(["distance_m"], 0.0), "distance_m 0, must be 1"),
        (changed(["view_height_m"], 0.0), "view_height_m 0, must be 0.1 to 2000 m"),
        (changed(["cameras", "front", "lens", "model"], "pinhol"), "model is 'pinhol', must be one of pinhole"),
        (changed(["cameras", "front", "lens", "fx"], math.nan), "fx is nan, must be a finite number"),
        (changed(["cameras", "front", "lens", "fx"], 0.0), "camera front: .*focal length fx is 0"),
        (changed(["cameras", "front", "lens", "width"], 640.5), "whole numbers"),
        (changed(["cameras", "front", "lens", "cy"], None), "lens: no key cy"),
        (changed(["cameras", "front", "lens", "distortion"], 0.1), "must be a list"),
        (changed(["cameras", "front", "mount", "yaw_deg"], None), "mount: no key yaw_deg"),
        (changed(["cameras", "front", "mount", "yaw_deg"], True), "yaw_deg is True"),
        (changed(["cameras", "front", "rectified"], "yes please"), "rectified is 'yes please'"),
        (changed(["cameras", "front", "calibration"], "absent.yaml"), "both lens and calibration"),
    ],
)
def test_rig_file_that_cannot_be_gets_one_error_with_key_and_value(tmp_path, content, words):
    with pytest.raises(ConfigurationError, match=words):
        read_rig(write(tmp_path, content)).rig()


def test_two_cameras_of_one_name_are_refused_and_not_lost(tmp_path):
    (tmp_path / "rig.yaml").write_text("cameras:\n  left: {topic: /a}\n  right: {topic: /b}\n  left: {topic: /c}\n")
    with pytest.raises(ConfigurationError, match=r"rig\.yaml: left is given twice .*line 2.* a name of its own"):
        read_rig(tmp_path / "rig.yaml")


def test_file_that_is_no_yaml_or_absent_is_refused(tmp_path):
    (tmp_path / "rig.yaml").write_text("cameras: [")
    with pytest.raises(ConfigurationError, match="is no YAML"):
        read_rig(tmp_path / "rig.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_rig(tmp_path / "none.yaml")
