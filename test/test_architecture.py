"""What the import contracts in pyproject.toml (`make lint`) cannot see: what an import loads, and the one version."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import unifygeo_ros

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unifygeo_ros"
ROS_MODULES = ("unifygeo_ros.ros", "unifygeo_ros.demo", "unifygeo_ros.watch.live")
"""Packages and modules that may import rclpy."""


def test_imports_outside_the_node_load_neither_ros_nor_torch():
    """In a fresh interpreter, since this one may have loaded anything."""
    modules = [
        module.name
        for module in pkgutil.walk_packages([str(PACKAGE)], "unifygeo_ros.")
        if not f"{module.name}.".startswith(tuple(f"{name}." for name in ROS_MODULES))
    ]
    assert {"unifygeo_ros.core.records", "unifygeo_ros.tracking.belief"} <= set(modules)
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "found = sorted({'torch', 'rclpy', 'ray', 'tensorrt'} & set(sys.modules))\n"
        "assert not found, found\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_version_is_the_same_in_every_file_that_names_one():
    def first(pattern, file):
        return re.search(pattern, (ROOT / file).read_text(), re.MULTILINE).group(1)

    versions = {
        "unifygeo_ros/__init__.py": unifygeo_ros.__version__,
        "package.xml": first(r"<version>(.+)</version>", "package.xml"),
        "CITATION.cff": first(r"^version: (.+)$", "CITATION.cff"),
        "training/pyproject.toml": first(r'^version = "(.+)"$', "training/pyproject.toml"),
    }
    assert set(versions.values()) == {unifygeo_ros.__version__}, versions
