"""The pages and files that a stranger meets first say what is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unifygeo_ros.core import errors
from unifygeo_ros.core.records import RejectionReason

ROOT = Path(__file__).parent.parent
TROUBLESHOOTING = (ROOT / "docs/how-to/troubleshooting.md").read_text()
INSTALLATION = (ROOT / "docs/how-to/installation.md").read_text()
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))


def first_cells(heading: str) -> list[str]:
    """The code in the first cell of each row of the first table below a heading."""
    section = TROUBLESHOOTING.split(heading, 1)[1].split("\n## ")[0].split("\n### ")[0]
    return re.findall(r"^\| `(\w+)` \| \S.* \| \S.* \|$", section, re.MULTILINE)


def test_every_rejection_reason_is_explained_once_in_the_order_of_the_code():
    assert first_cells("## No fix") == [reason.value for reason in RejectionReason]
    panoramas = (ROOT / "docs/explanation/panoramas.md").read_text(encoding="utf-8")
    missing = [reason.value for reason in RejectionReason if f"| `{reason.value}` |" not in panoramas]
    assert not [value for value in missing if value.endswith("_image")], "docs/explanation/panoramas.md lacks a row"


def test_every_error_class_is_explained_once():
    classes = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert first_cells("## Errors") == [name for name in classes if name != "UnifyGeoError"]


def steps(workflow: Path) -> list[str]:
    """Every line of shell in a workflow."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [line.strip() for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]


def test_workspace_job_types_the_commands_of_the_installation_page():
    shell = steps(ROOT / ".github/workflows/ros.yaml")
    page = {line.strip() for line in INSTALLATION.splitlines()}
    for start in ("rosdep install", "colcon build", "colcon test", "ros2 run"):
        lines = [line for line in shell if line.startswith(start)]
        assert lines, start
        assert set(lines) <= page, start


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_every_make_target_of_the_workflows_exists(workflow):
    makefile = (ROOT / "Makefile").read_text()
    for line in steps(workflow):
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line


def test_every_file_that_the_images_copy_exists():
    for file in (ROOT / "docker/Dockerfile", ROOT / "docker/l4t.Dockerfile"):
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(), re.MULTILINE):
            for source in sources.split():
                assert (ROOT / source).exists(), f"{file.name} copies {source}"
        assert re.findall(r"^USER (.+)$", file.read_text(), re.MULTILINE)[-1] == "10001"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_every_placeholder_stands_where_contributing_says():
    """`git clone REPOSITORY` and the maintainers' address are to be replaced; one page lists where they stand."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    texts = {
        str(file.relative_to(ROOT)): file.read_text(errors="ignore")
        for file in tracked_files()
        if file.suffix in (".md", ".xml", ".py", ".cff", ".yaml", ".toml", ".cfg") and file.is_file()
    }
    for placeholder, pattern in (
        ("REPOSITORY", r"clone REPOSITORY\b"),
        ("maintainers@unifygeo.example", r"@unifygeo\.example"),
    ):
        (listed,) = re.findall(rf"^\| `{placeholder}` \| (.+?) \|", page, re.MULTILINE)
        stands = {name for name, text in texts.items() if re.search(pattern, text)}
        stands -= {"CONTRIBUTING.md", "test/test_front_page.py"}
        assert set(listed.split(", ")) == stands, placeholder


def test_bloom_reads_the_changelog_that_is_made_for_it():
    changelog = pytest.importorskip("catkin_pkg.changelog", reason="catkin_pkg comes with colcon-ros")
    command = [sys.executable, ROOT / ".github/changelog_rst.py", "0.1.0", "2026-11-30"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    read = changelog.Changelog("unifygeo_ros")
    changelog.populate_changelog_from_rst(read, text)
    ((version, date, (items,)),) = list(read.foreach_version())
    assert (version, str(date)[:10]) == ("0.1.0", "2026-11-30")
    markdown = (ROOT / "CHANGELOG.md").read_text()
    assert len(items.bullets) == len(re.findall("^- ", markdown, re.MULTILINE))


def test_citation_is_valid_and_names_the_paper():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cff)
    (paper,) = cff["references"]
    assert paper["doi"] == "10.48550/arXiv.2505.07622"


ROS_PYTEST_PLUGINS = ("launch_testing", "launch_ros", "launch_pytest")
"""Entry points that every ROS installation brings. launch_testing's imports each test module while collecting, where
one skip at the top of a module makes pytest skip the whole folder and end without a failure."""


def test_tests_are_collected_where_the_pytest_plugins_of_ros_are_installed(tmp_path):
    entry_points = "".join(f"{name} = fake_{name}\n" for name in ROS_PYTEST_PLUGINS)
    installed = tmp_path / "fake_ros-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-ros\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{entry_points}")
    skips = "import pytest\n\ndef pytest_configure():\n    pytest.exit('the plugin was loaded', 5)\n"
    for name in ROS_PYTEST_PLUGINS:
        (tmp_path / f"fake_{name}.py").write_text(skips)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    command.append("test/test_core_softmax.py")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_core_softmax.py::test_" in done.stdout


def test_ci_fails_a_run_without_tests(tmp_path):
    script = ROOT / ".github/count_tests.py"
    for tests, skipped, status in ((900, 100, 0), (900, 600, 1), (1, 1, 1)):
        report = tmp_path / "pytest.xml"
        report.write_text(f'<testsuites><testsuite name="pytest" tests="{tests}" skipped="{skipped}"/></testsuites>')
        done = subprocess.run([sys.executable, script, report, "500"], capture_output=True, text=True)
        assert done.returncode == status, done.stdout
