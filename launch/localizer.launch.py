"""The localizer alone. `ros2 launch unifygeo_ros localizer.launch.py --show-args` lists the arguments."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("unifygeo_ros"))

# Given, they win over the parameter file; empty, the file's value or the node's default stands.
OVERRIDES = {
    "bundle": "folder of the model bundle",
    "index": "folder of the index of the region",
    "image_transport": "raw or compressed",
    "backend": "auto, tensorrt, tensorrt_rtx, onnx_cuda, onnx_cpu, onnx_tensorrt or onnx_tensorrt_rtx",
}
TOPICS = {
    "image": ("/camera/image", "360° image; with image_transport compressed, /compressed is appended"),
    "odometry": ("/odom", "odometry: absolute in the map frame, relative in any other"),
    "imu": ("/imu/data", "IMU whose axes are base_link's"),
    "initial_pose": ("/initialpose", "where an operator says the vehicle is (RViz)"),
}


def start_node(context: LaunchContext) -> list[LifecycleNode]:
    given = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    parameters = {name: ParameterValue(value, value_type=str) for name, value in given.items() if value}
    image = LaunchConfiguration("image_topic").perform(context)
    remappings = [(name, LaunchConfiguration(f"{name}_topic")) for name in TOPICS]
    remappings.append(("image/compressed", f"{image}/compressed"))
    return [
        LifecycleNode(
            package="unifygeo_ros",
            executable="localizer_node",
            name="unifygeo_localizer",
            namespace=LaunchConfiguration("namespace"),
            output="screen",
            parameters=[
                LaunchConfiguration("params_file"),
                parameters,
                {
                    "autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool),
                    "use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool),
                },
            ],
            remappings=remappings,
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        )
    ]


def generate_launch_description() -> LaunchDescription:
    arguments = [DeclareLaunchArgument(name, default_value="", description=text) for name, text in OVERRIDES.items()]
    arguments += [
        DeclareLaunchArgument(f"{name}_topic", default_value=topic, description=text)
        for name, (topic, text) in TOPICS.items()
    ]
    arguments += [
        DeclareLaunchArgument(
            "params_file",
            default_value=str(SHARE / "config" / "localizer.yaml"),
            description="parameters; copy the default one and change it",
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            choices=["true", "false"],
            description="configure and activate at once; false: leave it to a lifecycle manager",
        ),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=["true", "false"], description="live by /clock"
        ),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn or error"),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start_node)])
