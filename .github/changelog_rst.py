"""CHANGELOG.md as the CHANGELOG.rst that bloom reads: python3 .github/changelog_rst.py VERSION DATE > CHANGELOG.rst

CHANGELOG.md is the one home; the other file is made for a release. VERSION's section gets the date, as 2026-11-30.
"""

import re
import sys
from pathlib import Path

version, date = sys.argv[1:]
text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
sections = re.findall(r"^## ([0-9.]+)[^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
if version not in dict(sections):
    sys.exit(f"CHANGELOG.md has no section {version}, but {', '.join(name for name, _ in sections)}")
title = "Changelog for package unifygeo_ros"
print(f"{'^' * len(title)}\n{title}\n{'^' * len(title)}\n")
for name, body in sections:
    heading = f"{name} ({date if name == version else re.search(f'## {name} .([0-9-]+)', text).group(1)})"
    items = re.sub(r"\s*\n  +", " ", body)  # an item is one line
    lines = [
        re.sub("`([^`]+)`", r"``\1``", line).replace("- ", "* ", 1) for line in items.splitlines() if line[:2] == "- "
    ]
    print(f"{heading}\n{'-' * len(heading)}\n" + "\n".join(lines) + "\n")
