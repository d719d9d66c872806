"""One file of float16 weights for all graphs of a bundle.

The fp16 graphs use the weights as they are, the fp32 graphs cast them when the runtime loads them (a constant that
ONNX Runtime and TensorRT fold): the bundle is a third of the size, and both precisions compute with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.model.network import UnifyGeo

SMALLEST_SHARED = 256
"""Tensors of fewer elements stay in their graph."""

ALIGNMENT = 64


@torch.no_grad()
def round_to_float16(network: UnifyGeo) -> None:
    """Round every weight to the nearest float16, in place. Raises ConfigurationError if one is too large for it."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            rounded = tensor.half().to(tensor.dtype)
            if not bool(torch.isfinite(rounded).all()):
                raise ConfigurationError(
                    f"{name} reaches {float(tensor.abs().max()):.3g}, float16 ends at 65504; export without --compact"
                )
            tensor.copy_(rounded)


def share_weights(models: Iterable[onnx.ModelProto], file: Path) -> None:
    """Move the large float initialisers of all models into one file, each different tensor once, in place.

    float32 initialisers must be exact in float16 (`round_to_float16`); those that are not, because the exporter
    computed them, stay where they are. So do the float32 kernels of grouped convolutions, half a percent of the
    weights: TensorRT's parser takes a kernel that a node computes as an input of the convolution, and whether every
    release takes that where there are groups is not known.
    """
    offsets: dict[bytes, int] = {}
    with file.open("wb") as stream:
        for model in models:
            casts = []
            grouped = {node.input[1] for node in model.graph.node if _groups(node) > 1}
            for initializer in model.graph.initializer:
                value = numpy_helper.to_array(initializer)
                if value.size < SMALLEST_SHARED or value.dtype not in (np.float16, np.float32):
                    continue
                half = value.astype(np.float16)
                if value.dtype == np.float32:
                    if initializer.name in grouped or not np.array_equal(half.astype(np.float32), value):
                        continue
                    name = initializer.name
                    initializer.name = f"{name}.float16"
                    casts.append(helper.make_node("Cast", [initializer.name], [name], to=TensorProto.FLOAT))
                data = half.tobytes()
                if data not in offsets:
                    stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
                    offsets[data] = stream.tell()
                    stream.write(data)
                _point_to(initializer, file.name, offsets[data], len(data))
            nodes = list(model.graph.node)
            del model.graph.node[:]
            model.graph.node.extend([*casts, *nodes])  # ONNX wants nodes in topological order


def _groups(node: onnx.NodeProto) -> int:
    """Of a convolution; 1 for any other node."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _point_to(initializer: TensorProto, location: str, offset: int, length: int) -> None:
    """Replace a tensor's data by a reference to an external file."""
    initializer.ClearField("raw_data")
    initializer.ClearField("float_data")
    initializer.ClearField("int32_data")
    del initializer.external_data[:]
    initializer.data_type = TensorProto.FLOAT16
    initializer.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = initializer.external_data.add()
        entry.key, entry.value = key, str(value)
