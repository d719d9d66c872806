"""Cameras that are not mounted as configured: the alternatives undo it, and a session says so and gives no fix."""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from unifygeo_ros.core.records import (
    ALL_SEEN,
    CameraImage,
    Fix,
    GroundFeatures,
    Heading,
    HeadingSource,
    Observation,
    Query,
    Rejection,
    RejectionReason,
    Seen,
)
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.camera_alternatives import ALTERNATIVES, CONFIGURED, Alternative, CameraWatch
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.panorama import prepare_panorama
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.sessions.single import SingleImageSession
from unifygeo_ros.tracking.track import TrackState, TrackStatus

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


WORDS = [alternative.words for alternative in ALTERNATIVES]


def played(watch: CameraWatch, differences: dict[str, float], images: int, otherwise: float = 0.2) -> list[list[str]]:
    """Feed images that fit the map better as configured by so much; `otherwise` where it is not said. Returns what
    each was compared with."""
    asked = []
    for _ in range(images):
        due = [alternative.words for alternative in watch.due()]
        if due:
            watch.compared({CONFIGURED: 1.0, **{words: 1.0 - differences.get(words, otherwise) for words in due}})
        asked.append(due)
    return asked


def test_watch_confirms_the_right_mount_after_two_images() -> None:
    watch = CameraWatch(5)
    assert not watch.confirmed
    asked = played(watch, {}, 1)
    assert not watch.confirmed
    assert watch.problem is not None
    assert "have not shown yet that the camera is mounted as configured" in watch.problem
    asked += played(watch, {}, 1)
    assert watch.confirmed
    assert (watch.problem, watch.warning, watch.verdict) == (None, None, None)
    assert asked == [WORDS, WORDS]
    # Then one image in five, with one alternative, each in its turn.
    later = played(watch, {}, 70)
    assert [number for number, words in enumerate(later, start=3) if words] == list(range(5, 73, 5))
    assert {words for image in later for words in image} == set(WORDS)
    assert max(map(len, later)) == 1


@pytest.mark.parametrize("words", WORDS)
def test_watch_names_what_fits_better_once_all_were_compared(words: str) -> None:
    watch = CameraWatch(5)
    # Another one fits better than as configured, too, though less.
    other = WORDS[(WORDS.index(words) + 1) % len(WORDS)]
    played(watch, {words: -0.25, other: -0.12}, 1)
    assert (watch.verdict, watch.warning) == (None, None)
    played(watch, {words: -0.25, other: -0.12}, 2)
    assert watch.verdict is not None
    assert watch.verdict.words == words
    assert watch.warning is not None
    assert watch.warning.startswith(f"the images look {words}: ")
    assert watch.problem == watch.warning
    assert not watch.confirmed


def test_watch_notices_a_mount_that_changes_on_the_way() -> None:
    watch = CameraWatch(5)
    played(watch, {}, 100)
    assert watch.confirmed
    played(watch, {"pitched up by about 10°": -0.3}, 75)  # at most 35 images until it is compared, then one in five
    assert watch.verdict is not None
    assert watch.verdict.words == "pitched up by about 10°"
    assert not watch.confirmed
    # Put right again: it must be confirmed as at the start of a drive.
    played(watch, {}, 2)
    assert not watch.confirmed
    played(watch, {}, 10)
    assert watch.confirmed


def test_watch_confirms_the_mount_for_a_network_that_hardly_notices_the_alternatives() -> None:
    watch = CameraWatch(5)
    played(watch, {}, 30, otherwise=0.0)
    assert watch.confirmed
    # Worse than the margin: never.
    doubtful = CameraWatch(5)
    played(doubtful, {"upside down": -0.03}, 300, otherwise=0.3)
    assert not doubtful.confirmed


def test_watch_counts_one_image_only_so_much() -> None:
    watch = CameraWatch(5)
    assert played(watch, {}, 1, otherwise=5.0) == [WORDS]
    assert not watch.confirmed
    played(watch, {}, 60, otherwise=0.2)
    watch.compared({CONFIGURED: 1.0, "mirrored": 6.0})
    assert watch.confirmed


def test_watch_that_is_off_asks_for_nothing_and_keeps_nothing_back() -> None:
    watch = CameraWatch(0)
    assert watch.due() == ()
    assert (watch.problem, watch.warning) == (None, None)


class Fits:
    """A localizer that always gives a fix, and whose camera fits as it is told."""

    def __init__(self, better: Callable[[int], str]) -> None:
        """better: for each image by its number, from 1, what fits best."""
        self.config, self.mount = LocalizerConfig(), CameraMount()
        self.better, self.encodings, self.seen = better, 0, ALL_SEEN

    def observe(self, image: CameraImage, query: Query) -> Observation:
        heading = query.heading or Heading(0.0, 0.01, HeadingSource.SEARCH)
        features = GroundFeatures(np.ones(3), (), {})
        return Observation(image.stamp_ns, None, (), heading, features, seen=self.seen)  # type: ignore[arg-type]

    def decide(self, observation: Observation, query: Query) -> Fix:
        return Fix(observation.stamp_ns, 1.0, 2.0, 48.0, 9.0, np.eye(2), 0.0, 0.01, 3, 1.0, 0.0, ())

    def camera_fits(
        self,
        image: CameraImage,
        heading: Heading,
        alternatives: Sequence[Alternative],
        configured: GroundFeatures | None,
    ) -> dict[str, float]:
        self.encodings += len(alternatives) + (configured is None)
        best = self.better(image.stamp_ns // 10**9)
        return {words: 1.2 if words == best else 1.0 for words in (CONFIGURED, *(a.words for a in alternatives))}


def located(  # type: ignore[no-untyped-def]
    better: Callable[[int], str], images: int = 30, source: str = "constant", azimuth: float = 1.0
):
    localizer = Fits(better)
    localizer.seen = Seen(azimuth=azimuth)
    session = SingleImageSession(localizer, SessionConfig(heading_source=source), MotionNoise())  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    made = [CameraImage(rng.integers(0, 256, (32, 64, 3), np.uint8), (n + 1) * 10**9) for n in range(images)]
    return [session.locate(image) for image in made], session, localizer, made


@pytest.mark.parametrize("words", ["mirrored", "turned by 180°"])
def test_session_with_a_wrong_camera_gives_no_fix_and_says_why(caplog: pytest.LogCaptureFixture, words: str) -> None:
    outcomes, session, localizer, images = located(lambda n: words)
    for outcome in outcomes:
        assert isinstance(outcome.result, Rejection)
        assert outcome.result.reason is RejectionReason.CAMERA_MISMATCH
    assert outcomes[0].warnings == ()
    assert f"look {words}" in outcomes[-1].warnings[0]
    assert f"look {words}" in outcomes[-1].result.detail
    assert len([record for record in caplog.records if f"look {words}" in record.message]) == 1
    again = SingleImageSession(localizer, SessionConfig(heading_source="constant"), MotionNoise())  # type: ignore[arg-type]
    for image, outcome in zip(images, outcomes, strict=True):
        again.recall(image, outcome.result)
    assert again.status().warnings == session.status().warnings


@pytest.mark.parametrize(("azimuth", "fixes"), [(0.59, True), (0.61, False)])
def test_images_that_show_half_of_the_surroundings_do_not_tell_how_the_camera_is_mounted(
    azimuth: float, fixes: bool
) -> None:
    outcomes, _, localizer, _ = located(lambda n: "mirrored", images=5, azimuth=azimuth)
    assert [isinstance(outcome.result, Fix) for outcome in outcomes] == [fixes] * 5
    assert (localizer.encodings == 0) == fixes


def test_wrong_camera_stays_wrong_when_the_images_show_less() -> None:
    """Half of a rig's cameras are unplugged after its images looked mirrored."""
    _, session, localizer, images = located(lambda n: "mirrored", images=9)
    localizer.seen = Seen(azimuth=0.5)
    encodings = localizer.encodings
    later = session.locate(dataclasses.replace(images[0], stamp_ns=10**11)).result
    assert isinstance(later, Rejection)
    assert later.reason is RejectionReason.CAMERA_MISMATCH
    assert "look mirrored" in later.detail
    assert localizer.encodings == encodings


def test_session_with_the_right_camera_loses_the_first_image_alone() -> None:
    outcomes, _, localizer, _ = located(lambda n: "turned by 180°" if n == 13 else CONFIGURED)
    assert [isinstance(outcome.result, Fix) for outcome in outcomes] == [False] + [True] * 29
    assert outcomes[-1].warnings == ()
    # Seven for each of the first two images, then one for each fifth; the image as configured is not encoded again.
    assert localizer.encodings == 2 * 7 + 6
    assert "camera_check" in outcomes[0].timings_ms
    assert "camera_check" not in outcomes[2].timings_ms


def test_session_without_a_heading_compares_nothing() -> None:
    outcomes, _, localizer, _ = located(lambda n: "mirrored", source="none")
    assert localizer.encodings == 0
    assert isinstance(outcomes[0].result, Fix)


def test_check_under_a_tracks_heading_begins_afresh_with_the_next_track_and_does_not_blame_the_camera() -> None:
    """A track, or a leading place, with a wrong heading makes a right camera look turned."""
    _, session, localizer, images = located(lambda n: "turned by 180°", images=9, source="none")

    def checked(image: CameraImage, state: TrackState, source: HeadingSource | None) -> Fix | Rejection:
        query = Query(heading=None if source is None else Heading(0.0, 0.01, source))
        status = TrackStatus(state, "", 1, 0.0, 1.0, 1, 1, None)
        observation = localizer.observe(image, query)
        made = Outcome(localizer.decide(observation, query), image, query, observation, status)
        return session._with_camera_checked(made).result

    own = HeadingSource.TRACK
    for image in images[:4]:
        result = checked(image, TrackState.TRACKING, own)
        assert isinstance(result, Rejection)
        assert result.reason is RejectionReason.CAMERA_MISMATCH
    assert session._camera_watch.verdict is not None
    assert session._warnings_now(SessionConfig()) == {}
    checked(images[4], TrackState.LOST, own)
    assert session._camera_watch.verdict is None
    # Images under the heading of a place that leads count for the track that it becomes, unless it is given up.
    localizer.better = lambda n: CONFIGURED
    checked(images[5], TrackState.AMBIGUOUS, own)
    checked(images[6], TrackState.AMBIGUOUS, None)
    assert isinstance(checked(images[7], TrackState.AMBIGUOUS, own), Rejection)
    assert isinstance(checked(images[8], TrackState.TRACKING, own), Fix)
