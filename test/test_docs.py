"""The documentation against the code: every command parses, every link leads somewhere, every name exists.

A command in a ```bash block is one of: `unifygeo …` or `unifygeo-train …` (the real parser takes it), `make TARGET`
(the target exists), `ros2 launch unifygeo_ros FILE …` (the file exists and declares the arguments), `python FILE …`
(the file exists), `cd FOLDER`. Any other must stand in a block that begins with ```bash elsewhere:
it is for another machine.
"""

import functools
import re
import shlex
from pathlib import Path

import pytest

from unifygeo_ros.parameters.settings import PARAMETERS

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
            name = argument.split(":=")[0]
            # The launch file makes the arguments of the topics from their names.
            assert f'"{name}"' in text or f'"{name.removesuffix("_topic")}": ("' in text, f"no launch argument {name}"
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert program == "cd", f"{page}: {command!r} cannot be checked; put it into a ```bash elsewhere block"


HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
TO_HEADING = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")


@functools.cache
def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may have after its #, as GitHub and MyST make it."""
    titles = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_heading_leads_to_one(page):
    for target, anchor in TO_HEADING.findall(page.read_text()):
        if target.startswith("http"):
            continue
        to = (page.parent / target).resolve() if target else page
        assert to.suffix != ".md" or anchor in anchors(to), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_pages_leads_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
MADE_UP = {"heading_rad", "tilemapresource.xml"}
"""Names in the docs that are examples, or those of other programs' files."""


@functools.cache
def tracked_files() -> tuple[str, ...]:
    found = (path for path in ROOT.rglob("*") if path.is_file() and not set(path.parts) & {".venv", ".git", "out"})
    return tuple(path.relative_to(ROOT).as_posix() for path in found)


@functools.cache
def source_text() -> str:
    endings = (".py", ".yaml", ".xml", ".toml", ".cfg", ".j2")
    names = (name for name in tracked_files() if name.endswith(endings) and name != "test/test_docs.py")
    return "\n".join((ROOT / name).read_text() for name in names)


@functools.cache
def source_words() -> frozenset[str]:
    return frozenset(re.findall(r"\w+", source_text()))


def missing_name(token: str) -> str | None:
    """What the code does not have that a token in backquotes names, by the form of the token."""
    if token in MADE_UP:
        return None
    if re.fullmatch(r"[\w./-]+\.(py|yaml|md|xml|toml|cfg|j2)", token):
        suffix = "/" + token.removeprefix("./")
        return None if any(f"/{name}".endswith(suffix) for name in tracked_files()) else "file"
    if re.fullmatch(r"(camera|localizer|session|tracker)\.\w+", token):
        return None if token in PARAMETERS else "parameter"
    if re.fullmatch(r"~/[\w/]+", token):
        return None if f'"{token}"' in source_text() else "topic or service"
    if re.fullmatch(r"[\w.]+\(.*\)", token):
        return None if token.split("(")[0].split(".")[-1] in source_words() else "function"
    if re.fullmatch(r"[A-Z][a-z]+\w*[A-Z]\w*|[a-z]+(_[a-z0-9]+)+", token):
        return None if token in source_words() else "class or name"
    return None


NAMING_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which also names what is gone


@pytest.mark.parametrize("page", NAMING_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_in_backquotes_exists_in_the_code(page):
    tokens = CODE.findall(FENCE.sub("", page.read_text()))
    missing = {token: kind for token in tokens if (kind := missing_name(token))}
    assert not missing


PAGE = re.compile(r"[\w./-]*\w\.md\b")
FOREIGN_PAGES = {"page.md"}
"""Made by tests."""


def test_every_page_that_the_code_names_exists():
    """In docstrings, comments and messages, from the root of the checkout or by its bare name."""
    pages = {f"/{page.relative_to(ROOT).as_posix()}" for page in PAGES}
    missing = {}
    for name in tracked_files():
        if name.endswith((".py", ".yaml", ".xml", ".toml", ".cfg", "Makefile")):
            for token in set(PAGE.findall((ROOT / name).read_text())) - FOREIGN_PAGES:
                if not any(page.endswith("/" + token.lstrip("./")) for page in pages):
                    missing.setdefault(token, []).append(name)
    assert not missing


@pytest.mark.parametrize(
    "token",
    ["unifygeo_ros/no_such_file.py", "session.no_such_setting", "~/no_such_topic", "no_such_function()", "NoSuchClass"],
)
def test_missing_name_finds_what_does_not_exist(token):
    assert missing_name(token)
