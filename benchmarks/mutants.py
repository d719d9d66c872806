"""Mutation score of the modules on which every number rests: which changes of the code do their tests notice?

    python benchmarks/mutants.py --sample 50                 # 50 mutants of each module, always the same ones
    python benchmarks/mutants.py losses metrics --sample 50  # of these modules
    python benchmarks/mutants.py metrics                     # every mutant
    python benchmarks/mutants.py faults                      # faults.toml instead: each with the test that notices it

Cosmic Ray changes one operator, number or keyword of a module; the module's tests then run on the changed module. The
score is the share of mutants that a test noticed, of those that change what the module does: equivalent_mutants.toml
names the others, each with its reason. Every mutant runs in a fork of one process, which has imported the libraries
already, and gets its module from memory: no file of the checkout is written. A mutant that takes more than five times
the processor time or far more memory than the module itself counts as noticed.

The sample is drawn over the places of the source: no place has more than one mutant in it, whatever the number of
operators that could stand there. The same source, sample and seed give the same mutants. Left alone: `|`, which stands
in annotations; `@dataclass` and its arguments; `is` for `==` and the other way round, which differ for no value that
these modules compare.

Needs `pip install cosmic-ray` (`make mutants` does it).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import re
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType

import cosmic_ray.plugins
import pytest
import tomllib
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
FAULTS = Path(__file__).with_name("faults.toml")
TRAINING, TESTS = "training/unifygeo_training", "training/tests"
REFERENCE = f"{TESTS}/test_reference.py"
NETWORK = [f"{TESTS}/test_network.py", "-k", "not round_trips and not tensor and not pickle and not mapping"]
MIXTURE = "test/test_tracking_mixture.py"
EVIDENCE = "mixture or modes or pixel or tile_weights or rival"
MODULES = {
    # The test of several processes takes a minute, and its processes would read the module from the checkout.
    "losses": (f"{TRAINING}/losses.py", [f"{TESTS}/test_losses.py", "-k", "not processes"]),
    "objective": (f"{TRAINING}/objective.py", [f"{TESTS}/test_objective.py", REFERENCE]),
    "encoder": (f"{TRAINING}/model/encoder.py", [REFERENCE, f"{TESTS}/test_pretrained.py", *NETWORK]),
    "decoder": (f"{TRAINING}/model/decoder.py", [REFERENCE, *NETWORK]),
    "layers": (f"{TRAINING}/model/layers.py", [REFERENCE, *NETWORK]),
    "metrics": (f"{TRAINING}/metrics.py", [f"{TESTS}/test_metrics.py"]),
    "vigor": (f"{TRAINING}/data/vigor.py", [f"{TESTS}/test_vigor.py", "-k", "not check_data and not missing"]),
    "centre_aligned": (f"{TRAINING}/data/centre_aligned.py", [f"{TESTS}/test_centre_aligned.py"]),
    "geodesy": ("unifygeo_ros/core/geodesy.py", ["test/test_geodesy.py"]),
    "se2": ("unifygeo_ros/core/se2.py", ["test/test_core_se2.py"]),
    "covariance": ("unifygeo_ros/core/covariance.py", ["test/test_core_covariance.py"]),
    "decision": ("unifygeo_ros/localization/decision.py", ["test/test_decision.py"]),
    "fixes": ("unifygeo_ros/localization/fixes.py", ["test/test_decision.py"]),
    "belief": ("unifygeo_ros/tracking/belief.py", [MIXTURE]),
    "filter": ("unifygeo_ros/tracking/filter.py", ["test/test_tracking_belief.py", "test/test_tracking_plain.py"]),
    "reduction": ("unifygeo_ros/tracking/reduction.py", [MIXTURE, "test/test_tracking_plain.py::test_merging"]),
    "evidence": (
        "unifygeo_ros/tracking/evidence.py",
        [MIXTURE, "test/test_tracking_belief.py", "test/test_tracking_plain.py", "-k", EVIDENCE],
    ),
}
LIBRARIES = ["numpy", "scipy.ndimage", "scipy.spatial", "cv2", "pydantic", "hypothesis.extra.numpy", "pyproj", "onnx"]
TRAINING_LIBRARIES = ["torch", "timm", "lightning"]
GOAL = 85.0
EXCLUDED = re.compile(r"ReplaceBinaryOperator_BitOr_|ReplaceComparisonOperator_(\w+_Is(Not)?|Is_Eq|IsNot_NotEq)$")
MEMORY = 12 * 2**30  # bytes of data that one run of the tests may have
NOT_IMPORTED = 99  # exit status of tests that do not import the module


@dataclass(frozen=True)
class Mutant:
    """One change of one place of a module's source."""

    operator: str
    occurrence: int  # among the places where this operator could act
    start: tuple[int, int]  # line, column
    end: tuple[int, int]

    @property
    def place(self) -> tuple[object, ...]:
        """Where it acts and on what kind of code; several mutants share it."""
        return self.start, self.end, self.operator.split("_")[0]


@dataclass(frozen=True)
class Change:
    """What a mutant does to its line."""

    line: int
    was: str
    becomes: str


class _FromMemory(SourceFileLoader):
    """Loads one module from a source in memory."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None


def mutants_of(source: str) -> Iterator[Mutant]:
    tree, lines = get_ast(source), source.splitlines()
    decorators = {number for number, line in enumerate(lines, 1) if line.startswith("@dataclass")}
    for name in sorted(cosmic_ray.plugins.operator_names()):
        operator = cosmic_ray.plugins.get_operator(name)
        if operator.arguments() or name == "core/NoOp" or EXCLUDED.search(name):
            continue
        positions = (position for node in ast_nodes(tree) for position in operator().mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            dotted = "." in lines[start[0] - 1][start[1] : end[1]]
            if dotted and name == "core/ExceptionReplacer":
                continue  # Cosmic Ray fails on a dotted name
            if start[0] not in decorators:
                yield Mutant(name, occurrence, tuple(start), tuple(end))


def sampled(mutants: list[Mutant], count: int, seed: str) -> list[Mutant]:
    """One mutant each of `count` places drawn at random; in the order of the source."""
    places: dict[tuple[object, ...], list[Mutant]] = {}
    for mutant in mutants:
        places.setdefault(mutant.place, []).append(mutant)
    chance = random.Random(seed)
    keys = sorted(places, key=str)
    drawn = [chance.choice(places[key]) for key in chance.sample(keys, min(count, len(keys)))]
    return sorted(drawn, key=lambda mutant: (mutant.start, mutant.operator))


def mutated(source: str, mutant: Mutant) -> str:
    changed = mutate_code(source, cosmic_ray.plugins.get_operator(mutant.operator)(), mutant.occurrence)
    assert changed is not None, mutant
    return str(changed)


def change(source: str, changed: str, line: int) -> Change:
    """The lines that differ, each stripped, joined where there are several."""
    before, after = source.splitlines(), changed.splitlines()
    while before and after and before[0] == after[0]:
        before, after = before[1:], after[1:]
    while before and after and before[-1] == after[-1]:
        before, after = before[:-1], after[:-1]
    return Change(line, *(" ".join(x.strip() for x in lines) for lines in (before, after)))


@dataclass(frozen=True)
class Run:
    """How the tests ended on one source."""

    status: int  # of pytest, negative: the signal that ended it
    cpu_s: float


class _ShortTestsFirst:
    """Plugin of pytest: notes how long each test takes, and runs them in that order once it is known."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.known.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        if not self.known:
            self.file.write_text(json.dumps(self.seconds), encoding="utf-8")


def run_tests(path: str, source: str, tests: list[str], log: Path, cpu_s: float | None = None) -> Run:
    """The tests, in a fork, with `source` as the module at `path`; at most `cpu_s` of processor time."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        with log.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if cpu_s is not None:
            limit = int(cpu_s) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            signal.alarm(20 * limit)  # for what waits without end
        status = 3
        try:
            status = _tests(path, source, tests, log.with_suffix(".json"))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests started and left
    return Run(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime)


def _tests(path: str, source: str, tests: list[str], durations: Path) -> int:
    import hypothesis

    # The same examples for every mutant, none that an earlier one left behind, and no search for the simplest of them.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases, max_examples=30)
    hypothesis.settings.load_profile("mutants")
    name = path.removeprefix("training/").removesuffix(".py").replace("/", ".")
    sys.meta_path.insert(0, _FromMemory(name, str(ROOT / path), source))
    order = _ShortTestsFirst(durations)
    status = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests], plugins=[order]))
    return status if status or name in sys.modules else NOT_IMPORTED


def score(name: str, sample: int, seed: int, output: Path) -> bool:
    """Runs the mutants of one module, prints the survivors and the row of the table.

    Returns:
        Whether the goal is met.

    Raises:
        SystemExit: The tests fail on the module as it is, or do not import it.
    """
    path, tests = MODULES[name]
    source = (ROOT / path).read_text(encoding="utf-8")
    log = output / f"{name}.log"
    log.with_suffix(".json").unlink(missing_ok=True)
    whole = run_tests(path, source, tests, log)
    if whole.status:
        why = "they do not import it" if whole.status == NOT_IMPORTED else log.read_text(encoding="utf-8")
        raise SystemExit(f"{path}: its tests end with status {whole.status} before any change: {why}")
    known = {(entry["was"], entry["becomes"]): entry["why"] for entry in _equivalent().get(name, [])}
    mutants = list(mutants_of(source))
    killed = equivalent = survived = 0
    for mutant in sampled(mutants, sample, f"{name} {seed}") if sample else mutants:
        changed = mutated(source, mutant)
        what = change(source, changed, mutant.start[0])
        if (what.was, what.becomes) in known:
            equivalent += 1
        elif run_tests(path, changed, tests, log, 5 * whole.cpu_s + 10).status:
            killed += 1
        else:
            survived += 1
            print(f"{path}:{what.line}\n    was     {what.was}\n    becomes {what.becomes}", flush=True)
    counted = killed + survived
    percent = 100.0 * killed / counted if counted else 100.0
    print(
        f"| {name} | {len(mutants)} | {counted + equivalent} | {equivalent} | {killed} | {percent:.0f}% |", flush=True
    )
    return percent >= GOAL


def named_faults(output: Path) -> bool:
    """Runs the named test of each fault on the module with that fault, prints a row each.

    Returns:
        Whether every fault is noticed.

    Raises:
        SystemExit: A fault's text is not in its file, or its test fails without it.
    """
    print("| fault | test | noticed |\n|---|---|---|", flush=True)
    all_noticed = True
    passing: set[str] = set()
    for fault in tomllib.loads(FAULTS.read_text(encoding="utf-8"))["fault"]:
        source = (ROOT / fault["path"]).read_text(encoding="utf-8")
        for was, becomes in fault["changes"]:
            if was not in source:
                raise SystemExit(f"{FAULTS.name}, {fault['name']}: {fault['path']} does not hold {was!r}")
            source = source.replace(was, becomes)
        log = output / "faults.log"
        if fault["test"] not in passing:
            whole = (ROOT / fault["path"]).read_text(encoding="utf-8")
            if run_tests(fault["path"], whole, [fault["test"]], log).status:
                raise SystemExit(f"{fault['test']} fails without the fault:\n{log.read_text(encoding='utf-8')}")
            passing.add(fault["test"])
        status = run_tests(fault["path"], source, [fault["test"]], log).status
        all_noticed &= status == 1
        print(
            f"| {fault['name']} | `{fault['test']}` | {'yes' if status == 1 else f'NO: status {status}'} |", flush=True
        )
    return all_noticed


def _equivalent() -> dict[str, list[dict[str, str]]]:
    return tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", choices=[[], "faults", *MODULES], default=[], help="(default: all)")
    parser.add_argument("--sample", type=int, default=0, help="mutants of each module at most (0: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "out/mutants", help="logs (default: %(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # a fork keeps no thread but one
    sys.path[:0] = [str(ROOT), str(ROOT / "training")]
    names = options.modules or list(MODULES)
    training = any(name == "faults" or MODULES[name][0].startswith("training/") for name in names)
    for library in LIBRARIES + TRAINING_LIBRARIES * training:
        importlib.import_module(library)
    gc.freeze()  # or every fork would search the libraries for garbage, several times
    atexit.register(gc.unfreeze)
    if "faults" in names:
        return int(not named_faults(options.output))
    print("| module | all mutants | sample | equivalent | noticed | score |\n|---|---|---|---|---|---|", flush=True)
    met = [score(name, options.sample, options.seed, options.output) for name in names]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
