"""Cameras that are not mounted as configured: the alternatives undo it, and a session says so and gives no fix."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
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
    Prior,
    Query,
    Rejection,
    RejectionReason,
    Seen,
)
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.camera_alternatives import (
    ALTERNATIVES,
    CONFIGURED,
    CONFIRMED_BY_CHANCE,
    LARGEST,
    MARGIN,
    NAMED_BY_CHANCE,
    SETTLED,
    SHOW_A_PLACE,
    Alternative,
    CameraWatch,
)
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.panorama import FILL_RGB, prepare_panorama
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import OdometrySample
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


@pytest.mark.parametrize("words", ["mirrored", "upside down", "vertically stretched"])
def test_alternative_takes_the_body_mask_along(words: str, tmp_path: Path) -> None:
    """The mask is drawn over the images as they come: what is not seen stays with its pixels."""
    noise = np.random.default_rng(0).integers(50, 256, (16, 32, 3), np.uint8)
    pixels = np.asarray(cv2.resize(noise, (256, 128)), np.uint8)
    hidden = np.zeros((128, 256), bool)
    hidden[40:70, 30:90] = True
    mask_path = tmp_path / "mask.png"
    cv2.imwrite(str(mask_path), np.where(hidden, 0, 255).astype(np.uint8))
    marked = pixels.copy()
    marked[hidden] = 0  # nothing else is as dark
    (alternative,) = (a for a in ALTERNATIVES if a.words == words)
    masked = alternative.applied(CameraImage(pixels, 1), CameraMount(mask_path=str(mask_path)))
    drawn = alternative.applied(CameraImage(marked, 1), CameraMount())
    heading = Heading(0.7, 1e-4, HeadingSource.IMU)
    filled = (prepare_panorama(*reordered(masked), heading).pixels == FILL_RGB).all(axis=2)
    shown = prepare_panorama(*reordered(drawn), heading).pixels
    dark = shown.max(axis=2) < 10
    filled &= ~(shown == FILL_RGB).all(axis=2)  # beyond the image's elevations
    assert 0.02 < dark.mean() < 0.2
    assert filled[dark].mean() > 0.99
    assert filled.mean() < 1.6 * dark.mean()  # and the pixels at its edges


@pytest.mark.parametrize(("words", "pitch_rad"), [("pitched down by about 10°", 10), ("pitched up by about 10°", -10)])
def test_pitched_alternative_is_positive_downwards(words: str, pitch_rad: float) -> None:
    (alternative,) = (a for a in ALTERNATIVES if a.words == words)
    _, mount = alternative.applied(CameraImage(np.zeros((8, 16, 3), np.uint8), 1), CameraMount(pitch_rad=0.1))
    assert mount.pitch_rad == pytest.approx(0.1 + math.radians(pitch_rad))


SPHERE = CameraImage(np.zeros((8, 16, 3), np.uint8), 1)
WORDS = [alternative.words for alternative in ALTERNATIVES if alternative.possible(SPHERE, CameraMount())]


def test_field_alternative_makes_a_stretched_image_right() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 3), np.uint8)
    sphere = np.asarray(cv2.resize(noise, (288, 144)), np.uint8)
    belt = np.ascontiguousarray(sphere[24:-24])  # ±60°
    heading = Heading(0.7, 1e-4, HeadingSource.IMU)
    mount = CameraMount(elevation_top_rad=math.pi / 3, elevation_bottom_rad=-math.pi / 3)
    expected = prepare_panorama(CameraImage(belt, 1), GROUND, mount, heading).pixels.astype(int)
    stretched = CameraImage(np.asarray(cv2.resize(belt, (288, 144)), np.uint8), 1)
    (alternative,) = (a for a in ALTERNATIVES if a.words == "vertically stretched")
    made = prepare_panorama(*reordered(alternative.applied(stretched, CameraMount())), heading).pixels.astype(int)
    wrong = prepare_panorama(stretched, GROUND, CameraMount(), heading).pixels.astype(int)
    assert np.abs(made - expected).mean() < 6.0  # interpolated twice
    assert np.abs(wrong - expected).mean() > 25.0


@pytest.mark.parametrize(
    ("words", "degrees", "composed", "possible"),
    [
        ("vertically stretched", 90, False, True),
        ("vertically stretched", 40, False, True),
        ("vertically stretched", 90, True, False),
        ("vertically squeezed", 90, False, False),
        ("vertically squeezed", 61, False, False),
        ("vertically squeezed", 60, False, True),
        ("mirrored", 90, True, True),
    ],
)
def test_field_alternative_is_possible_within_the_sphere_and_for_one_camera(
    words: str, degrees: float, composed: bool, possible: bool
) -> None:
    image = dataclasses.replace(SPHERE, composed=composed)
    mount = CameraMount(elevation_top_rad=math.radians(degrees), elevation_bottom_rad=-math.radians(degrees) / 2)
    (alternative,) = (a for a in ALTERNATIVES if a.words == words)
    assert alternative.possible(image, mount) == possible


PLACE, NONE = 4.0, -4.0
"""Log odds of an image that shows a place on the map, and of one that shows none."""


def played(
    watch: CameraWatch, best: str = CONFIGURED, images: int = 1, new_share: float = 1.0, **odds: float
) -> list[list[str]]:
    """Feed images of which `best` shows its place. odds: of others, by their words. Returns what each was compared
    with."""
    asked = []
    for _ in range(images):
        due = [alternative.words for alternative in watch.due(SPHERE, CameraMount())]
        if due:
            found = {words: PLACE if words == best else NONE for words in (CONFIGURED, *due)}
            watch.compared(found | {k: v for k, v in odds.items() if k in found}, new_share)
        asked.append(due)
    return asked


def test_watch_confirms_the_right_mount_after_one_image_that_shows_its_place() -> None:
    watch = CameraWatch(5)
    assert not watch.confirmed
    assert played(watch) == [WORDS]
    assert watch.confirmed
    assert (watch.problem, watch.warning, watch.verdict) == (None, None, None)
    # The next image too, and then one image in five, with one alternative, each in its turn.
    assert played(watch) == [WORDS]
    later = played(watch, images=77)
    assert [number for number, words in enumerate(later, start=3) if words] == list(range(5, 80, 5))
    assert {words for image in later for words in image} == set(WORDS)
    assert max(map(len, later)) == 1


def test_watch_adds_up_log_likelihood_ratios_of_what_is_new() -> None:
    """Of odds 9 and 1/9, half of the images showing a place: ln(5 / 0.5556) = 2.197 an image."""
    watch, (words, *_) = CameraWatch(5), WORDS
    watch.due(SPHERE, CameraMount())
    for number in range(1, 4):
        watch.compared({CONFIGURED: math.log(9), words: -math.log(9)}, 0.4)
        assert watch._evidence[words] == pytest.approx(number * 0.4 * (math.log(9) + MARGIN))


def test_watch_learns_nothing_from_images_that_show_a_place_under_no_mount() -> None:
    """However much the odds differ: −9 is as good as −4."""
    watch = CameraWatch(5)
    played(watch, "no mount", images=10, **{CONFIGURED: -9.0})
    assert watch.verdict is None
    assert all(abs(evidence - 10 * MARGIN) < 0.25 for evidence in watch._evidence.values())


def test_watch_takes_images_of_one_place_for_one() -> None:
    watch = CameraWatch(5)
    played(watch, CONFIGURED, **{CONFIGURED: 1.0})
    assert not watch.confirmed
    played(watch, CONFIGURED, images=200, new_share=0.0, **{CONFIGURED: 1.0})
    assert not watch.confirmed
    played(watch, CONFIGURED, images=3, **{CONFIGURED: 1.0})
    assert watch.confirmed


def test_watch_confirms_a_wrong_mount_and_names_a_wrong_alternative_as_rarely_as_stated() -> None:
    """Wald's bounds, where the odds are what they say: ln r is N(±d²/2, d²) for images with and without a place."""
    rng = np.random.default_rng(5)
    spread = 1.5
    drives, images, words = 1500, 60, WORDS
    confirmed = named = right = 0
    for drive in range(drives):
        wrong, watch = drive % 2 == 1, CameraWatch(5)
        best = words[0] if wrong else CONFIGURED
        first = False
        for _ in range(images):
            due = watch.due(SPHERE, CameraMount())
            if watch.confirmed or watch.verdict is not None:
                break
            shows = rng.random() < SHOW_A_PLACE
            odds = {}
            for way in (CONFIGURED, *(a.words for a in due)):
                mean = spread**2 / 2 if shows and way == best else -(spread**2) / 2
                odds[way] = float(rng.normal(mean, spread))
            watch.compared(odds)
            first = first or watch.confirmed
        if wrong:
            confirmed += first
        else:
            named += watch.verdict is not None
            right += first
    assert confirmed / (drives / 2) < CONFIRMED_BY_CHANCE
    assert named / (drives / 2) < NAMED_BY_CHANCE
    assert right / (drives / 2) > 0.9


@pytest.mark.parametrize("words", WORDS)
def test_watch_names_what_fits_better_once_all_were_compared(words: str) -> None:
    watch = CameraWatch(5)
    # Another one fits better than as configured, too, though less.
    other = WORDS[(WORDS.index(words) + 1) % len(WORDS)]
    played(watch, words, **{other: 2.0})
    assert (watch.verdict, watch.warning) == (None, None)
    played(watch, words, images=2, **{other: 2.0})
    assert watch.verdict is not None
    assert watch.verdict.words == words
    assert watch.warning is not None
    assert watch.warning.startswith(f"the images look {words}: 3 of 3 ")
    assert watch.problem == watch.warning
    assert not watch.confirmed


def test_watch_notices_a_mount_that_changes_on_the_way() -> None:
    watch = CameraWatch(5)
    played(watch, images=100)
    assert watch.confirmed
    changed = "pitched up by about 10°"
    played(watch, changed, images=40 + 5 * 4)  # at most 40 images until it is compared, then one in five
    assert watch.verdict is not None
    assert watch.verdict.words == changed
    assert not watch.confirmed
    # Put right again: it must be confirmed as at the start of a drive.
    played(watch, images=2)
    assert not watch.confirmed
    played(watch, images=10)
    assert watch.confirmed


def test_watch_takes_back_a_mount_that_one_image_confirmed_by_chance_before_it_names_another() -> None:
    """A stretched camera whose first image looks right; compared one image in five, it had fixes for 300 m."""
    watch, words = CameraWatch(5), "vertically stretched"
    played(watch)
    assert watch.confirmed
    odds = {words: 2.0, CONFIGURED: NONE}  # −2.0 an image, from 4.1
    states = []
    for _ in range(6):
        assert words in played(watch, "none", **odds)[0]
        states.append((watch.confirmed, watch.verdict))
    assert [confirmed for confirmed, _ in states] == [True] * 3 + [False] * 3
    assert all(verdict is None for _, verdict in states[:4])
    played(watch, "none", **odds)
    assert watch.verdict is not None
    assert watch.verdict.words == words


def test_watch_confirms_the_mount_for_a_network_that_does_not_notice_the_alternatives() -> None:
    watch = CameraWatch(5)
    same = dict.fromkeys(WORDS, 1.0)
    played(watch, images=29, **same, **{CONFIGURED: 1.0})
    assert not watch.confirmed
    played(watch, images=2, **same, **{CONFIGURED: 1.0})
    assert watch.confirmed
    # Worse than the margin: never.
    doubtful = CameraWatch(5)
    played(doubtful, images=300, **{"upside down": PLACE + 0.2})
    assert not doubtful.confirmed


def test_watch_counts_one_image_only_so_much() -> None:
    watch = CameraWatch(5)
    played(watch, images=10)
    watch.compared({CONFIGURED: NONE, "mirrored": 50.0})
    assert watch.confirmed
    assert watch._evidence["mirrored"] == pytest.approx(SETTLED - LARGEST + MARGIN)


def test_watch_goes_on_with_the_alternatives_that_are_not_settled() -> None:
    watch = CameraWatch(5)
    asked = played(watch, images=3, **{"mirrored": PLACE})
    assert asked == [WORDS, WORDS, ["mirrored"]]


def test_watch_of_an_image_without_calibration_learns_nothing_beyond_its_own() -> None:
    """−∞: an upside-down image may lie beyond what the model knows."""
    watch = CameraWatch(5)
    played(watch, **dict.fromkeys(WORDS, -math.inf))
    assert watch.confirmed


def test_watch_that_is_off_asks_for_nothing_and_keeps_nothing_back() -> None:
    watch = CameraWatch(0)
    assert watch.due(SPHERE, CameraMount()) == ()
    assert (watch.problem, watch.warning) == (None, None)


class Fits:
    """A localizer that always gives a fix, and whose camera fits as it is told."""

    def __init__(self, better: Callable[[int], str]) -> None:
        """better: for each image by its number, from 1, what fits best."""
        self.config, self.mount = LocalizerConfig(), CameraMount()
        self.better, self.encodings, self.seen, self.place = better, 0, ALL_SEEN, PLACE

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
        prior: Prior | None,
    ) -> dict[str, float]:
        self.encodings += len(alternatives) + (configured is None)
        best = self.better(image.stamp_ns // 10**9)
        return {
            words: self.place if words == best else NONE for words in (CONFIGURED, *(a.words for a in alternatives))
        }


def located(  # type: ignore[no-untyped-def]
    better: Callable[[int], str], images: int = 30, source: str = "constant", azimuth: float = 1.0, place: float = PLACE
):
    localizer = Fits(better)
    localizer.seen, localizer.place = Seen(azimuth=azimuth), place
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


def test_session_with_the_right_camera_loses_no_image_that_shows_its_place_clearly() -> None:
    outcomes, _, _, _ = located(lambda n: CONFIGURED)
    assert all(isinstance(outcome.result, Fix) for outcome in outcomes)


def test_session_with_the_right_camera_takes_two_images_that_show_their_place_less_clearly() -> None:
    outcomes, _, localizer, _ = located(lambda n: "turned by 180°" if n == 13 else CONFIGURED, place=2.0)
    assert [isinstance(outcome.result, Fix) for outcome in outcomes] == [False] + [True] * 29
    assert outcomes[-1].warnings == ()
    # Eight for each of the first four images, then one for each fifth; the image as configured is not encoded again.
    assert localizer.encodings == 4 * 8 + 6
    assert "camera_check" in outcomes[0].timings_ms
    assert "camera_check" not in outcomes[5].timings_ms


def test_parked_vehicle_is_given_no_fix_until_it_has_shown_its_mount_elsewhere() -> None:
    session = SingleImageSession(
        made := Fits(lambda n: CONFIGURED),  # type: ignore[arg-type]
        SessionConfig(heading_source="constant", mode="single"),
        MotionNoise(),
    )
    made.place = 2.0
    rng = np.random.default_rng(1)
    fixes, encodings = [], []
    for second in range(12):
        for ms in range(second * 1000 + 200, second * 1000 + 1200, 100):
            session.add_odometry(OdometrySample(ms * 10**6, "odom", max(0.0, ms / 1e3 - 9.0) * 5.0, 0.0, 0.0))
        image = CameraImage(rng.integers(0, 256, (32, 64, 3), np.uint8), (second + 1) * 10**9 + 10**8)
        fixes.append(isinstance(session.locate(image).result, Fix))
        encodings.append(made.encodings)
    assert fixes == [False] * 9 + [True] * 3  # it drives from the ninth on, 5 m from image to image
    assert 0 < encodings[0] == encodings[7] < encodings[11]  # what is not new is not looked at again


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
        session._camera._uncompared_m += 100.0
        made = Outcome(localizer.decide(observation, query), image, query, observation, status)
        return session._camera.checked(made).result

    own = HeadingSource.TRACK
    for image in images[:4]:
        result = checked(image, TrackState.TRACKING, own)
        assert isinstance(result, Rejection)
        assert result.reason is RejectionReason.CAMERA_MISMATCH
    assert session._camera._watch.verdict is not None
    assert session._warnings_now(SessionConfig()) == {}
    checked(images[4], TrackState.LOST, own)
    assert session._camera._watch.verdict is None
    # Images under the heading of a place that leads count for the track that it becomes, unless it is given up.
    localizer.better, localizer.place = lambda n: CONFIGURED, 2.0
    checked(images[5], TrackState.AMBIGUOUS, own)
    checked(images[6], TrackState.AMBIGUOUS, None)
    assert isinstance(checked(images[7], TrackState.AMBIGUOUS, own), Rejection)
    assert isinstance(checked(images[8], TrackState.TRACKING, own), Fix)


@pytest.mark.parametrize(("composed", "remedy"), [(False, "add π to camera.yaw_rad"), (True, "mounts in the rig file")])
def test_remedy_of_a_rig_names_the_rig_file_since_the_cameras_parameters_do_not_act(
    composed: bool, remedy: str
) -> None:
    watch = CameraWatch(5)
    for _ in range(6):
        due = watch.due(dataclasses.replace(SPHERE, composed=composed), CameraMount())
        odds = {alternative.words: PLACE if alternative.words == "turned by 180°" else NONE for alternative in due}
        watch.compared({CONFIGURED: NONE, **odds})
    assert watch.warning is not None
    assert remedy in watch.warning
    assert ("camera.yaw_rad" in watch.warning) != composed
