"""From a network to the robot's model bundle: three ONNX graphs in each precision, and the manifest."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import onnx
import torch
from torch import Tensor, nn

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.inference.bundle import (
    FLOAT_PRECISIONS,
    GRAPHS,
    GROUND_FEATURES,
    MANIFEST_NAME,
    PYRAMID,
    BundleManifest,
    Calibration,
    GraphFile,
    ModelBundle,
    load_bundle,
    sha256_of_file,
)
from unifygeo_training.checkpoint import weights_sha256
from unifygeo_training.files import locked, new_folder
from unifygeo_training.model.network import UnifyGeo
from unifygeo_training.quantise.rewrite import rewrite_floats
from unifygeo_training.shared_weights import round_to_float16, share_weights

WEIGHTS_NAME = "weights.float16.bin"

OPSET = 18
"""Read by ONNX Runtime ≥ 1.18.1 (older ones refuse the file's IR version 10), TensorRT ≥ 10.3 and TensorRT-RTX."""


class GroundEncoder(nn.Module):
    """image → descriptor, f0 … f3."""

    outputs = ("descriptor", *GROUND_FEATURES)

    def __init__(self, network: UnifyGeo) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        ground = self.network.encode_ground(image)
        dtype = self.network.retrieval_scale.dtype
        return ground.descriptor, *(f.to(dtype) for f in ground.levels)


class AerialEncoder(nn.Module):
    """image → descriptor, match_map (NHWC), pyramid0 … pyramid3."""

    outputs = ("descriptor", "match_map", *PYRAMID)

    def __init__(self, network: UnifyGeo) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        aerial = self.network.encode_aerial(image)
        match_map = aerial.match_map.permute(0, 2, 3, 1).to(self.network.retrieval_scale.dtype)  # NCHW → NHWC
        return aerial.descriptor, match_map.contiguous(), *aerial.pyramid


class DecoderGraph(nn.Module):
    """f0 … f3, pyramid0 … pyramid3 → logits."""

    outputs = ("logits",)

    def __init__(self, network: UnifyGeo) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        f0: Tensor,
        f1: Tensor,
        f2: Tensor,
        f3: Tensor,
        pyramid0: Tensor,
        pyramid1: Tensor,
        pyramid2: Tensor,
        pyramid3: Tensor,
    ) -> Tensor:
        return self.network.decode((f0, f1, f2, f3), (pyramid0, pyramid1, pyramid2, pyramid3)).logits


@dataclass(frozen=True)
class BundleText:
    """The texts of the manifest."""

    name: str
    licence: str
    trained_on: str


def export_bundle(
    network: UnifyGeo,
    output: Path | str,
    text: BundleText,
    *,
    precisions: Sequence[str] = FLOAT_PRECISIONS,
    calibration: Calibration | None = None,
    compact: bool = False,
) -> ModelBundle:
    """Write the bundle folder, complete or not at all.

    Args:
        network: The network to export.
        output: Folder of the bundle; must not exist.
        text: Name, licence and data set, for the manifest.
        precisions: Which of FLOAT_PRECISIONS to export.
        calibration: Fitted constants; None: the manifest says that the bundle is not calibrated.
        compact: Round the weights to float16 and share them between all graphs (`unifygeo_training.shared_weights`).

    Raises:
        ConfigurationError: `output` exists, or a precision is not known.
    """
    output = Path(output)
    if output.exists():
        raise ConfigurationError(f"{output} exists; remove it or choose another --output")
    unknown = set(precisions) - set(FLOAT_PRECISIONS)
    if unknown or not precisions:
        raise ConfigurationError(f"precisions {sorted(precisions)}, must be among {', '.join(FLOAT_PRECISIONS)}")
    if compact:
        network = copy.deepcopy(network)
        round_to_float16(network)
    with locked(output), new_folder(output) as folder:
        models = {
            (graph, precision): model
            for precision in precisions
            for graph, model in build_graphs(network, precision).items()
        }
        data: tuple[str, str] | tuple[()] = ()
        if compact:
            share_weights(models.values(), folder / WEIGHTS_NAME)
            data = (WEIGHTS_NAME, sha256_of_file(folder / WEIGHTS_NAME))
        graphs: dict[str, dict[str, GraphFile]] = {name: {} for name in GRAPHS}
        for (graph, precision), model in models.items():
            file = folder / f"{graph}.{precision}.onnx"
            onnx.save(model, file)
            onnx.checker.check_model(file, full_check=True)
            graphs[graph][precision] = GraphFile(file.name, sha256_of_file(file), *data)
        config = network.config
        manifest = BundleManifest(
            name=text.name,
            ground=config.ground,
            aerial=config.aerial,
            descriptor_dim=network.descriptor_dim,
            pyramid=network.pyramid_shape,
            distribution_size=config.distribution_size,
            mean=config.mean,
            std=config.std,
            weights_sha256=weights_sha256(network),
            graphs=graphs,
            calibration=calibration or Calibration(),
            calibrated=calibration is not None,
            licence=text.licence,
            trained_on=text.trained_on,
            network=config.model_dump(mode="json"),
        )
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        load_bundle(folder)
    return load_bundle(output)


def build_graphs(network: UnifyGeo, precision: str) -> dict[str, onnx.ModelProto]:
    """The three graphs of one precision, checked.

    fp16 is strongly typed: weights and maps are float16, and the parts that the network computes in float32 say so by
    explicit casts.
    """
    network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    if precision == "fp16":
        network = network.half()
    config, dtype = network.config, network.retrieval_scale.dtype
    # Batch 2 as the example: torch.export takes a dimension of 1 for a constant.
    ground = torch.zeros(2, config.ground_height, config.ground_width, 3, dtype=torch.uint8)
    aerial = torch.zeros(2, config.aerial_size, config.aerial_size, 3, dtype=torch.uint8)
    levels = tuple(torch.zeros(2, channels, dtype=dtype) for channels, _ in network.pyramid_shape)
    pyramid = tuple(torch.zeros(2, channels, size, size, dtype=dtype) for channels, size in network.pyramid_shape)
    return {
        "ground_encoder": _to_onnx(GroundEncoder(network), (ground,), ("image",)),
        "aerial_encoder": _to_onnx(AerialEncoder(network), (aerial,), ("image",)),
        "decoder": _to_onnx(DecoderGraph(network), (*levels, *pyramid), (*GROUND_FEATURES, *PYRAMID)),
    }


def _to_onnx(
    module: GroundEncoder | AerialEncoder | DecoderGraph, inputs: tuple[Tensor, ...], names: tuple[str, ...]
) -> onnx.ModelProto:
    batch = torch.export.Dim("N", min=1, max=4096)
    with torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            input_names=names,
            output_names=module.outputs,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for graph_value in (*model.graph.input, *model.graph.output):  # names chosen by the exporter vary: "s0", "N", …
        graph_value.type.tensor_type.shape.dim[0].dim_param = "N"
    del model.graph.value_info[:]
    for node in model.graph.node:  # source lines and paths of the machine that exported
        del node.metadata_props[:]
        node.doc_string = ""
    rewrite_floats(model)
    return model
