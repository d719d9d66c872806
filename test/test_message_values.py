"""Values of outgoing messages, with the rules that robot_localization imposes on them."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from unifygeo_ros.conversions import message_values
from unifygeo_ros.core.records import Fix, Hypothesis, Rejection, RejectionReason

COVARIANCE = np.array([[4.0, 1.5], [1.5, 2.0]])


def fix():
    return Fix(
        stamp_ns=7_000_000_025,
        east_m=1.0,
        north_m=-2.0,
        latitude_deg=48.0,
        longitude_deg=9.0,
        covariance_m2=COVARIANCE,
        yaw_rad=1.0,
        yaw_variance_rad2=0.01,
        tile_id=5,
        score=1.2,
        ambiguity=0.1,
        hypotheses=(Hypothesis(1.0, -2.0, 0.9, 5),),
    )


def test_pose_covariance_is_positive_definite_and_row_major():
    values = message_values.pose_covariance(COVARIANCE, 0.01)
    matrix = values.reshape(6, 6)
    np.testing.assert_array_equal(matrix[:2, :2], COVARIANCE)
    assert (values[0], values[1], values[6], values[7], values[35]) == (4.0, 1.5, 1.5, 2.0, 0.01)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    assert values.max() <= 1e3


def test_page_of_the_node_names_the_variances_of_what_is_not_observed():
    page = " ".join((Path(__file__).parent.parent / "docs/reference/node.md").read_text().split())
    ((height_m2, tilt_rad2),) = re.findall(
        r"z, roll and pitch are not observed: they have (\S+) m² and (\S+) rad²", page
    )
    matrix = message_values.pose_covariance(COVARIANCE, 0.01).reshape(6, 6)
    np.testing.assert_array_equal(np.diag(matrix)[2:5], [float(height_m2), float(tilt_rad2), float(tilt_rad2)])
    assert message_values.navsatfix_covariance(COVARIANCE)[8] == float(height_m2)


def test_navsatfix_covariance():
    values = message_values.navsatfix_covariance(COVARIANCE)
    np.testing.assert_array_equal(values, [4.0, 1.5, 0, 1.5, 2.0, 0, 0, 0, 100.0])


@pytest.mark.parametrize("yaw", [0.0, 1.0, -3.0])
def test_quaternion(yaw):
    assert Rotation.from_quat(message_values.quaternion_of_yaw(yaw)).as_euler("ZYX")[0] == pytest.approx(yaw)


def test_diagnostic_of_a_fix():
    text = message_values.outcome_diagnostic(fix())
    assert text.level == message_values.LEVEL_OK
    values = dict(text.values)
    # Eigenvalues of the covariance: 3 ± √(1 + 2.25).
    assert values["sigma_major_m"] == f"{np.sqrt(3 + np.sqrt(3.25)):.3f}"
    assert values["stamp"] == "7.000000025"
    assert values["tile"] == "5"


@pytest.mark.parametrize(
    ("reason", "level"),
    [(RejectionReason.AMBIGUOUS, message_values.LEVEL_WARN), (RejectionReason.BAD_IMAGE, message_values.LEVEL_ERROR)],
)
def test_diagnostic_of_a_rejection_gives_the_reason(reason, level):
    text = message_values.outcome_diagnostic(Rejection(1, reason, "31% above 20%"))
    assert text.level == level
    assert text.message == f"{reason.value}: 31% above 20%"
    assert dict(text.values)["reason"] == reason.value
