"""Do the numbers of the pages still come out of the commands that made them?

    python benchmarks/claims.py             # every command that takes under ten minutes
    python benchmarks/claims.py demo size   # those whose name holds one of these words
    python benchmarks/claims.py --list      # what there is; runs nothing

claims.toml holds the commands, and for each number of a page two regular expressions: where it stands in the page and
where in the command's output. Their groups are compared in turn, each with its tolerance. Numbers that depend on the
machine (times, memory) have the tolerance "machine": they are printed and not judged. It also names the numbers that
take longer, with their command, and those that no command makes.

The commands run at the checkout's root with {out} for the folder of their results. Exit status 1: a number differs, a
pattern is not found, or a command fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = Path(__file__).with_name("claims.toml")
MACHINE = "machine"


@dataclass(frozen=True)
class Comparison:
    """One claim: its numbers in the page and in the output, and what is wrong with them."""

    what: str
    stated: tuple[str, ...]
    found: tuple[str, ...]
    problem: str | None
    judged: bool = True


def compare(claim: dict[str, Any], page: str, output: str) -> Comparison:
    """Compare the numbers of one claim.

    Args:
        claim: an entry of claims.toml.
        page: text of its page.
        output: what its command printed.

    Returns:
        The numbers with the first problem: a pattern that does not match exactly one place of the page, or no place of
        the output; another count of groups; a number beyond its tolerance.
    """
    what = f"{claim['page']}: {claim['what']}"
    # A sentence may be broken anywhere: a blank of the pattern stands for any white space.
    places = list(re.finditer(claim["stated"].replace(" ", r"\s+"), page))
    if len(places) != 1:
        return Comparison(what, (), (), f"the page has {len(places)} places like {claim['stated']!r}, not one")
    stated = places[0].groups()
    place = re.search(claim["found"], output, re.MULTILINE | re.DOTALL)
    if place is None:
        return Comparison(what, stated, (), f"the output has nothing like {claim['found']!r}")
    found = place.groups()
    if len(stated) != len(found) or not stated:
        return Comparison(what, stated, found, f"{len(stated)} numbers in the page, {len(found)} in the output")
    if claim["tolerance"] == MACHINE:
        return Comparison(what, stated, found, None, judged=False)
    far = [f"{a} is now {b}" for a, b in zip(stated, found, strict=True) if not close(a, b, claim["tolerance"])]
    return Comparison(what, stated, found, "; ".join(far) or None)


def text_of(page: str) -> str:
    """The pages that a glob names, one after the other: a number stands once in all of them."""
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(ROOT.glob(page)))


def close(stated: str, found: str, tolerance: float) -> bool:
    """Whether two numbers, or words, agree. Numbers may have commas; words must be equal."""
    try:
        apart = abs(float(stated.replace(",", "")) - float(found.replace(",", "")))
    except ValueError:
        return stated == found
    return apart <= tolerance + 1e-9


def run(command: str, folder: Path) -> tuple[int, str]:
    """The command's exit status and what it printed; its programs are those of the running Python."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "training"), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace("{out}", str(folder))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only commands whose name holds one of them")
    parser.add_argument("--list", action="store_true", help="what there is; run nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "out/claims", help="(default: %(default)s)")
    options = parser.parse_args()
    table = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    problems = 0
    for entry in table["command"]:
        if options.words and not any(word in entry["name"] for word in options.words):
            continue
        print(f"== {entry['name']} ({entry['minutes']:g} min): {' '.join(entry['run'].split())}", flush=True)
        if options.list:
            print("".join(f"  {claim['page']}: {claim['what']}\n" for claim in entry["claim"]), end="")
            continue
        status, output = run(entry["run"], options.output.resolve())
        if status:
            print(f"  FAILED with status {status}:\n{output[-2000:]}")
            problems += 1
            continue
        for claim in entry["claim"]:
            result = compare(claim, text_of(claim["page"]), output)
            mark = "DIFFERS" if result.problem else "same   " if result.judged else "machine"
            numbers = f"{' / '.join(result.stated)} → {' / '.join(result.found)}"
            print(f"  {mark} {result.what}: {result.problem or numbers}", flush=True)
            problems += result.problem is not None
    if not options.words:
        print("== Not run here")
        for entry in table["elsewhere"]:
            print(f"  {entry['page']}: {entry['what']}: {entry['why']}")
    print(f"{problems} differ")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
