"""~/track: the line of the fixes and the outcome in words, as RViz draws them."""

import numpy as np
import pytest

pytest.importorskip("rclpy")

from visualization_msgs.msg import Marker

from unifygeo_ros.core.records import Fix, Rejection, RejectionReason
from unifygeo_ros.ros.track_markers import KEPT, TrackMarkers


def fix(east_m, north_m=0.0):
    return Fix(1, np.float64(east_m), north_m, 48.0, 9.0, np.diag([0.25, 1.0]), 0.0, 0.01, 0, 1.0, 0.01, ())


LOST = Rejection(2, RejectionReason.LOST, "60% of the belief left the track")


def shown(track):
    line, words = track.message().markers
    assert (line.ns, line.id, words.ns, words.id) == ("track", 0, "track", 1)
    assert {marker.header.frame_id for marker in (line, words)} == {"map"}
    return line, words


def test_line_connects_fixes_that_are_some_metres_apart_and_not_places_far_away():
    track = TrackMarkers("map")
    for east_m in (0.0, 1.0, 2.5, 5.0, 500.0, 503.0):
        track.see(fix(east_m))
    line, _ = shown(track)
    assert (line.type, line.action) == (Marker.LINE_LIST, Marker.ADD)
    assert [point.x for point in line.points] == [0.0, 2.5, 2.5, 5.0, 500.0, 503.0]
    assert line.scale.x > 0
    assert line.color.a == line.pose.orientation.w == 1.0


def test_words_stand_at_the_last_fix_and_say_why_there_is_none_now():
    track = TrackMarkers("map")
    track.see(LOST)
    line, words = shown(track)
    assert line.action == words.action == Marker.DELETE  # nowhere to show it yet
    track.see(fix(10.0, 20.0))
    _, words = shown(track)
    assert (words.type, words.action) == (Marker.TEXT_VIEW_FACING, Marker.ADD)
    assert words.text.startswith("fix")
    fixed = words.color
    track.see(LOST)
    _, words = shown(track)
    assert words.text == "lost: 60% of the belief left the track"
    assert words.pose.position.x == 10.0
    assert 20.0 < words.pose.position.y < 30.0
    assert words.color != fixed
    assert words.scale.z > 0


def test_track_of_a_long_drive_is_bounded_and_a_new_drive_begins_empty():
    track = TrackMarkers("map")
    for number in range(3 * KEPT):
        track.see(fix(3.0 * number))
    line, _ = shown(track)
    assert len(line.points) == 2 * (KEPT - 1)
    assert line.points[-1].x == 3.0 * (3 * KEPT - 1)
    track.clear()
    line, words = shown(track)
    assert line.action == words.action == Marker.DELETE
