"""How the certain images of drives are split into what is learnt from and what calibrates."""

from __future__ import annotations

import numpy as np
import pytest

from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_training.adapt.labels import CALIBRATED_SHARE, CELL_M, seed_of
from unifygeo_training.drives.places import near_other_part, parts_of

FRAME = LocalFrame(Datum(48.4, 9.0))
GUARD_M = 35.0


def split(geodetic: np.ndarray, seed: int) -> tuple[float, float]:
    """Shares of the images that calibrate and that are learnt from."""
    kind = {"cell_m": CELL_M, "shares": (CALIBRATED_SHARE, 0.0), "seed": seed}
    parts = parts_of(geodetic, **kind)
    learnt = (parts == "train") & ~near_other_part(geodetic, "train", guard_m=GUARD_M, **kind)
    return float(np.mean(parts == "val")), float(learnt.mean())


@pytest.fixture(scope="module")
def drive() -> np.ndarray:
    """An image each 4 m around a block of 350 m by 200 m."""
    along = np.arange(0.0, 1100.0, 4.0)
    corners = np.array([0, 350, 550, 900, 1100]), np.array([[0, 0], [350, 0], [350, 200], [0, 200], [0, 0]])
    return FRAME.geodetic_from_map(*(np.interp(along, corners[0], corners[1][:, k]) for k in (0, 1)))


def test_split_leaves_as_much_to_learn_from_as_any_with_about_its_share(drive: np.ndarray) -> None:
    chosen = split(drive, seed_of(drive, GUARD_M))
    others = [split(drive, seed) for seed in range(50)]
    fair = [learnt for calibrated, learnt in others if 0.15 <= calibrated <= 0.35]
    assert 0.15 <= chosen[0] <= 0.35
    assert chosen[1] == max(fair)
    nearest = min(others, key=lambda one: abs(one[0] - CALIBRATED_SHARE))
    assert chosen[1] > nearest[1] + 0.03


def test_where_no_split_has_about_its_share_the_nearest_one_is_taken(drive: np.ndarray) -> None:
    few = drive[:19]  # 72 m: one or two squares
    chosen = split(few, seed_of(few, GUARD_M))[0]
    others = [split(few, seed)[0] for seed in range(50)]
    assert not any(0.15 <= share <= 0.35 for share in others)
    assert abs(chosen - CALIBRATED_SHARE) == min(abs(share - CALIBRATED_SHARE) for share in others)
