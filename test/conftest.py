"""What every test module needs."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from hypothesis import settings

if find_spec("onnx") is None:
    pytest.exit("the tests make model bundles with onnx, which has no rosdep key: pip install onnx", returncode=2)

# A property is judged by what it finds, never by how long that takes on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
