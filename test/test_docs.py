"""The documentation against the code: every command parses, every link leads somewhere.

A command in a ```bash block is one of: `unifygeo …` or `unifygeo-train …` (the real parser takes it), `make TARGET`
(the target exists), `ros2 launch unifygeo_ros FILE …` (the file exists and declares the arguments), `python FILE …`
(the file exists), `cd FOLDER`. Any other must stand in a block that begins with ```bash elsewhere:
it is for another machine.
"""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def commands() -> list[tuple[str, str]]:
    """Page and command of each line of each ```bash block; lines ending in a backslash are joined, comments dropped."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].strip()
                if command and not command.startswith("#"):
                    found.append((str(page.relative_to(ROOT)), command))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_in_the_docs_is_one_that_exists(page, command):
    words = [word for word in shlex.split(command) if "=" not in word or not word.split("=")[0].isupper()]
    program, arguments = words[0], words[1:]
    if program == "unifygeo":
        from unifygeo_ros.cli import build_parser

        build_parser().parse_args(arguments)
    elif program == "unifygeo-train":
        cli = pytest.importorskip("unifygeo_training.cli")
        cli.build_parser().parse_args(arguments)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in arguments:
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target {target}"
    elif words[:3] == ["ros2", "launch", "unifygeo_ros"]:
        text = (ROOT / "launch" / words[3]).read_text() + (ROOT / "launch" / "localizer.launch.py").read_text()
        for argument in words[4:]:
            assert f'"{argument.split(":=")[0]}"' in text, f"no launch argument {argument}"
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert program == "cd", f"{page}: {command!r} cannot be checked; put it into a ```bash elsewhere block"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_pages_leads_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
