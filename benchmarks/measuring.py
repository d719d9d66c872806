"""How the benchmarks measure: in turn, medians, and with the machine named."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Callable, Mapping


def describe_machine(*packages: str) -> str:
    """Processor, cores, system and package versions, and what else the machine was doing."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{processor}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {versions}; load average {load}"
    )


@dataclass(frozen=True)
class Cost:
    """Medians of one function: seconds on the clock, and of the processor over all threads.

    The second hardly depends on what else the machine does.
    """

    clock: float
    processor: float


def measure(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Cost]:
    """What each function costs, all run in turn so that the machine's other work falls on all of them.

    Each is run once beforehand, to warm up.
    """
    clock: dict[str, list[float]] = {name: [] for name in functions}
    processor: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            started, used = time.perf_counter(), time.process_time()
            function()
            clock[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    return {name: Cost(statistics.median(clock[name]), statistics.median(processor[name])) for name in functions}


class Others:
    """What other programs take of the processor from now on (Linux)."""

    def __init__(self) -> None:
        self._start = self._reading()

    def were_quiet(self) -> bool:
        """Whether they took so little that a ratio of times on the clock is to be believed; prints their share."""
        seconds, busy, own = (now - then for now, then in zip(self._reading(), self._start, strict=True))
        share = max(0.0, busy - own) / (seconds * (os.cpu_count() or 1))
        print(f"other programs took {share:.0%} of the processor meanwhile")
        return share < 0.05

    @staticmethod
    def _reading() -> tuple[float, float, float]:
        """Seconds: the clock; all processors' work, stolen time included; this program's with its ended children."""
        file = Path("/proc/stat")
        fields = [int(value) for value in file.read_text().split("\n", 1)[0].split()[1:9]] if file.exists() else [0] * 8
        idle, waiting = fields[3:5]
        return time.perf_counter(), (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


def verdict(name: str, value: float, limit: float, *, at_least: bool = False) -> bool:
    """Print one ratio with its limit; returns whether it is kept."""
    kept = value >= limit if at_least else value <= limit
    print(
        f"{name}: {value:.3f} (limit: {'at least' if at_least else 'at most'} {limit:g}) {'kept' if kept else 'MISSED'}"
    )
    return kept


def clock_verdict(name: str, value: float, limit: float, *, quiet: bool) -> bool:
    """`verdict` for a ratio of times on the clock; on a busy machine it says nothing, and that is what is printed."""
    if quiet:
        return verdict(name, value, limit)
    print(f"{name}: {value:.3f} (limit: at most {limit:g}) NOT JUDGED, the machine was busy: run it on a quiet one")
    return True
