"""Weights on disk: the authors' published state dicts and our own, loaded strictly and without unpickling code."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unifygeo_ros.core.errors import InputError
from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.network import UnifyGeo

_BRANCH = (
    ("encoder.model.", "trunk."),
    ("global_feats_decoder.model.downsample.0.", "semantic_head.norm."),
    ("global_feats_decoder.model.downsample.1.", "semantic_head.down."),
    ("global_feats_decoder.model.conv.", "semantic_head.block."),
    ("global_feats_decoder.aggregator.block.f.0.", "aggregator.query."),
    ("global_feats_decoder.aggregator.block.f.1.", "aggregator.query_norm."),
    ("global_feats_decoder.aggregator.block.g.0.", "aggregator.key."),
    ("global_feats_decoder.aggregator.block.g.1.", "aggregator.key_norm."),
    ("global_feats_decoder.aggregator.block.h.", "aggregator.value."),
    ("global_feats_decoder.aggregator.block.v.", "aggregator.output."),
    ("global_feats_decoder.aggregator.gem.", "aggregator.gem."),
    ("global_feats_decoder.agg_post_norm.", "aggregator.norm."),
    ("local_feats_decoder.model.downsample.0.", "fine_head.norm."),
    ("local_feats_decoder.model.downsample.1.", "fine_head.down."),
    ("local_feats_decoder.model.conv.", "fine_head.block."),
)
"""The entries of `PREFIXES` that both branches have."""

PREFIXES: tuple[tuple[str, str], ...] = (
    ("logit_scale_rerank", "reranking_scale"),
    ("logit_scale", "retrieval_scale"),
    *((f"grd_{theirs}", f"ground.{ours}") for theirs, ours in _BRANCH),
    *((f"sat_{theirs}", f"aerial.{ours}") for theirs, ours in _BRANCH),
    *(
        (f"pyramid_decoder.{theirs.format(n + 1)}", f"decoder.{ours.format(n)}")
        for theirs, ours in (
            ("grd_feature_to_descriptor{}.conv1.", "projectors.{}.reduce."),
            ("grd_feature_to_descriptor{}.conv2.", "projectors.{}.rows."),
            ("grd_descriptor_norm{}.", "projectors.{}.norm."),
            ("sat_matching_block_norm{}.", "match_norms.{}."),
        )
        for n in range(4)
    ),
    *((f"pyramid_decoder.deconv{4 - n}.", f"decoder.upsamples.{n}.up.") for n in range(3)),
    *((f"pyramid_decoder.conv{4 - n}.", f"decoder.upsamples.{n}.refine.") for n in range(3)),
    # The output stage is one sequence here and two there: deconv1 (0, 1, 3) and conv1 (0, 1, 3).
    *((f"pyramid_decoder.deconv1.{n}.", f"decoder.output.{n}.") for n in (0, 1, 3)),
    *((f"pyramid_decoder.conv1.{n}.", f"decoder.output.{n + 4}.") for n in (0, 1, 3)),
)
"""Pairs of prefixes: the published name, this network's name.

Complete in both directions: every tensor name starts with exactly one entry of its side; what follows the prefix is the
same on both sides.
"""


def our_name(published: str) -> str | None:
    """This network's name of a published tensor, None if there is none."""
    for prefix, ours in PREFIXES:
        if published == prefix or (prefix.endswith(".") and published.startswith(prefix)):
            return ours + published[len(prefix) :]
    return None


def read_tensors(path: Path | str) -> dict[str, Any]:
    """Read a .safetensors file or a torch file of plain data (never code). Raises InputError."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_bytes(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be read as weights ({reason}); give a state dict or .safetensors") from error
    except Exception as error:  # pickle.UnpicklingError for anything but plain data
        raise InputError(
            f"{path}: holds more than tensors and plain data and is not opened, because unpickling it could run code "
            f"({str(error).splitlines()[0]}); save its state_dict() alone"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__} instead of a state dict; save state_dict() alone")
    return content


def _check_bytes(path: Path) -> None:
    """Compare a torch file's content with the CRC-32 in it, which torch itself does not. Raises InputError.

    Files from before torch 1.6 are no archives and have none.
    """
    if not zipfile.is_zipfile(path):
        return
    damaged: str | None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        damaged = str(error)
    if damaged is not None:
        raise InputError(f"{path}: is damaged ({damaged} is not what was written); copy or train it again")


def load_published(network: UnifyGeo, state: Mapping[str, Tensor], source: str) -> None:
    """Fill the network from a state dict of the published names, strictly. Raises InputError naming the tensors."""
    prefix = "module."  # left by DistributedDataParallel
    if state and all(name.startswith(prefix) for name in state):
        state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    load_strictly(network, _renamed(state, our_name, source), source)


def published_network(path: Path | str, config: NetworkConfig) -> UnifyGeo:
    """A network in evaluation mode with the weights of one of the authors' files. Raises InputError."""
    network = UnifyGeo(config)
    load_published(network, read_tensors(path), str(path))
    return network.eval()


def load_strictly(network: UnifyGeo, state: Mapping[str, Tensor], source: str) -> None:
    """Fill the network from a state dict of our names. Raises InputError naming missing, extra, misshaped tensors."""
    expected = network.state_dict()
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unknown {name}" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        tensor = state[name]
        if not isinstance(tensor, Tensor):
            problems.append(f"{name} is a {type(tensor).__name__}, not a tensor")
        elif tensor.shape != expected[name].shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, must be {tuple(expected[name].shape)}")
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise InputError(_listed(source, problems))
    network.load_state_dict(dict(state), strict=True)


def _renamed(state: Mapping[str, Tensor], rename: Any, source: str) -> dict[str, Tensor]:
    names = {name: rename(name) for name in state}
    unknown = [f"unknown {name}" for name, renamed in names.items() if renamed is None]
    if unknown:
        raise InputError(_listed(source, unknown))
    return {names[name]: tensor for name, tensor in state.items()}


def _listed(source: str, problems: list[str], most: int = 12) -> str:
    problems = sorted(problems, key=lambda text: re.sub(r"^\w+ ", "", text))
    more = f" … and {len(problems) - most} more" if len(problems) > most else ""
    return (
        f"{source}: {len(problems)} tensors do not fit the network: {'; '.join(problems[:most])}{more}; "
        "give the weights of this network config"
    )


def weights_sha256(network: UnifyGeo) -> str:
    """Identity of the weights: SHA-256 over names, types, shapes and bytes in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_network(path: Path | str) -> tuple[UnifyGeo, dict[str, Any]]:
    """The network of one of our checkpoints in evaluation mode, and the rest of what the file says. InputError."""
    content = read_tensors(path)
    missing = [key for key in ("network", "model") if key not in content]
    if missing:
        raise InputError(
            f"{path}: has no {' and no '.join(missing)}; give a checkpoint that `unifygeo-train fit` wrote, or use "
            "`unifygeo-train import-checkpoint` for published weights"
        )
    network = UnifyGeo(NetworkConfig.model_validate(content["network"]))
    load_strictly(network, content["model"], str(path))
    return network.eval(), content
