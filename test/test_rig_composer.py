"""A synthetic sphere seen through each lens model and composed back equals the sphere rendered directly.

The sphere is a smooth function of the direction, so that both its value and its mean over a pixel are known without any
of the code under test. The images are rendered by inverting the lens models with OpenCV or in closed form.
"""

import functools
import math

import cv2
import numpy as np
import pytest

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.rig.composer import CameraView, Composer
from unifygeo_ros.rig.lenses import Equirectangular, Fisheye, FisheyeCircle, Pinhole
from unifygeo_ros.rig.rig import Rig, RigCamera, rotation_from_mount

WIDTH = 208


def sphere(directions: np.ndarray) -> np.ndarray:
    """RGB of directions (..., 3) in base_link's axes: waves of 20° and more, no two directions alike."""
    x, y, z = np.moveaxis(directions / np.linalg.norm(directions, axis=-1, keepdims=True), -1, 0)
    red = 128 + 100 * np.sin(7 * x + 2 * z)
    green = 128 + 100 * np.sin(6 * y - 3 * z) * (x * x - y * y)
    blue = 128 + 60 * x + 40 * np.cos(9 * z)
    return np.stack([red, green, blue], axis=-1)


def equirectangular(width: int) -> np.ndarray:
    azimuth = (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi
    elevation = np.pi / 2 - (np.arange(width // 2) + 0.5)[:, None] / width * 2 * np.pi
    return np.stack(
        [
            np.cos(elevation) * np.cos(azimuth),
            -np.cos(elevation) * np.sin(azimuth),
            np.broadcast_to(np.sin(elevation), (width // 2, width)),
        ],
        axis=-1,
    )


@functools.cache
def expected_panorama() -> np.ndarray:
    """Mean of the sphere over each pixel, by 4 × 4 samples."""
    fine = sphere(equirectangular(4 * WIDTH))
    return fine.reshape(WIDTH // 2, 4, WIDTH, 4, 3).mean((1, 3))


def pixel_grid(width: int, height: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float)), axis=-1)


@functools.cache
def rays(lens) -> np.ndarray:
    """Direction of each pixel in the optical frame (height, width, 3), by means other than the lens' own `project`."""
    grid = pixel_grid(lens.width, lens.height)
    if isinstance(lens, FisheyeCircle):
        offset = grid - [lens.centre_column, lens.centre_row]
        radius = np.linalg.norm(offset, axis=-1)
        theta = radius / lens.radius * lens.field_rad / 2
        unit = offset / np.maximum(radius, 1e-9)[..., None]
        return np.concatenate([np.sin(theta)[..., None] * unit, np.cos(theta)[..., None]], axis=-1)
    if isinstance(lens, Equirectangular):
        # Longitude to the right of the view, latitude above it.
        longitude = (grid[..., 0] - (lens.width - 1) / 2) / lens.width * lens.field_rad
        latitude = np.interp(
            grid[..., 1], [-0.5, lens.height - 0.5], [lens.elevation_top_rad, lens.elevation_bottom_rad]
        )
        right, down, ahead = (
            np.sin(longitude) * np.cos(latitude),
            -np.sin(latitude),
            np.cos(longitude) * np.cos(latitude),
        )
        return np.stack([right, down, ahead], axis=-1)
    matrix = np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]])
    if isinstance(lens, Fisheye):
        flat = (grid - [lens.cx, lens.cy]) / [lens.fx, lens.fy]
        radius = np.linalg.norm(flat, axis=-1)
        table = np.linspace(0, math.pi, 50_001)
        k1, k2, k3, k4 = lens.distortion
        distorted = table * (1 + k1 * table**2 + k2 * table**4 + k3 * table**6 + k4 * table**8)
        theta = np.interp(radius, distorted, table)
        unit = flat / np.maximum(radius, 1e-9)[..., None]
        return np.concatenate([np.sin(theta)[..., None] * unit, np.cos(theta)[..., None]], axis=-1)
    # OpenCV's projection inverted by iteration: its undistortPoints ends after five steps, too early at the edges.
    flat = wanted = ((grid - [lens.cx, lens.cy]) / [lens.fx, lens.fy]).reshape(-1, 2)
    for _ in range(15):
        points = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
        pixels = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, np.array(lens.distortion))[0][:, 0]
        flat = flat - ((pixels - [lens.cx, lens.cy]) / [lens.fx, lens.fy] - wanted)
    return np.concatenate([flat.reshape(lens.height, lens.width, 2), np.ones((lens.height, lens.width, 1))], axis=-1)


def camera(name: str, lens, roll=0.0, pitch=0.0, yaw=0.0, position=(0.0, 0.0, 1.6)) -> RigCamera:
    return RigCamera(name, lens, rotation_from_mount(roll, pitch, yaw), np.array(position))


def image_of(cam: RigCamera, yaw_rad: float = 0.0) -> np.ndarray:
    """The sphere as the camera sees it; yaw_rad: of the vehicle against the sphere."""
    directions = rays(cam.lens) @ cam.base_from_optical.T
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return np.clip(np.round(sphere(directions @ turn.T)), 0, 255).astype(np.uint8)


PINHOLE = Pinhole(320, 240, 140.0, 141.0, 161.0, 117.0, (-0.12, 0.03, 0.001, -0.0015, -0.002))
RATIONAL = Pinhole(320, 240, 140.0, 140.0, 160.0, 120.0, (0.3, 0.02, 1e-3, -5e-4, 1e-3, 0.35, 0.05, 2e-3))
FISHEYE = Fisheye(480, 480, 153.0, 153.0, 239.0, 241.0, (-0.02, 0.003, -0.001, 0.0001), math.radians(190))
SURROUND = [camera(f"cam{i}", PINHOLE, yaw=i * math.pi / 3) for i in range(6)]
CIRCLES = [
    camera("front", FisheyeCircle(960, 480, 239.5, 239.5, 237.0, math.radians(195))),
    camera("back", FisheyeCircle(960, 480, 719.5, 239.5, 237.0, math.radians(195)), yaw=math.pi),
]
RIGS = {
    "six plumb_bob pinholes": SURROUND,
    "six rational_polynomial pinholes": [camera(f"cam{i}", RATIONAL, yaw=i * math.pi / 3) for i in range(6)],
    "four fisheyes": [camera(f"cam{i}", FISHEYE, yaw=i * math.pi / 2, pitch=0.3) for i in range(4)],
    "dual fisheye": CIRCLES,
    "equirectangular": [camera("pano", Equirectangular(500, 250), yaw=2.0)],
    "tilted equirectangular": [camera("pano", Equirectangular(500, 250), roll=0.3, pitch=-0.4, yaw=-1.0)],
    "half a turn and two pinholes": [
        camera("half", Equirectangular(300, 180, math.radians(200), math.radians(50), math.radians(-70)), yaw=0.5),
        camera("left", PINHOLE, yaw=0.5 + math.radians(130)),
        camera("right", PINHOLE, yaw=0.5 - math.radians(130)),
    ],
    "cameras rolled by 90°": [camera(f"cam{i}", PINHOLE, roll=math.pi / 2, yaw=i * math.pi / 4) for i in range(8)],
}


@pytest.mark.parametrize("cameras", RIGS.values(), ids=RIGS)
def test_composed_sphere_equals_the_sphere_rendered_directly(cameras):
    views = {cam.name: CameraView(image_of(cam)) for cam in cameras}
    composed = Composer(Rig(tuple(cameras)), WIDTH).compose(views)
    error = np.abs(composed.pixels.astype(float) - expected_panorama())[composed.seen]
    assert composed.seen.mean() > 0.3
    assert error.max() < 4.0
    assert error.mean() < 0.8
    assert all(gain == pytest.approx(1.0, abs=0.01) for gain in composed.gains.values())


def test_equirectangular_camera_of_a_whole_turn_sees_everything_and_has_no_seam():
    """Its two ends meet straight behind it. Moved: the positions are computed for every image."""
    cam = camera("pano", Equirectangular(500, 250), pitch=0.1, yaw=2.0)
    turn = math.radians(-5.0)
    views = {"pano": CameraView(image_of(cam, turn), Pose2(0.0, 0.0, -turn))}
    composed = Composer(Rig((cam,)), WIDTH).compose(views)
    assert composed.seen.all()
    behind = round((0.5 - (2.0 - math.pi) / (2 * math.pi)) * WIDTH)
    error = np.abs(composed.pixels.astype(float) - expected_panorama())[:, behind - 3 : behind + 3]
    assert error.max() < 4.0


def test_compose_seen_mask_is_the_lens_coverage():
    cam = camera("front", PINHOLE)
    composed = Composer(Rig((cam,)), WIDTH).compose({"front": CameraView(image_of(cam))})
    # An oracle of OpenCV's: the directions of all pixels, put onto the panorama.
    directions = (rays(PINHOLE) @ cam.base_from_optical.T).reshape(-1, 3)
    azimuth, elevation = (
        -np.arctan2(directions[:, 1], directions[:, 0]),
        np.arctan2(directions[:, 2], np.hypot(*directions[:, :2].T)),
    )
    column = ((azimuth + np.pi) / (2 * np.pi) * WIDTH).astype(int) % WIDTH
    row = ((np.pi / 2 - elevation) / np.pi * WIDTH / 2).astype(int)
    touched = np.zeros((WIDTH // 2, WIDTH), np.uint8)
    touched[row, column] = 1
    inner = cv2.erode(touched, np.ones((3, 3), np.uint8)) > 0
    assert not (composed.seen & (touched == 0)).any()
    assert (composed.seen | ~inner).all()


def test_fisheye_whose_model_folds_back_inside_its_field_is_seen_up_to_there():
    """As in a real car's left camera, whose calibration folds back at 87° of the 90°. Up to there every pixel is seen:
    the edge is no staircase of the grid on which positions are computed."""
    lens = Fisheye(960, 640, 303.3, 322.3, 486.5, 323.9, (-0.035511, -0.019848, 0.02608, -0.009718), math.pi)
    angles = np.radians(np.arange(60.0, 95.0, 0.01))
    k1, k2, k3, k4 = lens.distortion
    folds_deg = math.degrees(
        angles[np.argmax(angles * (1 + k1 * angles**2 + k2 * angles**4 + k3 * angles**6 + k4 * angles**8))]
    )
    assert 86 < folds_deg < 88
    cam = RigCamera("left", lens, rotation_from_mount(0, 0, 0), np.array([0.0, 0.0, 1.6]))
    width = 384
    image = np.full((640, 960, 3), 90, np.uint8)
    composed = Composer(Rig((cam,), distance_m=1e6), width).compose({"left": CameraView(image)})
    away_deg = np.degrees(np.arccos(np.clip(equirectangular(width)[..., 0], -1, 1)))
    # Along the horizon, where the picture ends with the field and not with the image's upper or lower edge.
    rows = slice(width // 4 - 6, width // 4 + 6)
    assert composed.seen[rows][away_deg[rows] < folds_deg - 2.0].all()
    assert not composed.seen[rows][away_deg[rows] > folds_deg + 1.0].any()


def test_camera_that_exposed_earlier_is_turned_by_the_vehicles_turn():
    turn = math.radians(6.0)
    views = {}
    for i, cam in enumerate(SURROUND):
        early = -turn if i % 2 else 0.0  # every second camera exposed before the vehicle turned by 6° to the left
        views[cam.name] = CameraView(image_of(cam, early), Pose2(0.0, 0.0, -early))
    composed = Composer(Rig(tuple(SURROUND)), WIDTH).compose(views)
    error = np.abs(composed.pixels.astype(float) - expected_panorama())[composed.seen]
    assert error.max() < 4.0
    ignored = {name: CameraView(view.pixels) for name, view in views.items()}
    wrong = Composer(Rig(tuple(SURROUND)), WIDTH).compose(ignored)
    assert np.abs(wrong.pixels.astype(float) - expected_panorama())[wrong.seen].max() > 15.0


def test_compose_after_a_moved_image_gives_the_same_as_before_it():
    views = {cam.name: CameraView(image_of(cam)) for cam in SURROUND}
    composer = Composer(Rig(tuple(SURROUND)), WIDTH)
    before = composer.compose(views).pixels
    moved = composer.compose({**views, "cam1": CameraView(views["cam1"].pixels, Pose2(0.5, 0.0, 0.1))}).pixels
    assert np.array_equal(composer.compose(views).pixels, before)
    assert np.abs(moved.astype(int) - before).max() > 10


@pytest.mark.parametrize("view_height_m", [None, 1.2, 2.6])
def test_compose_ground_plane_is_continuous_across_cameras_and_motion(view_height_m):
    """Road marks on the plane z = 0 seen from cameras at different positions, one of them exposed 1.5 m earlier.

    Composed for a point amid them, at their mean height, below both or above both.
    """

    def ground_view(cam, moved_m):
        directions = rays(cam.lens) @ cam.base_from_optical.T
        origin = cam.position_m - [moved_m, 0, 0]
        down = -directions[..., 2] / np.linalg.norm(directions, axis=-1)
        hit = down > 0.12
        points = origin + directions * (origin[2] / np.where(hit, -directions[..., 2], 1.0))[..., None]
        value = 128 + 100 * np.sin(points[..., 0] * 1.5) * np.sin(points[..., 1] * 1.5)
        return np.where(hit, value, 128)[..., None].repeat(3, -1).round().astype(np.uint8)

    cameras = (
        camera("front", PINHOLE, pitch=0.5, position=(2.0, 0.2, 1.5)),
        camera("rear", PINHOLE, pitch=0.5, yaw=math.pi, position=(-1.0, 0.0, 1.9)),
    )
    rig, centre_m = Rig(cameras, view_height_m=view_height_m), np.array([0.5, 0.1, view_height_m or 1.7])
    views = {
        "front": CameraView(ground_view(cameras[0], 1.5), Pose2(1.5, 0.0, 0.0)),
        "rear": CameraView(ground_view(cameras[1], 0.0)),
    }
    composed = Composer(rig, WIDTH).compose(views)
    directions = equirectangular(WIDTH)
    # Where the road's distance is below distance_m from the cameras, too, and the marks are wider than a pixel.
    near = (-directions[..., 2] > (0.2 if view_height_m is None else 0.4)) & composed.seen
    points = centre_m + directions * (centre_m[2] / np.where(near, -directions[..., 2], 1.0))[..., None]
    expected = 128 + 100 * np.sin(points[..., 0] * 1.5) * np.sin(points[..., 1] * 1.5)
    error = np.abs(composed.pixels[..., 0].astype(float) - expected)[near]
    assert near.sum() > (2000 if view_height_m is None else 500)
    assert np.percentile(error, 99) < 12
    assert error.mean() < 2.0
    standing = Composer(rig, WIDTH).compose({name: CameraView(view.pixels) for name, view in views.items()})
    assert np.abs(standing.pixels[..., 0].astype(float) - expected)[near].mean() > 15


def test_composer_joins_objects_at_distance_m_across_cameras():
    """The sphere of 10 m around the rig, seen by two cameras 2 m apart, above any ground."""
    cameras = (
        camera("left", PINHOLE, yaw=0.3, position=(0.0, 1.0, 40.0)),
        camera("right", PINHOLE, yaw=-0.3, position=(0.0, -1.0, 40.0)),
    )
    views = {}
    for cam in cameras:
        origin = cam.position_m - [0.0, 0.0, 40.0]
        directions = rays(cam.lens) @ cam.base_from_optical.T
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        along = directions @ origin
        reach = -along + np.sqrt(along**2 - origin @ origin + 10.0**2)
        views[cam.name] = CameraView(np.round(sphere(origin + reach[..., None] * directions)).astype(np.uint8))
    near, far = (Composer(Rig(cameras, distance_m=distance), WIDTH).compose(views) for distance in (10.0, 1e4))
    errors = [np.abs(found.pixels.astype(float) - expected_panorama())[found.seen].max() for found in (near, far)]
    assert errors[0] < 5.0  # the worst pixel, at an image's edge; rounded to 8 bits three times
    assert errors[1] > 15.0


def test_detail_finer_than_a_pixel_is_averaged_not_aliased():
    cam = camera("front", PINHOLE)
    image = np.where((np.indices((240, 320)).sum(0) % 2)[..., None] == 0, 255, 0).astype(np.uint8).repeat(3, -1)
    composed = Composer(Rig((cam,)), WIDTH).compose({"front": CameraView(image)})
    inner = cv2.erode(composed.seen.astype(np.uint8), np.ones((5, 5))) > 0
    values = composed.pixels[inner].astype(float)
    assert np.abs(values - 127.5).max() < 12


def test_compose_evens_out_exposure_differences():
    factors = [1.0, 0.7, 1.0, 1.3, 1.0, 0.8]
    views = {}
    for cam, factor in zip(SURROUND, factors, strict=True):
        views[cam.name] = CameraView(np.clip(60 + 0.4 * image_of(cam).astype(float) * 1.0, 0, 255).astype(np.uint8))
        views[cam.name] = CameraView(np.round(views[cam.name].pixels * (factor / 1.3)).astype(np.uint8))
    composed = Composer(Rig(tuple(SURROUND)), WIDTH).compose(views)
    corrected = np.array([composed.gains[cam.name] * factor for cam, factor in zip(SURROUND, factors, strict=True)])
    np.testing.assert_allclose(corrected / corrected.mean(), 1.0, atol=0.03)


def test_compose_missing_camera_is_unseen_and_black_one_isolated():
    views = {cam.name: CameraView(image_of(cam)) for cam in SURROUND}
    whole = Composer(Rig(tuple(SURROUND)), WIDTH).compose(views)
    gone = {name: view for name, view in views.items() if name != "cam0"}
    without = Composer(Rig(tuple(SURROUND)), WIDTH).compose(gone)
    middle = slice(WIDTH // 2 - 4, WIDTH // 2 + 4)
    assert whole.seen[WIDTH // 4, middle].all()
    assert not without.seen[WIDTH // 4, middle].any()
    black = dict(views, cam0=CameraView(np.zeros((240, 320, 3), np.uint8)))
    dark = Composer(Rig(tuple(SURROUND)), WIDTH).compose(black)
    assert all(gain == pytest.approx(1.0, abs=0.02) for gain in dark.gains.values())


def test_compose_of_reduced_images_gives_the_same_panorama():
    whole = {cam.name: CameraView(image_of(cam)) for cam in SURROUND}
    half = {n: CameraView(cv2.resize(v.pixels, (160, 120), interpolation=cv2.INTER_AREA)) for n, v in whole.items()}
    composer = Composer(Rig(tuple(SURROUND)), WIDTH)
    a, b = composer.compose(whole), composer.compose(half)
    assert (a.seen == b.seen).all()
    assert np.abs(a.pixels.astype(int) - b.pixels)[a.seen].max() <= 3


def test_image_of_another_shape_is_refused_with_both_sizes():
    with pytest.raises(InputError, match=r"cam0: image of 640x640, its calibration is for 320x240"):
        Composer(Rig(tuple(SURROUND)), WIDTH).compose({"cam0": CameraView(np.zeros((640, 640, 3), np.uint8))})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pinhole(1280, 960, 0.0, 0.0, 640, 480), "focal length fx is 0"),
        (lambda: Pinhole(0, 960, 500, 500, 640, 480), "image size 0x960"),
        (lambda: Pinhole(1280, 960, math.nan, 500, 640, 480), "fx is nan"),
        (lambda: Pinhole(1280, 960, 500, 500, 64000, 480), "principal point"),
        (lambda: Pinhole(1280, 960, 500, 500, 640, 480, (1.0, 2.0)), "2 distortion values"),
        (lambda: Pinhole(1280, 960, 500, 500, 640, 480, (-9.0, 0.0, 0.0, 0.0)), "folds the image"),
        (lambda: Fisheye(800, 800, 250, 250, 400, 400, (-5.0, 0.0, 0.0, 0.0)), "folds the image"),
        (lambda: Fisheye(800, 800, 250, 250, 400, 400, (math.inf, 0.0, 0.0, 0.0)), "distortion 0 is inf"),
        (lambda: FisheyeCircle(800, 800, 900, 400, 400, 3.3), "centre 900, 400 is outside"),
        (lambda: FisheyeCircle(800, 800, 400, 400, 400, 8.0), "must be 20° to 360°"),
        (lambda: Equirectangular(800, 300), "pixels are not square"),
        (lambda: Equirectangular(800, 400, math.tau, -1.0, 1.0), "upper one above the lower"),
        (lambda: Equirectangular(800, 400, 7.0), "must be 20° to 360°"),
        (lambda: Rig(()), "without cameras"),
        (lambda: Rig((SURROUND[0], SURROUND[0])), "two cameras of one name"),
        (lambda: RigCamera("a", PINHOLE, -np.eye(3), np.zeros(3)), "mirrors"),
        (lambda: RigCamera("a", PINHOLE, np.ones((3, 3)), np.zeros(3)), "not a rotation"),
        (lambda: RigCamera("a", PINHOLE, np.eye(3), np.array([1600.0, 0, 0])), "position"),
        (lambda: Rig((camera("a", PINHOLE, position=(0, 0, -0.2)),)), "ground_z_m"),
    ],
)
def test_bad_cameras_get_one_error_with_the_value(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()
