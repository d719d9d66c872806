"""The robot's package, for both colcon (ament_python) and pip.

The requirements are ranges: what JetPack's Python 3.10 has and what a fresh machine installs both satisfy them.
requirements/*.txt pin the versions that the tests run with. rclpy and the messages come from a ROS installation or from
requirements/ros.txt, so they are not listed.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = "unifygeo_ros"
HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / NAME / "__init__.py").read_text(encoding="utf-8")).group(1)


def files(pattern):
    """Files below this folder as setuptools wants them, relative and sorted."""
    return sorted(str(path.relative_to(HERE)) for path in HERE.glob(pattern))


setup(
    name=NAME,
    version=VERSION,
    description="Where a vehicle is, from a 360° image and aerial imagery",
    author="The UnifyGeo for ROS 2 developers",
    license="Apache-2.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["**/*.html", "**/*.jinja", "**/*.j2"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", files("launch/*.launch.py")),
        (f"share/{NAME}/config", files("config/*.yaml")),
    ],
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.24",
        "opencv-python>=4.7",
        "pyproj>=3.4",
    ],
    extras_require={
        # One inference backend: this one, or onnxruntime-gpu, or the TensorRT that JetPack installs.
        "cpu": ["onnxruntime>=1.17"],
        "gpu": ["onnxruntime-gpu>=1.17"],
        "tensorrt": ["cuda-bindings>=12.8"],  # TensorRT itself: docs/how-to/engines.md
        "tensorrt-rtx": ["cuda-bindings>=12.8", "tensorrt-rtx-cu13-bindings>=1.2", "tensorrt-rtx-cu13-libs>=1.2"],
        # Reading aerial imagery and searching it: the index.
        "index": ["faiss-cpu>=1.7.4", "rasterio>=1.3", "tqdm>=4.64"],
        # Replay of bags and its report, without ROS.
        "evaluation": [
            "backports.zstd>=1.0; python_version < '3.14'",
            "jinja2>=3.1",
            "lz4>=4.0",
            "matplotlib>=3.7",
            "rosbags>=0.10",
            "PyYAML>=5.4",
            "scipy>=1.10",
        ],
        # Building a large index on several machines.
        "ray": ["ray>=2.9"],
        "test": ["hypothesis>=6.80", "pytest>=7.4", "pytest-timeout>=2.2"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "unifygeo = unifygeo_ros.cli:main",
            "localizer_node = unifygeo_ros.ros.localizer_node:main",
        ],
    },
)
