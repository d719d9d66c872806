"""Negatives from all ranks, with gradients. Without an initialised process group every function is the identity."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gathered(x: Tensor) -> Tensor:
    """Concatenate x (N, …) of all ranks in order of rank: (world · N, …). Gradients flow back to every rank.

    Each rank's loss is the mean over its own N rows against everybody's columns. The backward pass sums the gradients
    of all ranks and DistributedDataParallel then divides by their number: together exactly the gradient of one process
    with the whole batch.
    """
    return x if world_size() == 1 else torch.cat(all_gather(x.contiguous()))


def world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
