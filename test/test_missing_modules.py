"""Every subcommand imports only what it needs; what is missing is one line with the remedy."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "models" / "towns-photo"
OPTIONAL = {
    *("faiss", "jinja2", "lz4", "matplotlib", "onnxruntime", "PIL", "rasterio", "rclpy", "rosbags", "tqdm", "yaml"),
}

PROGRAM = """
import contextlib, io, json, sys, traceback

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

MISSING, commands = json.loads(sys.argv[1])
sys.meta_path.insert(0, Missing())
from unifygeo_ros.cli import main

results = []
for arguments in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            status = traceback.format_exc()
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def run_without(missing, *commands):
    """Exit status, stdout and stderr of each command, in one Python in which the modules cannot be found."""
    request = json.dumps([sorted(missing), [[str(word) for word in command] for command in commands]])
    program = [sys.executable, "-c", PROGRAM, request]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def commands(folder):
    index, image, bag = folder / "index", folder / "a.png", folder / "bag"
    return {
        "index build": ["index", "build", folder / "a.tif", "--model", BUNDLE, "--output", folder / "out"],
        "index info": ["index", "info", index, "--plot", folder / "a.svg"],
        "locate": ["locate", image, "--index", index, "--model", BUNDLE, "--backend", "onnx_cpu", "--plot", "b.png"],
        "replay": ["replay", bag, "--index", index, "--model", BUNDLE, "--output", folder / "o.mcap"],
        "compare": ["compare", folder / "a.json", folder / "b.json"],
        "demo": ["demo", "--data", folder / "none", "--output", folder / "demo"],
        "compile": ["compile", BUNDLE, "--backend", "tensorrt_rtx"],
        "bundle info": ["bundle", "info", BUNDLE],
        "help": ["--help"],
    }


def test_bundle_info_and_help_need_nothing_that_is_optional(tmp_path):
    wanted = commands(tmp_path)
    info, text = run_without(OPTIONAL, wanted["bundle info"], wanted["help"])
    assert info[0] == 0, info
    assert "towns-photo" in info[1]
    assert text[0] == 0, text
    for command in ("index", "bundle", "compile", "locate", "replay", "compare", "demo"):
        assert command in text[1]


def test_compile_needs_nothing_that_is_optional(tmp_path):
    """It compiles, or says that there is no TensorRT or no GPU; nothing else is missing first."""
    ((status, _, error),) = run_without(OPTIONAL, commands(tmp_path)["compile"])
    assert status in (0, 2), status
    assert not [module for module in OPTIONAL if f"'{module}'" in error], error


GROUPS = [
    {"faiss"},
    {"rasterio", "tqdm"},
    {"matplotlib", "jinja2", "PIL", "yaml"},
    {"rosbags", "lz4", "rclpy", "onnxruntime"},
]


@pytest.mark.parametrize("modules", GROUPS, ids=lambda group: "+".join(sorted(group)))
def test_no_subcommand_ends_in_a_traceback_without_modules(tmp_path, modules):
    """Each ends with a status and at most one line. The files do not exist: it fails for these, or for the module."""
    wanted = commands(tmp_path)
    for name, (status, _, error) in zip(wanted, run_without(modules, *wanted.values()), strict=True):
        assert status in (0, 1, 2), (name, status)
        assert "Traceback" not in error, name
        assert error.count("\n") <= 1 or "no inference backend" in error, (name, error)  # a line for each backend


def test_library_of_the_system_that_is_missing_is_one_line_with_the_remedy(tmp_path):
    """OpenCV's wheel in a small container: the module is there, a library that it links to is not."""
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libxcb.so.1: cannot open shared object file: No such file or directory', name='cv2')"
    )
    command = [sys.executable, "-m", "unifygeo_ros.cli", "locate", "a.png", "--index", tmp_path, "--model", BUNDLE]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "libxcb.so.1" in done.stderr
    assert "cv2 is installed but cannot be loaded" in done.stderr
    assert "apt-get install libgl1" in done.stderr


def test_missing_module_is_named_with_the_extra_to_install(tmp_path):
    """Each with files that are there, so that the module is what is missing."""
    ((status, _, error),) = run_without({"rasterio"}, commands(tmp_path)["index build"])
    assert status == 2
    assert error.count("\n") == 1
    assert "rasterio" in error
    assert "pip install" in error
    assert "tools" in error


def test_localizer_and_node_start_without_scipy():
    """SciPy takes a third of the processor time of their imports, and 30 MB."""
    modules = ["unifygeo_ros.localization.localizer", "unifygeo_ros.sessions.factory"]
    if importlib.util.find_spec("rclpy"):
        modules.append("unifygeo_ros.ros.node")
    program = (
        f"import sys, {', '.join(modules)}; print(sorted(m for m in sys.modules if m.partition('.')[0] == 'scipy'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
