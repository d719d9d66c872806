"""Whole replays of a real bag with a real index and real engines."""

import errno
import html
import json
import math
import os
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from colour_region import COPYRIGHT, write_colour_region
from drives import START_NS, STORE, TYPES, Circle, header, vector, write_drive
from index_parts import subset
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation
from worlds import World, colour_world

from unifygeo_ros import cli
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.conversions.from_messages import camera_image
from unifygeo_ros.core.records import Fix, RejectionReason
from unifygeo_ros.evaluation.metrics.definitions import anees_bounds
from unifygeo_ros.evaluation.metrics.results import read_frames, to_json
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.evaluation.replay import choose_topics
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.localization.panorama import enough_columns
from unifygeo_ros.parameters.options import settings_of_options

TF = "tf2_msgs/msg/TFMessage"
EVO_APE = shutil.which("evo_ape", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with bundle, index and the bag of a drive."""
    folder = tmp_path_factory.mktemp("replay")
    world = write_colour_region(folder)
    write_drive(folder / "drive", world, open_index(folder / "index").frame)
    return folder


def run(place, output, *options, bag="drive", truth="/ground_truth/odometry"):
    """`unifygeo replay`; returns its exit status."""
    arguments = ["replay", place / bag, "--index", place / "index", "--model", place / "bundle", "--output", output]
    for parameter in ("session.mode=single", "session.heading_source=imu", "threads=1", "backend=onnx_cpu",
                      "session.camera_check_images=0"):  # fmt: skip
        arguments += ["--set", parameter]
    arguments += ["--quiet", *options]
    if truth:
        arguments += ["--truth-topic", truth]
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def done(place):
    """Folder with out.mcap and report.html of an uninterrupted replay."""
    assert run(place, place / "out.mcap", "--report", place / "report.html") == 0
    return place


def frames(folder, name="out"):
    return list(read_frames(folder / f"{name}.frames.jsonl"))


def test_fixes_are_near_the_truth(done):
    found = frames(done)
    assert [frame.number for frame in found] == list(range(25))
    fixes = [frame for frame in found if isinstance(frame.outcome, Fix)]
    assert len(fixes) >= 8
    errors = [math.hypot(f.outcome.east_m - f.truth.east_m, f.outcome.north_m - f.truth.north_m) for f in fixes]
    assert np.median(errors) < 1.5
    frame = open_index(done / "index").frame
    for result in found:
        x, y, yaw = Circle().pose((result.outcome.stamp_ns - START_NS) / 1e9)
        assert np.hypot(*(World.in_map(frame, x, y) - [result.truth.east_m, result.truth.north_m])) < 0.02
        assert math.cos(result.truth.yaw_rad - yaw) > 0.9999


@pytest.mark.parametrize("mode", ["single", "sequence"])
def test_replay_in_a_region_equals_the_replay_in_its_one_index(place, done, tmp_path, mode):
    """The drive circles over the border of its two indexes."""
    index = open_index(place / "index")
    for name, chosen in (("east", index.centres_m[:, 0] >= 0), ("west", index.centres_m[:, 0] < 0)):
        subset(index, chosen, tmp_path / "region" / name)
    option = ("--set", f"session.mode={mode}")
    assert run(place, tmp_path / "region.mcap", "--index", tmp_path / "region", *option) == 0
    if mode == "sequence":
        assert run(place, tmp_path / "one.mcap", *option) == 0
    expected = frames(done) if mode == "single" else frames(tmp_path, "one")
    found = frames(tmp_path, "region")
    assert len(found) == len(expected) == 25
    for one, other in zip(expected, found, strict=True):
        assert type(one.outcome) is type(other.outcome)
        if isinstance(one.outcome, Fix):
            for name in ("east_m", "north_m", "latitude_deg", "longitude_deg", "yaw_rad"):
                assert getattr(other.outcome, name) == pytest.approx(getattr(one.outcome, name), abs=1e-4)
    assert sum(isinstance(frame.outcome, Fix) for frame in found) >= 5


def test_results_survive_their_file(done):
    text = (done / "out.frames.jsonl").read_text().splitlines()
    assert [to_json(frame) for frame in frames(done)] == text[1:-1]
    assert json.loads(text[-1]) == {"end": 25, "problems": []}


def test_replaying_twice_gives_the_same_bytes(done, tmp_path):
    assert run(done, tmp_path / "out.mcap") == 0
    for name in ("out.mcap", "out.frames.jsonl"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes()


@pytest.mark.parametrize("source", [("--set", "session.mode=sequence"), ("--set", "session.prior_source=last_fix")])
def test_resumed_replay_equals_an_uninterrupted_one(place, tmp_path, source):
    assert run(place, tmp_path / "whole.mcap", *source) == 0
    lines = (tmp_path / "whole.frames.jsonl").read_bytes().splitlines(keepends=True)
    # Killed while the ninth result was written.
    (tmp_path / "cut.frames.jsonl").write_bytes(b"".join(lines[:9]) + lines[9][:40])
    (tmp_path / "cut.timings.jsonl").write_text("")
    assert run(place, tmp_path / "cut.mcap", *source) == 0
    assert (tmp_path / "cut.frames.jsonl").read_bytes() == (tmp_path / "whole.frames.jsonl").read_bytes()
    assert (tmp_path / "cut.mcap").read_bytes() == (tmp_path / "whole.mcap").read_bytes()
    # Only what was missing was computed.
    assert len((tmp_path / "cut.timings.jsonl").read_text().splitlines()) == 25 - 8


def test_results_of_another_replay_are_not_continued(done, capsys):
    assert run(done, done / "out.mcap", "--set", "localizer.gate_sigma_m=5") == 2
    assert "localizer.gate_sigma_m (10.0 there, 5.0 now)" in capsys.readouterr().err
    assert len(frames(done)) == 25


def test_evo_reads_the_bag_and_agrees_on_the_error(done, tmp_path):
    if EVO_APE is None:
        pytest.skip("evo_ape is not installed")
    command = [EVO_APE, "bag2", done / "out.mcap", "/ground_truth/pose", "/unifygeo/fix"]
    result = subprocess.run(
        [*map(str, command), "--save_results", str(tmp_path / "ape.zip")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(tmp_path / "ape.zip") as archive:
        theirs = json.loads(archive.read("stats.json"))
    ours = json.loads((done / "report.json").read_text())["accuracy"]["error_m"]
    for name, evo_name in (("rmse", "rmse"), ("mean", "mean"), ("median", "median"), ("maximum", "max")):
        assert ours[name] == pytest.approx(theirs[evo_name], rel=1e-9)


def test_output_bag_holds_what_the_results_say(done):
    with AnyReader([done / "out.mcap"]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        fixes = [frame for frame in frames(done) if isinstance(frame.outcome, Fix)]
        assert counts == {
            "/unifygeo/fix": len(fixes),
            "/unifygeo/navsat": len(fixes),
            "/diagnostics": 25,
            "/ground_truth/pose": 25,
        }
        topic = [c for c in reader.connections if c.topic == "/unifygeo/navsat"]
        for (_, time_ns, data), frame in zip(reader.messages(topic), fixes, strict=True):
            message = reader.deserialize(data, topic[0].msgtype)
            assert time_ns == frame.log_time_ns
            assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == frame.outcome.stamp_ns
            assert (message.latitude, message.longitude) == (frame.outcome.latitude_deg, frame.outcome.longitude_deg)
        topic = [c for c in reader.connections if c.topic == "/diagnostics"]
        levels = [reader.deserialize(data, topic[0].msgtype).status[0].level for _, _, data in reader.messages(topic)]
        assert levels.count(0) == len(fixes)


def test_rosbag2_folder_can_be_written_too(done, tmp_path):
    shutil.copy(done / "out.frames.jsonl", tmp_path / "folder.frames.jsonl")
    (tmp_path / "folder.timings.jsonl").write_text("")
    assert run(done, tmp_path / "folder") == 0
    assert (tmp_path / "folder" / "metadata.yaml").exists()
    with AnyReader([tmp_path / "folder"]) as reader:
        assert reader.message_count > 50


def test_navsatfix_as_truth_agrees_with_odometry_as_truth(done, tmp_path):
    assert run(done, tmp_path / "gps.mcap", "--odometry-topic", "/odom", truth="/ground_truth/navsat") == 0
    for ours, theirs in zip(frames(tmp_path, "gps"), frames(done), strict=True):
        assert type(ours.outcome) is type(theirs.outcome)
        # 5 Hz on a circle of 30 m at 5 m/s: the chord is off by up to a·Δt²/8 = 4 mm.
        distance = math.hypot(ours.truth.east_m - theirs.truth.east_m, ours.truth.north_m - theirs.truth.north_m)
        assert distance < 0.03
        assert ours.truth.yaw_rad is None
        assert math.cos(ours.truth.course_rad - theirs.truth.yaw_rad) > 0.99


def test_ambiguous_topics_are_listed(place, tmp_path, capsys):
    assert run(place, tmp_path / "x.mcap", truth=None) == 2
    error = capsys.readouterr().err
    assert "2 topics can serve as ground truth; choose by --truth-topic" in error
    assert "/ground_truth/odometry" in error
    assert "/ground_truth/navsat" in error
    assert "/odom (" not in error


def bag_of(place, path, topics):
    """The drive with some of its topics, under other names: {name there: name here}."""
    with AnyReader([place / "drive"]) as reader, Writer(path, version=9) as writer:
        kept = [c for c in reader.connections if c.topic in topics]
        out = {c.id: writer.add_connection(topics[c.topic], c.msgtype, typestore=reader.typestore) for c in kept}
        for connection, time_ns, data in reader.messages(kept):
            writer.write(out[connection.id], time_ns, data)
    return Bag(path)


@pytest.mark.parametrize(
    ("odometry", "truth", "chosen"),
    [
        ("/odom", "/ground_truth/odometry", ("/odom", "/ground_truth/odometry")),
        (None, "/robot/gt_pose", (None, "/robot/gt_pose")),  # would be the answer, given away as the session's odometry
        (None, "/truth/odom", (None, "/truth/odom")),
        (None, "/wheels", ("/wheels", None)),
        ("/wheels", "/groundtruth", ("/wheels", "/groundtruth")),
    ],
)
def test_topic_that_says_ground_truth_is_not_the_odometry(place, tmp_path, odometry, truth, chosen):
    names = {"/camera/image/compressed": "/image", "/ground_truth/odometry": truth}
    bag = bag_of(place, tmp_path / "bag", names | ({"/odom": odometry} if odometry else {}))
    topics = choose_topics(bag)
    assert (topics.odometry and topics.odometry.name, topics.truth and topics.truth.name) == chosen


def test_topic_named_gtsam_is_no_ground_truth(place, tmp_path):
    names = {"/camera/image/compressed": "/image", "/odom": "/gtsam/odometry", "/ground_truth/navsat": "/gps"}
    topics = choose_topics(bag_of(place, tmp_path / "bag", names))
    assert (topics.odometry.name, topics.truth.name) == ("/gtsam/odometry", "/gps")


def test_images_are_decoded_no_larger_than_the_localizer_needs(place, tmp_path, monkeypatch):
    widths = []

    def decode(message, least_width=None):
        widths.append(least_width)
        return camera_image(message, least_width)

    monkeypatch.setattr("unifygeo_ros.evaluation.image_sources.camera_image", decode)
    assert run(place, tmp_path / "out.mcap", "--odometry-topic", "/odom", "--max-frames", 2) == 0
    assert widths == [enough_columns(load_bundle(place / "bundle").manifest.ground)] * 2


def test_unusable_output_is_refused_before_the_replay(place, tmp_path, capsys):
    assert run(place, tmp_path / "out.bag") == 2
    assert "must end in .mcap" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_replay_of_a_cut_bag_loses_only_its_end(place, done, tmp_path):
    # Raw images fill several chunks of 1 MiB; the one that was cut is lost as a whole.
    write_drive(place / "cut", colour_world(), open_index(place / "index").frame, raw=True)
    file = place / "cut" / "cut.mcap"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size * 6 // 10)
    assert run(place, tmp_path / "out.mcap", "--report", tmp_path / "report.html", bag="cut") == 0
    found = frames(tmp_path)
    assert len(found) == 8  # of 25: the cut is in the second of four chunks
    for ours, whole in zip(found, frames(done), strict=False):
        if ours.number + 2 < len(found):  # the truth beside the last ones may be lost
            assert to_json(ours) == to_json(whole)
    report = (tmp_path / "report.html").read_text()
    assert "What was wrong with the recording" in report
    assert "nothing readable after byte" in report
    assert json.loads((tmp_path / "report.json").read_text())["problems"]


def test_sqlite_bags_give_the_same_fixes(place, done, tmp_path):
    frame = open_index(place / "index").frame
    write_drive(place / "sqlite", colour_world(), frame, storage=StoragePlugin.SQLITE3)
    assert run(place, tmp_path / "out.mcap", bag="sqlite") == 0
    assert [to_json(f) for f in frames(tmp_path)] == [to_json(f) for f in frames(done)]


def test_rosbag1_gives_the_same_fixes(place, done, tmp_path):
    command = [sys.executable, "-m", "rosbags.convert", "--src", place / "drive", "--dst", place / "drive.bag"]
    subprocess.run([*map(str, command), "--dst-typestore", "ros1_noetic", "--compress", "lz4"], check=True)
    assert run(place, tmp_path / "out.mcap", bag="drive.bag") == 0
    assert [to_json(f) for f in frames(tmp_path)] == [to_json(f) for f in frames(done)]


def test_raw_images_give_the_same_fixes(place, done, tmp_path):
    write_drive(place / "raw", colour_world(), open_index(place / "index").frame, raw=True)
    assert run(place, tmp_path / "out.mcap", bag="raw") == 0
    assert [to_json(f) for f in frames(tmp_path)] == [to_json(f) for f in frames(done)]


def test_report_is_whole_and_needs_no_network(done):
    page = (done / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "https://" not in page
    assert page.count("<svg") >= 9
    assert "nan" not in page.lower().split()
    numbers = json.loads((done / "report.json").read_text())
    assert numbers["format"] == "unifygeo-evaluation"
    assert numbers["counts"]["images"] == 25
    assert len(numbers["per_image"]["error_m"]) == 25


def test_report_names_the_provider_of_the_imagery(done):
    page = (done / "report.html").read_text()
    assert f"<dt>imagery</dt><dd>{html.escape(COPYRIGHT)}</dd>" in page
    assert COPYRIGHT not in page  # it is text, whatever it holds
    assert json.loads((done / "report.json").read_text())["identity"]["index"]["attributions"] == [COPYRIGHT]


def test_imagery_error_counts_as_one_draw_in_the_report(place, tmp_path):
    options = ("--set", "localizer.imagery_sigma_m=2.0", "--report", tmp_path / "r.html")
    assert run(place, tmp_path / "out.mcap", *options) == 0
    position = json.loads((tmp_path / "r.json").read_text())["covariance"]["position"]
    declared = [frame.outcome.covariance_m2 for frame in frames(tmp_path) if isinstance(frame.outcome, Fix)]
    # Of an exact truth the share is that of the fixes' own covariances, nearly.
    assert position["common"] == pytest.approx(
        4.0 * np.mean([np.trace(np.linalg.inv(c)) for c in declared]) / 2, rel=0.05
    )
    assert (position["lower"], position["upper"]) != pytest.approx(anees_bounds(position["count"]))


def test_rejected_images_keep_their_reason(place, tmp_path):
    assert (
        run(place, tmp_path / "out.mcap", "--set", "localizer.gate_sigma_m=0.1", "--report", tmp_path / "r.html") == 0
    )
    found = frames(tmp_path)
    assert not any(isinstance(frame.outcome, Fix) for frame in found)
    assert {frame.outcome.reason for frame in found} >= {RejectionReason.UNCERTAIN}
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert numbers["accuracy"]["error_m"] is None
    assert numbers["availability"]["time_to_first_fix_s"] is None
    assert "None of the 25 images got a fix" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_ten_thousand_images_in_bounded_memory(place, tmp_path):
    """A city-long drive. The peak may not grow with the drive but for the truth and the numbers of an image."""
    frame = open_index(place / "index").frame
    write_drive(place / "long", colour_world(), frame, seconds=500.0, image_rate=20.0)
    assert run(place, tmp_path / "warm.mcap", "--max-frames", 200, bag="long") == 0
    peaks = {}
    for count in (1000, 10_000):
        tracemalloc.start()
        assert run(place, tmp_path / f"{count}.mcap", "--max-frames", count, bag="long") == 0
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(frames(tmp_path, str(count))) == count
    assert (peaks[10_000] - peaks[1000]) / 9000 < 3000  # bytes an image; 1000 were measured


def test_drive_without_ground_truth_is_replayed_and_reported(place, done, tmp_path, capsys):
    options = ("--truth-topic", "none", "--odometry-topic", "/odom", "--report", tmp_path / "r.html")
    assert run(place, tmp_path / "out.mcap", *options, truth=None) == 0
    assert [type(f.outcome) for f in frames(tmp_path)] == [type(f.outcome) for f in frames(done)]
    numbers = json.loads((tmp_path / "r.json").read_text())
    fixes = numbers["counts"]["fixes"]
    assert (numbers["counts"]["with_truth"], numbers["counts"]["judged"]) == (0, 0)
    assert numbers["availability"]["fix"]["value"] == fixes / 25
    assert numbers["availability"]["declared"]["count"] == 25
    with AnyReader([tmp_path / "out.mcap"]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
    assert counts == {"/unifygeo/fix": fixes, "/unifygeo/navsat": fixes, "/diagnostics": 25}
    page = (tmp_path / "r.html").read_text()
    assert "declared 95% radius of a fix" in page
    assert "Integrity" not in page
    assert "None of them has ground truth" in capsys.readouterr().out


def test_bag_without_any_truth_topic_needs_no_option(place, tmp_path):
    """Only /odom is left as Odometry, and that is the session's."""
    with AnyReader([place / "drive"]) as reader, Writer(tmp_path / "bare", version=9) as writer:
        kept = [c for c in reader.connections if "truth" not in c.topic]
        out = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=reader.typestore) for c in kept}
        for connection, time_ns, data in reader.messages(kept):
            writer.write(out[connection.id], time_ns, data)
    assert run(place, tmp_path / "out.mcap", bag=tmp_path / "bare", truth=None) == 0
    assert {frame.truth for frame in frames(tmp_path)} == {None}


def test_output_and_report_name_the_set_up(done, place, capsys):
    assert run(place, place / "out.mcap", "--report", place / "report.html") == 0
    text = "Mode single; heading: imu /imu/data; odometry: /odom; mount: x 0.00 m, y 0.00 m, yaw 0.0° (parameters)."
    assert text in capsys.readouterr().out
    assert text in (done / "report.html").read_text()


def rewritten(place, path, change, *links):
    """The drive with messages as `change(topic, message)` leaves them, and links (`transform_link`) in /tf_static."""
    with AnyReader([place / "drive"]) as reader, Writer(path, version=9) as writer:
        if links:
            static = writer.add_connection("/tf_static", TF, typestore=STORE)
            writer.write(static, START_NS, STORE.serialize_cdr(TYPES[TF](transforms=list(links)), TF))
        out = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=STORE) for c in reader.connections}
        for connection, time_ns, data in reader.messages():
            message = STORE.deserialize_cdr(data, connection.msgtype)
            change(connection.topic, message)
            writer.write(out[connection.id], time_ns, STORE.serialize_cdr(message, connection.msgtype))
    return path


def transform_link(child, place_m, rotation):
    x, y, z, w = rotation.as_quat().tolist()
    transform = TYPES["geometry_msgs/msg/Transform"](
        translation=vector(*place_m), rotation=TYPES["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w)
    )
    return TYPES["geometry_msgs/msg/TransformStamped"](
        header=header(0.0, "base_link"), child_frame_id=child, transform=transform
    )


def turned(topic, message, mount):
    """An IMU that is mounted so: the orientation of its own frame, as a driver by REP-145 gives it."""
    if topic == "/imu/data":
        message.header.frame_id = "imu_link"
        q = message.orientation
        q.x, q.y, q.z, q.w = (Rotation.from_quat([q.x, q.y, q.z, q.w]) * mount).as_quat().tolist()


def assert_same_fixes(found, expected):
    assert [type(frame.outcome) for frame in found] == [type(frame.outcome) for frame in expected]
    fixes = 0
    for a, b in zip(found, expected, strict=True):
        if isinstance(b.outcome, Fix):
            fixes += 1
            assert (a.outcome.east_m, a.outcome.north_m) == pytest.approx(
                (b.outcome.east_m, b.outcome.north_m), abs=0.02
            )
            assert a.outcome.yaw_rad == pytest.approx(b.outcome.yaw_rad, abs=1e-4)
    assert fixes >= 8


@pytest.mark.parametrize("angles", [(math.pi, 0.0, 0.0), (0.3, -0.8, 2.0)], ids=["upside down", "any"])
def test_replay_corrects_a_rotated_imu_by_tf_static(done, tmp_path, capsys, angles):
    mount = Rotation.from_euler("xyz", angles)
    link = transform_link("imu_link", (0.2, 0.0, 0.5), mount)
    bag = rewritten(done, tmp_path / "bag", lambda topic, message: turned(topic, message, mount), link)
    assert run(done, tmp_path / "out.mcap", "--report", tmp_path / "r.html", bag=bag) == 0
    assert_same_fixes(frames(tmp_path), frames(done))
    text = "imu_link on base_link: x 0.20 m, y 0.00 m, z 0.50 m, roll"
    assert text in capsys.readouterr().out
    assert text in (tmp_path / "r.html").read_text()


def test_replay_refuses_an_imu_of_an_unknown_frame_as_the_node_does(done, tmp_path, capsys):
    bag = rewritten(done, tmp_path / "bag", lambda topic, message: turned(topic, message, Rotation.identity()))
    gates = ("--set", "localizer.heading_search=false")
    assert run(done, tmp_path / "out.mcap", "--report", tmp_path / "r.html", *gates, bag=bag) == 0
    assert {frame.outcome.reason for frame in frames(tmp_path)} == {RejectionReason.NO_HEADING}
    words = (
        "frame 'imu_link': TF has no transform to 'base_link'; publish that static transform, or set input_frames to "
        "base if the axes are base_frame's"
    )
    end = json.loads((tmp_path / "out.frames.jsonl").read_text().splitlines()[-1])
    assert end["problems"] == [f"Refused 601 of /imu/data: {words}"]
    assert f"Messages of /imu/data will be refused, {words}" in capsys.readouterr().out
    # The wrong name of an upright IMU.
    assert run(done, tmp_path / "base.mcap", "--set", "input_frames=base", bag=bag) == 0
    assert_same_fixes(frames(tmp_path, "base"), frames(done))


def test_wheel_odometry_of_another_frame_gives_the_tracks_of_base_link(done, tmp_path):
    """Its child frame is 1.5 m ahead and turned to the left; the oracle is that frame's own pose and velocity."""
    options = ("--set", "session.mode=sequence", "--set", "session.heading_source=none")
    options += ("--set", "session.prior_source=none", "--max-frames", 12)
    mount, arm_m, rate = Rotation.from_euler("z", 0.5), np.array([1.5, 0.0, 0.0]), 5.0 / 30.0

    def moved(topic, message):
        if topic == "/odom":
            message.child_frame_id = "wheels"
            pose, twist = message.pose.pose, message.twist.twist
            base = Rotation.from_quat([0.0, 0.0, pose.orientation.z, pose.orientation.w])
            dx, dy, _ = base.apply(arm_m)
            pose.position.x, pose.position.y = pose.position.x + dx, pose.position.y + dy
            pose.orientation.z, pose.orientation.w = (base * mount).as_quat()[2:].tolist()
            velocity = mount.inv().apply([twist.linear.x, rate * 1.5, 0.0])  # the turn sweeps the lever to the left
            twist.linear.x, twist.linear.y = velocity[:2].tolist()

    bag = rewritten(done, tmp_path / "bag", moved, transform_link("wheels", arm_m, mount))
    assert run(done, tmp_path / "base.mcap", *options) == 0
    assert run(done, tmp_path / "wheels.mcap", *options, bag=bag) == 0
    expected, found = frames(tmp_path, "base"), frames(tmp_path, "wheels")
    for a, b in zip(found, expected, strict=True):
        assert a.odometry == pytest.approx(b.odometry, abs=1e-9)
        assert type(a.outcome) is type(b.outcome)


def test_without_fixes_the_output_says_what_to_check(place, tmp_path, capsys):
    options = ("--set", "session.heading_source=none", "--set", "localizer.gate_ambiguity=0.0")
    assert run(place, tmp_path / "out.mcap", "--max-frames", 3, *options) == 0
    text = capsys.readouterr().out
    for words in ("What to check:", "session.heading_source is none", "camera.yaw_rad", "session.mode is single",
                  "session.stamp_offset_s is 0"):  # fmt: skip
        assert words in text


def test_without_imu_samples_the_output_names_the_heading_source(place, tmp_path, capsys):
    options = ("--imu-topic", "none", "--set", "localizer.gate_ambiguity=0.0", "--max-frames", 3)
    assert run(place, tmp_path / "out.mcap", *options) == 0
    assert "session.heading_source is imu, but 3 of 3 images had no heading from it" in capsys.readouterr().out


def test_read_only_folder_ends_in_one_line_with_the_remedy(place, done, tmp_path, capsys, monkeypatch):
    def fail(self, *_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr("unifygeo_ros.evaluation.evaluate.write_text", fail)
    shutil.copy(done / "out.frames.jsonl", tmp_path / "out.frames.jsonl")
    (tmp_path / "out.timings.jsonl").write_text("")
    assert run(done, tmp_path / "out.mcap", "--report", tmp_path / "r.html") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "r.json: cannot be written (No space left on device); free some space" in error
    assert len(frames(tmp_path)) == 25


def settings(*arguments):
    """The settings of `unifygeo replay` with these options."""
    common = ["replay", "bag", "--output", "o.mcap"]
    return settings_of_options(cli.build_parser().parse_args([*common, *map(str, arguments)]))


def test_parameters_come_from_files_and_set_overrides_them(tmp_path):
    file, other = tmp_path / "node.yaml", tmp_path / "other.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    use_sim_time: true\n    camera: {x_m: 0.5, upside_down: true}\n"
        "unifygeo_localizer:\n  ros__parameters:\n    bundle: /model\n    backend: onnx_cpu\n    cache_dir: ''\n"
        "    localizer.heading_search: false\n    session:\n      heading_source: imu\n"
        "    tracker: {keep_ambiguity: 0.25}\n"
        "another_node:\n  ros__parameters:\n    camera: {x_m: 9.0}\n"
    )
    other.write_text("unifygeo_localizer:\n  ros__parameters:\n    camera.y_m: -0.5\n")
    found = settings("--params", file, "--set", "session.heading_source=odometry", "--params", other, "--set",
                     "camera.yaw_rad=2", "--set", "cache_dir=1")  # fmt: skip
    assert (found.camera.x_m, found.camera.y_m, found.camera.yaw_rad, found.camera.upside_down) == (
        0.5,
        -0.5,
        2.0,
        True,
    )
    assert (found.node.bundle, found.node.backend, found.node.cache_dir) == ("/model", "onnx_cpu", "1")
    assert (found.localizer.heading_search, found.session.heading_source) == (False, "odometry")
    assert found.tracker.keep_ambiguity == 0.25


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("session.heading_sorce=imu", "did you mean session.heading_source?"),
        ("heading_source=imu", "did you mean session.heading_source?"),
        ("session.mode", "has no value; write --set NAME=VALUE"),
        ("camera.x_m=front", "camera.x_m is 'front', must be a number"),
        ("localizer.candidates=1.5", "must be a whole number"),
        ("camera.upside_down=2", "must be a boolean"),
        ("session.mode=fast", "must be one of sequence, single"),
    ],
)
def test_set_refuses_what_does_not_fit(option, words, capsys):
    assert cli.main(["replay", "bag", "--output", "o.mcap", "--index", "i", "--model", "m", "--set", option]) == 2
    assert words in capsys.readouterr().err


def test_replay_asks_for_an_index_that_neither_option_nor_parameter_names(capsys):
    assert cli.main(["replay", "bag", "--output", "o.mcap", "--set", "bundle=m"]) == 2
    assert "--index is missing; give it, or the parameter index" in capsys.readouterr().err


def test_negative_latitude_of_the_truth_frame_is_a_value_and_no_option():
    arguments = ["replay", "bag", "--output", "o.mcap", "--truth-frame", "-33.9,18.4"]
    assert cli.build_parser().parse_args(arguments).truth_frame == "-33.9,18.4"
