"""What a drive says of the set-up, as a table and as a parameter file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from unifygeo_ros.core.files import write_text
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.evaluation.mounting.estimate import DriveEstimate, Value
from unifygeo_ros.parameters.settings import NODE_NAME, Settings

SIGNIFICANT = 2.0
"""Standard deviations by which an estimate must differ from the present value to replace it."""

LATEST_S = 0.9
"""A delay beyond is at the end of what the fit looks at."""

FEW_TURNS_RAD = math.radians(180.0)
"""With less, a drive is called straight."""


@dataclass(frozen=True)
class Finding:
    """One quantity of the set-up."""

    name: str
    parameter: str | None
    """That it belongs to; None: no parameter corrects it."""
    unit: str
    factor: float
    """From the parameter's unit to `unit`."""
    present: float
    """Value of the parameter as configured."""
    found: Value | None
    """Value that it should have; None: the drive says nothing."""
    enough_sigma: float
    """Larger standard deviations say too little to replace a value."""
    unknown_because: str
    """In words, where the drive does not tell it."""
    angle: bool = False

    @property
    def told(self) -> bool:
        """Whether the drive tells it."""
        return self.found is not None and self.found.sigma <= self.enough_sigma

    @property
    def change(self) -> float:
        """Found minus present."""
        if self.found is None:
            return 0.0
        difference = self.found.value - self.present
        return wrap_angle(difference) if self.angle else difference

    @property
    def changed(self) -> bool:
        """Whether the drive tells that the present value is wrong."""
        return self.told and self.found is not None and abs(self.change) > SIGNIFICANT * self.found.sigma

    @property
    def value(self) -> float:
        """That the parameter should have: the present one unless that is wrong."""
        return self.found.value if self.changed and self.found is not None else self.present


def findings(estimate: DriveEstimate, settings: Settings) -> list[Finding]:
    """What the estimate says of each parameter."""
    session, camera = settings.session, settings.camera
    straight = estimate.turned_rad < FEW_TURNS_RAD
    turns = f"{math.degrees(estimate.turned_rad):.0f}° of turns" + (", too few" if straight else "")
    speed = f"{turns}, and the speed hardly changes" if straight else "the speed hardly changes"
    ground = f"the ground was found in the imagery for {estimate.aligned} of {estimate.used} images only"
    late = estimate.late
    stamp = Value(session.stamp_offset_s - late.value, late.sigma if abs(late.value) < LATEST_S else math.inf)
    degrees = 180 / math.pi
    scale = Value(abs(estimate.scale.value - 1), estimate.scale.sigma)
    return [
        Finding("stamps", "session.stamp_offset_s", "s", 1.0, session.stamp_offset_s, stamp, 0.015, speed),
        Finding("camera forward", "camera.x_m", "m", 1.0, camera.x_m, estimate.x, 0.1, turns),
        Finding("camera left", "camera.y_m", "m", 1.0, camera.y_m, estimate.y, 0.1, turns),
        Finding(
            "camera yaw", "camera.yaw_rad", "°", degrees, camera.yaw_rad, estimate.yaw, math.radians(0.2), ground, True
        ),
        Finding(
            "camera pitch", "camera.pitch_rad", "°", degrees, camera.pitch_rad, estimate.pitch, math.radians(0.3),
            ground, True,
        ),
        Finding(
            "camera roll", "camera.roll_rad", "°", degrees, camera.roll_rad, estimate.roll, math.radians(0.3), ground,
            True,
        ),
        Finding(
            "IMU yaw", "session.imu_yaw_offset_rad", "°", degrees, session.imu_yaw_offset_rad, estimate.imu_offset,
            math.radians(0.5), "no IMU" if estimate.imu_offset is None else "its yaw wanders", True,
        ),
        Finding("odometry scale error", None, "%", 100.0, settings.odometry.scale, scale, 0.01, "too short a drive"),
    ]  # fmt: skip


def table(found: Sequence[Finding], estimate: DriveEstimate) -> str:
    """The findings, a line each, and what they rest on."""
    lines = [f"{'':20} {'estimate':>20}  {'now':>9}"]
    for finding in found:
        if finding.parameter is None or not finding.told or finding.found is None:
            continue
        value, sigma = finding.found.value * finding.factor, finding.found.sigma * finding.factor
        decimals = 3 if finding.unit == "s" else 2
        text = f"{value:.{decimals}f} ± {sigma:.{decimals}f} {finding.unit}"
        word = f"set {finding.parameter}: {rounded(finding)}" if finding.changed else "as configured"
        now = f"{finding.present * finding.factor:.{decimals}f}"
        lines.append(f"{finding.name:20} {text:>20}  {now:>9}  {word}")
    lines += [f"{f.name:20} not told by this drive ({f.unknown_because}); {_doubt(f)}" for f in found if not f.told]
    scale = estimate.scale
    if scale.sigma <= 0.01:
        text = f"{scale.value:.4f} ± {scale.sigma:.4f} m/m"
        lines.append(f"{'odometry scale':20} {text:>20}  true metres for each metre of odometry; {_scale(found)}")
    if estimate.height is not None:
        height = f"{estimate.height.value:.2f} ± {estimate.height.sigma:.2f} m"
        lines.append(f"{'camera height':20} {height:>20}  above the ground; no parameter")
    lines.append(
        f"From {estimate.way_m:.0f} m with {math.degrees(estimate.turned_rad):.0f}° of turns: {estimate.placed} of "
        f"{estimate.images} images show their place, the ground of {estimate.aligned} of {estimate.used} was found in "
        f"the imagery. Their places scatter by {estimate.place_sigma_m:.2f} m about the drive, and are worth "
        f"{estimate.independent:.0f} independent ones."
    )
    return "\n".join(lines)


def _doubt(finding: Finding) -> str:
    if finding.found is None or not math.isfinite(finding.found.sigma):
        return "no estimate"
    return f"its estimate would have a standard deviation of {finding.found.sigma * finding.factor:.2g} {finding.unit}"


def _scale(found: Sequence[Finding]) -> str:
    error = next(finding for finding in found if finding.parameter is None)
    assert error.found is not None
    if error.found.value > 2 * error.present:
        return f"calibrate the odometry, or set odometry.scale: {error.found.value:.3f}"
    return f"within twice odometry.scale ({error.present:g})"


def rounded(finding: Finding) -> float:
    """The value for the file: further digits than the standard deviation has mean nothing."""
    return round(finding.value, 4)


def parameter_text(found: Sequence[Finding], settings: Settings, drive: str) -> str | None:
    """A parameter file with the values that the drive tells; None where it tells none.

    Values that the drive confirms stay as they are. Where the mount came from TF, the file holds all of it: parameters
    take the place of TF's transform as a whole.

    Args:
        found: by `findings`.
        settings: of the node.
        drive: its name, for the comment.
    """
    camera_frame = settings.node.camera_frame
    groups: dict[str, list[str]] = {}
    for finding in found:
        if finding.parameter is None or not (
            finding.told or (camera_frame and finding.parameter.startswith("camera."))
        ):
            continue
        group, _, field = finding.parameter.partition(".")
        comment = "not told by the drive"
        if finding.told and finding.found is not None:
            was = f"was {finding.present:.4g}" if finding.changed else "confirmed"
            comment = f"± {finding.found.sigma:.2g}, {was}"
        groups.setdefault(group, []).append(f"      {field}: {rounded(finding)!r}  # {comment}")
    if not any(finding.told and finding.parameter is not None for finding in found):
        return None
    lines = [f"# Estimated by `unifygeo mount` from the drive {drive}.", f"/**/{NODE_NAME}:", "  ros__parameters:"]
    if camera_frame:
        lines.append(f'    camera_frame: ""  # camera.* in place of the transform of {camera_frame}')
        groups["camera"].append(f"      upside_down: {str(settings.camera.upside_down).lower()}")
    for group, entries in groups.items():
        lines += [f"    {group}:", *entries]
    return "\n".join(lines) + "\n"


def write_parameters(path: Path, text: str) -> None:
    """Write a parameter file, whole or not at all."""
    write_text(path, text)
