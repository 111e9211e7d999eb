"""Each check of the guard, removed in turn, must be noticed by its tests: the proof that they hold the guard at all.

A check is a `raise`, a `trip` or a branch that answers with a stop, in guard.py or setpoint_checks.py. Each is taken out of a copy of
the module, and the tests of test_guard.py and test_guard_setpoints.py run against the copy.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import guards
import pytest
import test_guard
import test_guard_setpoints

from bitvla_ros.control import guard, setpoint_checks

MODULES = {module.__name__.rpartition(".")[2]: module for module in (guard, setpoint_checks)}


def is_check(node: ast.stmt) -> bool:
    """What stops the arm: `raise Violation(…)`, a call of self.trip that does not pass on a Violation, or `if …: return self.stop(…)`."""
    if isinstance(node, ast.Raise):
        return ast.unparse(node).startswith("raise Violation(")
    if isinstance(node, ast.Expr):
        return ast.unparse(node).startswith("self.trip(FaultReason.")
    return isinstance(node, ast.If) and ast.unparse(node.body[0]).startswith(("return self.stop(", "return self.stop_setpoint("))


def checks(module: ModuleType) -> list[int]:
    """Lines of the module's checks."""
    tree = ast.parse(Path(module.__file__).read_text())
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt) and is_check(node)]


def without(module: ModuleType, line: int) -> ModuleType:
    """A copy of the module in which the check at this line does nothing."""

    class Removal(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            if isinstance(node, ast.stmt) and node.lineno == line and is_check(node):
                return ast.copy_location(ast.Pass(), node)
            return super().generic_visit(node)

    tree = Removal().visit(ast.parse(Path(module.__file__).read_text()))
    copy = ModuleType(module.__name__)
    copy.__package__ = module.__package__
    exec(compile(tree, f"{module.__file__} without line {line}", "exec"), copy.__dict__)
    return copy


def quick_tests() -> Iterator[tuple[str, Callable[[], object]]]:
    """Every test of the guard with every set of its parameters, but those that draw theirs at random."""
    for name, function in (vars(test_guard) | vars(test_guard_setpoints)).items():
        if not name.startswith("test_") or hasattr(function, "hypothesis"):
            continue
        marks = [mark.args for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
        for values in itertools.product(*(given for _, given in marks)):
            arguments = {}
            for (names, _), value in zip(marks, values, strict=True):
                names = (names,) if isinstance(names, str) else names
                arguments |= dict(zip(names, value if len(names) > 1 else (value,), strict=True))
            yield name, lambda function=function, arguments=arguments: function(**arguments)


def noticed_by() -> str | None:
    """The first test that fails."""
    for name, test in quick_tests():
        try:
            test()
        except (Exception, pytest.fail.Exception):
            return name
    return None


def test_the_guard_as_it_is_passes() -> None:
    assert noticed_by() is None


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, module in MODULES.items() for line in checks(module)])
def test_a_check_that_is_removed_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str, line: int) -> None:
    broken = without(MODULES[name], line)
    if name == "guard":
        for module in (guards, test_guard):
            monkeypatch.setattr(module, "Guard", broken.Guard)
    else:
        monkeypatch.setattr(guard, "SetpointChecks", broken.SetpointChecks)
    source = Path(MODULES[name].__file__).read_text().splitlines()[line - 1].strip()
    assert noticed_by() is not None, f"nothing notices that {name}.py goes without line {line}: {source}"
