"""The reader of parameter files against rcl's own, and every shipped file through every reader."""

import itertools
from pathlib import Path

import pytest
import yaml

from unifygeo_ros import cli
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.parameters import files
from unifygeo_ros.parameters.files import read_parameter_file, read_settings_file
from unifygeo_ros.parameters.names import RETIRED, check_names, nearest_name
from unifygeo_ros.parameters.settings import NODE_NAME, PARAMETERS, Settings

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(
    path
    for path in (*ROOT.glob("config/*.yaml"), *ROOT.glob("demo/*.yaml"))
    if any(NODE_NAME in key for key in yaml.safe_load(path.read_text()))
)
"""Every parameter file of the localizer in the repository."""


def rcl_parameters(path, namespace="/", name=NODE_NAME):
    """What a real node takes from the file: values by name."""
    rclpy = pytest.importorskip("rclpy")
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", "--params-file", str(path)], context=context)
    try:
        node = rclpy.create_node(
            name,
            namespace=namespace,
            context=context,
            automatically_declare_parameters_from_overrides=True,
            enable_rosout=False,
            start_parameter_services=False,
        )
        return {name: override.value for name, override in node._parameter_overrides.items()}
    finally:
        rclpy.shutdown(context=context)


def section(name, x, **others):
    lines = [f"{name}:", "  ros__parameters:", f"    camera.x_m: {x}", *(f"    {k}: {v}" for k, v in others.items())]
    return "\n".join(lines) + "\n"


SECTION_NAMES = [
    NODE_NAME, f"/{NODE_NAME}", "/**", "/*", "'*'", "'**'", f"/**/{NODE_NAME}", f"/*/{NODE_NAME}",
    f"/robot1/{NODE_NAME}", f"robot1/{NODE_NAME}", "/robot1/**", "/robot1/*", "/**/robot1/*", "/*/*",
]  # fmt: skip


def read_or_none(path, node):
    """What the file says of the node; nothing where it has no section for it."""
    try:
        return read_parameter_file(path, node)
    except InputError as error:
        if "has no parameters for" not in str(error):
            raise
        return {}


@pytest.mark.parametrize("namespace", ["/", "/robot1", "/fleet/robot1"])
def test_sections_match_a_node_as_they_do_in_rcl(tmp_path, namespace):
    node = f"{namespace.rstrip('/')}/{NODE_NAME}"
    for number, name in enumerate(SECTION_NAMES):
        path = tmp_path / f"{number}.yaml"
        path.write_text(section(name, 0.5))
        assert read_or_none(path, node) == rcl_parameters(path, namespace), name


def test_of_two_sections_the_later_one_wins_as_in_rcl(tmp_path):
    for number, (first, second) in enumerate(itertools.permutations(SECTION_NAMES[1:9:2] + SECTION_NAMES[2:3], 2)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(section(first, 0.5) + section(second, 0.25) + section("other", 9.0))
        expected = rcl_parameters(path, "/robot1")
        assert read_or_none(path, f"/robot1/{NODE_NAME}") == expected, (first, second)


@pytest.mark.parametrize(
    "text",
    [
        "/**:\n  ros__parameters:\n    camera.x_m: 1.0\n    camera: {x_m: 2.0, y_m: 3.0}\n",
        "/**:\n  ros__parameters:\n    camera: {x_m: 2.0, y_m: 3.0}\n    camera.x_m: 1.0\n",
        f"robot1:\n  {NODE_NAME}:\n    ros__parameters:\n      camera.x_m: 1.0\n",
        section("/**", 1.0) + section(NODE_NAME, 2.0) + section("/**", 3.0),
        section("/**", 1.0) + "---\n" + section(NODE_NAME, 2.0),
        section(NODE_NAME, 1.0, use_sim_time="true"),
        section("/**", 1.0, use_sim_time="true", frequency="30.0"),
        f"{NODE_NAME}:\n  ros__parameters: {{}}\n",
    ],
)
def test_nested_dotted_and_repeated_names_are_read_as_in_rcl(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    for namespace in ("/", "/robot1"):
        expected = rcl_parameters(path, namespace)
        ours = {name: value for name, value in expected.items() if name in PARAMETERS}
        assert read_or_none(path, f"{namespace.rstrip('/')}/{NODE_NAME}") == ours


SCALARS = [
    "true",
    "True",
    "TRUE",
    "yes",
    "y",
    "Y",
    "on",
    "On",
    "no",
    "n",
    "off",
    "Off",
    "FALSE",
    "1",
    "+5",
    "-7",
    "010",
    "0",
    "0x10",
    "1.0",
    "1.",
    ".5",
    "1e3",
    "1.e3",
    "-2.5E-3",
    ".inf",
    "-.inf",
    "+.inf",
    "inf",
    "nan",
    ".nan",
    "1_000",
    "null",
    "~",
    "2020-01-01",
    "10:30",
    "text",
    "08",
    "1.0.0",
    "0x1G",
    "+-1",
    "tRue",
    "1e",
    "0b1",
    "0o7",
    "-0x1f",
    "Infinity",
]


def test_scalars_have_the_types_that_rcl_gives_them(tmp_path):
    path = tmp_path / "file.yaml"
    texts = [*SCALARS, "'1'", '"yes"', "!!str 1", "'y'"]
    lines = [f"    other.p{number}: {text}" for number, text in enumerate(texts)]
    path.write_text("/**:\n  ros__parameters:\n    camera.x_m: 1.0\n" + "\n".join(lines) + "\n")
    theirs = rcl_parameters(path)
    ((_, ours),) = files._sections(path)
    for number, text in enumerate(texts):
        mine, expected = ours[f"other.p{number}"], theirs[f"other.p{number}"]
        assert (type(mine), repr(mine)) == (type(expected), repr(expected)), text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_file_goes_through_every_reader(path):
    settings = read_settings_file(path)
    assert settings != Settings() or path.parent.name == "config"
    args = ["replay", "bag", "--output", "o.mcap", "--index", "i", "--model", "m", "--params", str(path)]
    assert cli.build_parser().parse_args(args).params == [path]
    ours = {name: value for name, value in rcl_parameters(path).items() if name in PARAMETERS}
    assert ours == read_parameter_file(path)
    assert ours


def test_both_kinds_of_shipped_files_are_tested():
    assert {path.relative_to(ROOT).as_posix() for path in SHIPPED} >= {"config/localizer.yaml", "demo/localizer.yaml"}


def test_read_parameter_file_takes_the_only_localizer_that_a_file_names(tmp_path):
    path = tmp_path / "dump.yaml"
    path.write_text(section(f"/robot1/{NODE_NAME}", 0.5))
    assert read_parameter_file(path) == {"camera.x_m": 0.5}
    path.write_text(section(f"/robot1/{NODE_NAME}", 0.5) + section(f"/robot2/{NODE_NAME}", 0.25))
    with pytest.raises(InputError, match=r"several nodes, /robot1/.*--node"):
        read_parameter_file(path)
    assert read_parameter_file(path, f"/robot2/{NODE_NAME}") == {"camera.x_m": 0.25}


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (section(NODE_NAME, 1.0, bundel="x"), ConfigurationError, "bundel is not a parameter.*did you mean bundle"),
        (
            f"{NODE_NAME}:\n  ros__parameters:\n    session: {{heading_sorce: imu}}\n",
            ConfigurationError,
            "session.heading_sorce.*did you mean session.heading_source",
        ),
        (section(NODE_NAME, 1.0, mode="x"), ConfigurationError, "mode is not a parameter.*did you mean session.mode"),
        (section("/**", 1.0, **{"camera.x": 1.0}), ConfigurationError, "camera.x is not a parameter"),
        (section("/**", 1.0, image_transprot="raw"), ConfigurationError, "did you mean image_transport"),
        (section(NODE_NAME, 1.0, **{"camera.z_m": 2.0}), ConfigurationError, "never had an effect; remove the line"),
        (section(NODE_NAME, "front"), ConfigurationError, "camera.x_m is 'front'"),
        (section(NODE_NAME, 1), ConfigurationError, "write 1.0"),
        (section(NODE_NAME, ""), InputError, "line 3: camera.x_m has no value"),
        ("other:\n  ros__parameters: {a: 1}\n", InputError, "has no parameters for /unifygeo_localizer.*/other"),
        (f"{NODE_NAME}:\n  camera.x_m: 1.0\n", InputError, "line 2: a value stands outside ros__parameters"),
        ("*/x:\n  ros__parameters: {a: 1}\n", InputError, r"quote names that begin with \*"),
        ("/**/*izer:\n  ros__parameters: {a: 1}\n", InputError, "is not a node name"),
        ("- a\n", InputError, "holds no parameters"),
        ("a: [\n", InputError, "cannot be read as a parameter file"),
        (section(NODE_NAME, "&x 1.0", **{"camera.y_m": "*x"}), InputError, "alias"),
    ],
)
def test_file_that_does_not_fit_is_refused_with_the_remedy(tmp_path, text, error, words):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(error, match=words):
        read_parameter_file(path)


@pytest.mark.parametrize("name", RETIRED)
def test_parameter_of_an_earlier_version_is_refused_with_what_to_do(tmp_path, name):
    path = tmp_path / "file.yaml"
    path.write_text(section(NODE_NAME, 1.0, **{name: 1.0}))
    with pytest.raises(ConfigurationError, match=f"{name} is no longer a parameter") as refused:
        read_parameter_file(path)
    successor = RETIRED[name].removeprefix("use ")
    assert "remove the line" in str(refused.value) or successor in PARAMETERS


def test_names_of_other_nodes_pass_where_several_nodes_are_meant():
    check_names(["frequency", "odom0", "mode", "base_link_frame", "qos_overrides./tf.publisher.depth"], only_ours=False)
    with pytest.raises(ConfigurationError, match="frequency is not a parameter"):
        check_names(["frequency"], only_ours=True)


def test_nearest_name_finds_the_group_that_was_left_out():
    assert nearest_name("heading_source") == "session.heading_source"
    assert nearest_name("localizer.gate_sigma") == "localizer.gate_sigma_m"
    assert nearest_name("qqqqqq") is None
