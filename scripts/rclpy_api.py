"""Write test/data/rclpy_api.json: what rclpy offers in each release of ROS 2 that we support, as test/test_rclpy_api.py checks it.

python3 scripts/rclpy_api.py humble=FOLDER jazzy=FOLDER kilted=FOLDER
A FOLDER holds the Python package `rclpy` of that release: of github.com/ros2/rclpy, `git archive BRANCH rclpy/rclpy`, or of its wheel.
Only names, parameters and types are kept, of what we use and of the classes that it leads to.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("bitvla_ros", "test", "scripts", "examples", "launch")
ABSENT = "absent"
STANDARD = {"Enum", "IntEnum", "IntFlag", "Exception", "RuntimeError", "ValueError"}  # bases whose members are known without rclpy
ANNOTATED_AS_BASE = {"get_clock": "rclpy.clock:ROSClock"}  # what a method returns where its annotation names a base class only
PRIVATE = {"_service_change_state", "_state_machine"}  # of LifecycleNode, which we use all the same: it offers no other way
PROPERTY = {"property", "setter", "cached_property"}


def used() -> set[str]:
    """What our sources take from rclpy by name, as MODULE:NAME."""
    found = set()
    for path in (path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                found |= {f"{node.module}:{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found.add(f"{node.value.id}:{node.attr}")
    return {name for name in found if name.partition(":")[0].partition(".")[0] == "rclpy"}


class Release:
    """The sources of one release. modules: name -> syntax tree."""

    def __init__(self, folder: Path) -> None:
        self.modules: dict[str, ast.Module] = {}
        for path in (folder / "rclpy").rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            self.modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
        self.packages = {path.parent.relative_to(folder).as_posix().replace("/", ".") for path in folder.rglob("__init__.py")}
        self.module = functools.cache(self._module)

    def facts(self, wanted: set[str]) -> dict[str, Any]:
        """Of the wanted names, and of those that they lead to: origins, bases, types."""
        found: dict[str, Any] = {}
        while missing := {name for name in wanted if name.partition(":")[0] in self.modules} - found.keys():
            for key in missing:
                module, _, name = key.partition(":")
                found[key] = self.module(module).get(name, ABSENT)
            wanted = set(re.findall(r'"(rclpy[\w.]*:\w+)"', json.dumps(list(found.values()))))
        return {key: fact for key, fact in sorted(found.items()) if fact != ABSENT}

    def _module(self, name: str) -> dict[str, Any]:
        """Its public names: a class as {bases, members}, a function as [parameters, returned class], anything else as its origin."""
        known = self.origins(name)
        facts: dict[str, Any] = {}
        for node in statements(self.modules[name]):
            if isinstance(node, ast.ClassDef):
                bases = [base for expression in node.bases if (base := kind(expression, known))]
                facts[node.name] = {"bases": bases, "members": self.members(node, known)}
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                facts[node.name] = function(node, known)
            else:
                facts |= {bound: origin(bound, node, known) for bound in names(node)}
        return {public: fact for public, fact in sorted(facts.items()) if not public.startswith("_")}

    def members(self, node: ast.ClassDef, known: dict[str, str]) -> dict[str, Any]:
        """Methods as a function is, properties and attributes as their type or null."""
        found: dict[str, Any] = {}
        for statement in node.body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                decorators = {expression.split(".")[-1] for expression in map(ast.unparse, statement.decorator_list)}
                if not decorators & PROPERTY:
                    found[statement.name] = function(statement, known, decorators)
                elif "setter" not in decorators:
                    found[statement.name] = kind(statement.returns, known)
            else:
                found |= dict.fromkeys(names(statement))
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and ast.unparse(inner.value) == "self":
                found.setdefault(inner.attr, None)
        return {
            name: fact
            for name, fact in sorted(found.items())
            if not name.startswith("_") or name in PRIVATE or (isinstance(fact, list) and name.startswith("__"))
        }

    def origins(self, module: str) -> dict[str, str]:
        """Where each class and each import of a module comes from, as MODULE:NAME."""
        found = {}
        for node in ast.walk(self.modules[module]):
            if isinstance(node, ast.ImportFrom):
                package = module if module in self.packages else module.rpartition(".")[0]
                parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*parts, *filter(None, [node.module])])
                if source in self.modules:
                    found |= {alias.asname or alias.name: f"{source}:{alias.name}" for alias in node.names}
        return found | {node.name: f"{module}:{node.name}" for node in self.modules[module].body if isinstance(node, ast.ClassDef)}


def statements(module: ast.Module) -> Iterator[ast.stmt]:
    """Of a module, those in its `if` and `try` blocks among them."""
    waiting: list[ast.stmt] = list(module.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            waiting[:0] = node.body


def names(node: ast.stmt) -> list[str]:
    """What a statement binds."""
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def origin(name: str, node: ast.stmt, known: dict[str, str]) -> str | None:
    """Where a name that a statement binds comes from: an import, or an alias of a class."""
    value = getattr(node, "value", None)
    return known.get(name) or (known.get(value.id) if isinstance(value, ast.Name) else None)


def kind(annotation: ast.expr | None, known: dict[str, str]) -> str | None:
    """The class of rclpy, as MODULE:NAME, or the standard class that an annotation stands for; None for anything else."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return kind(ast.parse(annotation.value, mode="eval").body, known)
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice if ast.unparse(annotation.value).endswith("Optional") else annotation.value
        return kind(inner, known)
    name = annotation.id if isinstance(annotation, ast.Name) else ""
    return known.get(name, name if name in STANDARD else None)


def function(node: ast.FunctionDef | ast.AsyncFunctionDef, known: dict[str, str], method: set[str] | None = None) -> list[str | None]:
    """[parameters as in a definition, without types and values; the class that it returns]. method: its decorators, where it is one;
    "static" comes third where it is called without an instance.
    """
    given = node.args
    defaults = [None] * (len(given.posonlyargs) + len(given.args) - len(given.defaults)) + list(given.defaults)
    plain = [parameter(arg, default) for arg, default in zip([*given.posonlyargs, *given.args], defaults, strict=True)]
    if method is not None and "staticmethod" not in method:
        del plain[0]
    star = [f"*{given.vararg.arg}"] if given.vararg else ["*"] if given.kwonlyargs else []
    named = [parameter(arg, default) for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    rest = [f"**{given.kwarg.arg}"] if given.kwarg else []
    static = ["static"] if method and method & {"staticmethod", "classmethod"} else []
    returns = ANNOTATED_AS_BASE.get(node.name) or kind(node.returns, known)
    return [", ".join([*plain, *star, *named, *rest]), returns, *static]


def parameter(arg: ast.arg, default: ast.expr | None) -> str:
    return arg.arg + ("=..." if default else "")


def main() -> None:
    wanted = used()
    folders = dict(argument.split("=", 1) for argument in sys.argv[1:])
    facts = {release: Release(Path(folder)).facts(wanted) for release, folder in folders.items()}
    lines = [
        f"{json.dumps(release)}: {{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(fact)}" for name, fact in found.items()) + "\n}"
        for release, found in facts.items()
    ]
    (ROOT / "test" / "data" / "rclpy_api.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
