"""A recorded drive through the localizer and the EKFs, by the clock of the bag, and a recording of their topics.

The bag starts to play when the localizer is active; when it ends, everything ends. `unifygeo replay` gives the same
fixes without ROS, as fast as the machine can.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    RegisterEventHandler,
    SetLaunchConfiguration,
)
from launch.conditions import IfCondition, UnlessCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

SHARE = Path(get_package_share_directory("unifygeo_ros"))
RECORDED = (
    "/clock",
    "/tf",
    "/tf_static",
    "/diagnostics",
    "/unifygeo_localizer/fix",
    "/unifygeo_localizer/navsat",
    "/unifygeo_localizer/hypotheses",
    "/odometry/local",
    "/odometry/global",
)


def included(name: str, condition: IfCondition | UnlessCondition) -> IncludeLaunchDescription:
    source = PythonLaunchDescriptionSource(str(SHARE / "launch" / name))
    return IncludeLaunchDescription(source, condition=condition)


def transition(number: int) -> EmitEvent:
    """Of the localizer, the only lifecycle node of this launch."""
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=lambda node: True, transition_id=number))


def generate_launch_description() -> LaunchDescription:
    play = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "play", LaunchConfiguration("bag")),
            *("--clock", "100", "--rate", LaunchConfiguration("rate")),
            *("--delay", "5"),  # or the start is gone before all have heard of the player
        ],
        output="screen",
    )
    record = ExecuteProcess(
        # A regular expression, since the way to list topics differs between the distributions.
        cmd=[
            *("ros2", "bag", "record", "--use-sim-time", "-o", LaunchConfiguration("output")),
            *("-e", f"^(/.*)?({'|'.join(RECORDED)})$"),  # in any namespace
        ],
        output="screen",
        condition=IfCondition(LaunchConfiguration("record")),
    )
    with_ekf = LaunchConfiguration("ekf")
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="the bag to play (required)"),
            DeclareLaunchArgument("rate", default_value="1.0", description="seconds of the bag a second"),
            DeclareLaunchArgument(
                "ekf", default_value="true", choices=["true", "false"], description="run the EKFs, too"
            ),
            DeclareLaunchArgument(
                "record", default_value="true", choices=["true", "false"], description="record their topics"
            ),
            DeclareLaunchArgument("output", default_value="replay_bag", description="folder of the recording"),
            SetLaunchConfiguration("use_sim_time", "true"),
            # A node that starts by itself may be active before this process hears it, and the bag would wait for ever.
            SetLaunchConfiguration("autostart", "false"),
            included("localizer_ekf.launch.py", IfCondition(with_ekf)),
            included("localizer.launch.py", UnlessCondition(with_ekf)),
            record,
            transition(Transition.TRANSITION_CONFIGURE),
            RegisterEventHandler(
                OnStateTransition(
                    start_state="configuring",
                    goal_state="inactive",
                    entities=[transition(Transition.TRANSITION_ACTIVATE)],
                )
            ),
            RegisterEventHandler(OnStateTransition(goal_state="active", entities=[play])),
            RegisterEventHandler(
                OnStateTransition(
                    start_state="configuring",
                    goal_state="unconfigured",
                    entities=[
                        LogInfo(
                            msg="The localizer could not be configured; its last error says why. Nothing is played."
                        ),
                        EmitEvent(event=Shutdown(reason="the localizer could not be configured")),
                    ],
                )
            ),
            RegisterEventHandler(
                OnProcessExit(target_action=play, on_exit=[EmitEvent(event=Shutdown(reason="the bag has ended"))])
            ),
        ]
    )
