"""The files for RViz and Foxglove: their classes and topics exist, and each display takes what its topic brings."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NODE = "/unifygeo_localizer"
# rviz_default_plugins/plugins_description.xml of Jazzy, and the message that each display takes.
DISPLAYS = {
    "rviz_default_plugins/Grid": None,
    "rviz_default_plugins/TF": None,
    "rviz_default_plugins/Map": "OccupancyGrid",
    "rviz_default_plugins/MarkerArray": "MarkerArray",
    "rviz_default_plugins/PointCloud2": "PointCloud2",
    "rviz_default_plugins/PoseWithCovariance": "PoseWithCovarianceStamped",
    "rviz_default_plugins/Image": "CompressedImage",  # by image_transport, from the topic's last part
}
# Names of properties in the sources of RViz 14.1 (Jazzy), rviz_common and rviz_default_plugins. RViz leaves out others
# without a word.
PROPERTIES = """Alpha|Angle|Autocompute Intensity Bounds|Background Color|Cell Size|Channel Name|Class|Color
Color Scheme|Color Style|Color Transformer|Covariance|Covariance x|Covariance y|Covariance yaw|Current|Decay Time
Depth|Draw Behind|Durability Policy|Enabled|Fixed Frame|Frame|Frame Rate|Head Length|Head Radius|History Policy
Invert Rainbow|Line Style|Line Width|Marker Scale|Max Color|Max Intensity|Max Value|Median window|Min Color
Min Intensity|Min Value|Name|Normalize Range|Offset|Orientation|Plane|Plane Cell Count|Position
Position Transformer|Reference Frame|Reliability Policy|Saved|Scale|Selectable|Shaft Length|Shaft Radius|Shape
Show Arrows|Show Axes|Show Names|Size (m)|Style|Target Frame|Topic|Update Interval|Update Topic|Use Timestamp
Use rainbow|Value|X|Y"""
# And the words that its properties of choice offer.
CHOICES = {
    "Plane": {"XY", "XZ", "YZ"},
    "Line Style": {"Lines", "Billboards"},
    "Durability Policy": {"Volatile", "Transient Local", "System Default"},
    "History Policy": {"Keep Last", "Keep All", "System Default"},
    "Reliability Policy": {"Reliable", "Best Effort", "System Default"},
    "Color Scheme": {"map", "costmap", "raw"},
    "Style": {"Points", "Squares", "Flat Squares", "Spheres", "Boxes", "Tiles"},
    "Position Transformer": {"XYZ"},
    "Color Transformer": {"Intensity", "AxisColor", "FlatColor", "RGB8", "RGBF32"},
    "Shape": {"Arrow", "Axes"},
    "Color Style": {"Unique", "RGB"},
    "Frame": {"Local", "Fixed"},
}
TOOLS = {f"rviz_default_plugins/{name}" for name in ("MoveCamera", "Select", "Measure", "SetInitialPose", "SetGoal")}
PANELS = {f"rviz_common/{name}" for name in ("Displays", "Views", "Time", "Selection", "Tool Properties")}
FOXGLOVE_PANELS = {"3D", "Image", "Plot", "RawMessages", "DiagnosticSummary"}


@pytest.fixture(scope="module")
def published():
    """Topic → message type of what the node publishes, out of its source."""
    topics = {}
    for name in ("orthophoto", "outputs", "pose_output"):
        for call in ast.walk(ast.parse((ROOT / f"unifygeo_ros/ros/{name}.py").read_text())):
            if isinstance(call, ast.Call) and len(call.args) >= 2 and isinstance(call.args[0], ast.Name):
                topic = call.args[1]
                if isinstance(topic, ast.Constant) and str(topic.value).startswith("~/"):
                    topics[topic.value.replace("~", NODE)] = call.args[0].id
    assert topics[f"{NODE}/fix"] == topics[f"{NODE}/pose"] == "PoseWithCovarianceStamped"
    return topics


@pytest.fixture(scope="module")
def rviz():
    return yaml.safe_load((ROOT / "rviz/unifygeo.rviz").read_text())["Visualization Manager"]


def test_rviz_file_has_classes_and_topics_that_exist(rviz, published):
    for display in rviz["Displays"]:
        wanted = DISPLAYS[display["Class"]]
        if wanted is not None:
            assert published[display["Topic"]["Value"]] == wanted, display["Name"]
    assert {tool["Class"] for tool in rviz["Tools"]} <= TOOLS
    panels = yaml.safe_load((ROOT / "rviz/unifygeo.rviz").read_text())["Panels"]
    assert {panel["Class"] for panel in panels} <= PANELS
    assert rviz["Views"]["Current"]["Class"] == "rviz_default_plugins/TopDownOrtho"
    assert rviz["Global Options"]["Fixed Frame"] == "map"


def settings(part):
    """Every property of a part of the file, with its value: (name, value); a property with children has its own."""
    for name, value in part.items():
        if isinstance(value, dict):
            yield name, value.get("Value")
            yield from settings(value)
        elif isinstance(value, list):
            for one in value:
                yield from settings(one)
        else:
            yield name, value


def test_rviz_file_has_properties_and_choices_that_rviz_knows(rviz):
    known = set(re.split(r"[|\n]", PROPERTIES))
    parts = {name: rviz[name] for name in ("Global Options", "Displays", "Tools", "Views")}
    found = [pair for name in parts for pair in settings({name: parts[name]}) if pair[0] not in parts]
    assert {name for name, _ in found} <= known
    assert known <= {name for name, _ in found}  # what is no longer used is no longer listed
    for name, value in found:
        if name in CHOICES:
            assert value in CHOICES[name], name


def test_rviz_ellipses_are_those_of_95_percent_and_weights_are_the_colour(rviz):
    from scipy.stats import chi2

    displays = {display["Name"]: display for display in rviz["Displays"]}
    scale = displays["Fix with its 95% ellipse"]["Covariance"]["Position"]["Scale"]
    assert scale**2 == pytest.approx(chi2.ppf(0.95, 2), rel=1e-3)
    cloud = displays["Hypotheses by weight"]
    assert (cloud["Channel Name"], cloud["Min Intensity"], cloud["Max Intensity"]) == ("weight", 0, 1)


def test_launch_file_renames_every_topic_of_the_rviz_file_for_a_namespace(rviz):
    shown = set()
    for display in rviz["Displays"]:
        shown |= {display[key]["Value"] for key in ("Topic", "Update Topic") if key in display}
    text = (ROOT / "launch/localizer.launch.py").read_text()
    names = ast.literal_eval(re.search(r"^SHOWN = (\(.*?\))$", text, re.MULTILINE | re.DOTALL)[1])
    assert {f"{NODE}/{name}" for name in names} == shown


def test_foxglove_layout_has_panels_and_topics_that_exist(published):
    layout = json.loads((ROOT / "foxglove/unifygeo.json").read_text())
    panels = layout["configById"]
    placed = re.findall(r'"(?:first|second)": "([^"]+)"', json.dumps(layout["layout"]))
    assert sorted(placed) == sorted(panels)
    assert {panel.split("!")[0] for panel in panels} <= FOXGLOVE_PANELS
    topics = set(panels["3D!map"]["topics"]) | {panels["Image!debug"]["imageMode"]["imageTopic"]}
    topics |= {path["value"].partition(".")[0] for path in panels["Plot!weights"]["paths"]}
    topics.add(panels["RawMessages!outcome"]["topicPath"].partition(".")[0])
    assert topics <= set(published)


def test_weights_and_positions_of_the_hypotheses_are_in_the_messages():
    pytest.importorskip("rclpy")
    import numpy as np

    from unifygeo_ros.core.records import Hypothesis
    from unifygeo_ros.ros.to_messages import hypotheses_cloud_message, weights_message

    places = (Hypothesis(12.5, -3.25, 0.75, 4), Hypothesis(100.0, 7.0, 0.25, 9))
    cloud = hypotheses_cloud_message(places, 5_000_000_007, "map")
    assert (cloud.header.frame_id, cloud.header.stamp.sec, cloud.header.stamp.nanosec) == ("map", 5, 7)
    assert [(field.name, field.offset, field.datatype) for field in cloud.fields] == [
        ("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("weight", 12, 7),
    ]  # fmt: skip
    assert (cloud.width, cloud.height, cloud.point_step, cloud.row_step) == (2, 1, 16, 32)
    rows = np.frombuffer(bytes(cloud.data), "<f4").reshape(2, 4)
    np.testing.assert_array_equal(rows, [[12.5, -3.25, 0.0, 0.75], [100.0, 7.0, 0.0, 0.25]])
    assert list(weights_message(places).data) == [0.75, 0.25]
    assert hypotheses_cloud_message((), 0, "map").width == 0
