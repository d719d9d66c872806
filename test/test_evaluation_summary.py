"""Numbers, comparison and report of made-up drives whose answers are known."""

import dataclasses
import errno
import json
import math
import os

import numpy as np
import pytest

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.files import write_text
from unifygeo_ros.core.records import Fix, Heading, HeadingSource, Hypothesis, Prior, Rejection, RejectionReason
from unifygeo_ros.evaluation.metrics.comparison import compare, to_json, to_text
from unifygeo_ros.evaluation.metrics.drive import dead_reckoning, gather
from unifygeo_ros.evaluation.metrics.results import FrameResult, RecordedQuery, SeenTiles, TileRanks, from_json
from unifygeo_ros.evaluation.metrics.results import to_json as frame_to_json
from unifygeo_ros.evaluation.metrics.summary import judge, read_summary, summarise
from unifygeo_ros.evaluation.recordings.truth import TruthPose
from unifygeo_ros.evaluation.report.drive_map import DriveMap, Extent
from unifygeo_ros.evaluation.report.figures import error_over_time
from unifygeo_ros.evaluation.report.page import cards, verdict, write_report
from unifygeo_ros.evaluation.settings import Criteria
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.tracking.config import TrackerConfig

EMPTY_MAP = DriveMap(Extent(0.0, 0.0, 10, 10, 1.0), "", (), 1.0, 1.0)
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
IDENTITY = {
    "bag": {"name": "drive", "fingerprint": "abc"},
    "topics": {"image": "/image", "truth": "/truth", "odometry": None, "imu": None},
    "truth": {"source": "/truth", "truth_max_gap_s": 1.5},
    "model": {"name": "model", "weights_sha256": "0" * 64, "engines": "none"},
    "index": {"name": "index", "tiles": 4, "manifest_sha256": "1" * 64, "datum": "0, 0"},
    "camera": dataclasses.asdict(CameraMount()),
    "localizer": dataclasses.asdict(LocalizerConfig()),
    "session": dataclasses.asdict(SessionConfig()),
    "odometry": dataclasses.asdict(MotionNoise()),
    "tracker": dataclasses.asdict(TrackerConfig()),
    "software": "0",
}


def truth_at(number, *, sigma=0.0):
    """Northward at 1 m a second."""
    return TruthPose(0.0, float(number), np.eye(2) * sigma**2, math.pi / 2, math.pi / 2)


def fix_at(number, east, north, *, sigma=1.0, yaw=math.pi / 2):
    stamp = START + number * SECOND
    answer = Hypothesis(east, north, 0.9, 1)
    return Fix(stamp, east, north, 0.0, 0.0, np.eye(2) * sigma**2, yaw, 1e-4, 1, 1.0, 0.1, (answer,))


def frame(number, outcome, *, truth="north", ranks=None, tile_m=(5.0, 0.0), retrieved_m=(0.0, 20.0), odometry=None):
    return FrameResult(
        number=number,
        log_time_ns=START + number * SECOND,
        outcome=outcome,
        truth=truth_at(number) if truth == "north" else truth,
        query=RecordedQuery(Prior(0.1, 0.2, np.eye(2) / 3), Heading(0.1, 0.2, HeadingSource.IMU), None, 0.25),
        tiles=SeenTiles((1, 2), np.array([tile_m, retrieved_m]), (1.5, 1.25), (0.5, 0.75), (1, 0), math.pi / 2),
        ranks=ranks,
        odometry=odometry,
    )


def rejection(number, reason=RejectionReason.AMBIGUOUS):
    return Rejection(START + number * SECOND, reason, "31% above 20%", (Hypothesis(0.0, number + 2.0, 0.5, 1),))


def summary_of(frames, **options):
    drive = gather(frames, options.pop("mount", CameraMount()))
    criteria = options.pop("criteria", Criteria())
    return summarise(
        drive,
        criteria,
        identity=IDENTITY,
        latency_ms=options.pop("latency_ms", {}),
        problems=(),
        imagery_sigma_m=options.pop("imagery_sigma_m", 0.0),
    )


def test_frames_survive_json_with_every_bit():
    number = math.pi / 3
    ranks = TileRanks(1000, 5, 3, None, 17, None)
    for outcome in (fix_at(0, number, 1 / 7), rejection(0)):
        before = frame(0, outcome, ranks=ranks, odometry=(number, 1 / 3, -0.0))
        line = frame_to_json(before)
        after = from_json(line)
        assert frame_to_json(after) == line
        assert type(after.outcome) is type(outcome)
        np.testing.assert_array_equal(after.query.prior.covariance_m2, before.query.prior.covariance_m2)
        assert (after.ranks, after.odometry, after.tiles.scores) == (ranks, before.odometry, before.tiles.scores)


def test_drive_worked_by_hand():
    #       ahead 1 m; right 2 m; rejected; no truth; false; fix without error but conservative
    frames = [
        frame(0, rejection(0)),
        frame(1, fix_at(1, 0.0, 2.0)),
        frame(2, fix_at(2, 2.0, 2.0)),
        frame(3, rejection(3, RejectionReason.UNCERTAIN)),
        frame(4, fix_at(4, 50.0, 50.0), truth=None),
        frame(5, fix_at(5, 0.0, 35.0, yaw=math.pi)),
        frame(6, fix_at(6, 0.0, 6.0, sigma=30.0)),
    ]
    summary = summary_of(frames)
    counts, accuracy = summary.counts, summary.accuracy
    assert (counts.images, counts.with_truth, counts.fixes, counts.judged) == (7, 6, 5, 4)
    assert counts.rejections == {"ambiguous": 1, "uncertain": 1}
    assert accuracy.error_m.mean == pytest.approx((1 + 2 + 30 + 0) / 4)
    assert accuracy.error_m.median == pytest.approx(1.5)
    # R@1/3/5/10/25: errors 1, 2, 30 and 0 over 6 images with truth, and over the 4 fixes.
    assert accuracy.within_of_images == pytest.approx((2 / 6, 3 / 6, 3 / 6, 3 / 6, 3 / 6))
    assert accuracy.within_of_fixes == pytest.approx((0.5, 0.75, 0.75, 0.75, 0.75))
    assert accuracy.along_track_m.bias == pytest.approx((1 + 30) / 4)
    assert accuracy.cross_track_m.bias == pytest.approx(-2 / 4)
    assert accuracy.yaw_deg.bias == pytest.approx(90 / 4)
    assert accuracy.truth_sigma_m == 0.0
    availability = summary.availability
    assert availability.fix.value == pytest.approx(5 / 7)
    assert availability.declared.value == pytest.approx(4 / 7)  # σ of 30 m declares 73 m
    assert (availability.time_to_first_fix_s, availability.time_to_first_good_fix_s) == (1.0, 1.0)
    assert (availability.longest_outage.duration_s, availability.longest_outage.start_s) == (2.0, 2.0)
    assert summary.integrity.false_fix.value == 0.25
    stanford = summary.integrity.stanford
    # Protection levels 3.7 m (three times) and 111 m.
    assert (stanford.nominal, stanford.hazardous, stanford.unavailable) == (2, 1, 1)
    assert summary.covariance.position.anees == pytest.approx((1 + 4 + 900 + 0) / 8)
    assert summary.covariance.without_false_fixes.anees == pytest.approx(5 / 6)
    assert [share.value for share in summary.covariance.coverage] == pytest.approx([0.5, 0.5, 0.75, 0.75, 0.75])
    assert summary.per_image.error_m == (None, 1.0, 2.0, None, None, 30.0, 0.0)
    assert summary.per_image.has_truth == (True, True, True, True, False, True, True)


def test_uncertainty_of_the_truth_counts():
    exact = summary_of([frame(k, fix_at(k, 3.0, float(k))) for k in range(4)])
    vague = summary_of([frame(k, fix_at(k, 3.0, float(k)), truth=truth_at(k, sigma=2.0)) for k in range(4)])
    assert exact.covariance.position.anees == pytest.approx(9 / 2)
    assert vague.covariance.position.anees == pytest.approx(9 / 5 / 2)
    assert vague.accuracy.truth_sigma_m == 2.0


def test_baselines_worked_by_hand():
    # Odometry turned by 90° and 10% long: it starts at the first true pose, 1 m north, and errs by 0.1 m a metre.
    frames = [
        frame(k, fix_at(k, 0.0, float(k)) if k % 2 else rejection(k), odometry=(1.1 * k + 7.0, 3.0, 0.0))
        for k in range(5)
    ]
    methods = {method.name: method for method in summary_of(frames).methods}
    fixes, answers, tiles, retrieved, odometry = methods.values()
    assert (fixes.answered, fixes.within[0]) == (2, pytest.approx(2 / 5))
    assert answers.answered == 5
    assert answers.error_m.maximum == pytest.approx(2.0)
    np.testing.assert_allclose(tiles.error_m.maximum, math.hypot(5, 4))
    np.testing.assert_allclose(retrieved.error_m.maximum, 20.0)  # the tile at place 1 was retrieved first
    assert odometry.answered == 5
    assert odometry.error_m.maximum == pytest.approx(0.4)


def test_tiles_centre_is_moved_by_the_lever_arm():
    # Facing north, the camera is 2 m ahead: base_link lies 2 m south of the tile's centre.
    drive = gather([frame(0, rejection(0), tile_m=(5.0, 0.0))], CameraMount(x_m=2.0))
    np.testing.assert_allclose(drive.tile_m[0], [5.0, -2.0])


def test_dead_reckoning_waits_for_truth_and_odometry():
    frames = [
        frame(0, rejection(0), truth=None, odometry=(0.0, 0.0, 0.0)),
        frame(1, rejection(1), odometry=None),
        frame(2, rejection(2), odometry=(5.0, 5.0, math.pi)),
        frame(3, rejection(3), odometry=(4.0, 5.0, math.pi)),
    ]
    reckoned = dead_reckoning(gather(frames, CameraMount()))
    assert np.isnan(reckoned[:2]).all()
    # Forward is −x of the odometry and north of the map.
    np.testing.assert_allclose(reckoned[2:], [[0, 2], [0, 3]], atol=1e-12)


def test_retrieval_shares_count_what_is_beyond_as_missing():
    ranks = [
        TileRanks(1000, 5, 1, 1, 4, 2),
        TileRanks(1000, 5, 3, 1, 30, None),
        TileRanks(1000, 5, 12, None, None, None),
        TileRanks(1000, 5, None, None, None, None),
    ]
    retrieval = summary_of([frame(k, rejection(k), ranks=r) for k, r in enumerate(ranks)]).retrieval
    assert retrieval.ranks == (1, 5, 10, 100)
    assert retrieval.covering_retrieved == (0.25, 0.5, 0.5, 0.75)
    assert retrieval.covering_reranked == (0.5, 0.5, None, None)
    assert retrieval.nearest_retrieved == (0.0, 0.25, 0.25, 0.5)
    assert retrieval.nearest_reranked == (0.0, 0.25, None, None)
    assert retrieval.median_covering_rank == pytest.approx(7.5)


def test_empty_drive_has_no_numbers(tmp_path):
    summary = summary_of([])
    assert summary.accuracy.error_m is None
    assert summary.availability.fix is None
    assert json.loads(summary.to_json())["counts"]["images"] == 0
    assert "no image" in verdict(summary)
    drive = gather([], CameraMount())
    write_report(tmp_path / "r.html", summary, drive, judge(drive, Criteria()), None, ())
    assert "No image has a position" in (tmp_path / "r.html").read_text()


def random_drive(seed, count=400, *, error=1.0, sigma=1.0, missing=0.2):
    generator = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        if generator.random() < missing:
            frames.append(frame(number, rejection(number)))
        else:
            east, north = generator.normal(0, error, 2)
            frames.append(frame(number, fix_at(number, east, number + north, sigma=sigma)))
    return frames


@pytest.mark.parametrize(
    ("sigma", "words"),
    [
        (1.0, "are consistent with the errors"),
        (0.5, "too small by a factor of 2.0"),
        (2.0, "too large by a factor of 2.0"),
    ],
)
def test_verdict_on_covariance_consistency(sigma, words):
    text = verdict(summary_of(random_drive(8, 2000, sigma=sigma)))
    assert words in text
    assert "None is false" in text


def test_verdict_where_the_imagery_may_be_off():
    """An error of 1.2 m that all fixes share: too much for their own 0.5 m, but not for a stated 1 m of the imagery."""
    generator = np.random.default_rng(3)
    frames = []
    for number in range(400):
        east, north = generator.normal(0, 0.5, 2)
        frames.append(frame(number, fix_at(number, east + 1.2, number + north, sigma=math.hypot(0.5, 1.0))))
    position = summary_of(frames, imagery_sigma_m=1.0).covariance.position
    # The truth of `frame` is exact; 1 of 1 + 0.25 m² is the imagery's.
    assert position.common == pytest.approx(0.8, abs=0.02)
    assert position.within_bounds
    assert "80" in verdict(summary_of(frames, imagery_sigma_m=1.0))
    assert "the imagery's error, of which one place tells little" in verdict(summary_of(frames, imagery_sigma_m=1.0))
    assert not summary_of(frames).covariance.position.within_bounds


def written(tmp_path, name, frames):
    path = tmp_path / name
    path.write_text(summary_of(frames).to_json())
    return read_summary(path)


def test_comparison_reports_only_real_differences(tmp_path):
    a = written(tmp_path, "a.json", random_drive(1, error=1.0))
    b = written(tmp_path, "b.json", random_drive(1, error=1.3, sigma=1.3))
    found = {difference.name: difference for difference in compare(a, b).differences}
    assert found["median error"].judgement == "worse"
    assert found["median error"].difference.value == pytest.approx(0.3 * found["median error"].a)
    assert found["R@1 m"].judgement == "worse"
    assert found["images with a fix"].judgement == "same"
    assert found["images with a fix"].difference.value == 0.0
    assert {d.name for d in compare(b, a).differences if d.judgement == "better"} >= {"median error", "R@1 m"}
    assert not compare(b, a).regressions


def test_comparison_of_a_run_with_itself_reports_no_difference(tmp_path):
    a = written(tmp_path, "a.json", random_drive(1))
    comparison = compare(a, a)
    assert all(difference.judgement == "same" for difference in comparison.differences)
    assert json.loads(to_json(comparison))["images"] == 400
    assert "median error" in to_text(comparison, "a", "a")


def test_comparison_pairs_images_by_recorded_stamps_whatever_the_offset(tmp_path):
    a = written(tmp_path, "a.json", random_drive(1))
    b = json.loads(json.dumps(a))
    b["identity"]["session"]["stamp_offset_s"] = -0.1
    b["per_image"]["stamp_ns"] = [stamp - SECOND // 10 for stamp in a["per_image"]["stamp_ns"]]
    comparison = compare(a, b)
    assert (comparison.images, comparison.only_a, comparison.only_b) == (400, 0, 0)
    assert all(difference.judgement == "same" for difference in comparison.differences)


def test_bootstrap_intervals_have_their_nominal_coverage(tmp_path):
    """Independent images, the same error in both runs: 95% of the intervals contain 0."""
    held = 0
    for seed in range(60):
        a = json.loads(summary_of(random_drive(2 * seed, 200)).to_json())
        b = json.loads(summary_of(random_drive(2 * seed + 1, 200)).to_json())
        interval = next(d for d in compare(a, b, block=1, draws=300).differences if d.name == "R@1 m").difference
        held += interval.lower <= 0 <= interval.upper
    assert held >= 52  # of 60; 57 expected, 52 would be undershot once in 150 times


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    a = written(tmp_path, "a.json", random_drive(1, 20))
    other = {**a, "identity": {**a["identity"], "bag": {"name": "other", "fingerprint": "x"}}}
    with pytest.raises(InputError, match="different bags"):
        compare(a, other)
    (tmp_path / "old.json").write_text(json.dumps({**a, "schema_version": 0}))
    with pytest.raises(InputError, match="schema version 0"):
        read_summary(tmp_path / "old.json")
    (tmp_path / "not.json").write_text("{}")
    with pytest.raises(InputError, match="not a unifygeo-evaluation"):
        read_summary(tmp_path / "not.json")


def test_report_of_ten_thousand_images_stays_readable(tmp_path):
    frames = random_drive(3, 10_000, error=2.0, sigma=2.0)
    drive = gather(frames, CameraMount())
    summary = summarise(drive, Criteria(), identity=IDENTITY, latency_ms={"total": [5.0, 7.0]}, problems=("a chunk",))
    write_report(tmp_path / "r.html", summary, drive, judge(drive, Criteria()), None, ())
    assert (tmp_path / "r.html").stat().st_size < 5_000_000


def test_statistics_of_one_fix_judge_nothing():
    summary = summary_of([frame(0, fix_at(0, 0.5, 0.0)), *(frame(n, rejection(n)) for n in range(1, 93))])
    text = verdict(summary)
    assert "1 of 93 images got a fix" in text
    assert "too few to judge the declared covariances" in text
    assert "consistent" not in text
    tones = {card.title: card.tone for card in cards(summary)}
    assert tones["ANEES"] == tones["in the 95% ellipse"] == tones["false fixes"] == "plain"


def test_report_cards_take_correlation_into_account():
    # Errors that repeat 20 times each: 400 images are worth about 20, and all truths are inside their ellipses.
    frames = [frame(n, fix_at(n, 0.9 * math.sin(n // 20), float(n), sigma=1.0)) for n in range(400)]
    summary = summary_of(frames)
    tones = {card.title: (card.value, card.tone) for card in cards(summary)}
    assert tones["in the 95% ellipse"] == ("100%", tones["ANEES"][1])
    assert tones["ANEES"][1] != "bad"
    assert tones["false fixes"] == ("0%", "good")


def test_overconfident_fixes_are_bad_and_conservative_ones_fair():
    for sigma, tone in ((0.5, "bad"), (2.0, "fair"), (1.0, "good")):
        found = {card.title: card.tone for card in cards(summary_of(random_drive(8, 2000, sigma=sigma)))}
        assert found["ANEES"] == found["in the 95% ellipse"] == tone


def test_error_plot_ends_near_the_errors_and_says_where_the_alert_limit_is():
    drive = gather([frame(n, fix_at(n, 0.2, float(n), sigma=0.1)) for n in range(50)], CameraMount())
    svg = error_over_time(drive, judge(drive, Criteria()), Criteria(alert_limit_m=10.0))
    assert "alert limit 10 m is above this axis" in svg
    svg = error_over_time(drive, judge(drive, Criteria()), Criteria(alert_limit_m=1.0))
    assert "above this axis" not in svg


def test_fixes_without_truth_stand_in_the_maps_legend(tmp_path):
    frames = [frame(n, fix_at(n, 0.2, float(n)), truth="north" if n < 5 else None) for n in range(8)]
    summary, drive = summary_of(frames), gather(frames, CameraMount())
    write_report(tmp_path / "r.html", summary, drive, judge(drive, Criteria()), EMPTY_MAP, ())
    assert "no ground truth 3" in (tmp_path / "r.html").read_text()


def test_report_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "a new report")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
