"""The gate before a changed model takes the place of the old one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odometry_drives import driven, judged, path, summary_against

from unifygeo_ros import cli
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.metrics.acceptance import accept, accept_without_truth
from unifygeo_ros.evaluation.metrics.drive import Drive

IMAGES = 300


def replayed(
    *,
    fixes: float,
    sigma_claimed_m: float = 1.0,
    false: int = 0,
    seed: int = 0,
    name: str = "drive",
    images: int = IMAGES,
    common: float = 0.0,
) -> dict[str, Any]:
    """The numbers of a replay whose errors are 1 m along each axis.

    fixes: share of images. false: fixes 40 m away. common: share of the claimed covariance that is the imagery's.
    """
    rng = np.random.default_rng(seed)
    fixed = rng.random(images) < fixes
    errors = rng.normal(0.0, 1.0, (images, 2))
    errors /= np.sqrt((errors[fixed] ** 2).mean())  # an ANEES of exactly 1 where 1 m is claimed
    wrong = np.flatnonzero(fixed)[:false]
    errors[wrong] = 40.0
    length = np.hypot(*errors.T)

    def column(values: np.ndarray) -> list[float | None]:
        return [float(value) if is_fix else None for value, is_fix in zip(values, fixed, strict=True)]

    return {
        "identity": {"bag": {"name": name, "fingerprint": name}, "session": {"stamp_offset_s": 0.0}},
        "criteria": {"alert_limit_m": 10.0},
        "per_image": {
            "stamp_ns": list(range(1, images + 1)),
            "outcome": ["fix" if is_fix else "uncertain" for is_fix in fixed],
            "has_truth": [True] * images,
            "error_m": column(length),
            "nees": column((length / sigma_claimed_m) ** 2),
        },
        "covariance": {"position": {"common": common}},
    }


def met(before: dict[str, Any], after: dict[str, Any]) -> dict[str, bool]:
    return {condition.name: condition.met for condition in accept([before], [after]).conditions}


GOOD = {
    "enough images": True,
    "no more false fixes on drive": True,
    "covariances are right": True,
    "more images with a fix": True,
}


@pytest.mark.parametrize(("common", "right"), [(0.0, False), (0.7, True)])
def test_imagery_that_is_further_off_than_usual_does_not_speak_against_the_model(common: float, right: bool) -> None:
    """An ANEES of 2: too much for 200 fixes, but not for one draw of the error that 70% of the covariance stand for."""
    after = replayed(fixes=0.7, sigma_claimed_m=0.71, common=common, seed=1)
    assert met(replayed(fixes=0.4), after) == {**GOOD, "covariances are right": right}


def test_model_with_more_right_fixes_is_accepted() -> None:
    assert met(replayed(fixes=0.4), replayed(fixes=0.7, seed=1)) == GOOD


@pytest.mark.parametrize(
    ("after", "failed"),
    [
        ({"fixes": 0.4, "seed": 0}, "more images with a fix"),  # the same
        ({"fixes": 0.2}, "more images with a fix"),
        ({"fixes": 0.7, "sigma_claimed_m": 0.5}, "covariances are right"),  # surer than it is right
        ({"fixes": 0.7, "sigma_claimed_m": 2.0}, "covariances are right"),
        ({"fixes": 0.7, "images": 60}, "enough images"),
    ],
)
def test_one_failed_condition_is_enough_to_refuse(after: dict[str, Any], failed: str) -> None:
    images = after.get("images", IMAGES)
    found = met(replayed(fixes=0.4, images=images), replayed(**{"seed": 1, **after}))
    assert found == {**GOOD, failed: False}


def test_accept_refuses_a_model_with_more_false_fixes() -> None:
    """Adapted on a drive with 20% false positions it is surer everywhere, and wrong with certainty in some places."""
    verdict = accept([replayed(fixes=0.4)], [replayed(fixes=0.9, false=54, seed=1)])
    assert not verdict.accepted
    assert "NO   no more false fixes on drive: 54, before 0" in str(verdict)
    assert "refused: keep the old model" in str(verdict)


def test_accept_does_not_balance_false_fixes_between_drives() -> None:
    assert len({condition.name for condition in accept(*[[replayed(fixes=0.4)] * 2] * 2).conditions}) == 5
    before = [replayed(fixes=0.4, false=3, name="a"), replayed(fixes=0.4, name="b")]
    after = [replayed(fixes=0.8, seed=1, name="a"), replayed(fixes=0.8, false=1, seed=2, name="b")]
    failed = [condition.name for condition in accept(before, after).conditions if not condition.met]
    assert "no more false fixes on b" in failed
    assert "no more false fixes on a" not in failed


def test_replays_that_cannot_be_compared_are_an_error() -> None:
    old = replayed(fixes=0.4)
    with pytest.raises(InputError, match="different bags"):
        accept([old], [replayed(fixes=0.7, name="other")])
    with pytest.raises(InputError, match="1 replays before and 0 after"):
        accept([old], [])
    with pytest.raises(InputError, match="judge both with the same one"):
        accept([old], [{**replayed(fixes=0.7), "criteria": {"alert_limit_m": 5.0}}])
    with pytest.raises(InputError, match="images are in one replay only"):
        accept([old], [replayed(fixes=0.7, images=200)])
    with pytest.raises(InputError, match="one at least"):
        accept([], [])


def test_accept_command_answers_by_its_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(
        "unifygeo_ros.evaluation.metrics.summary.read_summary", lambda path: json.loads(path.read_text())
    )
    files = {name: tmp_path / f"{name}.json" for name in ("before", "after")}
    files["before"].write_text(json.dumps(replayed(fixes=0.4)))
    files["after"].write_text(json.dumps(replayed(fixes=0.7, seed=1)))
    assert cli.main(["accept", "--before", str(files["before"]), "--after", str(files["after"])]) == 0
    assert capsys.readouterr().out.endswith("accepted\n")
    assert cli.main(["accept", "--before", str(files["after"]), "--after", str(files["before"])]) == 1


# -- without ground truth ----------------------------------------------------------------------------------------------


def decided(student: Drive) -> dict[str, bool]:
    """The conditions that a student fulfils beside a parent with fixes for 40% of the images and a certain track for
    80%. Nobody knows the truth: the track has errors of its own."""
    parent = driven(IMAGES, fixes=0.4)
    rng = np.random.default_rng(9)
    track_m = path(IMAGES)[:, :2] + rng.normal(0, 0.3, (IMAGES, 2))
    known = rng.random(IMAGES) < 0.8
    before, after = (summary_against(drive, track_m, known) for drive in (parent, student))
    verdict = accept_without_truth([before], [after], [(judged(parent), judged(student))])
    return {condition.name: condition.met for condition in verdict.conditions}


FALSE, CONTRADICTED = (
    "no more false fixes on drive",
    "no more fixes of single images on drive that the odometry contradicts",
)
AGREES, MORE = "covariances agree with the odometry", "more images with a fix"
ALL_MET = {"enough images": True, FALSE: True, CONTRADICTED: True, AGREES: True, MORE: True}


def test_student_with_more_right_fixes_is_accepted_without_truth() -> None:
    assert decided(driven(IMAGES, fixes=0.7, seed=1)) == ALL_MET


def test_student_of_a_drive_that_was_carried_is_refused() -> None:
    """The vehicle was carried 30 m, the tracker went on: the student puts half of the places there. Where it does, its
    fixes agree with each other and with the odometry. Only the parent's track shows it."""
    student = driven(IMAGES, fixes=0.9, seed=1)
    student.fix_m[IMAGES // 2 :] += [0.0, 30.0]
    found = decided(student)
    assert found[FALSE] is False
    student.fix_m[: IMAGES // 2] += [0.0, 30.0]
    assert decided(student) == {**ALL_MET, FALSE: False}


def test_student_of_a_wrong_town_is_refused() -> None:
    """Its labels had nothing to do with the images: it is as sure as before, of any place."""
    student = driven(IMAGES, fixes=0.9, seed=1)
    student.fix_m[:] = np.random.default_rng(3).uniform(-150, 150, (IMAGES, 2))
    found = decided(student)
    assert found[FALSE] is False
    assert found[CONTRADICTED] is False


def test_student_of_twenty_percent_false_fixes_is_refused_where_the_parent_has_no_track() -> None:
    student = driven(IMAGES, fixes=0.9, seed=1)
    unknown = np.random.default_rng(9)
    unknown.normal(0, 0.3, (IMAGES, 2))  # as in `decided`
    unknown = unknown.random(IMAGES) >= 0.8
    wrong = unknown & student.fixed
    student.fix_m[wrong] += [0.0, 40.0]
    assert 0.1 < wrong.mean() < 0.25
    assert decided(student) == {**ALL_MET, CONTRADICTED: False}


@pytest.mark.parametrize(("ambiguity", "met"), [(0.4, True), (0.0, False)])
def test_wrong_fixes_count_among_as_many_of_the_surest_as_the_parent_has(ambiguity: float, met: bool) -> None:
    """The student answers twice as often. Wrong are twelve fixes where the parent has no track: the least sure ones, or
    the surest."""
    student = driven(IMAGES, fixes=0.9, seed=1)
    rng = np.random.default_rng(9)
    rng.normal(0, 0.3, (IMAGES, 2))  # as in `decided`
    wrong = np.flatnonzero((rng.random(IMAGES) >= 0.8) & student.fixed)[:12]
    student.fix_m[wrong] += [0.0, 40.0]
    student.ambiguity[wrong] = ambiguity
    assert judged(student).contradicted[wrong].sum() >= 10
    assert decided(student)[CONTRADICTED] is met


def test_student_that_is_too_sure_is_refused_without_truth() -> None:
    student = driven(IMAGES, fixes=0.7, seed=1)
    assert decided(dataclasses.replace(student, covariance_m2=student.covariance_m2 / 4)) == {**ALL_MET, AGREES: False}


def test_student_without_odometry_or_with_fewer_fixes_is_refused() -> None:
    student = driven(IMAGES, fixes=0.7, seed=1)
    blind = dataclasses.replace(student, odometry=np.full((IMAGES, 3), np.nan))
    assert decided(blind) == {**ALL_MET, AGREES: False}
    assert decided(driven(IMAGES, fixes=0.3, seed=1)) == {**ALL_MET, MORE: False}
