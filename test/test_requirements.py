"""What is imported is declared, what is declared can be installed, and the robot gets only what the node needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")

ROOT = Path(__file__).parent.parent
FACTS = yaml.safe_load((ROOT / "test/rosdep_facts.yaml").read_text())

DISTRIBUTION_OF = {
    "cv2": "opencv-python",
    "faiss": "faiss-cpu",
    "yaml": "PyYAML",
    "backports": "backports.zstd",
    "PIL": "pillow",
}
"""Names on PyPI of modules that are called otherwise."""
ROSDEP_KEY_OF = {
    "PIL": "python3-pil",
    "cv2": "python3-opencv",
    "onnxruntime": "python3-onnxruntime-pip",
    "rosbags": "python3-rosbags-pip",
    "lz4": "python3-rosbags-pip",
    "backports": "python3-rosbags-pip",
}
"""rosdep keys of modules whose key is not python3-MODULE. rosbags requires lz4 and backports.zstd."""
GPU = {"cuda", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"}
"""Installed by hand, as docs/how-to/engines.md says."""
WITHOUT_KEY = {"mcap", "ray"}
"""Not in rosdep and needed for one purpose only; the code that imports them says what to install."""
ROS_PACKAGE_OF = {"tf2_ros": "tf2_ros_py"}
OWN = {"unifygeo-ros", "unifygeo-training", "unifygeo"}


def setup_arguments() -> dict:
    """The literal arguments of setup() in setup.py."""
    (call,) = [
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    ]
    wanted = ("install_requires", "extras_require", "python_requires")
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg in wanted}


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower().replace("_", "-")


def pins(file: str) -> dict[str, str]:
    """Name → version of each `name==version` in a requirements file."""
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return {name_of(line): line.split("==")[1].split(";")[0].strip() for line in lines if "==" in line}


def imported(folder: Path) -> dict[str, Path]:
    """Top-level module → a file that imports it; the standard library and our own packages are left out."""
    found = {}
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], file)
    ours = {"unifygeo_ros", "unifygeo_training", *(file.stem for file in folder.rglob("*.py"))}
    known = (
        set(sys.stdlib_module_names) | ours | {"compression"}
    )  # compression.zstd: the standard library's from 3.14 on
    return {name: file for name, file in found.items() if name not in known}


def package_xml(*tags: str) -> set[str]:
    xml = ElementTree.parse(ROOT / "package.xml").getroot()
    return {element.text for tag in tags for element in xml.findall(tag)}


def is_of_ros(module: str) -> bool:
    return ROS_PACKAGE_OF.get(module, module) in FACTS["released"]


# -- what is imported is declared --------------------------------------------------------------------------------------


def test_every_import_of_the_runtime_is_in_setup_py():
    arguments = setup_arguments()
    declared = {name_of(line) for line in arguments["install_requires"]}
    declared |= {name_of(line) for extra in arguments["extras_require"].values() for line in extra}
    missing = {
        module: str(file)
        for module, file in imported(ROOT / "unifygeo_ros").items()
        if not is_of_ros(module) and module not in GPU and DISTRIBUTION_OF.get(module, module).lower() not in declared
    }
    assert not missing


def test_package_xml_declares_every_import_of_runtime_and_launch_files():
    declared = package_xml("depend", "exec_depend", "test_depend")
    missing = {
        module: str(file)
        for folder in ("unifygeo_ros", "launch")
        for module, file in imported(ROOT / folder).items()
        if module not in GPU | WITHOUT_KEY
        and ROSDEP_KEY_OF.get(module, f"python3-{module}") not in declared
        and ROS_PACKAGE_OF.get(module, module) not in declared
    }
    assert not missing


def test_every_import_of_the_training_package_is_in_its_pyproject():
    project = tomllib.loads((ROOT / "training/pyproject.toml").read_text())["project"]
    declared = {name_of(line) for line in project["dependencies"]}
    missing = {
        module: str(file)
        for module, file in imported(ROOT / "training/unifygeo_training").items()
        if DISTRIBUTION_OF.get(module, module).lower() not in declared
    }
    assert not missing


def test_requirements_ask_pypi_for_no_package_of_this_repository():
    """Nobody holds these names there: whoever took one could put any code onto the machine of who installs us."""
    arguments = setup_arguments()
    asked = [
        *arguments["install_requires"],
        *(line for extra in arguments["extras_require"].values() for line in extra),
    ]
    asked += tomllib.loads((ROOT / "training/pyproject.toml").read_text())["project"]["dependencies"]
    for file in (ROOT / "requirements").glob("*.txt"):
        asked += [line for line in file.read_text().splitlines() if line and line[0] not in "#-"]
    assert len(asked) > 40
    assert not OWN & {name_of(line) for line in asked}


# -- versions ----------------------------------------------------------------------------------------------------------


def test_lowest_tested_versions_are_the_declared_lower_bounds():
    arguments = setup_arguments()
    extras = arguments["extras_require"]
    lowest = pins("lowest.txt")
    for line in [*arguments["install_requires"], *extras["cpu"], *extras["tools"]]:
        bound = re.search(r">=\s*([0-9.]+)", line).group(1)
        tested = lowest.pop(name_of(line))
        assert f"{tested}.".startswith(f"{bound}."), f"{line} but lowest.txt tests {tested}"
    assert set(lowest) == {"onnx"}  # of the tests themselves


def test_make_installs_the_extras_cpu_and_tools():
    arguments = setup_arguments()
    asked = [*arguments["install_requires"], *arguments["extras_require"]["cpu"], *arguments["extras_require"]["tools"]]
    assert set(pins("runtime.txt")) == {name_of(line) for line in asked}


# -- files -------------------------------------------------------------------------------------------------------------


def test_package_data_patterns_match_the_files():
    """A pattern without a file is left over; a file without a pattern is missing where the package is installed."""
    (keyword,) = [
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.keyword) and node.arg == "package_data"
    ]
    patterns = [pattern for value in keyword.value.values for pattern in ast.literal_eval(value)]
    package = ROOT / "unifygeo_ros"
    found = {pattern: set(package.glob(pattern)) for pattern in patterns}
    assert all(found.values()), found
    others = {
        file
        for file in package.rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert set().union(*found.values()) == others


# -- rosdep ------------------------------------------------------------------------------------------------------------


def test_every_dependency_in_package_xml_is_released_or_a_rosdep_key():
    for name in package_xml("depend", "exec_depend", "test_depend"):
        assert name in FACTS["released"] or name in FACTS["keys"], name


def test_rosdep_keys_install_on_a_jetson_without_gpu_packages():
    installed = {
        str(FACTS["keys"][key][release]) for key in FACTS["keys"] for release in ("jammy", "noble", "resolute")
    }
    assert not [name for name in installed if "gpu" in name or "cuda" in name or "tensorrt" in name]
    assert {name for name in installed if name.startswith("pip: ")} == {
        "pip: faiss-cpu",
        "pip: onnxruntime",
        "pip: rosbags",
    }  # each has wheels for Linux on x86-64 and aarch64


def test_robot_needs_what_pip_calls_the_node_s_requirements():
    """exec_depend of package.xml and install_requires with the extra cpu of setup.py name the same libraries."""
    arguments = setup_arguments()
    needed = {name_of(line) for line in [*arguments["install_requires"], *arguments["extras_require"]["cpu"]]}
    keys = {key for key in package_xml("exec_depend") if key in FACTS["keys"]}
    assert keys == {
        {
            "faiss-cpu": "python3-faiss",
            "onnxruntime": "python3-onnxruntime-pip",
            "opencv-python": "python3-opencv",
            "pyyaml": "python3-yaml",
        }.get(name, f"python3-{name}")
        for name in needed
    }


# -- one line where something is missing -------------------------------------------------------------------------------

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
{program}
"""


def without(missing: set[str], program: str) -> subprocess.CompletedProcess:
    """Run a program in a Python in which modules cannot be found."""
    code = WITHOUT.format(missing=missing, program=program)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)


TOOLS = {"PIL", "backports", "compression", "jinja2", "lz4", "matplotlib", "rasterio", "rosbags", "tqdm"}


def test_node_imports_nothing_of_the_tools():
    pytest.importorskip("rclpy")
    done = without(TOOLS, "import unifygeo_ros.ros.node, unifygeo_ros.ros.localizer_node")
    assert done.returncode == 0, done.stderr


def test_replay_without_the_tools_is_one_line_with_the_remedy():
    arguments = ["replay", "drive", "--index", "i", "--model", "m", "--output", "o.mcap"]
    done = without(TOOLS, f"from unifygeo_ros.cli import main; sys.exit(main({arguments!r}))")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No module named" in done.stderr
    assert 'pip install ".[cpu,tools]"' in done.stderr


def test_commands_that_need_none_of_the_tools_run_without_them():
    done = without(TOOLS, "from unifygeo_ros.cli import main; sys.exit(main(['bundle', 'info', 'models/towns-photo']))")
    assert done.returncode == 0, done.stderr
    assert "towns-photo" in done.stdout


def test_missing_module_of_the_package_itself_is_a_traceback():
    done = without({"unifygeo_ros.evaluation"}, "from unifygeo_ros.cli import main; sys.exit(main(['--version']))")
    assert done.returncode == 0, done.stderr  # the rule is by top-level name; nothing is missing here
    done = without(set(), "from unifygeo_ros import cli; cli.COMMAND_MODULES = ('unifygeo_ros.nowhere',); cli.main([])")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_unifygeo_train_without_torch_is_one_line_with_the_remedy(tmp_path):
    pytest.importorskip("unifygeo_training")
    (tmp_path / "run.yaml").write_text("{}\n")
    arguments = ["fit", str(tmp_path / "run.yaml"), "--data", str(tmp_path), "--output", str(tmp_path / "out")]
    done = without(
        {"torch", "timm", "lightning"}, f"from unifygeo_training.cli import main; sys.exit(main({arguments!r}))"
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "make training" in done.stderr


def test_unifygeo_train_without_unifygeo_ros_is_one_line_with_the_remedy():
    pytest.importorskip("unifygeo_training")
    done = without({"unifygeo_ros"}, "import unifygeo_training.cli")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert 'pip install ".[cpu,tools]" ./training' in done.stderr
