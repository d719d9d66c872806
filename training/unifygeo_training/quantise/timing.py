"""What a graph costs beside another one, in ONNX Runtime on one thread of this processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime

from unifygeo_ros.core.arrays import Array
from unifygeo_ros.inference.onnxruntime_engine import session_options

LEAST_ROUNDS, LEAST_S = 10, 0.5
"""How often both are run at least, and for how long."""


def processor_s(first: onnx.ModelProto, second: onnx.ModelProto, feed: Mapping[str, Array]) -> tuple[float, float]:
    """Processor time of both, seconds."""
    return in_turn(_runner(first, feed), _runner(second, feed))


def in_turn(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Processor time of two functions, run in turn.

    Lower quartiles: what else the machine does takes no processor time of theirs, but the processor's caches.
    """
    costs_s: list[list[float]] = []
    first(), second()
    begin_s = time.process_time()
    while len(costs_s) < LEAST_ROUNDS or time.process_time() - begin_s < LEAST_S:
        costs_s.append([_cost_s(first), _cost_s(second)])
    before_s, after_s = np.quantile(costs_s, 0.25, axis=0)
    return float(before_s), float(after_s)


def _cost_s(function: Callable[[], object]) -> float:
    begin_s = time.process_time()
    function()
    return time.process_time() - begin_s


def _runner(model: onnx.ModelProto, feed: Mapping[str, Array]) -> Callable[[], object]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, dict(feed))
