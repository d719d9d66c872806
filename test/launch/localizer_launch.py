"""A launch_testing test, run by test_ros_launch.py with the region's folders in the environment."""

import math
import os
import unittest

import launch_testing
import launch_testing.actions
import launch_testing.asserts
import pytest
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from ros_drive import Region, Vehicle
from sensor_msgs.msg import CompressedImage
from worlds import colour_world

REGION = os.environ["UNIFYGEO_TEST_REGION"]
SHARE = os.environ["UNIFYGEO_TEST_SHARE"]


@pytest.mark.launch_test
def generate_test_description():
    localizer = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(f"{SHARE}/launch/localizer.launch.py"),
        launch_arguments={
            "bundle": f"{REGION}/bundle",
            "index": f"{REGION}/index",
            "backend": "onnx_cpu",
            "image_transport": "compressed",
            "image_topic": "/front/image",
            "params_file": f"{REGION}/parameters.yaml",
        }.items(),
    )
    return LaunchDescription([localizer, launch_testing.actions.ReadyToTest()])


class Launched(unittest.TestCase):
    def test_localizer_is_active_and_takes_the_remapped_topic(self):
        vehicle = Vehicle(int(os.environ["ROS_DOMAIN_ID"]))
        try:
            publisher = vehicle.publisher("/front/image/compressed", CompressedImage)
            vehicle.wait_for(publisher.get_subscription_count, "image subscription", 60.0)
            vehicle.image_topic = "/front/image/compressed"
            region = Region(colour_world(), None, None)
            for _ in range(20):
                vehicle.show(region.panorama((-20.0, 11.0)))
                vehicle.spin(0.5)
                if vehicle.received["~/fix"]:
                    break
            orientation = vehicle.received["~/fix"][0].pose.pose.orientation
            yaw_rad = 2 * math.atan2(orientation.z, orientation.w)
            assert yaw_rad == pytest.approx(math.pi / 2)  # from the file
        finally:
            vehicle.close()


@launch_testing.post_shutdown_test()
class AfterShutdown(unittest.TestCase):
    def test_localizer_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
