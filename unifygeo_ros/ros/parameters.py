"""ROS parameters ↔ `Settings`: declaration, reading, and what may change while the node runs."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.parameters.names import RCLPY_GROUPS, RCLPY_PARAMETERS, check_names
from unifygeo_ros.parameters.settings import PARAMETERS, ParameterSpec, Settings, check_live, with_values


def declare_parameters(node: Node) -> None:
    """Declare every setting.

    Raises:
        ConfigurationError: An override (of a parameter file, or given with -p) is of the wrong type or out of range, or
            its name is unknown and nearly that of a parameter. Other unknown names may be another node's, from a
            section for all nodes; the log names them.
    """
    # rclpy keeps the overrides that reached the node here, and ignores those that are never declared.
    overrides = getattr(node, "_parameter_overrides", {})
    check_names(overrides, only_ours=False)
    for name in overrides:
        if name not in PARAMETERS and name not in RCLPY_PARAMETERS and name.partition(".")[0] not in RCLPY_GROUPS:
            node.get_logger().warning(f"The parameter {name} is not a parameter of this node; it is ignored")
    for spec in PARAMETERS.values():
        try:
            node.declare_parameter(spec.name, spec.default, _descriptor(spec))
        except InvalidParameterTypeException as error:
            raise ConfigurationError(f"{error}; a number with a decimal point is written 1.0, not 1") from error
        except InvalidParameterValueException as error:
            raise ConfigurationError(f"{error}; allowed is {_range_text(spec)} ({spec.description})") from error


def read_settings(node: Node) -> Settings:
    """The parameters' present values. Raises ConfigurationError where they do not fit together."""
    return with_values(Settings(), {name: node.get_parameter(name).value for name in PARAMETERS})


def changed_settings(settings: Settings, parameters: list[Parameter], *, configured: bool) -> Settings:
    """The settings after a request to set parameters; parameters of rclpy itself are left to rclpy.

    configured: whether a model is loaded, and so only live settings may change. Raises ConfigurationError.
    """
    values: dict[str, Any] = {p.name: p.value for p in parameters if p.name in PARAMETERS}
    if configured:
        check_live(values)
    return with_values(settings, values)


def refused(error: Exception) -> SetParametersResult:
    return SetParametersResult(successful=False, reason=str(error))


def _descriptor(spec: ParameterSpec) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=spec.description)
    when = "may change at any time" if spec.live else "read at configuration"
    descriptor.additional_constraints = "; ".join(filter(None, (", ".join(spec.choices), when)))
    low, high = spec.minimum, spec.maximum
    if low is not None and high is not None:
        if isinstance(spec.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return descriptor


def _range_text(spec: ParameterSpec) -> str:
    return ", ".join(spec.choices) or f"{spec.minimum} to {spec.maximum}"
