"""The properties of the house that must stay (docs/architecture.md)."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import unifygeo_ros

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unifygeo_ros"
ROS_ROOMS = ("ros", "demo")
"""Packages that may import rclpy."""
STAGES = ("panorama", "retrieval", "reranking", "heading", "decoding", "decision")


def imports_of(file: Path) -> set[str]:
    """Every module that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def test_importing_the_core_loads_neither_ros_nor_torch():
    """In a fresh interpreter, since this one may have loaded anything."""
    modules = [
        module.name
        for module in pkgutil.walk_packages([str(PACKAGE)], "unifygeo_ros.")
        if module.name.split(".")[1] not in ROS_ROOMS
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


@pytest.mark.parametrize("file", python_files(PACKAGE), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_runtime_never_imports_torch_or_training_and_only_its_ros_room_imports_ros(file):
    roots = {name.split(".")[0] for name in imports_of(file)}
    assert not roots & {"torch", "timm", "lightning", "unifygeo_training"}
    if file.relative_to(PACKAGE).parts[0] not in ROS_ROOMS:
        assert "rclpy" not in roots


def test_stages_do_not_import_each_other():
    folder = PACKAGE / "localization"
    present = [stage for stage in STAGES if (folder / f"{stage}.py").exists()]
    assert present
    for stage in present:
        others = {f"unifygeo_ros.localization.{other}" for other in STAGES if other != stage}
        assert not imports_of(folder / f"{stage}.py") & others, stage


def test_the_version_is_one():
    assert unifygeo_ros.__version__ in (ROOT / "setup.py").read_text() + (ROOT / "package.xml").read_text()
