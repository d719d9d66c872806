"""A bundle's graphs back into a network that can be trained on.

The exporter keeps the network's names for most weights. Three kinds it changes, and each has an exact way back:

* the matrices of the blocks' two linear layers are transposed and have lost their names, which their biases still have;
* so have the blocks' layer scales, which multiply what the second linear layer gives;
* batch norms (the decoder's, a trunk's) are folded into the convolutions before them: y = W'x + b'. The convolution
  gets W' here and its norm the rest: mean 0, variance 1, weight √(1 + ε), bias b'.

The temperatures of the losses are in no graph. Of a calibrated bundle both start at `tile_temperature`, which was
fitted to the sum of the two similarities that they divide; of another one, where every training starts. A folded norm
knows no statistics of its inputs, so training must leave the norms in evaluation mode (`freeze_norms`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.inference.bundle import GRAPHS, ModelBundle
from unifygeo_ros.inference.select import choose_precision
from unifygeo_training.checkpoint import load_strictly
from unifygeo_training.configuration import check_settings
from unifygeo_training.losses import MAX_SCALE
from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.network import UnifyGeo
from unifygeo_training.weights import BundleNetwork

TOLERANCE = 1e-3
"""Largest difference from the bundle's fp32 graphs, relative to the largest value of an output. For fp16 ten times."""
_PREFIX = "network."
_TEMPERATURES = ("retrieval_scale", "reranking_scale")


def network_of_bundle(bundle: ModelBundle) -> UnifyGeo:
    """A network in evaluation mode that computes what the bundle's graphs compute.

    Raises:
        InputError: the graphs are not those of this network, or the result computes something else than they do.
    """
    network = UnifyGeo(check_settings(bundle.manifest.network, NetworkConfig, str(bundle.path)))
    precision = choose_precision(bundle, "onnx_cpu", "auto")
    if precision == "int8":
        raise InputError(
            f"{bundle.path}: holds int8 graphs alone, from which no network can be rebuilt; give the bundle "
            "that it was made of"
        )
    found: dict[str, Tensor] = {}
    for graph in GRAPHS:
        # The file with the weights lies beside the graph; onnx looks for it there.
        for name, value in _weights(onnx.load(bundle.graph_path(graph, precision)).graph):
            found[name] = torch.from_numpy(np.array(value, np.float32))
    start = network.state_dict()
    temperatures = {name: start[name] for name in _TEMPERATURES}
    if bundle.manifest.calibrated:
        scale = min(1 / bundle.manifest.calibration.tile_temperature, MAX_SCALE)
        temperatures = dict.fromkeys(_TEMPERATURES, torch.tensor(math.log(scale)))
    load_strictly(network, {**temperatures, **dict(_with_norms(network, found))}, str(bundle.path))
    network.eval()
    _check(network, bundle, TOLERANCE if precision == "fp32" else 10 * TOLERANCE)
    return network


def freeze_norms(network: nn.Module) -> None:
    """Leave batch norms in evaluation mode. To be called after every `train()`."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    """Names of this network and values."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:  # of compact bundles: the fp32 graphs cast their weights
        if node.op_type == "Cast" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    for name, value in constants.items():
        if name.startswith(_PREFIX) and not name.endswith(".float16"):
            yield name.removeprefix(_PREFIX), value
    makers = {output: node for node in graph.node for output in node.output}
    bias_of = {}  # what a matrix product gives → the bias that is added to it
    for node in graph.node:
        if node.op_type == "Add":
            for value, bias in (node.input, reversed(node.input)):
                if bias in constants and bias.startswith(_PREFIX):
                    bias_of[_behind(value, makers)] = bias.removeprefix(_PREFIX)
    for node in graph.node:
        fixed = [name for name in node.input if name in constants]
        if node.op_type == "MatMul" and len(fixed) == 1 and node.output[0] in bias_of:
            yield bias_of[node.output[0]].removesuffix("bias") + "weight", constants[fixed[0]].T
        elif node.op_type == "Mul" and len(fixed) == 1 and constants[fixed[0]].ndim == 4:
            (scaled,) = (name for name in node.input if name not in constants)
            added = makers.get(_behind(scaled, makers))
            bias = bias_of.get(_behind_bias(added, constants, makers))
            if bias is not None and bias.endswith(".mlp.fc2.bias"):
                yield bias.replace(".mlp.fc2.bias", ".gamma"), constants[fixed[0]].reshape(-1)


def _behind(value: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The value before casts, transpositions and changes of shape."""
    while value in makers and makers[value].op_type in ("Cast", "Transpose", "Reshape", "Identity"):
        value = makers[value].input[0]
    return value


def _behind_bias(
    added: onnx.NodeProto | None, constants: Mapping[str, np.ndarray], makers: Mapping[str, onnx.NodeProto]
) -> str:
    """The value to which an addition adds a constant; "" where it is no such addition."""
    if added is None or added.op_type != "Add":
        return ""
    free = [name for name in added.input if name not in constants]
    return _behind(free[0], makers) if len(free) == 1 else ""


def _with_norms(network: UnifyGeo, found: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What was found, and the norms that were folded."""
    names = set(network.state_dict())
    yield from ((name, value) for name, value in found.items() if name in names)
    convolution = ""  # the last one before a norm, in the order in which the modules run
    for path, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            convolution = path
        elif isinstance(module, nn.BatchNorm2d) and f"{path}.weight" not in found:
            channels = module.num_features
            yield f"{path}.weight", torch.full((channels,), (1 + module.eps) ** 0.5)
            yield f"{path}.bias", found.get(f"{convolution}.weight_bias", torch.zeros(channels))
            yield f"{path}.running_mean", torch.zeros(channels)
            yield f"{path}.running_var", torch.ones(channels)
            yield f"{path}.num_batches_tracked", torch.tensor(0)


@torch.no_grad()
def _check(network: UnifyGeo, bundle: ModelBundle, tolerance: float) -> None:
    """Compare with the graphs on noise. Raises InputError."""
    graphs, config = BundleNetwork(bundle), network.config
    draw = torch.Generator().manual_seed(0)
    panorama = torch.randint(256, (2, config.ground_height, config.ground_width, 3), generator=draw, dtype=torch.uint8)
    tile = torch.randint(256, (2, config.aerial_size, config.aerial_size, 3), generator=draw, dtype=torch.uint8)
    outputs = []
    for one in (network, graphs):
        ground, aerial = one.encode_ground(panorama), one.encode_aerial(tile)
        logits = one.decode(ground.levels, aerial.pyramid).logits
        outputs.append((ground.descriptor, *ground.levels, aerial.descriptor, *aerial.pyramid, logits))
    for ours, theirs in zip(*outputs, strict=True):
        assert ours is not None
        assert theirs is not None
        away = float((ours - theirs).abs().max() / theirs.abs().max())
        if not away <= tolerance:
            raise InputError(
                f"{bundle.path}: the network read from its graphs differs from them by {away:.2g} of the largest "
                f"value, at most {tolerance:g}; give the checkpoint that the bundle was exported from"
            )
