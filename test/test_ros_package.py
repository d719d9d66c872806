"""The package as colcon and ROS see it: a real `colcon build` into a scratch folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unifygeo_ros.demo.command import shipped_folder

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """The install prefix of the package after a `colcon build`."""
    pytest.importorskip("colcon_ros", reason="colcon-ros is not installed")
    colcon = shutil.which("colcon", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert colcon, "colcon_ros can be imported but there is no command colcon"
    folder = tmp_path_factory.mktemp("colcon")
    command = [colcon, "--log-base", folder / "log", "build", "--base-paths", ROOT]
    command += ["--build-base", folder / "build", "--install-base", folder / "install"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "install" / "unifygeo_ros"


def test_colcon_identifies_the_package_as_ament(prefix):
    """A malformed package.xml would silently be taken for plain Python, without the ament hooks."""
    assert (prefix / "share/ament_index/resource_index/packages/unifygeo_ros").is_file()
    assert (prefix / "share/unifygeo_ros/package.xml").is_file()
    assert "ament_prefix_path" in (prefix / "share/unifygeo_ros/package.dsv").read_text()


def test_ros2_run_starts_programs_with_the_active_python(prefix):
    """colcon may be of another Python than the one that has the packages: the system's beside a virtual environment."""
    for program in ("unifygeo", "localizer_node"):
        file = prefix / "lib/unifygeo_ros" / program
        assert os.access(file, os.X_OK)
        assert file.read_text().splitlines()[0] == "#!/usr/bin/env python3"


def test_launch_and_config_files_are_installed(prefix):
    for folder in ("launch", "config"):
        source, target = ROOT / folder, prefix / "share/unifygeo_ros" / folder
        expected = {path.relative_to(source) for path in source.rglob("*") if path.suffix in (".py", ".yaml")}
        assert expected
        assert {path.relative_to(target) for path in target.rglob("*") if path.is_file()} == expected


def test_demo_and_its_model_are_installed_and_found(prefix):
    (site,) = prefix.glob("lib/python3*/site-packages")
    code = "from unifygeo_ros.demo.command import shipped_folder as f; print(f('demo'), f('models'), sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=prefix, env=environment)
    assert done.stdout.splitlines() == [str(prefix / "share/unifygeo_ros" / name) for name in ("demo", "models")]
    for name in ("demo", "models"):
        expected = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*") if path.is_file()}
        installed = prefix / "share/unifygeo_ros" / name
        assert {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()} == expected


def test_demo_files_are_found_in_a_checkout_in_the_root_folder():
    assert shipped_folder("demo", Path("/u/unifygeo_ros/demo/command.py")) == Path("/u/demo")


def test_every_package_of_the_source_is_installed(prefix):
    (site,) = prefix.glob("lib/python3*/site-packages/unifygeo_ros")
    source = ROOT / "unifygeo_ros"
    expected = {path.relative_to(source) for path in source.rglob("*.py")}
    assert {path.relative_to(site) for path in site.rglob("*.py")} == expected


def test_unifygeo_answers_without_ros():
    code = "import sys; from unifygeo_ros.cli import main; assert 'rclpy' not in sys.modules; main(['--version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "unifygeo 0.1.0\n"), done.stderr
