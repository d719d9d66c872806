"""Weights from anywhere: a checkpoint of `fit`, a model bundle, or the authors' published state dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.inference.bundle import GROUND_FEATURES, MANIFEST_NAME, PYRAMID, ModelBundle, load_bundle
from unifygeo_ros.inference.onnxruntime_engine import session_options
from unifygeo_ros.inference.select import choose_precision
from unifygeo_training.checkpoint import load_network, load_published, read_tensors
from unifygeo_training.configuration import check_settings, read_network_config
from unifygeo_training.judging.tables import Ablation
from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.decoder import Decoded
from unifygeo_training.model.network import Aerial, Ground, UnifyGeo


@dataclass(frozen=True)
class Weights:
    """A network and what it was made from."""

    network: UnifyGeo | BundleNetwork
    """In evaluation mode."""
    kind: str
    """"checkpoint", "bundle" or "published"."""
    ablation: Ablation = field(default_factory=Ablation)
    """What it was trained for."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The config's section of the data that it was trained on, empty where that is not known."""
    bundle: ModelBundle | None = None


def open_weights(path: Path, network: Path | None = None) -> Weights:
    """Open weights of any kind; the content decides which kind it is.

    network: YAML of the network config of a published state dict, where it is not the published one.
    Raises InputError or BundleError where the file or folder is none of the three, or does not fit.
    """
    if path.is_dir():
        if not (path / MANIFEST_NAME).is_file():
            raise InputError(f"{path}: holds no {MANIFEST_NAME}; give a bundle, a checkpoint or published weights")
        bundle = load_bundle(path)
        judged = BundleNetwork(bundle)
        return Weights(judged, "bundle", Ablation(aggregator=judged.config.aggregator), bundle=bundle)
    content = read_tensors(path)
    if "model" in content or "network" in content:
        if network is not None:
            raise ConfigurationError(f"{path} is a checkpoint and brings its network config; leave --network out")
        loaded, content = load_network(path)
        trained = dict(content.get("ablation", {}))
        trained.pop("feature_aggregator", None)  # of older checkpoints; the network's config tells more
        ablation = Ablation(**trained, aggregator=loaded.config.aggregator)
        return Weights(loaded, "checkpoint", ablation, content.get("config", {}).get("data", {}))
    published = UnifyGeo(read_network_config(network) if network else NetworkConfig())
    load_published(published, content, str(path))
    return Weights(published.eval(), "published", Ablation(aggregator=published.config.aggregator))


class BundleNetwork(nn.Module):
    """A bundle's graphs in ONNX Runtime on the CPU, in the place of `UnifyGeo` for judging and calibrating.

    What is measured is what the robot runs on its CPU (`choose_precision`): the fp32 graphs, or others where the bundle
    holds none.
    """

    def __init__(self, bundle: ModelBundle, precision: str = "auto") -> None:
        super().__init__()
        precision = choose_precision(bundle, "onnx_cpu", precision)
        self.config = check_settings(bundle.manifest.network, NetworkConfig, str(bundle.path))
        self.descriptor_dim, self.pyramid_shape = bundle.manifest.descriptor_dim, bundle.manifest.pyramid
        self._float = torch.float16 if precision == "fp16" else torch.float32
        options = session_options(torch.get_num_threads())
        self._graphs = {
            graph: onnxruntime.InferenceSession(
                str(bundle.graph_path(graph, precision)), options, providers=["CPUExecutionProvider"]
            )
            for graph in bundle.manifest.graphs
        }

    def encode_ground(self, image: Tensor, *, descriptor: bool = True) -> Ground:
        found, *levels = self._run("ground_encoder", {"image": image})
        return Ground(found if descriptor else None, tuple(levels))

    def encode_aerial(self, image: Tensor, *, descriptor: bool = True) -> Aerial:
        found, match_map, *pyramid = self._run("aerial_encoder", {"image": image})
        return Aerial(found if descriptor else None, tuple(pyramid), match_map.permute(0, 3, 1, 2))  # NHWC → NCHW

    def decode(self, levels: tuple[Tensor, ...], pyramid: tuple[Tensor, ...]) -> Decoded:
        inputs = dict(zip((*GROUND_FEATURES, *PYRAMID), (*levels, *pyramid), strict=True))
        (logits,) = self._run("decoder", {name: value.to(self._float) for name, value in inputs.items()})
        return Decoded(logits, ())

    def _run(self, graph: str, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        if any(value.device.type != "cpu" for value in inputs.values()):
            raise ConfigurationError("a bundle is judged on the CPU; give --device cpu, or the checkpoint")
        outputs = self._graphs[graph].run(None, {name: value.contiguous().numpy() for name, value in inputs.items()})
        return [torch.from_numpy(value).float() for value in outputs]
