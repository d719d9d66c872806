"""The launch and parameter files: the latter by reading them, the former by launching them where `launch` is there."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy")

from ros_drive import OPEN_GATES, domain_id, make_region

from unifygeo_ros.ros.node_config import Settings, with_values

ROOT = Path(__file__).parent.parent
EKF_AXES = 15  # x, y, z, roll, pitch, yaw, their velocities, accelerations


def flat(parameters: dict, prefix: str = "") -> dict:
    return {
        name: value
        for key, item in parameters.items()
        for name, value in (flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}).items()
    }


def test_the_parameter_file_holds_parameters_that_exist_with_values_that_fit():
    (section,) = yaml.safe_load((ROOT / "config/localizer.yaml").read_text()).values()
    values = flat(section["ros__parameters"])
    with_values(Settings(), values)  # raises for an unknown name, a wrong type or a value out of range
    assert "camera.z_m" in values


@pytest.mark.parametrize("name", ["ekf_odom", "ekf_map"])
def test_the_ekf_file_has_the_lengths_that_robot_localization_takes(name):
    parameters = yaml.safe_load((ROOT / "config/ekf.yaml").read_text())[name]["ros__parameters"]
    for key, value in parameters.items():
        if key.endswith("_config"):
            assert len(value) == EKF_AXES, key
            assert all(isinstance(fused, bool) for fused in value), key
        if key.endswith("_covariance"):
            assert len(value) in (EKF_AXES, EKF_AXES**2), key
            assert all(isinstance(number, float) and number > 0 for number in value), key  # "1e6" is text in YAML


def test_only_the_map_filter_takes_fixes_and_only_x_y_and_yaw_of_them():
    file = yaml.safe_load((ROOT / "config/ekf.yaml").read_text())
    odom, map_ = (file[name]["ros__parameters"] for name in ("ekf_odom", "ekf_map"))
    assert not any(key.startswith("pose") for key in odom)
    assert (odom["world_frame"], map_["world_frame"]) == ("odom", "map")
    assert [axis for axis, fused in enumerate(map_["pose0_config"]) if fused] == [0, 1, 5]
    # Absolute positions other than the fixes' would fight with them.
    assert not any(any(map_[key][:6]) for key in ("odom0_config", "imu0_config"))
    assert map_["smooth_lagged_data"]
    assert map_["history_length"] >= 1.0
    assert min(map_["initial_estimate_covariance"][i] for i in (0, 1)) >= 1e4


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
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "test")]),
        "UNIFYGEO_TEST_REGION": str(folder),
        "UNIFYGEO_TEST_SHARE": str(prefix / "share" / "unifygeo_ros"),
    }
    return folder, environment


def ros2(*arguments):
    return [sys.executable, "-c", "from ros2cli.cli import main; raise SystemExit(main())", *arguments]


@pytest.mark.parametrize(
    ("file", "argument"),
    [("localizer", "'params_file'"), ("localizer_ekf", "'ekf_params_file'"), ("replay", "'bag'")],
)
def test_every_launch_file_shows_its_arguments_with_descriptions(installed, file, argument):
    _, environment = installed
    command = ros2("launch", "unifygeo_ros", f"{file}.launch.py", "--show-args")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    assert argument in done.stdout
    assert "No description given" not in done.stdout


def test_launched_it_localizes_and_ends_cleanly(installed):
    """launch/localizer_launch.py, by launch_testing."""
    _, environment = installed
    program = "from launch_testing.launch_test import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, str(ROOT / "test/launch/localizer_launch.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_interrupt_of_the_launch_ends_the_node_cleanly(installed, tmp_path):
    folder, environment = installed
    command = ros2("launch", "unifygeo_ros", "localizer.launch.py", f"params_file:={folder}/parameters.yaml")
    command += [f"bundle:={folder}/bundle", f"index:={folder}/index"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, cwd="/")
    deadline = time.monotonic() + 60
    while "datum:" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert "process has finished cleanly" in log.read_text()
