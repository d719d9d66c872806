"""Panorama files: metadata, transparency, and areas cut out of the sphere."""

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panorama_files import jpeg, write_png, xmp
from scipy.spatial.transform import Rotation

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import yaw_from_azimuth
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource
from unifygeo_ros.images.metadata import Crop, PanoramaMetadata, read_metadata
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.panorama import FILL_RGB, check_image, prepare_panorama, sharpness
from unifygeo_ros.localization.panorama_file import read_panorama, vehicle_attitude

PANORAMAS = Path(__file__).resolve().parents[2] / "shared" / "data" / "panoramas"
SPHERE = cv2.resize(np.random.default_rng(0).integers(60, 200, (16, 32, 3), np.uint8), (256, 128))
GROUND = GroundSpec(32, 64, math.pi / 2, -math.pi / 2, 8)


def crop_tags(full_width=256, full_height=128, left=0, top=0, width=256, height=128):
    return {
        "FullPanoWidthPixels": full_width, "FullPanoHeightPixels": full_height, "CroppedAreaLeftPixels": left,
        "CroppedAreaTopPixels": top, "CroppedAreaImageWidthPixels": width, "CroppedAreaImageHeightPixels": height,
    }  # fmt: skip


def test_gpano_elements_and_attributes_are_read():
    tags = {"PoseHeadingDegrees": 135.0, "PosePitchDegrees": -0.2, "PoseRollDegrees": -3.9} | crop_tags(height=100)
    expected = PanoramaMetadata(135.0, False, -0.2, -3.9, Crop(256, 128, 0, 0, 256, 100))
    assert read_metadata(jpeg(SPHERE, xmp(**tags)), "a.jpg") == expected
    attributes = " ".join(f"GPano:{name}='{value}'" for name, value in tags.items())
    assert read_metadata(jpeg(SPHERE, f"<rdf:Description {attributes}/>".encode()), "a.jpg") == expected


@pytest.mark.parametrize(("reference", "magnetic"), [("T", False), ("M", True)])
def test_exif_direction_is_read_unless_gpano_has_one(reference, magnetic):
    gps = {16: reference, 17: 243.5}
    found = read_metadata(jpeg(SPHERE, gps=gps), "a.jpg")
    assert (found.heading_deg, found.heading_is_magnetic) == (243.5, magnetic)
    both = read_metadata(jpeg(SPHERE, xmp(PoseHeadingDegrees=10), gps=gps), "a.jpg")
    assert (both.heading_deg, both.heading_is_magnetic) == (10.0, False)


def test_files_without_metadata_state_nothing(tmp_path):
    assert read_metadata(jpeg(SPHERE), "a.jpg") == PanoramaMetadata()
    file = read_panorama(write_png(tmp_path / "a.png", SPHERE), CameraMount())
    assert file.metadata == PanoramaMetadata()
    assert file.image.seen is None
    np.testing.assert_array_equal(file.image.pixels, SPHERE)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PoseHeadingDegrees": "north"}, "GPano:PoseHeadingDegrees is 'north', must be a finite number"),
        ({"PosePitchDegrees": "nan"}, "GPano:PosePitchDegrees is 'nan'"),
        (crop_tags(left=10), "area of 256x128 pixels at 10, 0 does not lie in"),
        (crop_tags(width=0), "area of 0x128"),
        (crop_tags(full_width=-256), "does not lie in"),
    ],
)
def test_impossible_metadata_is_refused(tags, message):
    with pytest.raises(InputError, match=f"a\\.jpg: .*{message}"):
        read_metadata(jpeg(SPHERE, xmp(**tags)), "a.jpg")


@settings(max_examples=60)
@given(st.data())
def test_damaged_metadata_is_read_or_refused(data):
    content = bytearray(jpeg(SPHERE[:16, :32], xmp(PoseHeadingDegrees=10), gps={16: "T", 17: 243.5}))
    for _ in range(3):
        content[data.draw(st.integers(2, 600))] = data.draw(st.integers(0, 255))
    try:
        heading = read_metadata(bytes(content), "a.jpg").heading_deg
    except InputError:
        return
    assert heading is None or math.isfinite(heading)


def test_transparent_pixels_are_not_seen(tmp_path):
    alpha = np.full((128, 256), 255, np.uint8)
    alpha[96:] = 0
    file = read_panorama(write_png(tmp_path / "a.png", SPHERE, alpha), CameraMount())
    np.testing.assert_array_equal(file.image.seen, alpha > 0)
    np.testing.assert_array_equal(file.image.pixels[:96], SPHERE[:96])
    panorama = prepare_panorama(file.image, GROUND, CameraMount(), None).pixels
    whole = prepare_panorama(CameraImage(SPHERE, 0), GROUND, CameraMount(), None).pixels
    assert np.all(panorama[24:] == FILL_RGB)
    np.testing.assert_array_equal(panorama[:24], whole[:24])


def test_unseen_pixels_turn_with_the_image(tmp_path):
    alpha = np.full((128, 256), 255, np.uint8)
    alpha[:, 128:192] = 0  # from ahead to the right
    image = read_panorama(write_png(tmp_path / "a.png", SPHERE, alpha), CameraMount()).image
    north_up = prepare_panorama(image, GROUND, CameraMount(), Heading(0.0, 0.01, HeadingSource.CONSTANT))  # faces east
    hidden = np.all(north_up.pixels == FILL_RGB, axis=(0, 2))
    assert np.flatnonzero(hidden).tolist() == list(range(48, 64))  # from east to south


@pytest.mark.parametrize("scale", [1, 2])
def test_cropped_area_is_put_into_its_place(tmp_path, scale):
    """A panorama of 40° above and 60° below, cut at the sides, at its own size and reduced to half."""
    rows, columns = slice(36, 108), slice(32, 224)
    part = SPHERE[rows, columns]
    tags = crop_tags(left=32, top=36, width=192, height=72)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(part[::scale, ::scale], xmp(**tags)))
    image = read_panorama(path, CameraMount()).image
    assert image.pixels.shape == (128 // scale, 256 // scale, 3)
    expected = np.zeros((128, 256), bool)
    expected[rows, columns] = True
    np.testing.assert_array_equal(image.seen, expected[::scale, ::scale])
    difference = np.abs(image.pixels.astype(int) - SPHERE[::scale, ::scale])[image.seen]
    assert np.median(difference) < 8  # JPEG
    assert np.all(image.pixels[~image.seen] == FILL_RGB)


@pytest.mark.parametrize(
    ("least_width", "size"), [(None, (128, 256)), (129, (128, 256)), (128, (64, 128)), (40, (32, 64)), (8, (16, 32))]
)
def test_jpeg_is_decoded_no_larger_than_is_needed_of_a_full_turn(tmp_path, least_width, size):
    """192 of 256 columns are in the file: 40 of a full turn are 30 of its own, which a quarter keeps."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(SPHERE[32:96, 32:224], xmp(**crop_tags(left=32, top=32, width=192, height=64))))
    image = read_panorama(path, CameraMount(), least_width).image
    assert image.pixels.shape[:2] == image.seen.shape == size
    assert image.seen.mean() == pytest.approx(0.375)


def test_elevations_of_the_mount_take_precedence_over_a_cropped_area(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(SPHERE[32:96], xmp(**crop_tags(top=30, height=64))))
    mount = CameraMount(elevation_top_rad=math.pi / 4, elevation_bottom_rad=-math.pi / 4)
    assert read_panorama(path, mount).image.pixels.shape == (64, 256, 3)


def test_cropped_area_of_another_shape_than_the_image_is_refused(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(SPHERE, xmp(**crop_tags(height=90))))
    with pytest.raises(InputError, match=r"a\.jpg: is 256x128 pixels, its GPano metadata says 256x90"):
        read_panorama(path, CameraMount())
    path.write_bytes(jpeg(SPHERE[:64], xmp(**crop_tags(10**6, 10**6, 0, 0, 256, 64))))
    with pytest.raises(InputError, match=r"a sphere of 1000000x1000000 pixels"):
        read_panorama(path, CameraMount())


def horizon_elevation_deg(metadata, azimuth_deg):
    """Elevation in the image, at an azimuth right of its middle, at which the camera sees the horizon there, from the
    definition of GPano in words: pitch raises the middle, roll turns the camera clockwise seen from behind."""
    camera = Rotation.from_euler("y", -metadata.pitch_deg, degrees=True) * Rotation.from_euler(
        "x", metadata.roll_deg, degrees=True
    )
    azimuth = math.radians(azimuth_deg)
    best = min(
        np.linspace(-45, 45, 9001),
        key=lambda e: abs(
            camera.apply(
                [math.cos(math.radians(e)) * math.cos(azimuth), -math.cos(math.radians(e)) * math.sin(azimuth),
                 math.sin(math.radians(e))]
            )[2]
        ),
    )  # fmt: skip
    return float(best)


def test_gpano_roll_and_pitch_have_the_signs_of_their_definition():
    """Looking up, the horizon sinks in the middle; rolled clockwise, it rises on the right."""
    assert horizon_elevation_deg(PanoramaMetadata(pitch_deg=10.0, roll_deg=0.0), 0) == pytest.approx(-10, abs=0.02)
    assert horizon_elevation_deg(PanoramaMetadata(pitch_deg=0.0, roll_deg=10.0), 90) == pytest.approx(10, abs=0.02)


@pytest.mark.parametrize(
    "mount",
    [
        CameraMount(),
        CameraMount(yaw_rad=1.6),
        CameraMount(yaw_rad=-2.3),
        CameraMount(yaw_rad=0.4, pitch_rad=0.2, roll_rad=-0.3),
    ],
)
@pytest.mark.parametrize(("pitch_deg", "roll_deg"), [(10.0, 0.0), (0.0, 10.0), (-7.0, 12.0)])
def test_tilted_panorama_is_levelled_by_its_metadata(pitch_deg, roll_deg, mount):
    """A world that is bright above the horizon, seen by a tilted camera, has a level horizon in the panorama."""
    metadata = PanoramaMetadata(pitch_deg=pitch_deg, roll_deg=roll_deg)
    azimuth = (np.arange(256) + 0.5) / 256 * 2 * np.pi - np.pi
    elevation = (np.pi / 2 - (np.arange(128) + 0.5) / 128 * np.pi)[:, None]
    rays = np.stack(np.broadcast_arrays(np.cos(elevation) * np.cos(azimuth), -np.cos(elevation) * np.sin(azimuth),
                                        np.sin(elevation)), -1)  # fmt: skip
    camera = Rotation.from_euler("y", -pitch_deg, degrees=True) * Rotation.from_euler("x", roll_deg, degrees=True)
    up = camera.apply(rays.reshape(-1, 3))[:, 2].reshape(128, 256)
    pixels = np.where(up > 0, 220, 30).astype(np.uint8)[..., None].repeat(3, 2)
    attitude = vehicle_attitude(metadata, math.radians(60.0), mount)
    image = CameraImage(pixels, 0, attitude.roll_rad, attitude.pitch_rad)
    heading = Heading(attitude.yaw_rad, 0.01, HeadingSource.CONSTANT)
    level = prepare_panorama(image, GROUND, mount, heading).pixels
    assert level[:15].min() > 200
    assert level[17:].max() < 50


def test_vehicle_attitude_of_a_level_camera_is_its_azimuth_less_the_mount():
    attitude = vehicle_attitude(PanoramaMetadata(), math.radians(70), CameraMount(yaw_rad=0.3, pitch_rad=0.1))
    assert (attitude.roll_rad, attitude.pitch_rad) == pytest.approx((0, 0), abs=1e-12)
    assert attitude.yaw_rad == pytest.approx(yaw_from_azimuth(math.radians(70)) - 0.3)


@pytest.mark.skipif(not PANORAMAS.is_dir(), reason="the real panoramas are not here")
def test_real_cameras_metadata():
    theta_s = read_panorama(PANORAMAS / "equirectangular_image_001.jpg", CameraMount())
    assert theta_s.metadata.heading_deg == 135.0
    assert (theta_s.metadata.pitch_deg, theta_s.metadata.roll_deg) == (-0.2, -3.9)
    assert theta_s.image.pixels.shape == (960, 1920, 3)  # reduced from the 5376 × 2688 of its metadata, not cropped
    assert theta_s.image.seen is None
    theta_v = read_panorama(PANORAMAS / "R0014760.JPG", CameraMount())
    assert theta_v.metadata.heading_deg is None
    assert theta_v.metadata.crop == Crop(5376, 2688, 0, 0, 5376, 2688)


def test_sixteen_bit_alpha_is_used(tmp_path):
    deep = np.dstack([SPHERE.astype(np.uint16) * 257, np.full((128, 256), 65535, np.uint16)])
    deep[:, :64, 3] = 20_000
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., [2, 1, 0, 3]])
    image = read_panorama(tmp_path / "deep.png", CameraMount()).image
    assert not image.seen[:, :64].any()
    assert image.seen[:, 64:].all()
    np.testing.assert_array_equal(image.pixels[:, 64:], SPHERE[:, 64:])


def test_areas_that_are_not_seen_do_not_count_against_the_projection(tmp_path):
    """Cut off on the right alone, the seam shows texture beside the fill; the poles show none."""
    path = tmp_path / "a.jpg"
    sphere = cv2.resize(SPHERE, (1024, 512), interpolation=cv2.INTER_NEAREST)
    tags = crop_tags(1024, 512, left=0, top=128, width=700, height=256)
    path.write_bytes(jpeg(sphere[128:384, :700], xmp(**tags)))
    image = read_panorama(path, CameraMount()).image
    assert check_image(image, CameraMount(), LocalizerConfig()) is None
    alone = check_image(dataclasses.replace(image, seen=None), CameraMount(), LocalizerConfig())
    assert alone is not None
    assert "not an equirectangular image" in alone.detail


def seen_sector(sector_of_world, fill):
    """A panorama of 640 columns of which the middle third is seen, the rest holds the fill."""
    seen = np.zeros((320, 640), bool)
    seen[:, 213:427] = True
    return CameraImage(np.where(seen[..., None], sector_of_world, fill).astype(np.uint8), 0, seen=seen)


@pytest.mark.parametrize("fill", [0, FILL_RGB[0], 255])
def test_brightness_counts_what_is_seen_only(fill):
    dark = np.random.default_rng(0).integers(0, 9, (320, 640, 3))
    light = cv2.resize(SPHERE, (640, 320), interpolation=cv2.INTER_NEAREST)
    refusal = check_image(seen_sector(dark, fill), CameraMount(), LocalizerConfig())
    assert refusal is not None
    assert refusal.detail.startswith("mean brightness 4.0 of 255")
    assert check_image(seen_sector(light, fill), CameraMount(), LocalizerConfig(check_projection=False)) is None


@pytest.mark.parametrize("fill", [0, FILL_RGB[0], 255])
def test_sharpness_counts_what_is_seen_only(fill):
    """A blank wall between unseen sectors is blank, and detail beside them counts as it does without them."""
    blank = np.full((320, 640, 3), 120)
    refusal = check_image(seen_sector(blank, fill), CameraMount(), LocalizerConfig(check_projection=False))
    assert refusal is not None
    assert refusal.detail.startswith("sharpness 0.00")
    detail = cv2.resize(np.random.default_rng(1).integers(60, 200, (160, 320, 3), np.uint8), (640, 320))
    partly = seen_sector(detail, fill)
    assert sharpness(partly.pixels, partly.seen) == pytest.approx(sharpness(detail), rel=0.05)


def test_image_that_shows_nothing_of_the_world_is_refused():
    unseen = dataclasses.replace(seen_sector(np.full((320, 640, 3), 120), 120), seen=np.zeros((320, 640), bool))
    refusal = check_image(unseen, CameraMount(), LocalizerConfig())
    assert refusal is not None
    assert "no pixel shows anything" in refusal.detail
