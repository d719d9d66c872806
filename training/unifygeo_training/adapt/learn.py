"""From a drive's smoothed track to a changed bundle: teacher and student, and its calibration."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.inference.bundle import (
    FLOAT_PRECISIONS,
    Calibration,
    ModelBundle,
    load_bundle,
    replace_manifest,
    with_calibration,
)
from unifygeo_training.adapt.settings import LearnSettings
from unifygeo_training.averaging import mean_weights
from unifygeo_training.calibrate import calibrate
from unifygeo_training.checkpoint import load_network
from unifygeo_training.confidence import with_confidence
from unifygeo_training.data.pairs import PairSet
from unifygeo_training.drives.judged import DriveImages, describe, neighbouring, streets_of
from unifygeo_training.drives.opened import open_part
from unifygeo_training.export import BundleText, export_bundle
from unifygeo_training.fit import fastest_precision, fit
from unifygeo_training.fit_config import FitConfig
from unifygeo_training.unfold import network_of_bundle
from unifygeo_training.weights import open_weights

logger = logging.getLogger(__name__)

FEW_PAIRS = 8
"""Fewer in a batch are worth a warning: L_G compares the pairs of a batch with each other."""


def learn(parent: ModelBundle, drives_file: Path, folder: Path, settings: LearnSettings) -> ModelBundle:
    """Write the student, not calibrated, to `folder`/bundle. Goes on where an earlier call stopped.

    The teacher is the parent with the whole panorama and the whole drive: the smoothed track. The student has the same
    weights at first, and sees parts of panoramas.

    Raises:
        InputError: the drives are not fit to be learnt from, or the parent's graphs are another network's.
        ConfigurationError: there is room for no batch.
    """
    output = folder / "bundle"
    if output.exists():
        return load_bundle(output)
    config = FitConfig.model_validate(
        {
            "network": parent.manifest.network,
            "start_from": parent.path,
            "data": {"kind": "drives", "file": drives_file},
            "augmentation": {
                "heading_sigma_deg": 1.5,
                "colour": 0.2,
                "noise": 0.1,
                "coarse_dropout": 0.1,
                "photography": {"missing": settings.hidden},
            },
            "optimiser": {"learning_rate": settings.learning_rate, "warmup_steps": min(20, settings.steps // 5)},
            "hardware": {"precision": fastest_precision(), "workers": 1},
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "log_every": max(1, min(20, settings.steps // 10)),
            "checkpoint_every": max(1, min(50, settings.steps // 10)),
        }
    )
    pairs = config.data.open(config.network)
    count = room(pairs, settings.batch_size)
    if count < min(FEW_PAIRS, settings.batch_size):
        logger.warning(
            "the drives have room for batches of %d pairs, which tell little about what tells places apart; drives "
            "through more streets have room for more",
            count,
        )
    config = config.model_copy(update={"batch_size": count})
    tuned, _ = load_network(fit(config, pairs, folder / "run"))
    student = network_of_bundle(parent)
    student.load_state_dict(mean_weights(student, tuned, settings.share))
    graphs = parent.manifest.graphs["decoder"]
    text = BundleText(parent.manifest.name, parent.manifest.licence, parent.manifest.trained_on)
    compact = any(entry.data_file is not None for entry in graphs.values())
    return export_bundle(
        student, output, text, precisions=[name for name in FLOAT_PRECISIONS if name in graphs], compact=compact
    )


def room(pairs: PairSet, wanted: int) -> int:
    """A batch size for which there always is room. Raises ConfigurationError where there is none for two."""
    for count in range(wanted, 1, -1):
        try:
            for seed in range(20):
                pairs.draw(np.random.default_rng(seed), count)
        except ConfigurationError:
            continue
        # What twenty draws allowed, another one may not.
        return count if count == wanted else max(2, count * 3 // 4)
    raise ConfigurationError(
        "the certain part of the drives has no room for two tiles half a side apart; give longer drives"
    )


def calibrated(bundle: ModelBundle, drives_file: Path, made_by: str, before: Calibration) -> ModelBundle:
    """The bundle, calibrated in place on the places that were kept for it. before: the parent's. Raises InputError."""
    weights = open_weights(bundle.path)
    opened = neighbouring(open_part(drives_file, weights.network.config, "val"), tiles=1500, queries=400, seed=0)
    name = describe(opened, drives_file, "val")
    report = calibrate(weights.network, [DriveImages(opened, name)], before=before)
    report = with_confidence(weights.network, report, streets_of(opened, name, 0), bundle, before)
    return replace_manifest(bundle, with_calibration(bundle.manifest, report.calibration, made_by, report.data))
