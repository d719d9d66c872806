"""Each parameter reaches an object that uses it: a value that nobody reads is a knob that turns nothing."""

import ast
import dataclasses
import sys
from collections import Counter
from pathlib import Path

import pytest
from colour_region import write_colour_region
from drives import write_drive

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.evaluation.evaluate import ReplayRequest, evaluate
from unifygeo_ros.parameters.settings import PARAMETERS, NodeConfig, Settings, with_values

PACKAGE = Path(__file__).parent.parent / "unifygeo_ros"
CHECKS = {"__post_init__", "check_settings", "check_only_live_changed"}
"""Functions that look at every field. To be checked is not to be used."""

MODES = (
    {"session.mode": "sequence", "session.heading_source": "imu"},
    {"session.mode": "sequence", "tracker.fix_from": "image"},
    {"session.mode": "single", "session.prior_source": "last_fix", "session.heading_source": "constant"},
    {"session.mode": "single", "session.prior_source": "odometry", "session.heading_source": "imu",
     "localizer.gate_ambiguity": 1.0, "localizer.gate_score": -4.0, "localizer.gate_sigma_m": 1000.0,
     "session.camera_check_images": 0},
    {"session.mode": "single", "session.prior_source": "last_fix", "session.heading_source": "imu",
     "localizer.gate_ambiguity": 1.0, "localizer.gate_score": -4.0, "localizer.gate_sigma_m": 1000.0,
     "session.camera_check_images": 0},
)  # fmt: skip
"""Between them, these use everything that a session, a localizer and a tracker have."""


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    folder = tmp_path_factory.mktemp("region")
    world = write_colour_region(folder)
    write_drive(folder / "drive", world, open_index(folder / "index").frame, seconds=3.0)
    return folder


def fields_read_in_replays(monkeypatch, region, tmp_path):
    """The settings that a replay in one of MODES reads: (class, field)."""
    read = set()

    def watch(owner):
        names = {field.name for field in dataclasses.fields(owner)}

        def look(self, name):
            if name in names:
                frame = sys._getframe(1)
                if frame.f_code.co_name not in CHECKS and frame.f_globals.get("__name__") != "dataclasses":
                    read.add((owner, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(owner, "__getattribute__", look, raising=False)

    for group in dataclasses.fields(Settings):
        watch(group.default_factory)
    for number, values in enumerate(MODES):
        evaluate(
            ReplayRequest(
                region / "drive",
                region / "index",
                region / "bundle",
                tmp_path / f"{number}.mcap",
                truth_topic="/ground_truth/navsat",
                odometry_topic="/odom" if number % 2 else "none",
                settings=with_values(Settings(), {"backend": "onnx_cpu", "threads": 1, **values}),
                quiet=True,
            )
        )
    monkeypatch.undo()
    return read


def attributes(kind):
    """Names of attributes: those that classes of the package declare or assign ("made", each as often as classes do),
    or those that its functions read ("read")."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if kind == "read" and isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                yield node.attr
            elif kind == "made" and isinstance(node, ast.ClassDef):
                declared = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                own = {item.attr for item in ast.walk(node) if isinstance(item, ast.Attribute)
                       and isinstance(item.ctx, ast.Store)}  # fmt: skip
                yield from declared | methods | own


def test_parameters_of_the_session_are_read_where_they_act(monkeypatch, region, tmp_path):
    dynamic = fields_read_in_replays(monkeypatch, region, tmp_path)
    # A replay of a few images does not come through every branch. Where only one class of the package has an attribute
    # of that name, code that reads it reads this one.
    made, read = Counter(attributes("made")), set(attributes("read"))
    owners = {field.name: field.default_factory for field in dataclasses.fields(Settings)}
    idle = [
        spec.name
        for spec in PARAMETERS.values()
        if spec.group != "node"
        and (owners[spec.group], spec.field) not in dynamic
        and not (made[spec.field] == 1 and spec.field in read)
    ]
    assert not idle, f"nothing reads {', '.join(idle)}"
    assert len(dynamic) > 60


def test_each_parameter_of_the_node_is_read_in_the_node_or_the_replay():
    loaded = {
        node.attr
        for file in [
            *(PACKAGE / "ros").glob("*.py"),
            PACKAGE / "evaluation/evaluate.py",
            PACKAGE / "parameters/engines.py",
        ]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert {field.name for field in dataclasses.fields(NodeConfig)} <= loaded
