"""The ROS 2 node. The only package here that imports rclpy."""
