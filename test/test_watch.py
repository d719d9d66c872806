"""`unifygeo watch`: journal, map tiles and server by value, the page in a real headless Chromium."""

import dataclasses
import http.client
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Browser
from colour_region import COPYRIGHT, write_colour_region
from drives import IMAGE, STORE, image
from rosbags.rosbag2 import StoragePlugin, Writer

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import tile_from_map
from unifygeo_ros.core.records import Fix, Hypothesis, Rejection, RejectionReason
from unifygeo_ros.evaluation.metrics.results import FORMAT, FORMAT_VERSION, FrameResult, to_json
from unifygeo_ros.evaluation.recordings.truth import TruthPose
from unifygeo_ros.watch.entries import frame_of_replay, position
from unifygeo_ros.watch.journal import Journal
from unifygeo_ros.watch.orthophoto import TILE_PIXELS, Orthophoto
from unifygeo_ros.watch.pictures import BagPictures
from unifygeo_ros.watch.replay import ReplaySource, results_file
from unifygeo_ros.watch.server import WatchServer

SECOND = 1_000_000_000
START_NS = 1_750_000_000 * SECOND
LOST_AT = range(12, 18)
"""Frames of the made-up replay that have no fix."""


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    write_colour_region(folder)
    return folder / "index"


def outcome(number):
    """A drive east at 4 m/s, two images a second, 0.5 m off to the north; lost for a while."""
    stamp, east, places = START_NS + number * SECOND // 2, -40.0 + 2.0 * number, []
    if number in LOST_AT:
        places = [Hypothesis(east, 10.0, 0.6, 0), Hypothesis(east - 30.0, -20.0, 0.3, 1)]
        return Rejection(stamp, RejectionReason.AMBIGUOUS, "40% of the belief is in other places", tuple(places))
    places = (Hypothesis(east, 10.5, 0.99, 0),)
    return Fix(stamp, east, 10.5, 48.5, 9.0, np.diag([0.25, 1.0]), 0.0, 0.01, 0, 1.0, 0.01, places)


def frame(number):
    truth = TruthPose(-40.0 + 2.0 * number, 10.0, np.eye(2) * 1e-4, 0.0, 0.0)
    return FrameResult(number, START_NS + number, outcome(number), truth, None, None, None, None)


@pytest.fixture(scope="module")
def results(index_folder, tmp_path_factory):
    """The results of a replay of thirty images."""
    datum = open_index(index_folder).manifest.datum
    text = f"{datum.latitude_deg:.7f}, {datum.longitude_deg:.7f}, {datum.height_m:g} m"
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "identity": {"index": {"datum": text}}}
    path = tmp_path_factory.mktemp("replay") / "drive.frames.jsonl"
    lines = [json.dumps(head), *(to_json(frame(number)) for number in range(30)), '{"end":30,"problems":[]}', ""]
    path.write_text("\n".join(lines))
    return path


# -- journal and entries ----------------------------------------------------------------------------------------------


def test_journal_gives_each_reader_its_unseen_entries():
    journal = Journal(limit=3)
    for value in range(5):
        journal.add({"value": value})
    assert [(number, entry["value"]) for number, entry in journal.after(0)] == [(3, 2), (4, 3), (5, 4)]
    assert [number for number, _ in journal.after(4)] == [5]
    assert journal.after(5) == []


def test_journal_wakes_a_waiting_reader_for_an_entry_and_for_the_end():
    journal = Journal()
    for act in (lambda: journal.add({}), journal.close):
        seen = []
        number = len(journal.after(0))
        reader = threading.Thread(target=lambda number=number, seen=seen: seen.append(journal.after(number, 60.0)))
        reader.start()
        act()
        reader.join(20.0)
        assert len(seen) == 1
    assert journal.closed


def test_entry_of_a_fix_and_of_a_rejection():
    fix, lost = frame_of_replay(frame(3)), frame_of_replay(frame(12))
    assert (fix["t"], fix["fix"], fix["east"], fix["north"]) == (START_NS / 1e6 + 1500.0, True, -34.0, 10.5)
    assert fix["covariance"] == [0.25, 0.0, 1.0]
    assert fix["truth"] == [-34.0, 10.0]
    assert (lost["fix"], lost["reason"]) == (False, "ambiguous")
    assert lost["hypotheses"] == [[-16.0, 10.0, 0.6], [-46.0, -20.0, 0.3]]
    assert "east" not in lost
    # What JSON cannot hold must not stop the page.
    assert position(math.nan, 0.0, 0.0, np.eye(2)) == {}


# -- map --------------------------------------------------------------------------------------------------------------


def test_reasons_that_the_page_names_exist():
    """Those that end in _image need no name there."""
    script = (Path(sys.modules[WatchServer.__module__].__file__).parent / "page" / "page.js").read_text(
        encoding="utf-8"
    )
    (line,) = [line for line in script.splitlines() if line.startswith("const FAULTS")]
    assert {"bad_stamp", "reset"} <= set(re.findall(r'"(\w+)"', line)) <= {reason.value for reason in RejectionReason}


def test_map_tile_shows_the_imagery_at_its_place_and_nothing_outside(index_folder):
    """Each level against the pixels of the index's own tiles, by their centres and `tile_from_map`."""
    index = open_index(index_folder)
    orthophoto = Orthophoto(index)
    assert orthophoto.tile(0, 10_000, 0) is None
    assert orthophoto.tile(orthophoto.levels, 0, 0) is None
    assert orthophoto.tile(-1, 0, 0) is None
    random = np.random.default_rng(0)
    for level in (0, 1, 2):
        scale = index.metres_per_pixel * 2**level
        side = scale * TILE_PIXELS
        right, shifted = [], []
        for tile in random.integers(0, len(index), 40).tolist():
            east, north = index.centres_m[tile] + random.uniform(-0.3, 0.3, 2) * index.manifest.side_m
            x, y = math.floor(east / side), math.floor(north / side)
            pixels = cv2.imdecode(np.frombuffer(orthophoto.tile(level, x, y), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
            row, column = int(((y + 1) * side - north) / scale), int((east - x * side) / scale)
            for found, move_m in ((right, 0.0), (shifted, 6.0)):
                place = (east + move_m, north, *index.centres_m[tile], index.tile_size, index.metres_per_pixel)
                r, c = np.rint(tile_from_map(*place)).astype(int)
                if max(r, c) < index.tile_size:
                    found.append(np.abs(pixels[row, column].astype(int) - index.tile_pixels(tile)[r, c]).max())
        assert len(right) == 40
        assert np.median(right) < 0.4 * np.median(shifted), level


# -- server -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve():
    """serve(source) → server, listening."""
    servers = []

    def start(source, port=0):
        servers.append(WatchServer(source, "127.0.0.1", port))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def get(server, path, **headers):
    request = urllib.request.Request(server.url + path.lstrip("/"), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_server_gives_page_information_and_tiles_and_refuses_the_rest(serve, results, index_folder):
    server = serve(ReplaySource(results, open_index(index_folder), None, None))
    status, page = get(server, "/")
    assert status == 200
    assert b"map.js" in page
    assert b"http://" not in page
    assert b"https://" not in page  # vehicles are offline
    information = json.loads(get(server, "/info.json")[1])
    assert (information["mode"], information["name"]) == ("replay", "drive")
    assert information["map"]["tiles"] == len(open_index(index_folder))
    assert information["map"]["attributions"] == [COPYRIGHT]
    status, jpeg = get(server, "/tiles/0/0/0.jpg")
    assert status == 200
    assert jpeg[:2] == b"\xff\xd8"
    for path in ("/tiles/0/99999/0.jpg", "/images/3.jpg", "/../server.py", "/page/index.html", "/tiles/9/0/0.jpg"):
        assert get(server, path)[0] == 404, path
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.request("POST", "/info.json", b"{}")
    assert connection.getresponse().status == 501
    connection.close()


def test_map_of_another_datum_than_the_nodes_is_named(index_folder):
    datum = open_index(index_folder).manifest.datum
    shown = Orthophoto(open_index(index_folder))
    assert shown.misplaced(f"{datum.latitude_deg:.7f}, {datum.longitude_deg:.7f}, 0 m") == ""
    assert shown.misplaced("") == ""  # the node says nothing yet
    told = shown.misplaced(f"{datum.latitude_deg + 0.001:.7f}, {datum.longitude_deg:.7f}, 0 m")
    assert "the map is not that of the node's index" in told
    assert f"{datum.latitude_deg:.7f}" in told


def test_server_on_the_loopback_answers_its_own_name_only(serve, results):
    server = serve(ReplaySource(results, None, None, None))
    port = server.server_address[1]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert get(server, "/info.json", Host=host)[0] == 200, host
    for host in (f"attacker.example:{port}", "", "127.0.0.1.attacker.example"):
        assert get(server, "/info.json", Host=host)[0] == 403, host


def test_stream_goes_on_where_a_reader_was_cut_off(serve, results):
    source = ReplaySource(results, None, None, None)
    server = serve(source)
    whole = get(server, "/events")[1].decode()
    assert len(json.loads(whole.split("data: ")[1].split("\n")[0])) == 30
    assert whole.startswith(f"id: {server.epoch}-30\n")
    rest = get(server, "/events", **{"Last-Event-ID": f"{server.epoch}-27"})[1].decode()
    assert len(json.loads(rest.split("data: ")[1].split("\n")[0])) == 3
    again = get(server, "/events", **{"Last-Event-ID": "anotherserver-27"})[1].decode()
    assert again == whole


def test_port_that_is_taken_is_one_error_with_the_remedy(serve, results):
    server = serve(ReplaySource(results, None, None, None))
    with pytest.raises(ConfigurationError, match="give another --port"):
        WatchServer(server.source, "127.0.0.1", server.server_address[1])


def test_replay_that_cannot_be_played_is_one_error(results, index_folder, tmp_path):
    assert results_file(results.parent) == results
    assert results_file(results.with_name("drive.mcap")) == results
    with pytest.raises(InputError, match="holds 0 replays"):
        results_file(tmp_path)
    with pytest.raises(InputError, match="there is no such file"):
        results_file(tmp_path / "none.mcap")
    (tmp_path / "other.frames.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="not the results of a replay"):
        ReplaySource(tmp_path / "other.frames.jsonl", None, None, None)
    head = json.loads(results.read_text().splitlines()[0])
    head["identity"]["index"]["datum"] = "1.0000000, 2.0000000, 0 m"
    (tmp_path / "other.frames.jsonl").write_text(json.dumps(head) + "\n" + to_json(frame(0)) + "\n")
    with pytest.raises(InputError, match="give the replay's index"):
        ReplaySource(tmp_path / "other.frames.jsonl", open_index(index_folder), None, None)


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path):
    """browser() → a Browser; it has no errors in its console at the end."""
    browsers = []

    def start(**options):
        browsers.append(Browser(tmp_path / f"profile{len(browsers)}", **options))
        return browsers[-1]

    yield start
    for made in browsers:
        made.close()


def test_pictures_of_a_rigs_replay_are_those_that_came_last_before_its_panorama(tmp_path):
    """It has the time of the camera that came last; the front camera came 0.1 s before. Grey is 20 · seconds."""
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        front, left = (writer.add_connection(f"/{name}", IMAGE, typestore=STORE) for name in ("front", "left"))
        for second in range(1, 9):
            for connection, later_ns in ((front, 0), (left, SECOND // 10)):
                message = image(second, np.full((8, 16, 3), 20 * second if connection is front else 0, np.uint8))
                writer.write(connection, START_NS + second * SECOND + later_ns, STORE.serialize_cdr(message, IMAGE))
    at = {
        2: START_NS + 2 * SECOND + SECOND // 10,
        5: START_NS + 5 * SECOND,
        7: START_NS + 7 * SECOND + 7 * SECOND // 10,
    }
    pictures = BagPictures(tmp_path / "bag", "/front", at)
    for number in (2, 5):
        shown = cv2.imdecode(np.frombuffer(pictures.picture(number), np.uint8), cv2.IMREAD_COLOR)
        assert shown.mean() == pytest.approx(20 * number, abs=2)
    assert pictures.picture(7) is None  # 0.7 s without an image


class SlowPictures:
    """Pictures as wide as 100 and their number, which are sent from a moment on."""

    def __init__(self):
        self.asked, self.go = [], threading.Event()

    def picture(self, number):
        self.asked.append(number)
        assert self.go.wait(60)
        return bytes(cv2.imencode(".jpg", np.zeros((8, 100 + number, 3), np.uint8))[1])


def test_pictures_that_come_slower_than_the_frames_are_shown_one_after_the_other(serve, browser, results):
    source = ReplaySource(results, None, None, None)
    source.pictures = pictures = SlowPictures()
    page = browser()
    page.open(serve(source).url)
    width = "document.querySelector('#camera').naturalWidth"
    page.wait_for("past.frames.length === 30 && document.querySelector('#camera').src !== ''")
    page.evaluate(f"window.widths = []; document.addEventListener('load', () => widths.push({width}), true)")
    page.evaluate("[5, 6, 7, 8, 9].forEach((index) => { select(index, true); describe(); })")
    pictures.go.set()
    page.wait_for(f"{width} === 109 && widths.length === 2")
    (first, last) = pictures.asked
    assert page.evaluate("widths") == [100 + first, 109]
    assert last == 9


ALL_LOADED = "[...map.tiles.values()].length > 0 && [...map.tiles.values()].every(tile => !tile || tile.complete)"


def test_page_plays_a_replay(serve, browser, results, index_folder, tmp_path):
    server = serve(ReplaySource(results, open_index(index_folder), None, None))
    page = browser()
    page.open(server.url)
    page.wait_for("past.frames.length === 30 && document.querySelector('#state').textContent === 'fix'")
    assert page.text("#mode") == "replay"
    assert page.text("#notes") == f"no camera pictures: give --bag · {COPYRIGHT}"
    assert page.evaluate("document.querySelector('#notes').children.length") == 0  # text, whatever it holds
    assert "true error0.50 m" in page.text("#values")
    assert "σ of the long axis1.00 m" in page.text("#values")
    # The timeline goes to a place: the middle is image 15, one of those without a fix.
    box = page.box("#timeline")
    page.mouse(box[0] + box[2] * 15.5 / 30, box[1] + box[3] / 2)
    page.wait_for("document.querySelector('#state').textContent === 'ambiguous'")
    assert page.text("#reason") == "40% of the belief is in other places"
    assert page.evaluate("[...document.querySelectorAll('#hypotheses li')].map(row => row.textContent)") == [
        "160.0%",
        "230.0%",
    ]
    assert page.text("#clock").endswith("16 of 30")
    # Keys step; playing ends at the end; the vehicle is where its fix says, in the colour of a fix.
    page.key("ArrowRight")
    page.wait_for("selected === 16")
    page.key("Home")
    page.wait_for("selected === 0")
    page.evaluate("document.querySelector('#speed').value = '20'")
    page.click("#play")
    page.wait_for("playing === false && selected === 29")
    page.click("#follow")
    page.evaluate("map.scale = 20; map.dirty = true")
    page.wait_for("Math.hypot(map.east - 18, map.north - 10.5) < 1e-6 && map.dirty === false")
    page.wait_for(ALL_LOADED)
    page.screenshot(tmp_path / "page.png")
    shot = cv2.imread(str(tmp_path / "page.png"))
    left, top, width, height = page.box("#map")
    x, y = left + width / 2, top + height / 2
    assert np.abs(shot[round(y), round(x)][::-1].astype(int) - [0x3D, 0xDC, 0x91]).max() < 25
    # The fix before it, 2 m to the west, is a dot on the trail.
    behind = shot[round(y), round(x - 2.0 * page.evaluate("map.scale"))][::-1].astype(int)
    assert behind[1] > behind[0] + 60
    assert behind[1] > behind[2] + 40
    # A hand on the map ends the following.
    page.mouse(x, y, to=(x + 80, y))
    page.wait_for("follow === false")
    assert page.evaluate("map.east") < 17.0
    assert page.errors == []


def test_page_without_a_map_says_so_and_draws_the_drive(serve, browser, results):
    server = serve(ReplaySource(results, None, None, None))
    page = browser(width=600, height=800)
    page.open(server.url)
    page.wait_for("past.frames.length === 30 && document.querySelector('#state').textContent === 'fix'")
    assert "no map: give the replay's INDEX" in page.text("#notes")
    assert page.errors == []


def test_command_serves_and_ends_on_a_signal(results, index_folder):
    command = [
        sys.executable,
        "-m",
        "unifygeo_ros.cli",
        "watch",
        str(index_folder),
        "--replay",
        str(results),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith("Watch the replay at http://127.0.0.1:"), line
        url = line.split()[4]
        with urllib.request.urlopen(url + "info.json", timeout=20) as answer:
            assert json.load(answer)["name"] == "drive"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""


# -- a running node ---------------------------------------------------------------------------------------------------


def test_page_shows_a_running_node_and_its_restart(serve, browser, index_folder, tmp_path):
    """The node's messages over real DDS, made by the node's own functions; two browsers; the index goes away."""
    rclpy = pytest.importorskip("rclpy")
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from geometry_msgs.msg import PoseWithCovarianceStamped
    from ros_drive import domain_id, png_message
    from sensor_msgs.msg import CompressedImage, PointCloud2

    from unifygeo_ros.core.se2 import Pose2
    from unifygeo_ros.ros import to_messages
    from unifygeo_ros.tracking.map_to_odom import PoseNow
    from unifygeo_ros.watch.live import LiveSource

    os.environ["ROS_DOMAIN_ID"] = str(domain_id())
    copy = shutil.copytree(index_folder, tmp_path / "index")
    datum = open_index(index_folder).manifest.datum
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("unifygeo_localizer", context=context)
    node.declare_parameter("index", str(copy))
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    name = "/unifygeo_localizer"
    node.create_subscription(CompressedImage, "/camera/compressed", lambda message: None, 1)
    topics = {
        "fix": node.create_publisher(PoseWithCovarianceStamped, f"{name}/fix", 10),
        "pose": node.create_publisher(PoseWithCovarianceStamped, f"{name}/pose", 10),
        "cloud": node.create_publisher(PointCloud2, f"{name}/hypotheses/cloud", 10),
        "outcome": node.create_publisher(DiagnosticArray, f"{name}/outcome", 10),
        "diagnostics": node.create_publisher(DiagnosticArray, "/diagnostics", 10),
        "camera": node.create_publisher(CompressedImage, "/camera/compressed", 10),
    }
    source = LiveSource(name, None, None)
    try:
        server = serve(source)
        pages = [browser(), browser(width=900, height=700)]
        for page in pages:
            page.open(server.url)
            page.wait_for("info.map !== null && info.notes.length === 0")  # map by the parameter, camera by the topic

        def publish(number, stamp_shift_ns=0):
            result = dataclasses.replace(outcome(number), stamp_ns=outcome(number).stamp_ns + stamp_shift_ns)
            if isinstance(result, Fix):
                topics["fix"].publish(to_messages.pose_message(result, "map"))
            topics["cloud"].publish(to_messages.hypotheses_cloud_message(result.hypotheses, result.stamp_ns, "map"))
            topics["outcome"].publish(to_messages.outcome_message(result, name[1:]))
            east = -40.0 + 2.0 * number + 1.0
            now = PoseNow(result.stamp_ns + SECOND // 4, Pose2(east, 10.5, 0.0), np.eye(3) * 0.3, Pose2(0.0, 0.0, 0.0))
            topics["pose"].publish(to_messages.pose_now_message(now, "map"))
            image = png_message(np.full((64, 128, 3), 40 + number, np.uint8))
            image.header.stamp = to_messages.time_message(result.stamp_ns)
            topics["camera"].publish(image)

        def show(number, condition, stamp_shift_ns=0):
            """Publish until the pages have it: best effort may lose the first ones."""
            deadline = time.monotonic() + 60
            while True:
                publish(number, stamp_shift_ns)
                if all(page.evaluate(condition) for page in pages):
                    return
                assert time.monotonic() < deadline, condition
                time.sleep(0.2)

        whole = "past.frames.at(-1)?.hypotheses?.length && past.frames.at(-1)?.text"
        show(0, f"Boolean({whole} && past.pictures.length && past.poses.length)")
        assert pages[0].text("#state") == "fix"
        assert pages[0].text("#mode") == "live"
        pages[0].wait_for("document.querySelector('#camera').naturalWidth === 128")
        show(13, "document.querySelector('#state').textContent === 'ambiguous'")
        assert pages[1].text("#reason") == "40% of the belief is in other places"
        part = DiagnosticStatus(name="unifygeo_localizer: camera", level=b"\x02", message="no image for 3.0 s")
        part.values = [KeyValue(key="rate_hz", value="0.00")]
        topics["diagnostics"].publish(DiagnosticArray(status=[part]))
        pages[0].wait_for("document.querySelector('#health').textContent.includes('no image for 3.0 s')")
        # The node is configured with another index: the map follows, and no tile of the old one is taken for it.
        old_key = pages[0].evaluate("info.map.key")
        assert pages[0].evaluate("[...map.tiles.values()].every(one => !one || one.src.endsWith('?' + info.map.key))")
        shutil.copytree(copy, tmp_path / "other")
        for index in ("index", "other"):
            node.set_parameters([rclpy.parameter.Parameter("index", value=str(tmp_path / index))])
            part = DiagnosticStatus(name="unifygeo_localizer: node", message="active")
            part.values = [
                KeyValue(key="index", value=f"77 tiles ({index})"),
                KeyValue(key="datum", value=f"{datum.latitude_deg:.7f}, {datum.longitude_deg:.7f}, 0 m"),
            ]
            topics["diagnostics"].publish(DiagnosticArray(status=[part]))
            pages[1].wait_for(f"JSON.stringify(past.status ?? '').includes('({index})')")
        for page in pages:
            page.wait_for("info.map.name === 'other'")
            assert page.evaluate("info.map.key") != old_key
        # Looking back does not jump to the present when something comes.
        pages[0].key("Home")
        pages[0].wait_for("selected === 0 && !live")
        shutil.rmtree(tmp_path / "other")  # the index is gone: what is mapped stays, and the page goes on
        show(20, "past.frames.length === 3")
        assert pages[0].evaluate("selected") == 0
        assert pages[1].evaluate("selected") == 2
        # The node starts again with the bag: time goes back, and a drive of its own begins.
        show(1, "past.drive === 1 && past.frames.length === 4")
        pages[0].click("#live")
        pages[0].wait_for("selected === 3 && live")
        assert [error for page in pages for error in page.errors] == []
    finally:
        source.close()
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.shutdown(context=context)
