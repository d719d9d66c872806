"""The localizer and robot_localization's two EKFs: odom → base_link from the wheels, map → odom from the fixes.

All arguments of localizer.launch.py are arguments of this one, too.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("unifygeo_ros"))


def ekf(name: str, output_topic: str) -> Node:
    """One filter; config/ekf.yaml has a section of the same name."""
    return Node(
        package="robot_localization",
        executable="ekf_node",
        name=name,
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[
            LaunchConfiguration("ekf_params_file"),
            {"use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)},
        ],
        remappings=[
            ("odometry/filtered", output_topic),
            ("odom", LaunchConfiguration("odometry_topic")),
            ("imu", LaunchConfiguration("imu_topic")),
            ("fix", LaunchConfiguration("fix_topic")),
        ],
    )


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
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(SHARE / "launch" / "localizer.launch.py"))),
            ekf("ekf_odom", "odometry/local"),
            ekf("ekf_map", "odometry/global"),
        ]
    )
