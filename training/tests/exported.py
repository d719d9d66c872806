"""Random networks whose ONNX graphs, which take ten seconds for each precision, are made once for all tests."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import pytest
import torch
from small_runs import SMALL

from unifygeo_training import export
from unifygeo_training.checkpoint import weights_sha256
from unifygeo_training.model import NetworkConfig, UnifyGeo
from unifygeo_training.shared_weights import round_to_float16

build_graphs = export.build_graphs
_made: dict[tuple[str, str], dict[str, onnx.ModelProto]] = {}


@contextmanager
def random_network(config: NetworkConfig = SMALL) -> Iterator[UnifyGeo]:
    """A network whose weights float16 holds exactly; as long as the context lasts, no other one can be exported."""
    torch.manual_seed(0)
    network = UnifyGeo(config).eval()
    round_to_float16(network)
    weights = weights_sha256(network)

    def graphs_of(asked: UnifyGeo, precision: str) -> dict[str, onnx.ModelProto]:
        assert weights_sha256(asked) == weights
        key = weights, precision
        if key not in _made:
            _made[key] = build_graphs(network, precision)
        return copy.deepcopy(_made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "build_graphs", graphs_of)
        yield network
