"""The localizer alone. `ros2 launch unifygeo_ros localizer.launch.py --show-args` lists the arguments."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("unifygeo_ros"))

SWITCH = ("true", "false")
# Given, they win over the parameter file; empty, the file's value or the node's default stands.
# Launch argument → parameter, choices, description.
OVERRIDES = {
    "bundle": ("bundle", None, "folder of the model bundle"),
    "index": ("index", None, "folder of the index, or of a region: a folder of indexes or a YAML file"),
    "rig": ("rig.file", None, "rig file: several cameras in place of one panoramic camera"),
    "mode": (
        "session.mode",
        ("sequence", "single"),
        "sequence: a filter over the whole drive, which wants odometry; single: each image on its own",
    ),
    "fix_from": (
        "tracker.fix_from",
        ("posterior", "image"),
        "mode sequence: what fixes are made from; image for a filter",
    ),
    "publish_tf": (
        "publish_tf",
        SWITCH,
        "publish map → odom from the track and the odometry; only where nothing else does",
    ),
    "ll_services": ("ll_services", SWITCH, "offer fromLL and toLL, which nav2's waypoint follower calls"),
    "image_transport": ("image_transport", ("raw", "compressed"), "kind of the image messages"),
    "backend": (
        "backend",
        ("auto", "tensorrt", "tensorrt_rtx", "onnx_cuda", "onnx_cpu", "onnx_tensorrt", "onnx_tensorrt_rtx"),
        "inference backend; auto: the first that runs here",
    ),
}
# Relative, so that the robots of several namespaces have topics of their own.
TOPICS = {
    "image": ("camera/image", "360° image; with image_transport compressed, /compressed is appended"),
    "odometry": ("odom", "odometry: absolute in the map frame, relative in any other"),
    "imu": ("imu/data", "IMU"),
    "initial_pose": ("initialpose", "where an operator says the vehicle is (RViz)"),
}


# Topics in rviz/unifygeo.rviz, below the node's name.
SHOWN = (
    "fix",
    "pose",
    "track",
    "hypotheses/cloud",
    "heatmap",
    "heatmap_updates",
    "orthophoto",
    "debug_image/compressed",
)


def start_rviz(context: LaunchContext) -> list[Node]:
    if LaunchConfiguration("rviz").perform(context) == "false":
        return []
    namespace = LaunchConfiguration("namespace").perform(context).strip("/")
    own = [(f"/unifygeo_localizer/{topic}", f"/{namespace}/unifygeo_localizer/{topic}") for topic in SHOWN]
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            name="rviz2",
            arguments=["-d", str(SHARE / "rviz" / "unifygeo.rviz")],
            parameters=[{"use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)}],
            remappings=[*(own if namespace else []), ("/initialpose", LaunchConfiguration("initial_pose_topic"))],
        )
    ]


def start_node(context: LaunchContext) -> list[LifecycleNode]:
    params_file = LaunchConfiguration("params_file").perform(context)
    if not Path(params_file).is_file():
        raise RuntimeError(f"params_file {params_file} does not exist; copy {SHARE / 'config' / 'localizer.yaml'}")
    parameters = {
        parameter: value == "true" if choices == SWITCH else ParameterValue(value, value_type=str)
        for name, (parameter, choices, _) in OVERRIDES.items()
        if (value := LaunchConfiguration(name).perform(context))
    }
    prefix = LaunchConfiguration("frame_prefix").perform(context)
    if prefix:
        parameters["base_frame"] = ParameterValue(f"{prefix}base_link", value_type=str)
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
                params_file,
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
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=text, choices=["", *choices] if choices else None)
        for name, (_, choices, text) in OVERRIDES.items()
    ]
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
            "use_sim_time", default_value="false", choices=["true", "false"], description="take the time from /clock"
        ),
        DeclareLaunchArgument(
            "rviz", default_value="false", choices=["true", "false"], description="start RViz with the node's topics"
        ),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        DeclareLaunchArgument(
            "frame_prefix",
            default_value="",
            description="put before the frames odom and base_link, for several robots on one /tf: robot1/",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="least severity that is logged",
        ),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start_node), OpaqueFunction(function=start_rviz)])
