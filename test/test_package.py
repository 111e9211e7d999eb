"""The package's shape: layout, what may import what, and that everything named somewhere exists (DESIGN: the house)."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bitvla_ros"
GENERATED = ("msg", "srv", "action")

# What only a ROS installation (or the wheels of the extra "ros") brings.
ROS = re.compile(r"^(rclpy|\w+_msgs|\w+_interfaces|std_srvs|rosidl\w*|rpyutils|launch(_\w+)?|tf2\w*|cv_bridge|ament\w*|message_filters)$")

# Arrows between the parts run one way. nodes/ may use everything but the network, which policy/bitvla.py joins to the rest.
MAY_USE = {
    "ternary": set(),
    "model": {"action_convention", "ternary", "stated"},
    "policy": {"action_convention", "stated"},
    "control": {"action_convention", "policy"},
    "simulation": {"action_convention", "policy", "control"},
    "training": {"action_convention", "arguments", "profiles", "share", "stated", "policy", "control", "simulation", "model", "ternary"},
    "evaluation": {"action_convention", "arguments", "stated", "policy", "control", "simulation"},
    "nodes": {"action_convention", "arguments", "profiles", "share", "stated", "policy", "control", "simulation", "evaluation", "training"},
    "arguments.py": set(),
    "action_convention.py": {"stated"},
    "stated.py": set(),
    "profiles.py": {"share"},
    "share.py": set(),
    "cli.py": set(),
    "__init__.py": set(),
}
# Single files that may use more: the seam to the network, the verbs that are about its parts, and the ablation, which trains what it
# evaluates: training may not know of evaluation, nor have nodes anything to do with it.
MAY_ALSO_USE = {
    "policy/bitvla.py": {"model"},
    "evaluation/ablation.py": {"training"},
    "evaluation/benchmark.py": {"model", "ternary"},
    "evaluation/inspection.py": {"model"},
    "evaluation/kernel_benchmark.py": {"model", "ternary"},
    "evaluation/packing.py": {"model"},
    "evaluation/readiness.py": {"model", "ternary"},
    "evaluation/tune_tiles.py": {"model", "ternary"},
    "evaluation/workload.py": {"model", "ternary"},
}

SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in GENERATED)
CORE = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] != "nodes"]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Full names of the modules that a file imports; lazy: also inside functions and `if` blocks."""
    tree = ast.parse(path.read_text(), path)
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["bitvla_ros", *path.relative_to(PACKAGE).parent.parts]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            yield base
            if base == "bitvla_ros":
                yield from (f"bitvla_ros.{alias.name}" for alias in node.names)


def parts_used(path: Path) -> set[str]:
    names = (name.split(".") for name in imports(path))
    return {name[1] for name in names if name[0] == "bitvla_ros" and len(name) > 1}


def package_xml(*tags: str) -> set[str]:
    tree = ElementTree.parse(ROOT / "package.xml").getroot()
    return {element.text or "" for tag in tags for element in tree.iter(tag)}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def project(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return match[0].lower().replace("_", "-")


def executables() -> dict[str, str]:
    """Console scripts by name: module:function."""
    return dict(map(str.strip, line.split("=")) for line in lines(setup_cfg()["options.entry_points"]["console_scripts"]))


def test_fixed_paths_stand_at_the_top():
    expected = ["bitvla_ros", "launch", "config", "msg", "srv", "action", "test"]
    expected += ["package.xml", "CMakeLists.txt", "setup.py", "setup.cfg", "LICENSE", "Makefile", "constraints.txt", ".ci/run"]
    assert [name for name in expected if not (ROOT / name).exists()] == []


def test_source_init_only_lets_installed_interfaces_in():
    assert (PACKAGE / "__init__.py").read_text().strip() == '__path__ = __import__("pkgutil").extend_path(__path__, __name__)'


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_core_imports_no_ros(path: Path):
    names = set(imports(path))
    assert {name for name in names if ROS.match(name.split(".")[0])} == set()
    assert {name for name in names if re.match(r"bitvla_ros\.(msg|srv|action|nodes)\b", name)} == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_arrows_run_one_way(path: Path):
    part = path.relative_to(PACKAGE).parts[0]
    allowed = MAY_USE[part] | MAY_ALSO_USE.get(name_of(path), set()) | {part}
    if part == "nodes":
        allowed |= {*GENERATED, "cli"}
    assert parts_used(path) <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_source_is_python_3_10(path: Path):
    ast.parse(path.read_text(), path, feature_version=(3, 10))


def test_core_loads_on_a_machine_without_ros():
    """Every core module is imported in a fresh interpreter that refuses ROS, generated messages and the optional simulators."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in CORE]
    with_mujoco = ("tabletop", "rendering", "scene")  # they load MuJoCo, and that starts OpenGL
    modules = [name for name in modules if not name.rpartition("simulation.")[2].startswith(with_mujoco)]
    refused = rf"{ROS.pattern}|^bitvla_ros\.(msg|srv|action|nodes)$|^(libero|robosuite)$"
    program = f"""
import importlib, re, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if re.match({refused!r}, name):
            raise ModuleNotFoundError(f"refused by the test: {{name}}", name=name)

sys.meta_path.insert(0, Refuse())
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_core_needs_only_what_it_declares():
    """A module that is imported at the top of a core file is Python's own, ours, or a requirement of the package."""
    declared = {project(line) for line in lines(setup_cfg()["options"]["install_requires"])}
    modules = {"pil": "pillow", "cv2": "opencv-python-headless", "huggingface_hub": "huggingface-hub"}
    # extras "sim" and "triton"; loaded by the verb or the backend that needs them
    optional = {"simulation": {"mujoco"}, "evaluation": {"imageio_ffmpeg"}, "ternary": {"triton"}}
    undeclared = set()
    for path in CORE:
        part = path.relative_to(PACKAGE).parts[0]
        for name in imports(path, lazy=False):
            root = name.split(".")[0]
            if root in sys.stdlib_module_names or root == "bitvla_ros" or root in optional.get(part, ()):
                continue
            if modules.get(root.lower(), root) not in declared:
                undeclared.add((name_of(path), root))
    assert undeclared == set()


def test_executables_are_the_same_in_both_builds_and_exist():
    scripts = executables()
    cmake = dict(re.findall(r"^bitvla_executable\((\w+) \$\{PROJECT_NAME\}\.([\w.]+)\)", (ROOT / "CMakeLists.txt").read_text(), re.M))
    assert {name: f"bitvla_ros.{module}:main" for name, module in cmake.items()} == scripts
    declared = re.search(r"^EXECUTABLES = (\(.*\))$", (ROOT / "setup.py").read_text(), re.M)
    assert declared is not None
    assert set(ast.literal_eval(declared[1])) == set(scripts)
    for name, target in scripts.items():
        path = ROOT / (target.partition(":")[0].replace(".", "/") + ".py")
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert "main" in functions, f"{name}: {path} has no main()"


def test_interfaces_depend_on_what_both_builds_declare():
    text = "\n".join(path.read_text() for folder in GENERATED for path in (ROOT / folder).iterdir())
    used = set(re.findall(r"^(\w+)/\w+", text, re.M))
    call = re.search(r"rosidl_generate_interfaces\(.*?DEPENDENCIES([^)]*)\)", (ROOT / "CMakeLists.txt").read_text(), re.S)
    assert call is not None
    assert used <= set(call[1].split())
    assert used <= package_xml("depend")
    wheels = (ROOT / "pyproject.toml").read_text()
    # builtin_interfaces comes with std_msgs' wheel
    assert {name for name in used if f"ros-{name.replace('_', '-')}==" not in wheels} <= {"builtin_interfaces"}


def test_ros_packages_that_nodes_and_launch_files_import_are_dependencies():
    used = {
        root
        for path in [*(PACKAGE / "nodes").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
        for root in (name.split(".")[0] for name in imports(path))
        if ROS.match(root)
    }
    assert used - package_xml("depend", "exec_depend") - {"rpyutils"} == set()  # rpyutils is rclpy's


def test_packages_that_are_needed_by_name_are_dependencies():
    """What nodes import with `need`, by the Debian package that brings it: ros-<distro>-tf2-ros-py is the ROS package tf2_ros_py."""
    from bitvla_ros.nodes.missing import _PACKAGES

    needed = {
        call.args[0].value.partition(".")[0]
        for path in (PACKAGE / "nodes").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "need" and isinstance(call.args[0], ast.Constant)
    }
    assert {"tf2_ros", "moveit_msgs", "control_msgs"} <= needed <= set(_PACKAGES)
    assert {name.replace("-", "_") for name in _PACKAGES.values()} <= package_xml("exec_depend")


def test_every_python_package_is_a_dependency_or_said_to_be_none():
    """package.xml has it by its rosdep key, or its comment says why it does not."""
    comments = " ".join(re.findall(r"<!--(.*?)-->", (ROOT / "package.xml").read_text(), re.S))
    keys = {"numpy": "python3-numpy", "pillow": "python3-pil", "opencv-python-headless": "python3-opencv"}
    wanted = {project(line) for line in lines(setup_cfg()["options"]["install_requires"])} | {"mujoco"}
    for name in wanted:
        assert keys.get(name) in package_xml("exec_depend") or name.replace("-", "_") in comments, name


def requirements(file: str) -> dict[str, set[str]]:
    """Project -> its pins, each with its marker."""
    found: dict[str, set[str]] = {}
    for line in lines((ROOT / file).read_text()):
        found.setdefault(project(line), set()).add(line)
    return found


def test_a_robots_requirements_are_the_constraints_but_for_the_numpy_of_its_cv_bridge():
    robot, pins = requirements("requirements-robot.txt"), requirements("constraints.txt")
    older = {"numpy": {"numpy==1.26.4"}, "opencv-python-headless": {"opencv-python-headless==4.11.0.86"}}
    assert {name: robot[name] for name in older} == older
    assert {name: pinned for name, pinned in robot.items() if name not in older and pinned != pins.get(name)} == {}
    wanted = {
        project(line)
        for text in (setup_cfg()["options"]["install_requires"], setup_cfg()["options.extras_require"]["sim"])
        for line in lines(text)
    }
    assert wanted - {"torch"} <= set(robot)
    assert not {name for name in robot if name.startswith(("torch", "nvidia", "triton", "ros-"))}  # a vendor's torch stays
    assert "-r src/bitvla_ros/requirements-robot.txt" in (ROOT / "README.md").read_text()


def test_every_requirement_is_pinned_in_the_constraints():
    pins = {project(line.removeprefix("#jazzy ")) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    parser = setup_cfg()
    wanted = {project(line) for line in lines(parser["options"]["install_requires"])}
    for extra in parser["options.extras_require"].values():
        wanted |= {project(line) for line in lines(extra)} - {"bitvla-ros"}
    assert wanted - pins == set()


def launch_files() -> list[Path]:
    return sorted((ROOT / "launch").glob("*.launch.py"))


@pytest.mark.parametrize("path", launch_files(), ids=lambda path: path.name)
def test_launch_file_names_only_things_that_exist(path: Path):
    tree = ast.parse(path.read_text(), path, feature_version=(3, 10))
    assert any(isinstance(node, ast.FunctionDef) and node.name == "generate_launch_description" for node in tree.body)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    keywords = [keyword for call in calls for keyword in call.keywords]

    def given(name: str) -> set[str]:
        return {keyword.value.value for keyword in keywords if keyword.arg == name and isinstance(keyword.value, ast.Constant)}

    assert given("executable") <= set(executables())
    assert given("package") <= {"bitvla_ros"} | package_xml("exec_depend")
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    files = {Path(value).name for value in strings if value.endswith(".yaml") and " " not in value}
    assert {name for name in files if not (ROOT / "config" / name).is_file()} == set()

    def first_argument(function: str) -> set[str]:
        return {
            call.args[0].value
            for call in calls
            if getattr(call.func, "id", getattr(call.func, "attr", "")) == function and call.args and isinstance(call.args[0], ast.Constant)
        }

    assert first_argument("LaunchConfiguration") <= first_argument("DeclareLaunchArgument")


def test_a_bare_machine_is_told_what_to_install():
    """The check before the set-up names Debian packages in one apt line and nothing else on stdout."""
    done = subprocess.run([sys.executable, "scripts/check_system.py", "--packages"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert re.fullmatch(r"([\w.+-]+( [\w.+-]+)*)?\n", done.stdout)


# What numpy 1.26, which Humble's cv_bridge needs, lacks of 2.4: the difference of what dir() shows of numpy and numpy.linalg.
LATER_NUMPY = {
    "np": "acos acosh asin asinh astype atan atan2 atanh bitwise_count bitwise_invert bitwise_left_shift bitwise_right_shift bool concat "
    "cumulative_prod cumulative_sum isdtype long matrix_transpose matvec permute_dims pow strings trapezoid ulong unique_all unique_counts "
    "unique_inverse unique_values unstack vecdot vecmat",
    "np.linalg": "cross diagonal matmul matrix_norm matrix_transpose outer svdvals tensordot trace vecdot vector_norm",
}


def later_numpy(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LATER_NUMPY.get(ast.unparse(node.value), "").split():
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.asarray", "np.reshape", "np.array"):
            copies = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "copy"]
            if copies and (ast.unparse(node.func), copies[0]) not in (("np.array", "True"), ("np.array", "False")):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "test").glob("*.py"))], ids=lambda path: path.stem)
def test_nothing_needs_a_newer_numpy_or_python_than_humble_has(path: Path):
    assert list(later_numpy(ast.parse(path.read_text(), path, feature_version=(3, 10)))) == []


def test_what_came_after_numpy_1_is_found():
    later = ["np.concat", "np.linalg.vecdot", "np.asarray(a, copy=True)", "np.array(a, copy=None)"]
    there = ["np.array(a, copy=False)", "np.linalg.norm", "other.concat"]
    assert set(later_numpy(ast.parse("\n".join([*later, *there])))) == set(later)
