"""The examples, run on images of the demo's drive."""

import json
import math
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.windows import Window, from_bounds
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore
from test_requirements import TOOLS, without

from unifygeo_ros import cli
from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.records import CameraImage, Fix, Heading, HeadingSource, Query, Rejection
from unifygeo_ros.images.files import read_image
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples/localize_image.py"
MODEL = ROOT / "models/towns-photo"
PANORAMAS = ROOT.parent / "shared/data/panoramas"
AROUND_M = 75.0


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """An image of the drive as a file, an index of the town around it, and the camera's true pose."""
    folder = tmp_path_factory.mktemp("example")
    topics = ("/camera/image/compressed", "/ground_truth/navsat", "/ground_truth/odometry")
    with AnyReader([ROOT / "demo/drive/bag"], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as bag:
        connections = [connection for connection in bag.connections if connection.topic in topics]
        messages = [(c.topic, bag.deserialize(raw, c.msgtype)) for c, _, raw in bag.messages(connections)]
    of = {topic: [message for name, message in messages if name == topic] for topic in topics}

    def stamp_s(message):
        return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9

    image = of[topics[0]][80]
    navsat, odometry = (min(of[t], key=lambda m: abs(stamp_s(m) - stamp_s(image))) for t in topics[1:])
    assert abs(stamp_s(navsat) - stamp_s(image)) < 0.05
    (folder / "image.jpg").write_bytes(bytes(image.data))
    q = odometry.pose.pose.orientation
    heading_deg = 90.0 - math.degrees(2 * math.atan2(q.z, q.w))
    with rasterio.open(ROOT / "demo/drive/town.tif") as town:
        x, y = pyproj.Transformer.from_crs(4326, town.crs, always_xy=True).transform(navsat.longitude, navsat.latitude)
        window = from_bounds(x - AROUND_M, y - AROUND_M, x + AROUND_M, y + AROUND_M, town.transform)
        window = Window(*(round(value) for value in (window.col_off, window.row_off, window.width, window.height)))
        profile = {**town.profile, "transform": town.window_transform(window), "driver": "GTiff", "compress": None}
        profile |= {"width": window.width, "height": window.height, "tiled": False, "photometric": None}
        for key in ("blockxsize", "blockysize", "compress", "photometric"):
            profile.pop(key, None)
        pixels = town.read(window=window)
    with rasterio.open(folder / "town.tif", "w", **profile) as file:
        file.write(pixels)
    bundle = load_bundle(MODEL)
    with open_engines(bundle, backend="onnx_cpu") as engines:
        build_index([folder / "town.tif"], bundle, engines, folder / "index")
    return folder, navsat, heading_deg


def distance_m(line, navsat):
    latitude, longitude = (float(number) for number in re.match(r"(\S+) (\S+), wrong", line).groups())
    _, _, metres = pyproj.Geod(ellps="WGS84").inv(longitude, latitude, navsat.longitude, navsat.latitude)
    return metres


def run_example(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    return capsys.readouterr().out.strip()


def test_image_of_the_demo_is_localized_with_its_heading(shown, monkeypatch, capsys):
    folder, navsat, heading_deg = shown
    line = run_example(monkeypatch, capsys, folder / "index", MODEL, folder / "image.jpg", heading_deg)
    assert distance_m(line, navsat) < 2.0, line


@pytest.mark.skipif(not PANORAMAS.is_dir(), reason="the real images are not here")
def test_shipped_model_gives_no_fix_for_real_panoramas(shown):
    """It learned from rendered towns: every fix of a photograph would be false, with standard deviations of a metre."""
    bundle = load_bundle(MODEL)
    index = open_index(shown[0] / "index", bundle=bundle)
    headings = [Heading(math.radians(degrees), 0.001, HeadingSource.CONSTANT) for degrees in range(0, 360, 90)]
    with open_engines(bundle, backend="onnx_cpu") as engines:
        localizer = Localizer(index, bundle, engines, LocalizerConfig())
        for file in sorted(PANORAMAS.glob("*.[jJ]*")):
            image = CameraImage(read_image(file), 1)
            for heading in (None, *headings):
                result = localizer.locate(image, Query(heading=heading))
                assert isinstance(result, Rejection), f"{file.name}, {heading}: {result}"


def test_black_image_is_rejected_with_its_reason(shown, monkeypatch, capsys, tmp_path):
    folder, _, _ = shown
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((256, 512, 3), np.uint8))
    line = run_example(monkeypatch, capsys, folder / "index", MODEL, tmp_path / "black.png")
    assert line.startswith("no fix: black_image: ")


def test_readme_s_lines_for_a_region_and_a_drive_run_as_typed(shown, monkeypatch, capsys, tmp_path):
    """On a cut-out of the demo's town, and of the replay only the first two images."""
    section = (ROOT / "README.md").read_text().split("## Your own region, your own drives")[1]
    lines = section.split("```bash\n")[1].split("```")[0].replace("\\\n", " ").splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["unifygeo", "index"], ["unifygeo", "replay"], ["python", "examples/extract_images.py"], ["unifygeo", "locate"]
    ]  # fmt: skip
    (tmp_path / "demo/drive").mkdir(parents=True)
    (tmp_path / "demo/drive/town.tif").symlink_to(shown[0] / "town.tif")
    for name in ("demo/localizer.yaml", "demo/drive/bag", "models", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "python":
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        else:
            assert cli.main(arguments + (["--max-frames", "2"] if arguments[0] == "replay" else [])) == 0, line
    fix = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (fix["image"], fix["status"]) == ("panoramas/00080.jpg", "fix")
    assert pyproj.Geod(ellps="WGS84").inv(
        fix["longitude_deg"], fix["latitude_deg"], shown[1].longitude, shown[1].latitude
    )[2] == pytest.approx(0.2, abs=1.0)  # base_link is 0.2 m behind the camera
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("report.html", "fix.png"))

    program = section.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(program, names)
    found = names["result"]
    assert isinstance(found, Fix), found
    assert (found.latitude_deg, found.longitude_deg) == pytest.approx(
        (fix["latitude_deg"], fix["longitude_deg"]), abs=1e-9
    )


def test_library_needs_none_of_the_tools(shown):
    """What `pip install ".[cpu]"` installs, and package.xml for a robot, is enough to localize."""
    folder, navsat, heading_deg = shown
    arguments = [str(EXAMPLE), str(folder / "index"), str(MODEL), str(folder / "image.jpg"), str(heading_deg)]
    program = f"import runpy; sys.argv = {arguments!r}; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done: subprocess.CompletedProcess = without(TOOLS, program)
    assert done.returncode == 0, done.stderr
    assert distance_m(done.stdout, navsat) < 2.0


def test_extract_images_saves_every_so_many_of_the_bag_as_they_are(tmp_path):
    program = [sys.executable, ROOT / "examples/extract_images.py", ROOT / "demo/drive/bag"]
    subprocess.run([*program, "/camera/image/compressed", tmp_path / "images", "100"], check=True)
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files] == ["00000.jpg", "00100.jpg"]
    with AnyReader([ROOT / "demo/drive/bag"]) as bag:
        connections = [connection for connection in bag.connections if connection.topic == "/camera/image/compressed"]
        images = [bag.deserialize(raw, c.msgtype) for c, _, raw in bag.messages(connections)]
    assert files[1].read_bytes() == bytes(images[100].data)
    missing = subprocess.run([*program, "/odom", tmp_path / "none"], capture_output=True, text=True)
    assert missing.returncode == 1
    assert "its topics: /camera/image/compressed" in missing.stderr
