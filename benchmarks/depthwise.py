"""How much processor time a trunk's training step takes in bfloat16, with and without `use_float32_depthwise`.

    python benchmarks/depthwise.py [--backbone efficientnet_lite0] [--size 192]

Both are measured in turns; the table gives milliseconds an image on one thread, and their ratio.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from unifygeo_training.fit import use_float32_depthwise
from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.encoder import Branch

BATCH = 16
ROUNDS = 5


def step_s(trunk: nn.Module, images: torch.Tensor) -> float:
    """Processor seconds of one forward and backward pass."""
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        maps = trunk(images)
    torch.stack([values.float().square().mean() for values in maps]).sum().backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbone", nargs="+", default=["convnext_atto", "efficientnet_lite0_short", "efficientnet_lite0"]
    )
    parser.add_argument("--size", type=int, default=192, help="rows = columns of the images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(BATCH, 3, arguments.size, arguments.size).to(memory_format=torch.channels_last)
    print("| trunk | bfloat16, ms an image | depthwise in float32 | times as fast |\n|---|---|---|---|")
    for backbone in arguments.backbone:
        trunks = []
        for changed in (False, True):
            trunk = Branch(NetworkConfig(backbone=backbone), pretrained=False).trunk.to(
                memory_format=torch.channels_last
            )
            if changed:
                use_float32_depthwise(trunk)
            trunks.append(trunk.train())
        # The first round warms up.
        rounds = [[step_s(trunk, images) for trunk in trunks] for _ in range(ROUNDS + 1)][1:]
        plain, changed_s = (min(times) * 1e3 / BATCH for times in zip(*rounds, strict=True))
        print(f"| {backbone} | {plain:.1f} | {changed_s:.1f} | {plain / changed_s:.2f} |")


if __name__ == "__main__":
    main()
