"""Which process publishes map → odom, by our launch files: never two. And the parameter files of nav2 and fuse.

nav2 and fuse do not install with pip, so their files are checked against the names that their sources declare. Where
fuse is installed, test_ros_launch.py drives with it.
"""

import importlib.util
import os
import types
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture
def share(tmp_path, monkeypatch):
    """An ament prefix with our launch and config folders and a stand-in for nav2_bringup."""
    pytest.importorskip("launch_ros")
    index = tmp_path / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    for package in ("unifygeo_ros", "nav2_bringup"):
        (index / package).touch()
        (tmp_path / "share" / package).mkdir()
    for folder in ("launch", "config"):
        (tmp_path / "share/unifygeo_ros" / folder).symlink_to(ROOT / folder)
    launch = tmp_path / "share/nav2_bringup/launch"
    launch.mkdir()
    (launch / "navigation_launch.py").write_text(
        "from launch import LaunchDescription\n"
        "from launch_ros.actions import Node\n"
        "def generate_launch_description():\n"
        "    return LaunchDescription([Node(package='nav2', executable='navigation')])\n"
    )
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}{os.pathsep}{os.environ.get('AMENT_PREFIX_PATH', '')}")
    return tmp_path / "share/unifygeo_ros"


def started(name, **arguments):
    """The nodes that a launch file starts: package, executable, and parameters as ROS would join them."""
    from launch import LaunchContext
    from launch.actions import ExecuteProcess, OpaqueFunction
    from launch_ros.actions import Node
    from launch_ros.utilities import evaluate_parameters

    specification = importlib.util.spec_from_file_location(name, ROOT / f"launch/{name}.launch.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    context = LaunchContext()
    context.launch_configurations.update({key: str(value) for key, value in arguments.items()})
    nodes = []

    def visit(entity):
        if isinstance(entity, Node):
            nodes.append(entity)
        elif not isinstance(entity, ExecuteProcess) or isinstance(entity, OpaqueFunction):
            for child in entity.visit(context) or ():
                visit(child)

    visit(module.generate_launch_description())
    found = []
    for node in nodes:
        node._perform_substitutions(context)
        parameters = {}
        for part in evaluate_parameters(context, node._Node__parameters or []):
            if isinstance(part, Path):
                for key, section in yaml.safe_load(part.read_text()).items():
                    if key.rpartition("/")[2] in (node.node_name.rpartition("/")[2], "**"):
                        parameters.update(section["ros__parameters"])
            else:
                parameters.update(part)
        found.append(types.SimpleNamespace(package=node.node_package, parameters=parameters, name=node.node_name))
    return found


def publishers_of_map_to_odom(nodes):
    return [
        node.name
        for node in nodes
        if (node.package == "unifygeo_ros" and node.parameters.get("publish_tf"))
        or (node.package == "robot_localization" and node.parameters["world_frame"] == "map")
    ]


@pytest.fixture
def asks_for_tf(tmp_path):
    """A parameter file of a user who once asked for publish_tf."""
    file = tmp_path / "asks.yaml"
    file.write_text(yaml.safe_dump({"/**/unifygeo_localizer": {"ros__parameters": {"publish_tf": True}}}))
    return file


def test_localizer_alone_publishes_map_to_odom_where_it_is_asked_to(share, asks_for_tf):
    assert publishers_of_map_to_odom(started("localizer")) == []
    assert len(publishers_of_map_to_odom(started("localizer", publish_tf="true"))) == 1
    assert len(publishers_of_map_to_odom(started("localizer", params_file=asks_for_tf))) == 1
    assert publishers_of_map_to_odom(started("localizer", params_file=asks_for_tf, publish_tf="false")) == []


def test_beside_the_ekfs_only_the_map_filter_publishes_map_to_odom(share, asks_for_tf):
    for arguments in ({}, {"params_file": asks_for_tf}):
        (one,) = publishers_of_map_to_odom(started("localizer_ekf", wait_for_fix="false", **arguments))
        assert one.endswith("ekf_map")
    with pytest.raises(RuntimeError, match="publish_tf"):
        started("localizer_ekf", wait_for_fix="false", publish_tf="true")


def test_with_nav2_the_localizer_publishes_map_to_odom_and_answers_from_ll(share):
    nodes = started("localizer_nav2")
    assert publishers_of_map_to_odom(nodes) == [node.name for node in nodes if node.package == "unifygeo_ros"]
    assert nodes[0].parameters["ll_services"] is True
    assert [node.package for node in nodes] == ["unifygeo_ros", "nav2"]
    assert publishers_of_map_to_odom(started("localizer_nav2", publish_tf="false")) == []


def test_launch_with_nav2_refuses_what_it_cannot_do(share):
    with pytest.raises(RuntimeError, match=r"nav2_params_file .* does not exist"):
        started("localizer_nav2", nav2_params_file="/nowhere.yaml")
    with pytest.raises(RuntimeError, match="namespace is set"):
        started("localizer_nav2", namespace="robot1")


def test_rviz_is_started_where_it_is_asked_for(share):
    assert [node.package for node in started("localizer")] == ["unifygeo_ros"]
    for arguments in ({}, {"namespace": "robot1"}):
        nodes = started("localizer", rviz="true", **arguments)
        assert [node.package for node in nodes] == ["unifygeo_ros", "rviz2"]


# -- parameter files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda file: file.name)
def test_ros_itself_reads_every_parameter_file(file):
    """rcl's parser takes y, n, on and off for booleans, unlike PyYAML, and refuses the file."""
    rclpy = pytest.importorskip("rclpy")
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", "--params-file", str(file)], context=context)
    rclpy.shutdown(context=context)


def test_nav2_file_has_no_second_source_of_map_to_odom_and_no_map():
    text = (ROOT / "config/nav2.yaml").read_text()
    parameters = yaml.safe_load(text)
    assert "&" not in text  # rcl's parser knows no YAML anchors
    assert not {"amcl", "map_server", "slam_toolbox"} & set(parameters)
    assert parameters["local_costmap"]["local_costmap"]["ros__parameters"]["global_frame"] == "odom"
    outer = parameters["global_costmap"]["global_costmap"]["ros__parameters"]
    assert (outer["global_frame"], outer["rolling_window"]) == ("map", True)
    assert "static_layer" not in outer["plugins"]
    for costmap in ("local_costmap", "global_costmap"):
        section = parameters[costmap][costmap]["ros__parameters"]
        assert all("plugin" in section[name] for name in section["plugins"])


# What fuse 1.1 (Jazzy) declares: fuse_models' parameters/*.hpp and unicycle_2d.cpp, fuse_optimizers.
FUSE_PARAMETERS = {
    "fuse_models::Unicycle2D": """
process_noise_diagonal scale_process_noise velocity_norm_min disable_checks buffer_length
""",
    "fuse_models::Unicycle2DIgnition": """
publish_on_startup queue_size reset_service set_pose_service set_pose_deprecated_service topic initial_sigma
initial_state loss
""",
    "fuse_models::Pose2D": """
position_dimensions orientation_dimensions differential disable_checks queue_size tf_timeout throttle_period
throttle_use_wall_time topic target_frame independent loss
""",
    "fuse_models::Odometry2D": """
position_dimensions orientation_dimensions linear_velocity_dimensions angular_velocity_dimensions differential
disable_checks queue_size tf_timeout throttle_period throttle_use_wall_time topic twist_target_frame
pose_target_frame pose_loss linear_velocity_loss angular_velocity_loss
""",
    "fuse_models::Imu2D": """
angular_velocity_dimensions linear_acceleration_dimensions orientation_dimensions differential disable_checks
queue_size throttle_use_wall_time remove_gravitational_acceleration gravitational_acceleration topic
acceleration_target_frame orientation_target_frame twist_target_frame
""",
    "fuse_models::Odometry2DPublisher": """
publish_tf invert_tf predict_to_current_time predict_with_acceleration publish_frequency process_noise_diagonal
scale_process_noise velocity_norm_min covariance_throttle_period tf_cache_time tf_timeout queue_size map_frame_id
odom_frame_id base_link_frame_id base_link_output_frame_id world_frame_id topic acceleration_topic
""",
}
FUSE_OPTIMIZER = (
    "optimization_frequency optimization_period lag_duration transaction_timeout reset_service motion_models "
    "sensor_models publishers"
)


def test_fuse_file_names_existing_plugins_and_agrees_with_ekf():
    parameters = yaml.safe_load((ROOT / "config/fuse.yaml").read_text())["/**/fuse_map"]["ros__parameters"]
    plugins = {
        name: plugin["type"]
        for kind in ("motion_models", "sensor_models", "publishers")
        for name, plugin in parameters[kind].items()
    }
    assert set(parameters) - set(FUSE_OPTIMIZER.split()) == set(plugins)
    for name, kind in plugins.items():
        assert set(parameters[name]) <= set(FUSE_PARAMETERS[kind].split()), name
    assert parameters["map_to_odom"]["world_frame_id"] == "map"
    assert len(parameters["start"]["initial_sigma"]) == len(parameters["start"]["initial_state"]) == 8
    ekf = yaml.safe_load((ROOT / "config/ekf.yaml").read_text())["/**/ekf_map"]["ros__parameters"]
    noise = ekf["process_noise_covariance"]
    assert parameters["vehicle"]["process_noise_diagonal"] == [noise[axis] for axis in (0, 1, 5, 6, 7, 11, 12, 13)]
    assert parameters["lag_duration"] == ekf["history_length"]
