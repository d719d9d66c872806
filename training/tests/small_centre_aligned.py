"""CVUSA and CVACT with a few tiny images, made by hand."""

from pathlib import Path

import numpy as np
import scipy.io
from small_vigor import write_image


def make_cvusa(root: Path, count: int) -> None:
    """Images of the shapes that CVUSA ships, for training."""
    (root / "splits").mkdir(parents=True)
    names = [f"{number + 1:07d}" for number in range(count)]
    lines = [f"bingmap/19/{n}.jpg,streetview/panos/{n}.jpg,streetview/annotations/{n}.png\r\n" for n in names]
    (root / "splits/train-19zl.csv").write_text("".join(lines))
    for number, name in enumerate(names):
        write_image(root / f"bingmap/19/{name}.jpg", 750, 750, 20 + 30 * number)
        write_image(root / f"streetview/panos/{name}.jpg", 224, 1232, 20 + 30 * number)


def make_cvact_list(root: Path) -> None:
    """Three panoramas: the first and the third for training."""
    scipy.io.savemat(
        root / "ACT_data.mat",
        {
            "panoIds": np.array(["first", "second", "third"], dtype=object),
            "utm": np.zeros((3, 2)),
            "trainSet": {"trainInd": np.array([[1], [3]])},
            "valSet": {"valInd": np.array([[2]])},
        },
    )
