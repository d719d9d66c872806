"""Cameras that are not mounted as configured: the alternatives undo it, and a session says so and gives no fix."""

from __future__ import annotations

import math
from typing import Callable

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from unifygeo_ros.core.records import CameraImage, Fix, Heading, HeadingSource, Query, Rejection, RejectionReason
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.camera_alternatives import ALTERNATIVES, CONFIGURED, CameraWatch
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.panorama import prepare_panorama
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.single import SingleImageSession

GROUND = GroundSpec(64, 128, math.pi / 2, -math.pi / 2, 8)
FEEDS: dict[str, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    "mirrored": lambda p: p[:, ::-1],
    "turned by 180°": lambda p: np.roll(p, p.shape[1] // 2, axis=1),
    # The middle column then shows what was a quarter to its left.
    "turned by 90° to the left": lambda p: np.roll(p, p.shape[1] // 4, axis=1),
    "turned by 90° to the right": lambda p: np.roll(p, -p.shape[1] // 4, axis=1),
    "upside down": lambda p: p[::-1, ::-1],
}


@pytest.mark.parametrize("mount", [CameraMount(), CameraMount(yaw_rad=2.5), CameraMount(upside_down=True)])
@pytest.mark.parametrize("words", FEEDS)
def test_alternative_makes_a_wrong_feed_right(words: str, mount: CameraMount) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    pixels = np.asarray(cv2.resize(noise, (256, 128)), np.uint8)
    heading = Heading(0.7, 1e-4, HeadingSource.IMU)
    fed = CameraImage(np.ascontiguousarray(FEEDS[words](pixels)), 1)
    if mount.upside_down and "90°" in words:  # the left of a camera that hangs is on the vehicle's right
        words = words.replace("left", "right") if "left" in words else words.replace("right", "left")
    (alternative,) = (a for a in ALTERNATIVES if a.words == words)
    expected = prepare_panorama(CameraImage(pixels, 1), GROUND, mount, heading).pixels.astype(int)
    wrong = prepare_panorama(fed, GROUND, mount, heading).pixels.astype(int)
    made = prepare_panorama(*reordered(alternative.applied(fed, mount)), heading).pixels.astype(int)
    assert np.abs(made - expected).mean() < 1.0
    assert np.abs(wrong - expected).mean() > 10.0


def reordered(applied: tuple[CameraImage, CameraMount]) -> tuple[CameraImage, GroundSpec, CameraMount]:
    image, mount = applied
    return image, GROUND, mount


@pytest.mark.parametrize(("words", "pitch_rad"), [("pitched down by about 10°", 10), ("pitched up by about 10°", -10)])
def test_pitched_alternative_is_positive_downwards(words: str, pitch_rad: float) -> None:
    (alternative,) = (a for a in ALTERNATIVES if a.words == words)
    _, mount = alternative.applied(CameraImage(np.zeros((8, 16, 3), np.uint8), 1), CameraMount(pitch_rad=0.1))
    assert mount.pitch_rad == pytest.approx(0.1 + math.radians(pitch_rad))


def scores(best: str, by: float = 0.2) -> dict[str, float]:
    made = dict.fromkeys([CONFIGURED, *(a.words for a in ALTERNATIVES)], 1.0)
    return {**made, best: 1.0 + by}


def test_watch_needs_six_images_and_a_majority() -> None:
    watch = CameraWatch(10)
    for _ in range(5):
        assert watch.compared(scores("mirrored")) == "mirrored"
    assert (watch.verdict, watch.warning) == (None, None)
    watch.compared(scores("mirrored"))
    assert watch.verdict == "mirrored"
    assert watch.warning is not None
    assert "look mirrored: 6 of 6" in watch.warning
    for _ in range(6):
        watch.compared(scores(CONFIGURED))
    assert watch.verdict is None
    watch.compared(scores(CONFIGURED))
    assert watch.verdict == CONFIGURED
    assert watch.warning is None


def test_watch_takes_alternatives_that_fit_as_well_for_no_contradiction() -> None:
    watch = CameraWatch(10)
    for _ in range(6):
        assert watch.compared(scores("upside down", by=0.04)) is None
    assert watch.verdict == CONFIGURED
    assert watch.compared(scores("upside down", by=0.06)) == "upside down"


def test_watch_compares_the_first_images_then_one_in_ten() -> None:
    watch = CameraWatch(10)
    for _ in range(6):
        watch.compared(scores(CONFIGURED))
    assert [number for number in range(1, 41) if watch.due(fixed=True)] == [*range(1, 11), 20, 30, 40]
    assert not CameraWatch(0).due(fixed=True)
    unconfirmed = CameraWatch(10)
    assert [number for number in range(1, 31) if unconfirmed.due(fixed=number == 25)] == [*range(1, 11), 20, 25, 30]


class Fits:
    """A localizer that always gives a fix, and whose camera fits as it is told."""

    def __init__(self, fits: Callable[[int], dict[str, float]]) -> None:
        self.config, self.mount = LocalizerConfig(), CameraMount()
        self.fits, self.compared = fits, 0

    def observe(self, image: CameraImage, query: Query) -> CameraImage:
        return image

    def decide(self, image: CameraImage, query: Query) -> Fix:
        return Fix(image.stamp_ns, 1.0, 2.0, 48.0, 9.0, np.eye(2), 0.0, 0.01, 3, 1.0, 0.0, ())

    def camera_fits(self, image: CameraImage, heading: Heading) -> dict[str, float]:
        self.compared += 1
        return self.fits(self.compared)


def located(fits: Callable[[int], dict[str, float]], images: int = 30, source: str = "constant"):  # type: ignore[no-untyped-def]
    localizer = Fits(fits)
    session = SingleImageSession(localizer, SessionConfig(heading_source=source), MotionNoise())  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    made = [CameraImage(rng.integers(0, 256, (32, 64, 3), np.uint8), (n + 1) * 10**9) for n in range(images)]
    return [session.locate(image) for image in made], session, localizer, made


def test_session_with_a_mirrored_camera_gives_no_fix_and_says_why() -> None:
    outcomes, session, localizer, images = located(lambda n: scores("mirrored"))
    for outcome in outcomes:
        assert isinstance(outcome.result, Rejection)
        assert outcome.result.reason is RejectionReason.CAMERA_MISMATCH
    assert outcomes[4].warnings == ()
    assert "look mirrored" in outcomes[-1].warnings[0]
    assert "look mirrored" in outcomes[-1].result.detail
    again = SingleImageSession(localizer, SessionConfig(heading_source="constant"), MotionNoise())  # type: ignore[arg-type]
    for image, outcome in zip(images, outcomes, strict=True):
        again.recall(image, outcome.result)
    assert again.status().warnings == session.status().warnings


def test_session_with_the_right_camera_loses_only_images_that_contradict() -> None:
    outcomes, _, localizer, _ = located(lambda n: scores("turned by 180°" if n == 3 else CONFIGURED))
    lost = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome.result, Fix)]
    assert lost == [2]
    assert "better turned by 180° (1.20) than as configured (1.00)" in outcomes[2].result.detail
    assert localizer.compared == 12  # the first ten, 20 and 30
    assert outcomes[-1].warnings == ()


def test_session_without_a_heading_compares_nothing() -> None:
    _, _, localizer, _ = located(lambda n: scores("mirrored"), source="none")
    assert localizer.compared == 0
