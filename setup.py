"""The robot's package, for both colcon (ament_python) and pip.

This file is the one home of the requirements. They are ranges: each lower bound is a version that the tests have run
with (requirements/lowest.txt), and requirements/*.txt pin the newest versions that they have run with. rclpy and the
messages come from a ROS installation or from requirements/ros-*.txt, so they are not listed.
docs/how-to/installation.md says what to install where.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = "unifygeo_ros"
HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / NAME / "__init__.py").read_text(encoding="utf-8")).group(1)


def files(pattern):
    """Files below this folder as setuptools wants them, relative and sorted."""
    return sorted(str(path.relative_to(HERE)) for path in HERE.glob(pattern) if path.is_file())


def folders(*roots):
    """Whole folders as data files under share/, one entry for each folder that holds files."""
    found = []
    for root in roots:
        for folder in sorted({path.parent for path in (HERE / root).rglob("*") if path.is_file()}):
            relative = folder.relative_to(HERE)
            found.append((f"share/{NAME}/{relative}", files(f"{relative}/*")))
    return found


setup(
    name=NAME,
    version=VERSION,
    description="Global pose of a vehicle from a 360° image and aerial imagery, for ROS 2",
    author="The UnifyGeo for ROS 2 developers",
    license="Apache-2.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed", "**/*.j2", "watch/page/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", files("launch/*.launch.py")),
        (f"share/{NAME}/config", files("config/*.yaml")),
        (f"share/{NAME}/rviz", files("rviz/*.rviz")),
        (f"share/{NAME}/foxglove", files("foxglove/*.json")),
        (f"share/{NAME}/config/rigs", files("config/rigs/*.yaml")),
        *folders("demo", "models"),
    ],
    python_requires=">=3.10",
    # What the node and the library need beside one inference backend.
    install_requires=[
        "faiss-cpu>=1.7.2",
        "numpy>=1.21.6",
        "opencv-python>=4.5.4",
        "pyproj>=3.3",
        "PyYAML>=6.0",
        "scipy>=1.8",
    ],
    extras_require={
        # One inference backend. `cpu` and `gpu` exclude each other: both are the module `onnxruntime`.
        "cpu": ["onnxruntime>=1.18.1"],
        "gpu": ["onnxruntime-gpu>=1.18.1"],
        "tensorrt": ["cuda-bindings>=12.8"],  # TensorRT itself: docs/how-to/engines.md
        "tensorrt-rtx": ["cuda-bindings>=12.8", "tensorrt-rtx-cu13-bindings>=1.2", "tensorrt-rtx-cu13-libs>=1.2"],
        # The other commands of `unifygeo`: index build, locate --plot, replay and its report, demo.
        "tools": [
            "backports.zstd>=1.0; python_version < '3.14'",
            "jinja2>=3.0.3",
            "lz4>=3.1.10",
            "matplotlib>=3.6",
            "mcap>=1.1",
            "pillow>=9.0.1",
            "rasterio>=1.3",
            "rosbags>=0.11.0",
            "tqdm>=4.57",
        ],
        # Building a large index on several machines.
        "ray": ["ray>=2.9"],
        "test": ["hypothesis>=6.80", "onnx>=1.17", "pytest>=7", "pytest-timeout>=2.1"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "unifygeo = unifygeo_ros.cli:main",
            "localizer_node = unifygeo_ros.ros.localizer_node:main",
        ],
    },
)
