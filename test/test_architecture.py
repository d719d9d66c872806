"""What the import contracts in pyproject.toml (`make lint`) cannot see: what an import loads, who may read a clock, and
the one version."""

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("place", ["tracking", "motion"])
def test_deterministic_modules_use_no_clock_and_no_randomness(place):
    """The docstring of a tracker says so, and the replay's equality with the node rests on it."""
    files = sorted((PACKAGE / place).rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            found = {"time", "datetime", "random", "secrets", "numpy.random"} & set(names)
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "np.random":
                found = {"np.random"}
            assert not found, f"{file}:{node.lineno}: {found}"


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
