"""UnifyGeo for ROS 2: where a vehicle is, from a 360° image and aerial imagery."""

__version__ = "0.1.0"
