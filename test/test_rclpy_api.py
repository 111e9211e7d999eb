"""All that we use of rclpy is there in every release of ROS 2 that we support, under the same name and with the same parameters.
So is all that the files that use it take from the standard library: Humble has Python 3.10.

data/rclpy_api.json says what each release has (scripts/rclpy_api.py). It becomes stub files, against which mypy checks our sources.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mypy", reason="mypy is not installed: pip install '.[dev]'")

ROOT = Path(__file__).resolve().parents[1]
API: dict[str, dict[str, Any]] = json.loads((ROOT / "test" / "data" / "rclpy_api.json").read_text())
FILES = [path for folder in ("bitvla_ros", "test", "scripts", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
SOURCES = [path for path in FILES if "nodes" in path.parts or re.search(r"^ *(from|import) (rclpy|graph)\b", path.read_text(), re.M)]

# Of mypy's errors: something that is used and not there, where it is known what it is used of.
ABSENT = re.compile(r'(\S+):(\d+): error: (?!"(?:object|None|Exception)").*\[(?:attr-defined|call-arg|import-not-found)\]')
SETTINGS = """[mypy]
python_version = 3.10
follow_imports = skip
ignore_missing_imports = True
check_untyped_defs = True
explicit_package_bases = True
[mypy-rclpy.*]
follow_imports = silent
ignore_missing_imports = False
[mypy-tomllib,annotationlib,compression.*]
ignore_missing_imports = False
"""

# Marked with the releases in which the line does not work.
SAMPLE = """
import datetime
import rclpy
import tomllib  # humble jazzy kilted
from enum import StrEnum  # humble jazzy kilted
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks  # humble
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.subscription import Publisher  # humble jazzy kilted
try:
    from rclpy.event_handler import PublisherEventCallbacks
except ImportError:
    from rclpy.qos_event import PublisherEventCallbacks

class Ours(LifecycleNode):
    def __init__(self) -> None:
        super().__init__("ours", enable_rosout=False)
        self.heard = self.create_subscription(object, "topic", print, 10)
        self.both = (self.heard, self.create_subscription(object, "topic", print, 10, content_filter_options=None))  # humble jazzy

    def work(self) -> bool:
        self.get_fully_qualified_node_names()  # humble
        self.get_type_description("ours")  # humble jazzy kilted
        return any(one.get_publisher_count() for one in self.both)  # humble

def work(node: Node, ours: Ours) -> None:
    rclpy.init(args=None, domain_id=1)
    rclpy.init(domain=1)  # humble jazzy kilted
    Node("a", parameter_overrides=[], namespace="b", enable_logger_service=True)  # humble
    executor = SingleThreadedExecutor(context=rclpy.Context())
    SingleThreadedExecutor(4)  # humble jazzy kilted
    executor.spin_once(timeout_sec=0.1)
    executor.spin_some()  # humble jazzy kilted
    publisher = node.create_publisher(object, "topic", 10)
    publisher.wait_for_all_acked(Duration(seconds=1))
    publisher.wait_for_all_acked(timeout_sec=1.0)  # humble jazzy kilted
    node.get_clock().ros_time_is_active
    node.get_clock().now().to_msg()
    ours.count_publishers("topic")
    ours.heard.get_publisher_count()  # humble
    rclpy.create_node("c").get_logger().info(str(datetime.UTC))  # humble jazzy kilted
"""


def stub(facts: dict[str, Any]) -> str:
    """Of one module, by its names."""
    text = ["from typing import Any", "import rclpy", *(f"import {name}" for name in re.findall(r'"(rclpy\.[\w.]+):', json.dumps(facts)))]
    for name, fact in facts.items():
        if isinstance(fact, dict):
            members = [definition(member, of, "    ", "self") for member, of in fact["members"].items()]
            text += [f"class {name}({', '.join(map(written, fact['bases']))}):", *members, "    pass"]
        elif isinstance(fact, str):
            text.append(f"{name} = {written(fact)}")
        else:
            text.append(definition(name, fact))
    return "\n".join(text) + "\n"


def definition(name: str, fact: Any, indent: str = "", bound: str = "") -> str:
    if not isinstance(fact, list):
        return f"{indent}{name}: {written(fact)}"
    parameters, returns, *static = fact
    head = f"{indent}@staticmethod\n" if static else ""
    given = ", ".join(filter(None, ["" if static else bound, parameters]))
    return f"{head}{indent}def {name}({given}) -> {'None' if name == '__init__' else written(returns)}: ..."


def written(kind: str | None) -> str:
    return kind.replace(":", ".") if kind and ":" in kind else "Any"


def write_stubs(release: str, folder: Path) -> None:
    modules: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, fact in API[release].items():
        module, _, member = name.partition(":")
        modules[module][member] = fact
    for module, facts in modules.items():
        path = folder / module.replace(".", "/") / "__init__.pyi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stub(facts))


def alternatives(path: Path) -> list[tuple[set[int], set[int]]]:
    """Lines of imports that may fail, and of those that then take their place."""
    attempts = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Try)]
    fallbacks = [(node, handler) for node in attempts for handler in node.handlers if "ImportError" in ast.unparse(handler)]
    return [({line.lineno for line in node.body}, {line.lineno for line in handler.body}) for node, handler in fallbacks]


def absent(release: str, paths: list[Path], folder: Path) -> dict[Path, dict[int, str]]:
    """What these sources use and the release has not: file -> line -> what mypy says. folder: for the stubs."""
    write_stubs(release, folder / "stubs")
    (folder / "mypy.ini").write_text(SETTINGS)
    # Without site-packages, where the rclpy of another release may be.
    options = ["--config-file", str(folder / "mypy.ini"), "--cache-dir", os.devnull, "--no-error-summary", "--no-site-packages"]
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(map(str, (folder / "stubs", ROOT, ROOT / "test")))}
    command = [sys.executable, "-m", "mypy", *options, *map(str, paths)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found: dict[Path, dict[int, str]] = defaultdict(dict)
    for match in ABSENT.finditer(done.stdout):
        found[ROOT / match[1]][int(match[2])] = match[0]
    for path, lines in found.items():
        for pair in alternatives(path):
            if not all(lines.keys() & side for side in pair):
                found[path] = {line: text for line, text in lines.items() if line not in pair[0] | pair[1]}
    return {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize("release", API)
def test_all_that_we_use_is_there(release: str, tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(SAMPLE)
    found = absent(release, [*SOURCES, sample], tmp_path)
    marked = {number for number, line in enumerate(SAMPLE.splitlines(), 1) if release in line.partition("#")[2]}
    assert set(found.pop(sample)) == marked
    assert not found, f"run scripts/rclpy_api.py again if {release} has it"
