# The node on a Jetson with JetPack 6.1 or 6.2 (docs/how-to/jetson.md), built on the Jetson:
#   docker build -f docker/l4t.Dockerfile -t unifygeo:l4t .
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 ROS_DISTRO=humble
COPY . /ws/src/unifygeo_ros
WORKDIR /ws
# ROS's own apt repository, then what package.xml names; onnxruntime is left out, TensorRT is in the image.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl gnupg \
    && curl -fsSL https://raw.githubusercontent.com/ros/rosdistro/master/ros.key -o /usr/share/keyrings/ros.gpg \
    && echo "deb [arch=arm64 signed-by=/usr/share/keyrings/ros.gpg] http://packages.ros.org/ros2/ubuntu jammy main" \
        > /etc/apt/sources.list.d/ros2.list \
    && apt-get update \
    && apt-get install -y --no-install-recommends \
        python3-colcon-common-extensions python3-pip python3-rosdep ros-humble-ros-core \
    && rosdep init && rosdep update --rosdistro humble \
    && rosdep install --from-paths src -y -t exec --skip-keys "python3-onnxruntime-pip rosbag2" \
    && pip install --no-cache-dir -c src/unifygeo_ros/requirements/system.txt "cuda-bindings>=12.8,<13" \
    && . /opt/ros/humble/setup.sh \
    && colcon build --packages-select unifygeo_ros --install-base /opt/unifygeo \
    && apt-get purge -y --auto-remove python3-colcon-common-extensions python3-rosdep \
    && rm -rf /var/lib/apt/lists/* /root/.ros /ws/build /ws/log /ws/src \
    && useradd --create-home --uid 10001 --groups video unifygeo
COPY docker/entrypoint.sh /entrypoint.sh
USER 10001
WORKDIR /home/unifygeo
ENV ROS_LOG_DIR=/tmp/ros/log
ENTRYPOINT ["/entrypoint.sh"]
CMD ["ros2", "launch", "unifygeo_ros", "localizer.launch.py", "--show-args"]
