"""The documentation site: `make docs`, and rosdoc2 on the ROS build farm, which runs Sphinx, too."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "UnifyGeo for ROS 2"
author = "The UnifyGeo for ROS 2 maintainers"
release = version = re.search(
    r'__version__ = "(.+)"', (ROOT / "unifygeo_ros" / "__init__.py").read_text(encoding="utf-8")
).group(1)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}

nitpicky = False
# Pages link to files of the repository (configs, the licence), which are no pages of the site.
suppress_warnings = ["myst.xref_missing"]


FIELDS = ("attribute", "data", "property")
field_docstrings = {}


def hide_field_docstring(app, what, name, obj, options, lines):
    """Keep napoleon from taking what stands before the first colon of a field's docstring for its type."""
    if what in FIELDS:
        field_docstrings[name] = list(lines)
        lines.clear()


def show_field_docstring(app, what, name, obj, options, lines):
    if what in FIELDS:
        lines[:] = field_docstrings.pop(name)


def setup(app):
    app.connect("autodoc-process-docstring", hide_field_docstring, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", show_field_docstring, priority=600)
