"""The verdict on each source of motion: what a user reads when one is silent, late, refused or in the wrong frame."""

import pytest

from unifygeo_ros.parameters.settings import Settings, with_values
from unifygeo_ros.ros.sources import IMU, MAP_ODOMETRY, ODOMETRY, SourceWatch, TimeRules, configured_sources

RULES = TimeRules(extrapolation_s=0.2, gap_s=0.5, age_s=30.0)
START_S = 100.0
EPOCH_NS = 1_700_000_000_000_000_000


def watch_of(rules=RULES, **parameters):
    settings = with_values(Settings(), {name.replace("__", "."): value for name, value in parameters.items()})
    return SourceWatch(configured_sources(settings, "/imu", "/odometry"), rules, START_S)


def drive(watch, source, *, seconds=6.0, rate=50.0, delay_s=0.0, clock_s=0.0, refusal=None):
    """Samples and images of ten a second, each image localized as it arrives. Returns the time reached."""
    steps = round(seconds * rate)
    for step in range(steps):
        now_s = START_S + (step + 1) / rate
        exposed_ns = EPOCH_NS + round((now_s - START_S) * 1e9)
        watch.heard(source, exposed_ns - round((delay_s + clock_s) * 1e9), now_s, refusal)
        if step % round(max(rate / 10, 1)) == 0:
            watch.image(exposed_ns)
    return START_S + seconds


SINGLE = {"session__mode": "single"}


def problems(watch, now_s, publishers=None):
    return [report.problem for report in watch.reports(now_s, publishers or {}) if report.problem]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, {IMU: False, ODOMETRY: True}),
        ({"session__heading_source": "imu"}, {IMU: True, ODOMETRY: True}),
        ({**SINGLE, "session__use_tilt": False}, {}),
        (SINGLE, {IMU: False}),
        ({**SINGLE, "session__prior_source": "last_fix"}, {IMU: False, ODOMETRY: False}),
        ({**SINGLE, "session__prior_source": "odometry"}, {IMU: False, MAP_ODOMETRY: True}),
        ({**SINGLE, "session__heading_source": "odometry"}, {IMU: False, MAP_ODOMETRY: True}),
    ],
)
def test_settings_say_which_sources_are_required(parameters, expected):
    assert {source.name: source.required for source in watch_of(**parameters).sources} == expected


def test_silent_source_is_reported_with_topic_and_consequence():
    watch = watch_of(session__heading_source="imu")
    assert problems(watch, START_S + 0.5) == []
    assert problems(watch, START_S + 1.0, {"/imu": 0, "/odometry": 2}) == [
        "no imu since activation on /imu (no publisher): the heading is searched",
        "no odometry since activation on /odometry (2 publishers): motion is guessed from odometry.speed_m_s",
    ]


def test_optional_source_may_be_silent():
    assert problems(watch_of(**SINGLE), START_S + 60.0) == []


def test_good_source_has_a_rate_an_age_and_no_problem():
    watch = watch_of(**SINGLE, session__heading_source="imu")
    now_s = drive(watch, IMU, delay_s=0.03)
    (report,) = watch.reports(now_s, {})
    assert report.problem == ""
    assert report.rate_hz == pytest.approx(50.0, rel=0.01)
    assert report.age_s == pytest.approx(0.03)


def test_late_source_is_reported_with_its_age_and_the_limit():
    watch = watch_of()
    now_s = drive(watch, ODOMETRY, delay_s=0.51)
    assert problems(watch, now_s) == [
        "newest odometry is 0.51 s older than the image, extrapolation_s is 0.2: motion is guessed from "
        "odometry.speed_m_s"
    ]


@pytest.mark.parametrize(("clock_s", "word"), [(1.7e9, "older"), (-3600.0, "newer")])
def test_source_by_another_clock_is_reported(clock_s, word):
    watch = watch_of(**SINGLE, session__heading_source="imu")
    (problem,) = problems(watch, drive(watch, IMU, clock_s=clock_s))
    assert f"s {word} than the image, check the clocks: the heading is searched" in problem


def test_image_delay_of_the_driver_counts():
    """An image stamped 0.25 s late was exposed when an odometry of that delay was measured."""
    rules = TimeRules(0.2, 0.5, 30.0, stamp_offset_ns=-250_000_000)
    watch = watch_of(rules)
    assert problems(watch, drive(watch, ODOMETRY, delay_s=0.3)) == []


def test_odometry_in_the_wrong_frame_is_not_called_silent():
    watch = watch_of(**SINGLE, session__heading_source="odometry")
    (problem,) = problems(watch, drive(watch, ODOMETRY))
    assert problem.startswith("no odometry in the frame 'map' since activation, only in another, on /odometry")
    watch = watch_of()
    (problem,) = problems(watch, drive(watch, MAP_ODOMETRY))
    assert problem.startswith("no odometry in a frame other than map_frame since activation")


def test_source_whose_every_message_is_refused_is_reported_with_the_reason():
    watch = watch_of(**SINGLE, session__heading_source="imu")
    assert problems(watch, drive(watch, IMU, refusal="no orientation")) == [
        "every imu message is refused, no orientation: the heading is searched"
    ]


def test_source_that_stops_is_reported_also_where_it_is_optional():
    for parameters in ({}, {"session__heading_source": "imu"}):
        watch = watch_of(**SINGLE, **parameters)
        now_s = drive(watch, IMU)
        (problem,) = problems(watch, now_s + 3.2)
        assert problem.startswith("no imu for 3.2 s on /imu")


def test_source_too_slow_to_interpolate_is_reported():
    watch = watch_of(**SINGLE, session__heading_source="imu")
    (problem,) = problems(watch, drive(watch, IMU, rate=1.0, seconds=12.0))
    assert problem.startswith("imu comes 1.0 times a second, sample_gap_s 0.5 needs 2")


def test_source_report_names_rejection_if_search_is_disabled():
    watch = watch_of(**SINGLE, session__heading_source="imu", localizer__heading_search=False)
    assert problems(watch, START_S + 2.0)[0].endswith(": every image is rejected")
