"""Negatives from all ranks, with gradients. Without an initialised process group every function is the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def gathered(x: Tensor) -> Tensor:
    """Concatenate x (N, …) of all ranks in order of rank: (world · N, …). Gradients flow back to every rank.

    Each rank's loss is the mean over its own N rows against everybody's columns. The backward pass sums the gradients
    of all ranks and DistributedDataParallel then divides by their number: together exactly the gradient of one process
    with the whole batch.
    """
    return x if world_size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """Gathers a tensor from all processes, with gradients.

    torch.distributed.nn.functional.all_gather is deprecated, and takes gradients for contiguous that are not: its
    gradients are wrong (`test_negatives_of_two_processes_equal_one_process_with_the_whole_batch` shows it).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.count = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(
            memory_format=torch.contiguous_format
        )  # collectives read a tensor's memory in order and ignore its strides
        torch.distributed.all_reduce(total)
        return total[rank() * ctx.count : (rank() + 1) * ctx.count]


def world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
