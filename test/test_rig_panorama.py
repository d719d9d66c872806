"""A set of images to the panorama of a session: cameras moved to one instant, and those that cannot be used."""

import gc
import math
import threading

import numpy as np
import pytest

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import CameraImage, Rejection, RejectionReason
from unifygeo_ros.localization.camera_alternatives import ALTERNATIVES
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import OdometrySample
from unifygeo_ros.rig.lenses import FisheyeCircle, Pinhole
from unifygeo_ros.rig.pairing import ImageSet, StampedImage
from unifygeo_ros.rig.rig import Rig, RigCamera, rotation_from_mount
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.inputs import SessionInputs
from unifygeo_ros.sessions.rig_panorama import RigPanoramas

MS = 1_000_000
START = 1000 * 1000 * MS
WIDTH = 128


def camera(name, yaw_deg, lens=None):
    lens = lens or Pinhole(160, 120, 80.0, 80.0, 79.5, 59.5)
    return RigCamera(name, lens, rotation_from_mount(0, 0, math.radians(yaw_deg)), np.array([0.0, 0.0, 1.6]))


RIG = Rig((camera("front", 0.0), camera("left", 90.0)))


GREY = np.full((120, 160, 3), 60, np.uint8)
_PROFILE = 60 + 190 * np.exp(-(((np.arange(160) - 79.5) / 8) ** 2))
POST = np.broadcast_to(_PROFILE[None, :, None], (120, 160, 3)).astype(np.uint8)
"""Grey, with a white post in the middle."""


def decoded(image, least_width):
    if isinstance(image, Exception):
        raise image
    return CameraImage(image, 0)


def turning(rate_rad_s=1.0, until_s=1.0):
    inputs = SessionInputs(SessionConfig().buffer_limits, MotionNoise())
    for i in range(round(until_s * 50) + 1):
        inputs.add_odometry(OdometrySample(START + i * 20 * MS, "odom", 0.0, 0.0, rate_rad_s * i * 0.02))
    return inputs


def still():
    return SessionInputs(SessionConfig().buffer_limits, MotionNoise())


def panoramas(inputs, rig=RIG, sources=None, **settings):
    sources = sources or {c.name: (c.name,) for c in rig.cameras}
    return RigPanoramas(rig, sources, WIDTH, inputs, SessionConfig(**settings), 8.0, decoded)


def images(missing=(), at_ms=500, **given):
    """Each camera: (exposure in ms after START, pixels)."""
    stamped = {name: StampedImage(START + ms * MS, pixels) for name, (ms, pixels) in given.items()}
    return ImageSet(START + at_ms * MS, stamped, dict(missing))


def post_deg(panorama):
    """Azimuth of the post, degrees to the left of base_link's x axis."""
    row = panorama.pixels[WIDTH // 4, :, 1].astype(float)
    weights = row - np.median(row[row > 0])
    weights[np.abs(np.arange(WIDTH) - WIDTH / 2) > 12] = 0.0
    return 180 - ((np.arange(WIDTH) + 0.5) * weights).sum() / weights.sum() / WIDTH * 360


@pytest.mark.parametrize("exposed_ms", [400, 600])
def test_camera_that_exposed_at_another_time_is_moved_by_the_odometry(exposed_ms):
    """The vehicle turns left by 1 rad/s: what was straight ahead 0.1 s ago is now 5.7° to the right."""
    source = panoramas(turning())
    found = source.panorama(images(front=(exposed_ms, POST), left=(500, GREY)))
    assert post_deg(found) == pytest.approx(math.degrees((exposed_ms - 500) * 1e-3), abs=0.6)
    assert source.state.without_motion == ()


def test_stamp_offset_moves_the_instant_of_the_odometry():
    """The vehicle turns only until 0.45 s; stamps 0.2 s late mean that it turned during the whole exposure."""
    inputs = turning(until_s=0.45)
    for i in range(1, 40):
        inputs.add_odometry(OdometrySample(START + 440 * MS + i * 20 * MS, "odom", 0.0, 0.0, 0.44))
    front = images(front=(400, POST), left=(500, GREY))
    late = panoramas(inputs, stamp_offset_s=-0.2).panorama(front)
    prompt = panoramas(inputs).panorama(front)
    assert post_deg(late) == pytest.approx(-5.7, abs=0.6)
    assert post_deg(prompt) == pytest.approx(-2.3, abs=0.6)


def test_without_odometry_the_camera_is_not_moved_and_that_is_said():
    source = panoramas(still())
    found = source.panorama(images(front=(400, POST), left=(500, GREY)))
    assert post_deg(found) == pytest.approx(0.0, abs=0.6)
    assert source.state.without_motion == ("front",)


def test_panorama_of_cameras_that_see_everything_is_not_tried_as_a_stretched_image():
    """What a rig's panorama shows at each elevation is given by its lenses, also where nothing is left unseen."""
    lens = FisheyeCircle(200, 200, 99.5, 99.5, 99.0, math.radians(200))
    rig = Rig((camera("front", 0.0, lens), camera("back", 180.0, lens)))
    light = np.full((200, 200, 3), 90, np.uint8)
    found = panoramas(still(), rig).panorama(images(front=(500, light), back=(500, light)))
    assert found.seen is None
    stretched = [alternative for alternative in ALTERNATIVES if alternative.elevations != 1]
    assert not any(alternative.possible(found, CameraMount()) for alternative in stretched)
    assert any(alternative.possible(CameraImage(found.pixels, 1), CameraMount()) for alternative in stretched)


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (np.zeros((120, 160, 3), np.uint8), RejectionReason.BLACK_IMAGE, "black, mean brightness 0.0 of 255"),
        (np.full((120, 160, 3), 255, np.uint8), RejectionReason.BAD_IMAGE, "white, mean brightness of its darkest"),
        (
            np.zeros((100, 160, 3), np.uint8),
            RejectionReason.BAD_IMAGE,
            "image of 160x100, its calibration is for",
        ),
        (InputError("a JPEG that is cut off"), RejectionReason.BAD_IMAGE, "a JPEG that is cut off"),
    ],
)
def test_bad_image_costs_its_sector_and_is_named(bad, kind, words):
    source = panoramas(still())
    found = source.panorama(images(front=(500, POST), left=(500, bad)))
    assert isinstance(found, CameraImage)
    assert words in source.state.faults["left"]
    assert source.state.kinds == {"left": kind}
    assert not found.seen[WIDTH // 4, WIDTH // 4]  # 90° to the left
    assert found.seen[WIDTH // 4, WIDTH // 2]


def test_no_usable_camera_is_a_rejection_with_every_reason():
    source = panoramas(still())
    black = np.zeros((120, 160, 3), np.uint8)
    mixed = source.panorama(images(missing={"left": "no image for 2.0 s"}, front=(500, black)))
    assert isinstance(mixed, Rejection)
    assert mixed.reason is RejectionReason.BAD_IMAGE
    assert "front: black" in mixed.detail
    assert "left: no image for 2.0 s" in mixed.detail
    night = source.panorama(images(front=(500, black), left=(500, black)))
    assert night.reason is RejectionReason.BLACK_IMAGE


def test_frozen_camera_is_left_out_and_image_in_two_sets_is_not_frozen():
    rng = np.random.default_rng(0)
    source = panoramas(still(), frozen_repeats=3)
    stuck = rng.integers(30, 200, (120, 160, 3), np.uint8)
    faults = []
    for i in range(6):
        live = rng.integers(30, 200, (120, 160, 3), np.uint8)
        source.panorama(images(at_ms=100 * i, front=(100 * i, live), left=(100 * i, stuck)))
        faults.append(source.state.faults.get("left", ""))
    assert [bool(fault) for fault in faults] == [False, False, False, True, True, True]
    assert faults[3] == "frozen, same pixels 4 times in a row, limit 3; restart the camera"
    slow = panoramas(still(), frozen_repeats=3)
    for i in range(12):  # a camera of a quarter of the rate
        live = np.random.default_rng(i // 4).integers(30, 200, (120, 160, 3), np.uint8)
        slow.panorama(images(at_ms=100 * i, front=(100 * i, stuck + i), left=(400 * (i // 4), live)))
        assert slow.state.faults == {}


def test_two_circles_of_one_image_are_two_cameras():
    left, right = (FisheyeCircle(240, 120, x, 59.5, 58.0, math.radians(190)) for x in (59.5, 179.5))
    rig = Rig((camera("front", 0.0, left), camera("back", 180.0, right)))
    pixels = np.full((120, 240, 3), 60, np.uint8)
    pixels[:, 120:] = 180
    found = panoramas(still(), rig, {"dual": ("front", "back")}).panorama(images(dual=(500, pixels)))
    assert found.seen is None
    assert found.pixels[WIDTH // 4, 0, 1] > found.pixels[WIDTH // 4, WIDTH // 2, 1]


def test_black_circle_of_one_image_costs_its_own_sector_alone():
    left, right = (FisheyeCircle(240, 120, x, 59.5, 58.0, math.radians(190)) for x in (59.5, 179.5))
    rig = Rig((camera("front", 0.0, left), camera("back", 180.0, right)))
    pixels = np.full((120, 240, 3), 60, np.uint8)
    pixels[:, 120:] = 0
    source = panoramas(still(), rig, {"dual": ("front", "back")})
    found = source.panorama(images(dual=(500, pixels)))
    assert source.state.kinds == {"back": RejectionReason.BLACK_IMAGE}
    assert found.seen[WIDTH // 4, WIDTH // 2]
    assert not found.seen[WIDTH // 4, 0]


def test_night_image_lit_in_one_corner_is_not_black():
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[:60, :80] = 20
    source = panoramas(still())
    source.panorama(images(front=(500, POST), left=(500, pixels)))
    assert source.state.faults == {}


def test_two_images_are_decoded_at_the_same_time_and_stay_their_cameras():
    """Each waits for another one in the middle of its decoding: one after the other, the first would wait in vain."""
    together = threading.Barrier(2, timeout=10)

    def decode(image, least_width):
        together.wait()
        return decoded(image, least_width)

    sources = {c.name: (c.name,) for c in RIG.cameras}
    source = RigPanoramas(RIG, sources, WIDTH, still(), SessionConfig(), 8.0, decode)
    found = source.panorama(images(front=(500, POST), left=(500, GREY)))
    expected = panoramas(still()).panorama(images(front=(500, POST), left=(500, GREY)))
    assert source.state.faults == {}
    np.testing.assert_array_equal(found.pixels, expected.pixels)


def test_threads_that_decode_end_with_the_composer():
    """A node that is configured a hundred times keeps no threads of the ninety-nine times before."""
    before = set(threading.enumerate())
    source = panoramas(still())
    source.panorama(images(front=(500, POST), left=(500, GREY)))
    started = set(threading.enumerate()) - before
    assert {thread.name.split("_")[0] for thread in started} == {"decoder"}
    del source
    gc.collect()
    for thread in started:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started)
