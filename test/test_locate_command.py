"""`unifygeo locate` on files, with its picture."""

import json
import math
import re

import cv2
import pytest
import yaml
from bundles import random_bundle
from panorama_files import jpeg, xmp
from rig_drives import CAMERAS, RIG_FILE, camera_pixels
from worlds import colour_world

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.cli import main
from unifygeo_ros.inference.select import open_engines

PLACE = (-20.0, 11.0)
OPEN = ["--gate-ambiguity", "1", "--gate-sigma-m", "1000"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locate")
    bundle = random_bundle(folder / "bundle")
    world = colour_world()
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        build_index([world.write_geotiff(folder / "world.tif")], bundle, engines, folder / "index")
    for name, azimuth in (("north", 0.0), ("east", math.pi / 2)):
        cv2.imwrite(str(folder / f"{name}.png"), world.panorama(*PLACE, azimuth)[..., ::-1])
    cv2.imwrite(str(folder / "black.png"), world.panorama(*PLACE) * 0)
    (folder / "cut.png").write_bytes((folder / "north.png").read_bytes()[:900])
    return world, folder


def run(capsys, folder, *arguments):
    status = main(
        ["locate", "--index", str(folder / "index"), "--model", str(folder / "bundle"), "--backend", "onnx_cpu"]
        + [str(a) for a in arguments]
    )
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_locate_prints_one_json_line_per_image(files, capsys):
    world, folder = files
    paths = [folder / f"{name}.png" for name in ("north", "black", "cut")]
    status, (fix, black, cut), _ = run(capsys, folder, *paths, "--heading-deg", 0, *OPEN)
    assert status == 1  # one file could not be read
    assert (fix["status"], black["status"], cut["status"]) == ("fix", "rejection", "error")
    truth = world.in_map(open_index(folder / "index").frame, *PLACE)
    assert math.dist((fix["east_m"], fix["north_m"]), truth) < 2.0
    assert fix["heading_deg"] == pytest.approx(0.0, abs=1e-6) or fix["heading_deg"] == pytest.approx(360.0, abs=1e-6)
    assert fix["yaw_deg"] == pytest.approx(90.0)
    assert fix["timings_ms"]["total"] > 0
    assert black["reason"] == "black_image"
    assert "cut.png" in cut["detail"]


@pytest.fixture(scope="module")
def rig(files, tmp_path_factory):
    """A rig file, and folders with the images of its cameras where the vehicle faces north."""
    world, _ = files
    folder = tmp_path_factory.mktemp("rig")
    (folder / "rig.yaml").write_text(yaml.safe_dump(RIG_FILE, sort_keys=False))
    for moment, names in (("all", CAMERAS), ("three", ("front", "back", "right")), ("front", ("front",)), ("none", ())):
        (folder / moment).mkdir()
        for name in names:
            pixels = camera_pixels(world, *PLACE, math.pi / 2, name)
            cv2.imwrite(str(folder / moment / f"{name}.png"), pixels[..., ::-1])
    return folder


def test_locate_composes_the_images_of_a_rig(files, rig, capsys):
    world, folder = files
    moments = [rig / moment for moment in ("all", "three", "none")]
    status, (whole, three, none), _ = run(
        capsys, folder, *moments, "--rig", rig / "rig.yaml", "--heading-deg", 0, *OPEN
    )
    truth = world.in_map(open_index(folder / "index").frame, *PLACE)
    for record, missing in ((whole, {}), (three, {"left": "no image"})):
        assert record["status"] == "fix"
        assert math.dist((record["east_m"], record["north_m"]), truth) < 3.0
        assert record["input"]["missing_cameras"] == missing
    assert three["input"]["seen"] < whole["input"]["seen"] < 0.7
    assert (status, none["status"]) == (1, "error")
    assert "no image of front, left, back, right; name each file after its camera" in none["detail"]


def test_locate_leaves_out_black_and_white_cameras_and_says_why(files, rig, capsys):
    world, folder = files
    for moment, spoilt in (("dark", {"left": 3}), ("glare", {"left": 255}), ("night", dict.fromkeys(CAMERAS, 2))):
        (rig / moment).mkdir()
        for name in CAMERAS:
            pixels = camera_pixels(world, *PLACE, math.pi / 2, name)
            pixels[:] = spoilt.get(name, pixels)
            cv2.imwrite(str(rig / moment / f"{name}.png"), pixels[..., ::-1])
    moments = [rig / moment for moment in ("three", "dark", "glare", "night")]
    status, (three, dark, glare, night), _ = run(
        capsys, folder, *moments, "--rig", rig / "rig.yaml", "--heading-deg", 0, *OPEN
    )
    for record, why in ((dark, "black, mean brightness 3.0 of 255"), (glare, "white, mean brightness")):
        assert record["input"]["missing_cameras"]["left"].startswith(why)
        # The panorama is that of the others alone.
        assert record["input"]["seen"] == three["input"]["seen"]
        assert (record["east_m"], record["north_m"]) == (three["east_m"], three["north_m"])
    assert (status, night["status"]) == (1, "error")
    assert "night: no camera of the rig can be used: front: black, mean brightness 2.0" in night["detail"]


def test_locate_of_a_folder_without_a_rig_says_that_it_takes_one(files, rig, capsys):
    status, (record,), _ = run(capsys, files[1], rig / "all", *OPEN)
    assert status == 1
    assert record["detail"].endswith("all: is a folder; name its images, or give --rig if they are of a rig's cameras")


def test_locate_refuses_a_rig_of_which_too_little_is_left_or_whose_options_contradict_it(files, rig, capsys):
    _, folder = files
    arguments = (rig / "front", "--rig", rig / "rig.yaml")
    _, (record,), _ = run(capsys, folder, *arguments, "--heading-deg", 0, "--minimum-seen", 0.5)
    assert (record["status"], record["reason"]) == ("rejection", "too_little_seen")
    assert "minimum_seen is 50.0%" in record["detail"]
    for option in (("--heading-deg", "exif"), ("--tilt-deg", "exif"), ("--yaw-rad", "0.1")):
        status, lines, err = run(capsys, folder, *arguments, *option)
        assert (status, lines) == (2, [])
        assert "rig" in err
    cv2.imwrite(str(rig / "front" / "front.png"), cv2.imread(str(rig / "all" / "front.png"))[:90])
    _, (record,), _ = run(capsys, folder, *arguments, "--heading-deg", 0)
    assert record["status"] == "error"
    assert "front: camera front: image of 200x90, its calibration is for 200x150" in record["detail"]


def test_heading_is_that_of_a_compass(files, capsys):
    _, folder = files
    _, (north,), _ = run(capsys, folder, folder / "north.png", "--heading-deg", 0, *OPEN)
    _, (east,), _ = run(capsys, folder, folder / "east.png", "--heading-deg", 90, *OPEN)
    assert (east["east_m"], east["north_m"]) == (north["east_m"], north["north_m"])
    assert east["heading_deg"] == pytest.approx(90.0)


def test_prior_is_given_as_latitude_longitude_and_metres(files, capsys):
    _, folder = files
    _, (fix,), _ = run(capsys, folder, folder / "north.png", "--heading-deg", 0, *OPEN)
    near = f"{fix['latitude_deg']},{fix['longitude_deg']},3"
    _, (again,), _ = run(capsys, folder, folder / "north.png", "--heading-deg", 0, *OPEN, f"--prior={near}")
    assert again["tile_id"] == fix["tile_id"]
    far = f"{fix['latitude_deg'] + 0.1},{fix['longitude_deg']},3"
    _, (off,), _ = run(capsys, folder, folder / "north.png", "--heading-deg", 0, f"--prior={far}")
    assert off["reason"] == "off_map"


@pytest.mark.parametrize("name", ["north", "black"])
def test_locate_draws_the_plot(files, capsys, tmp_path, name):
    _, folder = files
    status, _, _ = run(capsys, folder, folder / f"{name}.png", "--plot", tmp_path / "fix.png", *OPEN)
    assert status == 0
    picture = cv2.imread(str(tmp_path / "fix.png"))
    assert picture.shape[1] > 1000
    assert picture.std() > 10


def test_several_plots_bear_the_images_names(files, capsys, tmp_path):
    _, folder = files
    paths = (folder / "north.png", folder / "black.png")
    run(capsys, folder, *paths, "--plot", tmp_path / "fix.png", "--heading-deg", 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fix_black.png", "fix_north.png"]


@pytest.mark.parametrize(
    ("plot", "why"), [("nowhere/fix.png", "no folder .*nowhere; make it"), ("fix.doc", "cannot be drawn into .*doc")]
)
def test_plot_that_cannot_be_written_is_one_line(files, capsys, tmp_path, plot, why):
    _, folder = files
    status, _, err = run(capsys, folder, folder / "north.png", "--plot", tmp_path / plot, "--heading-deg", 0)
    assert status == 2
    assert re.search(why, err)
    assert err.count("\n") == 1


def test_locate_errors_are_one_line_with_the_limit(files, capsys):
    _, folder = files
    status, lines, err = run(capsys, folder, folder / "north.png", "--gate-ambiguity", 2)
    assert (status, lines) == (2, [])
    assert err.count("\n") == 1
    assert "gate_ambiguity is 2" in err
    with pytest.raises(SystemExit):
        run(capsys, folder, folder / "north.png", "--prior", "48.5,9")


def test_help_shows_each_setting_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["locate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--gate-ambiguity VALUE" in text
    assert "--no-heading-search" not in text  # advanced
    assert "Advanced ones are not listed here" in text
    assert "camera position in base_link, forward, metres (0.0)" in text


def test_headings_of_the_files_themselves_are_used(files, capsys):
    """As if each had been given by --heading-deg, with the camera turned on the vehicle."""
    world, folder = files
    for name, packet in (("north", xmp(PoseHeadingDegrees=0)), ("east", xmp(PoseHeadingDegrees=90))):
        pixels = cv2.imread(str(folder / f"{name}.png"))[..., ::-1]
        (folder / f"own_{name}.jpg").write_bytes(jpeg(pixels, packet))
    paths = [folder / "own_north.jpg", folder / "own_east.jpg"]
    _, (north, east), _ = run(capsys, folder, *paths, "--heading-deg", "exif", *OPEN)
    truth = world.in_map(open_index(folder / "index").frame, *PLACE)
    for record, heading in ((north, 0.0), (east, 90.0)):
        assert math.dist((record["east_m"], record["north_m"]), truth) < 2.0
        assert math.isclose((record["heading_deg"] - heading + 180) % 360, 180, abs_tol=1e-6)
        assert record["input"]["heading_source"] == "exif"
    # The camera looks to the vehicle's left: the vehicle faces east where the camera faces north.
    turned = ["--heading-deg", "exif", "--yaw-rad", str(math.pi / 2)]
    _, (record,), _ = run(capsys, folder, paths[0], *turned, *OPEN)
    assert record["heading_deg"] == pytest.approx(90.0)
    assert math.dist((record["east_m"], record["north_m"]), truth) < 2.0


def test_heading_from_magnetic_north_takes_the_declination(files, capsys):
    _, folder = files
    pixels = cv2.imread(str(folder / "east.png"))[..., ::-1]
    path = folder / "magnetic.jpg"
    path.write_bytes(jpeg(pixels, gps={16: "M", 17: 87.5}))
    status, (record,), _ = run(capsys, folder, path, "--heading-deg", "exif")
    assert (status, record["status"]) == (1, "error")
    assert "87.5° is from magnetic north; give the declination (--declination-deg)" in record["detail"]
    arguments = [path, "--heading-deg", "exif", "--declination-deg", "2.5", *OPEN]
    _, (record,), _ = run(capsys, folder, *arguments)
    assert record["heading_deg"] == pytest.approx(90.0)
    arguments[arguments.index("2.5")] = "-2.5"
    assert run(capsys, folder, *arguments)[1][0]["input"]["heading_deg"] == pytest.approx(85.0)


def test_heading_that_is_stated_and_not_used_is_mentioned(files, capsys, caplog):
    _, folder = files
    path = folder / "unused.jpg"
    path.write_bytes(jpeg(cv2.imread(str(folder / "north.png"))[..., ::-1], xmp(PoseHeadingDegrees=0)))
    _, (record, _), _ = run(capsys, folder, path, folder / "north.png")
    assert record["input"] == {"heading_deg": None, "heading_source": None, "stated_heading_deg": 0.0, "roll_deg": None,
                               "pitch_deg": None, "seen": 1.0}  # fmt: skip
    assert "1 of 2 images state a heading that was not used; --heading-deg exif uses it" in caplog.text


def test_tilt_is_given_or_read(files, capsys):
    _, folder = files
    path = folder / "tilted.jpg"
    pixels = cv2.imread(str(folder / "north.png"))[..., ::-1]
    path.write_bytes(jpeg(pixels, xmp(PoseHeadingDegrees=0, PosePitchDegrees=4, PoseRollDegrees=-3)))
    _, (own,), _ = run(capsys, folder, path, "--tilt-deg", "exif", "--heading-deg", "0")
    assert (own["input"]["roll_deg"], own["input"]["pitch_deg"]) == pytest.approx((-3.0, -4.0))
    _, (given,), _ = run(capsys, folder, path, "--tilt-deg", "-3,-4", "--heading-deg", "0")
    assert given["input"] == pytest.approx(own["input"] | {"heading_source": "option"})
    for record in (given, own):
        record.pop("timings_ms")
        record.pop("input")
    assert given == own
    status, _, err = run(capsys, folder, path, "--tilt-deg", "exif", "--upside-down")
    assert status == 2
    assert "--tilt-deg exif: not for a camera that hangs upside down" in err


def test_rejections_and_hypotheses_have_latitude_longitude_and_the_datum(files, capsys):
    _, folder = files
    _, (record,), _ = run(capsys, folder, folder / "north.png", "--heading-deg", 0, "--gate-sigma-m", "0.1")
    assert record["status"] == "rejection"
    frame = open_index(folder / "index").frame
    assert record["datum"]["latitude_deg"] == frame.datum.latitude_deg
    (best, *_) = record["hypotheses"]
    back = frame.map_from_geodetic(best["latitude_deg"], best["longitude_deg"])
    assert back.tolist() == pytest.approx([best["east_m"], best["north_m"]], abs=1e-6)
