"""VIGOR: hand-made folders in every layout, and real corrected labels."""

import math
from pathlib import Path

import numpy as np
import pytest
from small_vigor import make_vigor, write_image

from unifygeo_ros.core.errors import InputError
from unifygeo_training.data.check import check_split, draw_labels
from unifygeo_training.data.split import METRES_PER_DEGREE
from unifygeo_training.data.vigor import METRES_PER_PIXEL, label_disagreement_m, load_vigor, read_labels

REAL_LABELS = (
    Path(__file__).resolve().parents[2] / "../shared/data/labels/vigor_seattle_same_area_balanced_test__corrected.txt"
)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("labels", "newline"), [("original", "\n"), ("corrected", "\r\n"), ("corrected", "")])
def test_vigor_in_every_layout(tmp_path, nested, labels, newline):
    make_vigor(tmp_path, nested=nested, labels=labels, newline=newline)
    split = load_vigor(tmp_path, "cross-area", "test", labels=labels)
    assert len(split.ground) == 2
    assert len(split.gallery) == 4
    assert split.positives.tolist() == [0, 2]
    assert split.semi_positives.tolist() == [[1, 1, 1], [3, 3, 3]]
    np.testing.assert_allclose(split.offsets_px[:, 0], [[100, -60]] * 2)  # 60 LEFT of the centre
    report = check_split(split)
    assert report.ok, report
    text = str(report)
    assert "semi-positive that does not contain the camera: 6 of 6" in text
    assert "disagree by more than 2 m: 0 of 2" in text


@pytest.mark.parametrize("labels", ["corrected", "original"])
@pytest.mark.parametrize("folder", ["splits", "splits_new"])
def test_label_version_is_found_by_content_not_by_folder(tmp_path, labels, folder):
    make_vigor(tmp_path, labels=labels, folder=folder)
    assert load_vigor(tmp_path, "cross-area", "test", labels=labels).name.endswith(f"({labels} labels)")
    other = {"corrected": "original", "original": "corrected"}[labels]
    with pytest.raises(InputError, match=rf"no {other} labels: .*{folder} has {labels} ones"):
        load_vigor(tmp_path, "cross-area", "test", labels=other)


def test_both_versions_side_by_side_can_be_chosen(tmp_path):
    make_vigor(tmp_path, labels="original", folder="splits")
    make_vigor(tmp_path, labels="corrected", folder="splits_new")
    for labels, disagreement_m in (("original", 0.1 * math.hypot(100, 60) * 0.118141), ("corrected", 0.0)):
        split = load_vigor(tmp_path, "cross-area", "test", labels=labels)
        assert label_disagreement_m(split) == pytest.approx(disagreement_m, abs=0.05)
        assert len(split.ground) == 2


def test_missing_images_are_left_out_by_choice_and_counted(tmp_path):
    make_vigor(tmp_path)
    split = load_vigor(tmp_path, "same-area", "test", labels="original")
    assert split.without_missing() is split
    split.ground[0].unlink()  # a query
    split.gallery[2].unlink()  # the positive of the second
    split.gallery[5].unlink()  # the semi-positive of the third
    found = split.without_missing()
    assert found.name == f"{split.name}, without 2 queries and 2 tiles that are missing"
    assert found.ground == split.ground[2:]
    assert found.gallery == tuple(np.delete(np.array(split.gallery), [2, 5]))
    # The third query's positive was row 4 of 8, the fourth's row 6; two rows before them are gone, three for the last.
    assert found.tiles.tolist() == [[3, -1, -1, -1], [4, 5, 5, 5]]
    np.testing.assert_allclose(found.offsets_px[:, 0], [[100, -60]] * 2)
    assert np.isnan(found.offsets_px[0, 1:]).all()
    assert check_split(found, decode=False).ok
    for file in split.ground:
        file.unlink(missing_ok=True)
    with pytest.raises(InputError, match="no query has both"):
        split.without_missing()


def test_vigor_galleries_hold_every_tile_of_the_splits_cities(tmp_path):
    make_vigor(tmp_path)
    assert len(load_vigor(tmp_path, "same-area", "train", labels="original").gallery) == 8
    assert len(load_vigor(tmp_path, "cross-area", "train", labels="original").gallery) == 4


@pytest.mark.skipif(not REAL_LABELS.exists(), reason="the real label file is not there")
def test_real_corrected_labels_agree_with_the_coordinates_in_their_names():
    rows = read_labels(REAL_LABELS)
    assert len(rows) == 11875
    scale = METRES_PER_PIXEL["Seattle"]
    errors_m = []
    for row in rows[::50]:
        camera = [float(x) for x in row.panorama.split(",")[1:3]]
        for tile, (d_row, d_col) in zip(row.tiles, row.deltas, strict=True):
            latitude, longitude = (float(x) for x in tile.removesuffix(".png").split("_")[1:])
            north = (latitude - camera[0]) * METRES_PER_DEGREE
            east = (longitude - camera[1]) * METRES_PER_DEGREE * math.cos(math.radians(latitude))
            errors_m += [abs(north - d_row * scale), abs(east - d_col * scale)]
    assert np.median(errors_m) < 0.3
    assert np.max(errors_m) < 3.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a b 1 2", "4 fields"),
        ("p " + "t 1 x " * 4, "could not convert"),
        ("p " + "t 1 nan " * 4, "not finite"),
        ("", "no label rows"),
    ],
)
def test_malformed_label_names_its_line(tmp_path, line, message):
    file = tmp_path / "labels.txt"
    file.write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        read_labels(file)


def test_empty_lines_of_a_label_file_are_passed_over(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(["p" + " t 1 2" * 4, "", "q" + " t 3 4" * 4, ""]))
    assert [(row.panorama, row.deltas[0]) for row in read_labels(file)] == [("p", (1.0, 2.0)), ("q", (3.0, 4.0))]


def test_label_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"labels\.txt: cannot be read"):
        read_labels(tmp_path / "labels.txt")


def test_each_split_has_its_own_label_file(tmp_path):
    make_vigor(tmp_path)
    own = {"same_area_balanced_train": 2, "same_area_balanced_test": 3, "pano_label_balanced": 4}
    for stem, times in own.items():
        for file in tmp_path.glob(f"splits/*/{stem}.txt"):
            file.write_text(file.read_text() * times)
    sizes = [
        len(load_vigor(tmp_path, area, part, labels="original").ground)
        for area, part in (("same-area", "train"), ("same-area", "test"), ("cross-area", "train"))
    ]
    assert sizes == [4 * 2, 4 * 3, 2 * 4]  # of four cities and of two


def test_label_outside_the_gallery_is_refused(tmp_path):
    make_vigor(tmp_path)
    (tmp_path / "splits/Chicago/satellite_list.txt").write_text("satellite_1_2.png")
    with pytest.raises(InputError, match=r"satellite_list\.txt of Chicago lacks"):
        load_vigor(tmp_path, "cross-area", "test", labels="original")


def test_check_data_finds_what_is_wrong(tmp_path):
    make_vigor(tmp_path)
    split = load_vigor(tmp_path, "same-area", "test", labels="original")
    split.gallery[0].unlink()
    data = split.ground[0].read_bytes()
    split.ground[0].write_bytes(data[: len(data) // 2])
    split.ground[1].write_bytes(b"")
    write_image(split.gallery[3], 512, 512)
    report = check_split(split)
    findings = {finding.what: finding for finding in report.findings}
    assert findings["tile file missing"].count == 1
    assert findings["panorama unreadable or truncated"].count == 2
    assert findings["tile not 640×640"].examples == (str(split.gallery[3]),)
    assert not report.ok


def test_labels_are_drawn_where_the_camera_is(tmp_path):
    make_vigor(tmp_path)
    split = load_vigor(tmp_path, "cross-area", "test", labels="original")
    picture = draw_labels(split, 0)
    row, column = 50 + 160, 160 - 30  # 100 below, 60 left of the centre at 640 pixels; the picture has 320
    assert picture[-320:][row, column].tolist() == [255, 0, 0]
