"""Mutation score of the modules on which every number rests: which changes of the code do their tests notice?

    python benchmarks/mutants.py                        # all modules: hours
    python benchmarks/mutants.py losses metrics         # these
    python benchmarks/mutants.py --sample 40            # at most 40 mutants of each, drawn at random

Cosmic Ray changes one operator, number or keyword at a time in a copy of the tree, and runs the module's tests on each
change. Prints the share of mutants that a test noticed, and lists those that none did. Type annotations are no
code: `|` is left alone. Needs `pip install cosmic-ray` (`make mutants` does it).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parents[1]
TRAINING, TESTS = "training/unifygeo_training", "training/tests"
MODULES = {
    "losses": (f"{TRAINING}/losses.py", [f"{TESTS}/test_losses.py"]),
    "objective": (f"{TRAINING}/objective.py", [f"{TESTS}/test_reference.py", f"{TESTS}/test_losses.py"]),
    "encoder": (f"{TRAINING}/model/encoder.py", [f"{TESTS}/test_reference.py", f"{TESTS}/test_pretrained.py"]),
    "decoder": (f"{TRAINING}/model/decoder.py", [f"{TESTS}/test_reference.py"]),
    "layers": (f"{TRAINING}/model/layers.py", [f"{TESTS}/test_reference.py"]),
    "metrics": (f"{TRAINING}/metrics.py", [f"{TESTS}/test_metrics.py"]),
    "vigor": (f"{TRAINING}/data/vigor.py", [f"{TESTS}/test_data_readers.py"]),
    "centre_aligned": (f"{TRAINING}/data/centre_aligned.py", [f"{TESTS}/test_data_readers.py"]),
    "geodesy": ("unifygeo_ros/core/geodesy.py", ["test/test_geodesy.py"]),
    "decision": ("unifygeo_ros/localization/decision.py", ["test/test_decision.py"]),
    "belief": ("unifygeo_ros/tracking/belief.py", ["test/test_tracking_belief.py"]),
}
GOAL = 85.0
CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = "{python} -m pytest -q -x -p no:cacheprovider {tests}"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = ["core/ReplaceBinaryOperator_BitOr_.*"]
"""


def score(name: str, folder: Path, sample: int, seed: int, timeout_s: float) -> float | None:
    """Mutation score of one module in percent, None where it has no mutants; prints the survivors."""
    module, tests = MODULES[name]
    tree, session, config = folder / "tree", folder / f"{name}.sqlite", folder / f"{name}.toml"
    shutil.copy(ROOT / module, tree / module)  # in case a killed run left a mutant there
    config.write_text(
        CONFIG.format(module=module, timeout=timeout_s, python=sys.executable, tests=" ".join(tests)), encoding="utf-8"
    )
    session.unlink(missing_ok=True)
    for command in (["baseline", config], ["init", config, session]):
        _run([sys.executable, "-m", "cosmic_ray.cli", *map(str, command)], tree)
    _run([sys.executable, "-m", "cosmic_ray.tools.filters.operators_filter", str(session), str(config)], tree)
    with use_db(str(session), WorkDB.Mode.open) as database:
        pending = sorted(item.job_id for item in database.pending_work_items)
        for job in random.Random(seed).sample(pending, max(0, len(pending) - sample)) if sample else []:
            database.set_result(job, WorkResult(WorkerOutcome.SKIPPED))
    _run([sys.executable, "-m", "cosmic_ray.cli", "exec", str(config), str(session)], tree)
    killed, survivors = 0, []
    with use_db(str(session), WorkDB.Mode.open) as database:
        for item, result in database.completed_work_items:
            if result.worker_outcome == WorkerOutcome.SKIPPED:
                continue
            if result.is_killed:
                killed += 1
            else:
                survivors += [(m.start_pos[0], m.operator_name, m.occurrence) for m in item.mutations]
    for line, operator, occurrence in sorted(survivors):
        print(f"  {module}:{line} {operator} (occurrence {occurrence}) survives")
    total = killed + len(survivors)
    return 100.0 * killed / total if total else None


def _run(command: list[str], tree: Path) -> None:
    paths = os.pathsep.join([str(tree), str(tree / "training")])  # of the copy, not of the checkout
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", choices=[[], *MODULES], default=[], help="(default: all)")
    parser.add_argument("--sample", type=int, default=0, help="mutants of each module at most, at random (0: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="for the tests of one mutant")
    parser.add_argument("--output", type=Path, default=ROOT / "out/mutants", help="(default: %(default)s)")
    options = parser.parse_args()
    tree = options.output / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    missed = False
    for name in options.modules or MODULES:
        found = score(name, options.output, options.sample, options.seed, options.timeout_s)
        print(f"{name}: {'no mutants' if found is None else f'{found:.1f}%'} (goal {GOAL:g}%)", flush=True)
        missed |= found is not None and found < GOAL
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
