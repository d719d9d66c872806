"""Pairing of several cameras' images, with simulated deliveries: stamps, times of arrival, and what goes wrong."""

import itertools

import pytest

from unifygeo_ros.rig.config import RigConfig
from unifygeo_ros.rig.pairing import ImageSet, Pairing

RULES = RigConfig(window_s=0.1, wait_s=0.15)
START_S = 1000.0
SIX = ("front", "left", "right", "back", "back_left", "back_right")


def ns(seconds):
    return round(seconds * 1e9)


def deliveries(source, *, rate_hz=10.0, offset_s=0.0, delay_s=0.02, until_s=5.0, since_s=0.0, clock_s=START_S):
    """(time of arrival, source, stamp) of a camera that exposes at `offset_s` after each tick."""
    count = int((until_s - since_s) * rate_hz + 1e-6)
    times = [since_s + i / rate_hz + offset_s for i in range(count)]
    return [(t + delay_s, source, ns(t + clock_s)) for t in times]


def paired(pairing, *streams, step_s=0.01):
    """The sets with the time at which each was finished: (now, set). Polled as the node's timer does."""
    events = sorted(itertools.chain(*streams))
    found, polled_s = [], events[0][0]
    for arrival_s, source, stamp_ns in events:
        while polled_s < arrival_s:
            found += [(polled_s, s) for s in pairing.poll(polled_s)]
            polled_s += step_s
        found += [(arrival_s, s) for s in pairing.add(source, stamp_ns, arrival_s, (source, stamp_ns))]
    end_s = events[-1][0] + 1.0
    return found + [(end_s, s) for s in pairing.poll(end_s)]


def seconds(image_set: ImageSet) -> dict[str, float]:
    return {name: round(image.stamp_ns / 1e9 - START_S, 3) for name, image in image_set.images.items()}


def settled(found, since_s=1.5, until_s=4.5):
    """Sets away from the drive's start and end."""
    return [(t, s) for t, s in found if since_s <= s.stamp_ns / 1e9 - START_S <= until_s]


def test_pairing_of_cameras_that_fire_in_turn_is_at_the_first_stamp():
    offsets = (0.040, 0.0, 0.016, 0.032, 0.065, 0.081)  # PandaSet's six cameras fire over 81 ms
    found = paired(Pairing(SIX, RULES), *(deliveries(n, offset_s=o) for n, o in zip(SIX, offsets, strict=True)))
    assert len(found) == 50
    for finished_s, image_set in settled(found):
        stamps, stamp_s = seconds(image_set), image_set.stamp_ns / 1e9 - START_S
        assert not image_set.missing
        assert stamps == pytest.approx({n: stamp_s - 0.040 + o for n, o in zip(SIX, offsets, strict=True)}, abs=2e-3)
        assert finished_s - stamp_s < 0.07  # the last one of the round arrives after 61 ms


def test_images_handed_in_are_handed_out():
    found = paired(Pairing(SIX, RULES), *(deliveries(name) for name in SIX))
    assert all(image.image == (name, image.stamp_ns) for _, s in found for name, image in s.images.items())


def test_camera_that_is_unplugged_costs_its_sector_and_delays_few_sets():
    streams = [deliveries(n, until_s=2.0 if n == "left" else 5.0) for n in SIX]
    found = paired(Pairing(SIX, RULES), *streams)
    after = settled(found, 2.05)
    assert len(found) == 50
    assert all(set(s.images) == set(SIX) - {"left"} for _, s in after)
    assert after[0][1].missing["left"].startswith("no image in time")
    assert after[-1][1].missing["left"] == "no image for 2.6 s"
    waits = [t - (s.stamp_ns / 1e9 - START_S) for t, s in after]
    assert max(waits) < 0.02 + RULES.wait_s + 0.011
    assert sum(wait > 0.03 for wait in waits) <= 3


@pytest.mark.parametrize("offset_s", [0.0, 0.013, 0.045, -0.045])
@pytest.mark.parametrize("lost", [{20}, {20, 21}, {20, 22, 24}, {20, 21, 22, 23}])
def test_lost_images_of_the_pacing_camera_cost_its_sector_and_no_set(offset_s, lost):
    """Without the other cameras' image in its place there would be no set, and no fix, at these times."""
    streams = [deliveries(name, offset_s=offset_s * (i > 0) + 0.001 * i) for i, name in enumerate(SIX)]
    rules = RigConfig(window_s=0.06, wait_s=0.15)  # the image before or after it is too far away
    whole = paired(Pairing(SIX, rules), *streams)
    found = paired(Pairing(SIX, rules), [d for i, d in enumerate(streams[0]) if i not in lost], *streams[1:])
    assert len(found) == len(whole) == 50
    # When it comes back after several, another camera paces, and does not wait for it at once.
    without = lost | ({max(lost) + 1} if len(lost) > 1 else set())
    for i, (_, image_set) in enumerate(found):
        assert set(image_set.missing) <= ({"front"} if i in without else set()), i  # none, where the next one is near
        assert image_set.stamp_ns / 1e9 - START_S == pytest.approx(0.1 * i, abs=0.051)


def test_image_of_the_pacing_camera_that_is_late_joins_the_set_that_was_opened_without_it():
    streams = [deliveries(name, offset_s=0.001 * i) for i, name in enumerate(SIX)]
    late = [(t + 0.07 * (i == 20), *rest) for i, (t, *rest) in enumerate(streams[0])]
    found = paired(Pairing(SIX, RULES), late, *streams[1:])
    assert len(found) == 50
    assert not any(s.missing for _, s in found)


def test_pairing_changes_its_pacing_camera_when_that_one_dies():
    streams = [deliveries(n, until_s=2.0 if n == "front" else 5.0, offset_s=0.01 * i) for i, n in enumerate(SIX)]
    pairing = Pairing(SIX, RULES)
    stamps = [s.stamp_ns / 1e9 - START_S for _, s in paired(pairing, *streams)]
    gaps = [b - a for a, b in itertools.pairwise(stamps)]
    assert max(gaps) < 0.45
    assert sum(gap > 0.11 for gap in gaps) == 1
    assert stamps[-1] > 4.85
    assert set(pairing.problems(5.02)) == {"front"}


def test_camera_that_comes_back_takes_part_and_paces_again():
    streams = [deliveries(n) for n in SIX if n != "front"]
    streams += [deliveries("front", until_s=1.0), deliveries("front", since_s=3.0)]
    found = paired(Pairing(SIX, RULES), *streams)
    late = settled(found, 3.15)
    assert all(not s.missing for _, s in late)
    assert all(b[1].stamp_ns > a[1].stamp_ns for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("rate_hz", [30.0, 7.0])
def test_camera_of_another_rate_gives_its_nearest_image(rate_hz):
    found = paired(Pairing(SIX, RULES), *(deliveries(n, rate_hz=rate_hz if n == "left" else 10.0) for n in SIX))
    after = settled(found)
    assert len(after) >= 29
    for finished_s, image_set in after:
        stamp_s = image_set.stamp_ns / 1e9 - START_S
        nearest = round(stamp_s * rate_hz) / rate_hz
        assert abs(seconds(image_set)["left"] - stamp_s) <= abs(nearest - stamp_s) + 2e-3
        assert finished_s - stamp_s < 0.02 + 0.5 / rate_hz + 0.011


def test_pairing_with_a_slow_camera_delays_no_set():
    found = settled(paired(Pairing(SIX, RULES), *(deliveries(n, rate_hz=2.0 if n == "left" else 10.0) for n in SIX)))
    with_left = [s for _, s in found if "left" in s.images]
    assert len(found) == 31
    # Its image serves the set of its stamp, and those 0.1 s before and after it.
    assert all(abs(seconds(s)["left"] - (s.stamp_ns / 1e9 - START_S)) <= 0.1001 for s in with_left)
    assert 15 <= len(with_left) <= 20
    assert sum(t - (s.stamp_ns / 1e9 - START_S) > 0.03 for t, s in found) <= 8


def test_camera_that_arrives_later_than_the_wait_costs_its_sector_only():
    streams = [deliveries(n, delay_s=0.6 if n == "back" else 0.02) for n in SIX]
    found = settled(paired(Pairing(SIX, RULES), *streams))
    assert len(found) == 31
    assert all(set(s.images) == set(SIX) - {"back"} for _, s in found)
    assert all("no image in time" in s.missing["back"] for _, s in found)
    assert all(t - (s.stamp_ns / 1e9 - START_S) < 0.05 for t, s in found)


def test_pacing_camera_with_slow_transport_still_finds_the_others_images():
    streams = [deliveries(n, delay_s=0.2 if n == "front" else 0.02) for n in SIX]
    found = settled(paired(Pairing(SIX, RULES), *streams))
    assert len(found) == 31
    assert all(not s.missing for _, s in found)


def test_all_cameras_dead_give_no_set_and_a_reason_each():
    pairing = Pairing(SIX, RULES)
    found = paired(pairing, *(deliveries(n, until_s=1.0) for n in SIX))
    assert len(found) == 10
    assert pairing.poll(60.0) == []
    assert pairing.problems(60.0) == dict.fromkeys(SIX, "no image for 59.1 s")


def test_before_the_first_message_nothing_is_wrong_and_nothing_is_paired():
    pairing = Pairing(SIX, RULES)
    assert pairing.poll(5.0) == []
    assert pairing.problems(5.0) == {}
    assert pairing.flush(6.0) == []


def test_pairing_waits_for_the_first_messages_at_most_its_limit():
    pairing = Pairing(("front", "left"), RULES)
    assert pairing.add("front", ns(START_S), 0.0, None) == []
    assert pairing.poll(0.149) == []
    (alone,) = pairing.poll(0.15)
    assert set(alone.images) == {"front"}
    assert alone.missing == {"left": "no image in time"}
    assert pairing.add("front", ns(START_S + 0.1), 0.2, None) == []
    (both,) = pairing.add("left", ns(START_S + 0.11), 0.21, None)
    assert set(both.images) == {"front", "left"}


def test_camera_that_never_sends_is_not_waited_for_after_a_second():
    found = paired(Pairing(("front", "left"), RULES), deliveries("front"))
    early, late = found[3], found[30]
    assert early[1].missing == {"left": "no image in time"}
    assert late[1].missing == {"left": "no image yet"}
    assert late[0] - (late[1].stamp_ns / 1e9 - START_S) < 0.03


def test_images_with_bad_stamps_are_counted_and_not_used():
    pairing = Pairing(("front", "left"), RULES)
    for stamp_s, arrival_s in ((0.0, 0.0), (0.2, 0.2), (0.1, 0.21), (0.2, 0.22)):
        pairing.add("left", ns(START_S + stamp_s), arrival_s, stamp_s)
    pairing.add("left", 0, 0.23, "unstamped")
    (found,) = pairing.add("front", ns(START_S + 0.11), 0.24, None)
    assert found.images["left"].image == 0.2
    assert pairing.refused == {"front": 0, "left": 3}


def test_camera_without_stamps_is_named():
    pairing = Pairing(("front", "left"), RULES)
    pairing.add("left", 0, 0.0, None)
    pairing.add("front", ns(START_S), 0.1, None)
    assert pairing.problems(0.2) == {"left": "its images bring no stamp"}


@pytest.mark.parametrize("ahead_s", [37.0, -3600.0])
@pytest.mark.parametrize("astray", ["front", "back"])
def test_camera_of_another_clock_is_named_and_costs_its_sector_only(astray, ahead_s):
    streams = [deliveries(n, clock_s=START_S + 4000.0 + (ahead_s if n == astray else 0.0)) for n in SIX]
    pairing = Pairing(SIX, RULES)
    found = paired(pairing, *streams)
    late = [s for _, s in found][12:]
    assert len(late) >= 35
    assert all(set(s.images) == set(SIX) - {astray} for s in late)
    side = "ahead of" if ahead_s > 0 else "behind"
    assert late[-1].missing[astray] == f"its stamps are {abs(ahead_s):.1f} s {side} the other cameras'"


@pytest.mark.parametrize("jump_s", [-300.0, 500.0])
def test_pairing_goes_on_after_the_clock_of_all_cameras_jumped(jump_s):
    before = [deliveries(n, until_s=2.0, offset_s=0.01 * i) for i, n in enumerate(SIX)]
    after = [deliveries(n, since_s=2.0, offset_s=0.01 * i, clock_s=START_S + jump_s) for i, n in enumerate(SIX)]
    sets = [s for _, s in paired(Pairing(SIX, RULES), *before, *after)]
    jumped = [s for s in sets if abs(s.stamp_ns / 1e9 - START_S - jump_s - 3.5) < 1.3]
    assert len(jumped) >= 24
    assert all(not s.missing for s in jumped)
    assert len(sets) >= 45


def test_one_cameras_clock_is_set_back_and_the_others_go_on():
    streams = [deliveries(n) for n in SIX if n != "left"]
    streams += [deliveries("left", until_s=2.0), deliveries("left", since_s=2.0, clock_s=0.5)]
    sets = [s for _, s in paired(Pairing(SIX, RULES), *streams)]
    assert len(sets) == 50
    assert sets[-1].missing["left"].startswith("its stamps are 999.5 s behind")


def test_images_are_not_hoarded():
    pairing = Pairing(SIX, RULES)
    paired(pairing, *(deliveries(n, rate_hz=30.0, delay_s=0.3 if n == "front" else 0.02) for n in SIX))
    assert max(len(record.held) for record in pairing._sources.values()) <= 16


def test_flush_gives_the_sets_that_wait():
    pairing = Pairing(("front", "left"), RULES)
    pairing.add("front", ns(START_S), 0.0, None)
    (last,) = pairing.flush(0.01)
    assert set(last.images) == {"front"}


def test_reset_forgets_images_and_clocks():
    pairing = Pairing(("front", "left"), RULES)
    pairing.add("left", ns(START_S), 0.0, "old")
    pairing.reset()
    assert pairing.problems(100.0) == {}
    pairing.add("front", ns(START_S), 0.05, None)
    (found,) = pairing.poll(0.3)
    assert set(found.images) == {"front"}
