#!/bin/bash
# The environment of ROS and of the node, then the command.
set -e
source "/opt/ros/$ROS_DISTRO/setup.bash"
source /opt/unifygeo/setup.bash
exec "$@"
