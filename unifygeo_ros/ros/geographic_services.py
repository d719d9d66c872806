"""fromLL and toLL: WGS84 ↔ map, by the services that robot_localization's navsat_transform offers and nav2 calls."""

from __future__ import annotations

import math
from typing import Any

from rclpy.lifecycle import LifecycleNode

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import LocalFrame


class GeographicServices:
    """The two services of a configured node. The map is a plane: z is 0, as that of the fixes."""

    def __init__(self, node: LifecycleNode, frame: LocalFrame) -> None:
        """Raises ConfigurationError where robot_localization's interfaces are not installed."""
        try:
            from robot_localization.srv import FromLL, ToLL
        except ImportError as error:
            raise ConfigurationError(
                f"ll_services is true and robot_localization's services cannot be imported ({error}); install "
                "ros-*-robot-localization, or set ll_services to false"
            ) from error
        self._node = node
        self._frame = frame
        # Relative names, as navsat_transform's; without a namespace the first is the /fromLL that nav2 calls.
        self._services = [
            node.create_service(FromLL, "fromLL", self._from_ll),
            node.create_service(ToLL, "toLL", self._to_ll),
        ]

    def close(self) -> None:
        """Withdraw the services."""
        for service in self._services:
            self._node.destroy_service(service)
        self._services.clear()

    def _from_ll(self, request: Any, response: Any) -> Any:
        """Map position of a point; its altitude is ignored. NaN where there is none."""
        point, answer = request.ll_point, response.map_point
        answer.x = answer.y = answer.z = math.nan
        if not (abs(point.latitude) <= 90.0 and abs(point.longitude) <= 180.0):
            self._refuse(f"latitude {point.latitude}, longitude {point.longitude} are no WGS84 degrees")
            return response
        east_m, north_m = (float(value) for value in self._frame.map_from_geodetic(point.latitude, point.longitude))
        # Far round the Earth a point's east and north are small again, so the way back must lead to the same point.
        try:
            latitude, longitude = self._frame.geodetic_from_map(east_m, north_m)
        except InputError:
            latitude = longitude = math.nan
        if not (abs(latitude - point.latitude) < 1e-6 and abs(longitude - point.longitude) % 360.0 < 1e-6):
            datum = self._frame.datum
            self._refuse(
                f"latitude {point.latitude:.6f}, longitude {point.longitude:.6f} is more than "
                f"{self._frame.range_m / 1e3:g} km from the datum {datum.latitude_deg:.6f}, {datum.longitude_deg:.6f}"
            )
            return response
        answer.x, answer.y, answer.z = east_m, north_m, 0.0
        return response

    def _to_ll(self, request: Any, response: Any) -> Any:
        """The point of a map position, at the datum's height; its z is ignored. NaN where there is none."""
        point, answer = request.map_point, response.ll_point
        answer.latitude = answer.longitude = answer.altitude = math.nan
        try:
            latitude, longitude = self._frame.geodetic_from_map(point.x, point.y)
        except InputError as error:
            self._refuse(str(error))
            return response
        answer.latitude, answer.longitude = float(latitude), float(longitude)
        answer.altitude = self._frame.datum.height_m
        return response

    def _refuse(self, reason: str) -> None:
        """The answer has no field for an error, and a goal of zeros would send the vehicle to the datum."""
        self._node.get_logger().error(f"fromLL or toLL answered NaN: {reason}")
