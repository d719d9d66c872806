"""The prior's part in retrieval: is it usable, and within which gate must the camera be."""

from __future__ import annotations

import numpy as np

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.core.records import Heading, Prior
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.lever_arm import camera_offset_covariance_m2, camera_offset_m


def prior_problem(prior: Prior) -> str | None:
    """What is wrong with a prior, with the value, or None."""
    covariance = np.asarray(prior.covariance_m2)
    if not np.all(np.isfinite([prior.east_m, prior.north_m])):
        return f"prior position {prior.east_m}, {prior.north_m} m is not finite"
    if covariance.shape != (2, 2) or not np.all(np.isfinite(covariance)):
        return f"prior covariance {covariance.tolist()} is not a finite 2x2 matrix"
    if not np.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9) or np.linalg.eigvalsh(covariance)[0] <= 0:
        return f"prior covariance {covariance.tolist()} m² is not symmetric positive definite"
    return None


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
    covariance = (covariance + covariance.T) / 2
    return Gate(Prior(float(position[0]), float(position[1]), covariance), sigma)
