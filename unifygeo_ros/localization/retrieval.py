"""The prior's part in retrieval: is it usable, and within which gate must the camera be."""

from __future__ import annotations

import numpy as np

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.core.covariance import covariance_problem, symmetric
from unifygeo_ros.core.records import Heading, Prior
from unifygeo_ros.localization.camera_mount import camera_offset_covariance_m2, camera_offset_m
from unifygeo_ros.localization.config import CameraMount


def prior_problem(prior: Prior) -> str | None:
    """What is wrong with a prior, with the value, or None."""
    if not np.all(np.isfinite([prior.east_m, prior.north_m])):
        return f"prior position {prior.east_m}, {prior.north_m} m is not finite"
    problem = covariance_problem(prior.covariance_m2, 2)
    return None if problem is None else f"prior covariance (m²) {problem}"


def camera_gate(prior: Prior, mount: CameraMount, heading: Heading | None, sigma: float) -> Gate:
    """The gate of the camera, given a usable prior of base_link.

    Where the heading is not known the camera is somewhere on a circle around base_link; its radius is added to the
    prior as a standard deviation.
    """
    position = np.array([prior.east_m, prior.north_m])
    covariance = np.asarray(prior.covariance_m2, np.float64)
    if heading is None:
        covariance = covariance + (mount.x_m**2 + mount.y_m**2) * np.eye(2)
    else:
        position = position + camera_offset_m(mount, heading.yaw_rad)
        covariance = covariance + camera_offset_covariance_m2(mount, heading.yaw_rad, heading.variance_rad2)
    return Gate(Prior(float(position[0]), float(position[1]), symmetric(covariance)), sigma)
