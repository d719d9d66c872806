"""The launch and parameter files: the latter by reading them, the former by launching them where `launch` is there."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy")

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from drives import STORE, write_drive
from ros_drive import OPEN_GATES, Region, Vehicle, domain_id, make_region
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin
from sensor_msgs.msg import CompressedImage
from worlds import colour_world

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.parameters.settings import PARAMETERS, Settings, with_values

ROOT = Path(__file__).parent.parent
EKF_AXES = 15  # x, y, z, roll, pitch, yaw, their velocities, accelerations
# What ekf_node 3.6 declares. A name it does not know is not refused but passed over in silence.
EKF_PARAMETERS = """
frequency sensor_timeout two_d_mode predict_to_current_time permit_corrected_publication
map_frame odom_frame base_link_frame base_link_frame_output world_frame tf_prefix
transform_time_offset transform_timeout publish_tf publish_acceleration print_diagnostics
smooth_lagged_data history_length disabled_at_startup reset_on_time_jump gravitational_acceleration
initial_state initial_estimate_covariance process_noise_covariance dynamic_process_noise_covariance
use_control control_timeout control_config debug debug_out_file
acceleration_limits acceleration_gains deceleration_limits deceleration_gains
"""
EKF_INPUT_PARAMETERS = {
    "odom": "config queue_size differential relative pose_use_child_frame pose_rejection_threshold "
    "twist_rejection_threshold",
    "pose": "config queue_size differential relative rejection_threshold",
    "twist": "config queue_size rejection_threshold",
    "imu": "config queue_size differential relative remove_gravitational_acceleration pose_rejection_threshold "
    "twist_rejection_threshold linear_acceleration_rejection_threshold",
}


def flat(parameters: dict, prefix: str = "") -> dict:
    return {
        name: value
        for key, item in parameters.items()
        for name, value in (flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}).items()
    }


def test_parameter_file_holds_parameters_that_exist_with_values_that_fit():
    (section,) = yaml.safe_load((ROOT / "config/localizer.yaml").read_text()).values()
    values = flat(section["ros__parameters"])
    # Raises for an unknown name, a wrong type or a value out of range.
    assert with_values(Settings(), values) == Settings(), "a node started without the file does what one with it does"
    assert "camera.x_m" in values


def ekf_parameters(name):
    return yaml.safe_load((ROOT / "config/ekf.yaml").read_text())[f"/**/{name}"]["ros__parameters"]


def unknown_ekf_parameters(parameters):
    """Names that ekf_node passes over in silence. Inputs are numbered from 0; it stops at the first number left out."""
    unknown = set(parameters) - set(EKF_PARAMETERS.split())
    for kind, names in EKF_INPUT_PARAMETERS.items():
        number = 0
        while f"{kind}{number}" in parameters:
            unknown -= {f"{kind}{number}", *(f"{kind}{number}_{name}" for name in names.split())}
            number += 1
    return unknown


@pytest.mark.parametrize("name", ["ekf_odom", "ekf_map"])
def test_ekf_file_holds_parameters_that_exist(name):
    parameters = ekf_parameters(name)
    assert not unknown_ekf_parameters(parameters)
    for key in [key for key in parameters if re.fullmatch("(odom|pose|imu|twist)[0-9]+", key)]:
        assert any(parameters[f"{key}_config"]), key  # without it nothing is fused


def test_parameter_check_finds_misspelt_foreign_and_unreachable_names():
    parameters = {"pose0": "fix", "pose0_rejection_treshold": 3.0, "imu0_rejection_threshold": 3.0, "odom1": "odom"}
    assert unknown_ekf_parameters(parameters) == set(parameters) - {"pose0"}


@pytest.mark.parametrize("name", ["ekf_odom", "ekf_map"])
def test_ekf_file_has_the_lengths_that_robot_localization_takes(name):
    parameters = ekf_parameters(name)
    for key, value in parameters.items():
        if key.endswith("_config"):
            assert len(value) == EKF_AXES, key
            assert all(isinstance(fused, bool) for fused in value), key
        if key.endswith("_covariance"):
            assert len(value) in (EKF_AXES, EKF_AXES**2), key
            assert all(isinstance(number, float) and number > 0 for number in value), key  # "1e6" is text in YAML


def test_only_the_map_filter_takes_fixes_and_only_x_y_and_yaw_of_them():
    odom, map_ = ekf_parameters("ekf_odom"), ekf_parameters("ekf_map")
    assert not any(key.startswith("pose") for key in odom)
    assert (odom["world_frame"], map_["world_frame"]) == ("odom", "map")
    assert [axis for axis, fused in enumerate(map_["pose0_config"]) if fused] == [0, 1, 5]
    # Absolute positions other than the fixes' would conflict with them.
    assert not any(any(map_[key][:6]) for key in ("odom0_config", "imu0_config"))
    assert map_["smooth_lagged_data"]
    assert map_["history_length"] >= 1.0
    # The first fix meets the rejection threshold, too: it must pass wherever in a region of 100 km it is.
    assert (
        min(map_["initial_estimate_covariance"][i] for i in (0, 1)) >= (100e3 / map_["pose0_rejection_threshold"]) ** 2
    )


def test_process_noise_of_yaw_is_the_one_that_was_chosen_by_measurement():
    """With 0.002 rad² a second, the first choice, the map filter takes false fixes after a gap."""
    page = (ROOT / "docs/measurements/node.md").read_text()
    (chosen,) = re.findall(r"^\| \*\*([0-9.]+) \([0-9.]+°/√s\)\*\* \|", page, re.MULTILINE)
    for name in ("ekf_odom", "ekf_map"):
        assert ekf_parameters(name)["process_noise_covariance"][5] == float(chosen), name


def test_shipped_parameters_run_the_tracker():
    """Single images with a searched heading hardly ever give a fix: 3.4% of the images of nine unused towns."""
    assert PARAMETERS["session.mode"].default == "sequence"
    (section,) = yaml.safe_load((ROOT / "config/localizer.yaml").read_text()).values()
    assert section["ros__parameters"]["session"]["mode"] == "sequence"


# -- where launch is installed ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A region, and the environment with the package built by colcon in it."""
    for module in ("launch", "launch_ros", "launch_testing", "ros2launch", "colcon_ros"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; it comes with ROS")
    folder = tmp_path_factory.mktemp("launch")
    command = [sys.executable, "-c", "from colcon_core.command import main; main()", "--log-base", folder / "log"]
    command += ["build", "--base-paths", ROOT, "--build-base", folder / "build", "--install-base", folder / "install"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env={**os.environ, "PYTHONPATH": ""})
    prefix = folder / "install" / "unifygeo_ros"
    (site,) = prefix.glob("lib/python3*/site-packages")
    make_region(folder)
    parameters = {
        **OPEN_GATES,
        "session.mode": "single",
        "session.heading_source": "constant",
        "session.heading_constant_rad": 1.5707963267948966,
    }
    (folder / "parameters.yaml").write_text(yaml.safe_dump({"/**/unifygeo_localizer": {"ros__parameters": parameters}}))
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(domain_id()),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
        "AMENT_PREFIX_PATH": os.pathsep.join([str(prefix), os.environ["AMENT_PREFIX_PATH"]]),
        "PYTHONPATH": os.pathsep.join(
            [
                str(site),
                str(ROOT / "test"),
                *filter(None, [os.environ.get("PYTHONPATH")]),
            ]  # a ROS installation's modules
        ),
        "UNIFYGEO_TEST_REGION": str(folder),
        "UNIFYGEO_TEST_SHARE": str(prefix / "share" / "unifygeo_ros"),
    }
    return folder, environment


def is_installed(package):
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def skip_without(package):
    """Skip the test, visibly, where a ROS package is not installed."""
    if not is_installed(package):
        pytest.skip(f"{package} is not installed; it comes with ROS")


def ros2(*arguments):
    return [sys.executable, "-c", "from ros2cli.cli import main; raise SystemExit(main())", *arguments]


@pytest.mark.parametrize(
    ("file", "argument"),
    [
        ("localizer", "'params_file'"),
        ("localizer_ekf", "'ekf_params_file'"),
        ("replay", "'bag'"),
        ("localizer_nav2", "'nav2_params_file'"),
    ],
)
def test_every_launch_file_shows_its_arguments_with_descriptions(installed, file, argument):
    _, environment = installed
    command = ros2("launch", "unifygeo_ros", f"{file}.launch.py", "--show-args")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    assert argument in done.stdout
    assert "No description given" not in done.stdout


def launch_file(name):
    """The module of a launch file, read where it lies."""
    specification = importlib.util.spec_from_file_location(name, ROOT / f"launch/{name}.launch.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_arguments_of_the_launch_file_are_parameters_with_their_choices(installed, monkeypatch):
    _, environment = installed
    monkeypatch.setenv("AMENT_PREFIX_PATH", environment["AMENT_PREFIX_PATH"])
    for parameter, choices, _ in launch_file("localizer").OVERRIDES.values():
        if type(PARAMETERS[parameter].default) is bool:
            assert choices == ("true", "false")
        else:
            assert (choices or ()) == PARAMETERS[parameter].choices


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("params_file:=/nowhere.yaml", "params_file /nowhere.yaml does not exist"),
        ("ekf_params_file:=/nowhere.yaml", "ekf_params_file /nowhere.yaml does not exist"),
        ("log_level:=verbose", "verbose"),
        ("backend:=abacus", "abacus"),
        ("image_transport:=theora", "theora"),
        ("mode:=fast", "fast"),
    ],
)
def test_argument_that_cannot_be_used_ends_the_launch_with_the_reason(installed, argument, why):
    _, environment = installed
    command = ros2("launch", "unifygeo_ros", "localizer_ekf.launch.py", argument)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode != 0
    assert why in done.stdout + done.stderr
    assert "process started" not in done.stdout + done.stderr


FILTER = """#!/bin/sh
trap 'exit 0' INT TERM
while :; do sleep 0.1; done
"""


def test_map_filter_starts_with_the_first_fix(installed, tmp_path):
    """Two robots' worth of names: a namespace and a frame prefix. The filters are stand-ins that only stay alive; the
    real ones drive in test_drive_of_the_demo_through_the_real_ekfs."""
    folder, environment = installed
    prefix = tmp_path / "prefix"
    program = prefix / "lib/robot_localization/ekf_node"
    program.parent.mkdir(parents=True)
    program.write_text(FILTER)
    program.chmod(0o755)
    (prefix / "share/ament_index/resource_index/packages").mkdir(parents=True)
    (prefix / "share/ament_index/resource_index/packages/robot_localization").touch()
    environment = {**environment, "AMENT_PREFIX_PATH": f"{prefix}:{environment['AMENT_PREFIX_PATH']}"}
    command = ros2("launch", "unifygeo_ros", "localizer_ekf.launch.py", f"params_file:={folder}/parameters.yaml")
    command += [f"bundle:={folder}/bundle", f"index:={folder}/index", "image_transport:=compressed"]
    command += ["namespace:=robot1", "frame_prefix:=robot1/"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, cwd="/",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    vehicle = Vehicle(int(environment["ROS_DOMAIN_ID"]), node_name="/robot1/unifygeo_localizer")
    vehicle.image_topic = "/robot1/camera/image/compressed"
    try:
        publisher = vehicle.publisher(vehicle.image_topic, CompressedImage)
        vehicle.wait_for(publisher.get_subscription_count, "image subscription", 60.0)
        listeners = lambda: vehicle.node.count_subscribers("/robot1/unifygeo_localizer/fix")  # noqa: E731
        vehicle.wait_for(lambda: listeners() >= 2, "the process that waits for the first fix", 60.0)
        assert "ekf_node-2" in log.read_text()
        assert "__node:=ekf_map" not in processes(log)
        region = Region(colour_world(), folder / "bundle", folder / "index")
        for _ in range(40):
            vehicle.show(region.panorama((-20.0, 11.0)))
            vehicle.spin(0.5)
            if "__node:=ekf_map" in processes(log):
                break
        started = processes(log)
        assert "__node:=ekf_map" in started
        assert "set_pose:=initialpose" in started
        assert vehicle.received["~/fix"]
        assert vehicle.status("node").name == "robot1/unifygeo_localizer: node"
        assert vehicle.status("node").hardware_id == "robot1/unifygeo_localizer"
    finally:
        vehicle.close()
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert "Traceback" not in log.read_text()


def processes(log):
    """Command lines of the processes that a launch started, from its log."""
    pids = re.findall(r"process started with pid \[(\d+)\]", log.read_text())
    return " ".join(
        Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids if Path(f"/proc/{pid}").exists()
    )


def test_launched_node_localizes_and_ends_cleanly(installed):
    """launch/localizer_launch.py, by launch_testing."""
    _, environment = installed
    program = "from launch_testing.launch_test import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, str(ROOT / "test/launch/localizer_launch.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def demo_index(tmp_path_factory):
    """Index of the demo's town for the shipped model."""
    bundle = load_bundle(ROOT / "models/towns-photo")
    folder = tmp_path_factory.mktemp("demo") / "index"
    with open_engines(bundle, backend="onnx_cpu") as engines:
        build_index([ROOT / "demo/drive/town.tif"], bundle, engines, folder)
    return folder


def test_drive_of_the_demo_through_the_real_ekfs(installed, demo_index, tmp_path):
    """launch/localizer_ekf_launch.py, by launch_testing."""
    for package in ("robot_localization", "tf2_ros"):
        skip_without(package)
    _, environment = installed
    parameters = yaml.safe_load((ROOT / "demo/localizer.yaml").read_text())
    # The EKF fuses the odometry itself.
    parameters["unifygeo_localizer"]["ros__parameters"]["tracker"] = {"fix_from": "image"}
    (tmp_path / "parameters.yaml").write_text(yaml.safe_dump(parameters))
    environment = {
        **environment,
        "UNIFYGEO_TEST_INDEX": str(demo_index),
        "UNIFYGEO_TEST_PARAMETERS": str(tmp_path / "parameters.yaml"),
    }
    program = "from launch_testing.launch_test import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, str(ROOT / "test/launch/localizer_ekf_launch.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def fuse_drive(demo_index):
    """The demo's drive through the real node and the real fuse, by benchmarks/fuse_drive.py; halfway a false fix."""
    for package in ("fuse_optimizers", "fuse_models", "tf2_msgs"):
        skip_without(package)
    specification = importlib.util.spec_from_file_location("fuse_drive", ROOT / "benchmarks/fuse_drive.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(domain_id()))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        drive = module.Drive(ROOT / "demo/drive/bag", demo_index, ROOT / "models/towns-photo", false_fix=(40.0, 15.0))
        drive.run()
    return drive


def test_fuse_puts_map_to_base_link_where_the_vehicle_is(fuse_drive):
    """Before a false fix and from 4 s after it on: while it is in fuse's window, it moves the pose."""
    track, said_s = fuse_drive.map_to_base(), fuse_drive.false_fix_s
    for begin_s, end_s in ((fuse_drive.settled_s, said_s - 1.0), (said_s + 4.0, 100.0)):
        errors = fuse_drive.between(track, begin_s, end_s)
        assert len(errors) > 200
        assert np.median(errors) < 0.6, np.quantile(errors, (0.5, 0.95, 1.0))
        assert np.max(errors) < 3.0, np.quantile(errors, (0.5, 0.95, 1.0))
    assert np.max(fuse_drive.between(track, said_s, said_s + 4.0)) < 8.0  # of 15


def test_drive_is_replayed_and_recorded_with_ros2_bag(installed, tmp_path):
    """Whole: the first image gives a fix, too, and everything ends with the bag."""
    skip_without("ros2bag")
    folder, environment = installed
    ekf = is_installed("robot_localization")
    drive = write_drive(
        tmp_path / "drive",
        colour_world(),
        open_index(folder / "index").frame,
        seconds=6.0,
        storage=StoragePlugin.SQLITE3,
    )
    command = ros2("launch", "unifygeo_ros", "replay.launch.py", f"bag:={drive}", f"output:={tmp_path}/recording")
    command += [f"bundle:={folder}/bundle", f"index:={folder}/index", f"params_file:={folder}/parameters.yaml"]
    command += ["backend:=onnx_cpu", "image_transport:=compressed", f"ekf:={str(ekf).lower()}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd="/")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "process has died" not in said, said
    with AnyReader([tmp_path / "recording"], default_typestore=STORE) as recording:
        counts = {connection.topic: connection.msgcount for connection in recording.connections}
    expected = {"/clock", "/unifygeo_localizer/fix", "/diagnostics"}
    expected |= {"/odometry/local", "/odometry/global", "/tf"} if ekf else set()
    assert all(counts.get(topic, 0) > 0 for topic in expected), counts
    assert counts["/unifygeo_localizer/fix"] == 13  # two a second


def test_replay_that_cannot_be_configured_ends_and_says_so(installed, tmp_path):
    folder, environment = installed
    command = ros2("launch", "unifygeo_ros", "replay.launch.py", f"bag:={tmp_path}/none", f"bundle:={folder}/bundle")
    command += ["ekf:=false", "record:=false"]  # and no index
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd="/")
    said = done.stdout + done.stderr
    assert "The localizer could not be configured" in said
    assert "Configuration failed: " in said
    assert "process has died" not in said


def test_interrupt_of_the_launch_ends_the_node_cleanly(installed, tmp_path):
    folder, environment = installed
    command = ros2("launch", "unifygeo_ros", "localizer.launch.py", f"params_file:={folder}/parameters.yaml")
    command += [f"bundle:={folder}/bundle", f"index:={folder}/index"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd="/",
            # A shell ignores SIGINT for what it runs in the background, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    deadline = time.monotonic() + 60
    while "datum:" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert "process has finished cleanly" in log.read_text()
