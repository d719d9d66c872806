"""The localizer and robot_localization's two EKFs: odom → base_link from the wheels, map → odom from the fixes.

All arguments of localizer.launch.py are arguments of this one, too. The map filter starts with the first fix: before it
there would be a map → odom at the datum, which a planner would believe.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("unifygeo_ros"))


def ekf(context: LaunchContext, name: str, output_topic: str) -> Node:
    """One filter; config/ekf.yaml has a section of the same name."""
    prefix = LaunchConfiguration("frame_prefix").perform(context)
    parameters = [
        LaunchConfiguration("ekf_params_file"),
        {"use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)},
    ]
    if prefix:
        odom, map_ = f"{prefix}odom", "map"
        world = odom if name == "ekf_odom" else map_
        parameters.append({"odom_frame": odom, "base_link_frame": f"{prefix}base_link", "world_frame": world})
    return Node(
        package="robot_localization",
        executable="ekf_node",
        name=name,
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=parameters,
        remappings=[
            ("odometry/filtered", output_topic),
            ("odom", LaunchConfiguration("odometry_topic")),
            ("imu", LaunchConfiguration("imu_topic")),
            ("fix", LaunchConfiguration("fix_topic")),
            # The odometry filter must never jump, so only the map filter takes an operator's pose.
            ("set_pose", LaunchConfiguration("initial_pose_topic") if name == "ekf_map" else f"{name}/set_pose"),
        ],
    )


def start_filters(context: LaunchContext) -> list[Action]:
    file = LaunchConfiguration("ekf_params_file").perform(context)
    if not Path(file).is_file():
        raise RuntimeError(f"ekf_params_file {file} does not exist; copy {SHARE / 'config' / 'ekf.yaml'}")
    odom, map_ = ekf(context, "ekf_odom", "odometry/local"), ekf(context, "ekf_map", "odometry/global")
    if LaunchConfiguration("wait_for_fix").perform(context) == "false":
        return [odom, map_]
    namespace = LaunchConfiguration("namespace").perform(context).strip("/")
    fix = LaunchConfiguration("fix_topic").perform(context)
    topic = fix if fix.startswith("/") else f"/{namespace}/{fix}".replace("//", "/")
    first_fix = ExecuteProcess(
        name="first_fix",
        cmd=["ros2", "topic", "echo", "--once", topic, "geometry_msgs/msg/PoseWithCovarianceStamped"],
        output="log",
    )
    start = OnProcessExit(
        target_action=first_fix, on_exit=lambda event, context: [map_] if event.returncode == 0 else []
    )
    return [odom, RegisterEventHandler(start), first_fix]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "ekf_params_file",
                default_value=str(SHARE / "config" / "ekf.yaml"),
                description="parameters of both filters; copy the default one and change it",
            ),
            DeclareLaunchArgument(
                "fix_topic", default_value="unifygeo_localizer/fix", description="fixes that the map filter takes"
            ),
            DeclareLaunchArgument(
                "wait_for_fix",
                default_value="true",
                choices=["true", "false"],
                description="start the map filter, and with it map → odom, only after the first fix",
            ),
            # The filters fuse the odometry, so the fixes must not have it in them.
            DeclareLaunchArgument(
                "fix_from",
                default_value="image",
                choices=["", "posterior", "image"],
                description="mode sequence: what a fix is made from; image for a filter",
            ),
            # map → odom is the map filter's, whatever the parameter file says: TF would jump between two of them.
            DeclareLaunchArgument(
                "publish_tf",
                default_value="false",
                choices=["false"],
                description="the map filter publishes map → odom, so the localizer does not",
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(SHARE / "launch" / "localizer.launch.py"))),
            OpaqueFunction(function=start_filters),
        ]
    )
