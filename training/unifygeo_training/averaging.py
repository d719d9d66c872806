"""Networks whose weights lie between those of two others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.files import new_file
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_training.checkpoint import load_network, weights_sha256
from unifygeo_training.model.network import UnifyGeo
from unifygeo_training.unfold import network_of_bundle

_STATISTICS = (".running_mean", ".running_var")


def average(first: Path, second: Path, share: float, output: Path) -> None:
    """Write a checkpoint with the weighted mean of two networks' weights (Wortsman et al., WiSE-FT, CVPR 2022).

    Statistics of norms are averaged like weights. The new checkpoint can be judged, calibrated, exported and started
    from, not resumed: it has no optimiser. Its config is the second's.

    Args:
        first: a checkpoint of `fit` or a bundle, such as the weights that a fine-tuning started from.
        second: a checkpoint of the same network, such as the fine-tuning's end.
        share: of the second, 0 to 1.
        output: a new file.

    Raises:
        ConfigurationError: the share is not between 0 and 1, or the output exists.
        InputError: a file is no checkpoint, the networks differ, or the second did not start from the bundle.
        BundleError: the first is a damaged bundle.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigurationError(f"share {share:g} must be between 0, the first weights, and 1, the second")
    if output.exists():
        raise ConfigurationError(f"{output} exists; remove it or choose another file")
    (a, told_a), (b, told_b) = _opened(first), load_network(second)
    if a.config != b.config:
        ours, theirs = a.config.model_dump(), b.config.model_dump()
        differing = ", ".join(sorted(name for name in ours if ours[name] != theirs[name]))
        raise InputError(f"{first} and {second} differ in network.{differing}; give weights of the same network")
    if first.is_dir() and not _same_norms(a, b):
        raise InputError(
            f"{second} did not start from {first}: its norms have statistics of their own, which a bundle's weights "
            "have taken in; give the checkpoint that the bundle was exported from"
        )
    sources = dict.fromkeys(str(content.get("trained_on", "unstated")) for content in (told_a, told_b))
    state = {
        "network": told_b["network"],
        "model": mean_weights(a, b, share),
        "config": told_b.get("config", {}),
        "trained_on": "; ".join(sources),
        "ablation": told_b.get("ablation", {}),
        "averaged": {"first": weights_sha256(a), "second": weights_sha256(b), "share": share},
    }
    with new_file(output) as stream:
        torch.save(state, stream)


def mean_weights(first: nn.Module, second: nn.Module, share: float) -> dict[str, Tensor]:
    """The state dict between those of two modules. share: of the second. What is no float is the second's."""
    ours = first.state_dict()
    with torch.no_grad():
        return {
            name: torch.lerp(ours[name], value, share) if value.is_floating_point() else value
            for name, value in second.state_dict().items()
        }


def _opened(path: Path) -> tuple[UnifyGeo, dict[str, Any]]:
    """The network of a checkpoint or a bundle, and what the file says of it."""
    if not path.is_dir():
        return load_network(path)
    bundle = load_bundle(path)
    return network_of_bundle(bundle), {"trained_on": bundle.manifest.trained_on}


def _same_norms(first: UnifyGeo, second: UnifyGeo) -> bool:
    """Whether the batch norms of both have the same statistics."""
    ours = first.state_dict()
    of_norms = {name: value for name, value in second.state_dict().items() if name.endswith(_STATISTICS)}
    return all(torch.equal(ours[name], value) for name, value in of_norms.items())
