"""Rotations and rigid motions of the plane, SE(2): the one home of their formulas.

Conventions are those of REP-103: x forward or east, y left or north, yaw counter-clockwise from x, in radians.
The Jacobians are those of the formulas as written, with respect to (x, y, yaw). They follow from
J. Solà et al., "A micro Lie theory for state estimation in robotics", 2018, example 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.geodesy import wrap_angle


def rotation_matrix(yaw_rad: npt.ArrayLike) -> Float64:
    """R with R @ v = v turned by the yaw.

    Args:
        yaw_rad: any shape.

    Returns:
        float64 (..., 2, 2).
    """
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)


def rotate(yaw_rad: npt.ArrayLike, x: npt.ArrayLike, y: npt.ArrayLike) -> Float64:
    """The vector (x, y) turned by the yaw. The three arguments broadcast.

    Returns:
        float64 (..., 2), x and y.
    """
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def rotation_derivative(rotated: Float64) -> Float64:
    """∂(R(yaw) v)/∂yaw from the vector that was already turned, R(yaw) v: that vector turned by a right angle.

    Args:
        rotated: float64 (..., 2).

    Returns:
        float64 (..., 2).
    """
    return np.stack([-rotated[..., 1], rotated[..., 0]], axis=-1)


@dataclass(frozen=True)
class Pose2:
    """A pose in the plane, or the motion that leads to it: metres and radians. Yaws of results lie in [−π, π)."""

    x_m: float
    y_m: float
    yaw_rad: float

    def apply(self, x: float, y: float) -> tuple[float, float]:
        """A point given in this pose's axes, in the axes that the pose is given in (metres)."""
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return self.x_m + (cos * x - sin * y), self.y_m + (sin * x + cos * y)

    def compose(self, then: Pose2) -> Pose2:
        """This motion, and then another one given in the axes it leads to: self ⊕ then."""
        x, y = self.apply(then.x_m, then.y_m)
        return Pose2(x, y, wrap_angle(self.yaw_rad + then.yaw_rad))

    def compose_jacobians(self, then: Pose2) -> tuple[Float64, Float64]:
        """∂(self ⊕ then)/∂self and ∂(self ⊕ then)/∂then: two float64 (3, 3)."""
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        dx, dy = cos * then.x_m - sin * then.y_m, sin * then.x_m + cos * then.y_m
        by_self = np.array([[1.0, 0.0, -dy], [0.0, 1.0, dx], [0.0, 0.0, 1.0]])
        by_then = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return by_self, by_then

    def inverse(self) -> Pose2:
        """The motion back: self ⊕ self.inverse() is no motion."""
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        x, y = cos * self.x_m + sin * self.y_m, -sin * self.x_m + cos * self.y_m
        return Pose2(-x, -y, wrap_angle(-self.yaw_rad))

    def inverse_jacobian(self) -> Float64:
        """∂(⊖ self)/∂self: float64 (3, 3)."""
        back = self.inverse()
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return np.array([[-cos, -sin, back.y_m], [sin, -cos, -back.x_m], [0.0, 0.0, -1.0]])

    def between(self, later: Pose2) -> Pose2:
        """The motion from this pose to another one of the same frame, in this pose's axes: (⊖ self) ⊕ later."""
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        dx, dy = later.x_m - self.x_m, later.y_m - self.y_m
        return Pose2(cos * dx + sin * dy, -sin * dx + cos * dy, wrap_angle(later.yaw_rad - self.yaw_rad))
