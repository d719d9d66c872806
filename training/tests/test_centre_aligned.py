"""CVUSA and CVACT: hand-made folders, whole and damaged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from small_centre_aligned import make_cvact_list, make_cvusa
from small_vigor import write_image

from unifygeo_ros.core.errors import InputError
from unifygeo_training.data.centre_aligned import load_cvact, load_cvusa
from unifygeo_training.data.check import check_split
from unifygeo_training.data.split import CrossViewSplit


def names(files: tuple[Path, ...]) -> list[str]:
    return [file.name for file in files]


def assert_centred(split: CrossViewSplit, count: int) -> None:
    """Query i stands in the middle of tile i; scales and coordinates are not known."""
    assert (len(split.ground), len(split.gallery)) == (count, count)
    assert split.tiles.tolist() == [[i] for i in range(count)]
    assert split.semi_positives.shape == (count, 0)
    assert split.offsets_px.tolist() == [[[0.0, 0.0]]] * count
    assert split.metres_per_pixel.shape == (count,)
    assert split.ground_lat_lon.shape == split.gallery_lat_lon.shape == (count, 2)
    for unknown in (split.metres_per_pixel, split.ground_lat_lon, split.gallery_lat_lon):
        assert np.isnan(unknown).all()


def test_cvusa_pairs_each_panorama_with_the_tile_of_its_row(tmp_path: Path) -> None:
    make_cvusa(tmp_path, 3)
    split = load_cvusa(tmp_path, "train")
    assert_centred(split, 3)
    assert split.name == "CVUSA train"
    assert list(split.ground) == [tmp_path / f"streetview/panos/{i:07d}.jpg" for i in (1, 2, 3)]
    assert list(split.gallery) == [tmp_path / f"bingmap/19/{i:07d}.jpg" for i in (1, 2, 3)]
    assert split.tile_size == 750
    # 224 of 616 rows, which are 180°: 224 / 616 · 90° above and below the horizon.
    assert split.ground_top_rad == -split.ground_bottom_rad == pytest.approx(math.radians(90 * 224 / 616), abs=1e-12)
    assert check_split(split).ok


def test_list_of_cvusa_may_have_empty_lines_blanks_and_no_annotations(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/val-19zl.csv").write_text("a.jpg, b.jpg \r\n\r\nc.jpg,d.jpg,e.png\r\n")
    split = load_cvusa(tmp_path, "val")
    assert (names(split.gallery), names(split.ground)) == (["a.jpg", "c.jpg"], ["b.jpg", "d.jpg"])


def test_row_of_cvusa_with_one_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train-19zl.csv").write_text("a.jpg,b.jpg\nbingmap/19/0000002.jpg\n")
    with pytest.raises(InputError, match=r"train-19zl\.csv:2: 1 fields"):
        load_cvusa(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "give the root of CVUSA"), (b"\xff\xfe,\xff\n", "give the root of CVUSA"), (b"\n", "CVUSA val is empty")],
    ids=["missing", "not text", "empty"],
)
def test_list_of_cvusa_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    (tmp_path / "splits").mkdir()
    if content is not None:
        (tmp_path / "splits/val-19zl.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"val-19zl\.csv: .*{message}"):
        load_cvusa(tmp_path, "val")


def test_cvact_takes_the_panoramas_that_the_list_numbers_from_1(tmp_path: Path) -> None:
    make_cvact_list(tmp_path)
    train, val = load_cvact(tmp_path, "train"), load_cvact(tmp_path, "val")
    assert_centred(train, 2)
    assert_centred(val, 1)
    assert (train.name, val.name) == ("CVACT train", "CVACT val")
    folder = tmp_path / "ANU_data_small"
    assert list(train.ground) == [folder / f"streetview/{name}_grdView.jpg" for name in ("first", "third")]
    assert list(train.gallery) == [folder / f"satview_polish/{name}_satView_polish.jpg" for name in ("first", "third")]
    assert names(val.ground) == ["second_grdView.jpg"]
    assert train.tile_size == 1200
    assert (train.ground_top_rad, train.ground_bottom_rad) == (math.pi / 2, -math.pi / 2)  # the whole sphere


def test_cvacts_test_part_is_every_panorama_of_its_folder(tmp_path: Path) -> None:
    make_cvact_list(tmp_path)
    with pytest.raises(InputError, match=r"ANU_data_test: CVACT test is empty"):
        load_cvact(tmp_path, "test")
    for name in ("third", "second", "another"):  # the last is not in the list
        write_image(tmp_path / f"ANU_data_test/streetview/{name}_grdView.jpg", 8, 16)
    split = load_cvact(tmp_path, "test")
    assert_centred(split, 2)
    assert names(split.ground) == ["second_grdView.jpg", "third_grdView.jpg"]
    assert names(split.gallery) == ["second_satView_polish.jpg", "third_satView_polish.jpg"]
    assert split.gallery[0].parent == tmp_path / "ANU_data_test/satview_polish"


def test_list_of_cvact_with_a_single_panorama_is_read(tmp_path: Path) -> None:
    write_list(tmp_path, panoIds=np.array(["only"], dtype=object), trainSet={"trainInd": 1})
    assert names(load_cvact(tmp_path, "train").ground) == ["only_grdView.jpg"]


def write_list(root: Path, **changes: Any) -> None:
    """As `make_cvact_list`, with other values, or without an entry that is None."""
    make_cvact_list(root)
    whole = {k: v for k, v in scipy.io.loadmat(root / "ACT_data.mat", simplify_cells=True).items() if k[0] != "_"}
    scipy.io.savemat(root / "ACT_data.mat", {k: v for k, v in {**whole, **changes}.items() if v is not None})


@pytest.mark.parametrize("number", [0, 4])
def test_list_of_cvact_that_numbers_a_panorama_it_does_not_hold_is_damaged(tmp_path: Path, number: int) -> None:
    write_list(tmp_path, trainSet={"trainInd": np.array([[3], [number], [9]])})
    with pytest.raises(InputError, match=rf"ACT_data\.mat: train names panorama {number} of 1 … 3; the file"):
        load_cvact(tmp_path, "train")


@pytest.mark.parametrize(
    "changes",
    [
        {"panoIds": None},
        {"trainSet": None},
        {"trainSet": {"other": 1}},
        {"trainSet": 5.0},
        {"trainSet": {"trainInd": np.array(["one"], dtype=object)}},
    ],
    ids=["no names", "no part", "no numbers", "a number in the place of a part", "words in the place of numbers"],
)
def test_list_of_cvact_without_what_it_should_hold_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_list(tmp_path, **changes)
    with pytest.raises(InputError, match=r"ACT_data\.mat: cannot be read as CVACT's list .* give the root of CVACT"):
        load_cvact(tmp_path, "train")


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not MATLAB", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"],
    ids=["missing", "empty", "another format", "version 7.3, which scipy does not read"],
)
def test_list_of_cvact_that_is_no_matlab_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "ACT_data.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"ACT_data\.mat: cannot be read as CVACT's list"):
        load_cvact(tmp_path, "train")
