"""The localizer and nav2, without an EKF: the localizer publishes map → odom, the vehicle's odometry odom → base_link.

All arguments of localizer.launch.py are arguments of this one, too. nav2 gets neither a map nor AMCL.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

SHARE = Path(get_package_share_directory("unifygeo_ros"))


def start_nav2(context: LaunchContext) -> list[IncludeLaunchDescription]:
    file = LaunchConfiguration("nav2_params_file").perform(context)
    if not Path(file).is_file():
        raise RuntimeError(f"nav2_params_file {file} does not exist; copy {SHARE / 'config' / 'nav2.yaml'}")
    if LaunchConfiguration("namespace").perform(context):
        raise RuntimeError("namespace is set: nav2 calls /fromLL of the root namespace, so it serves one vehicle only")
    nav2 = Path(get_package_share_directory("nav2_bringup")) / "launch" / "navigation_launch.py"
    arguments = {"params_file": file, "use_sim_time": LaunchConfiguration("use_sim_time"), "autostart": "true"}
    return [IncludeLaunchDescription(PythonLaunchDescriptionSource(str(nav2)), launch_arguments=arguments.items())]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "nav2_params_file",
                default_value=str(SHARE / "config" / "nav2.yaml"),
                description="parameters of nav2; copy the default one and change it",
            ),
            DeclareLaunchArgument(
                "publish_tf",
                default_value="true",
                choices=["true", "false"],
                description="false: something else publishes map → odom",
            ),
            DeclareLaunchArgument(
                "ll_services",
                default_value="true",
                choices=["true", "false"],
                description="false: navsat_transform offers fromLL and toLL",
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(SHARE / "launch" / "localizer.launch.py"))),
            OpaqueFunction(function=start_nav2),
        ]
    )
