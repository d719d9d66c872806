"""Delay, mount, IMU and odometry, estimated from a recorded drive."""
