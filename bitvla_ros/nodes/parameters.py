"""A node's parameters, declared once in a table, read and checked in configure.

Once they are read, a change is refused unless the node takes it on: what is set holds.

A wrong value from YAML or the command line does not keep the node from starting: it is kept as a problem, and `read()`, which
every node calls in configure, refuses with the remedy. So a launch shows one readable error and the node can be put right with
`ros2 param set` and configured again.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException, InvalidTopicNameException
from rclpy.node import Node
from rclpy.validate_topic_name import validate_topic_name

# Declared by rclpy itself, or meant for it.
_OF_RCLPY = ("use_sim_time", "start_type_description_service", "qos_overrides.")


class ParameterError(ValueError):
    """A parameter has a value that the node cannot work with; the message says which and what would do."""


@dataclass(frozen=True)
class Parameter:
    """One parameter. Its type is the default's: bool, int, float, str, or a tuple (not empty) of one of them.

    unit: of the value, "" where it has none. minimum, maximum: inclusive, both or neither. choices: the only values allowed.
    topic: the name of a topic or service that the value becomes part of, which {} stands for. optional: or the value is empty.
    """

    name: str
    default: Any
    description: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    topic: str = ""
    optional: bool = False

    @property
    def constraints(self) -> str:
        """What a value must be, in words."""
        kind = _kind(self.default)
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        unit = f", {self.unit}" if self.unit else ""
        if self.minimum is None:
            return kind + unit
        return f"{kind} from {self.minimum:g} to {self.maximum:g}{unit}"

    def descriptor(self) -> ParameterDescriptor:
        unit = f" [{self.unit}]" if self.unit else ""
        descriptor = ParameterDescriptor(name=self.name, description=self.description + unit, additional_constraints=self.constraints)
        if self.minimum is not None and self.maximum is not None:
            if isinstance(self.default, float):
                descriptor.floating_point_range = [FloatingPointRange(from_value=float(self.minimum), to_value=float(self.maximum))]
            else:
                descriptor.integer_range = [IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum))]
        return descriptor

    def problem(self, value: Any) -> str | None:
        """Why this value of the right type will not do, or None."""
        values = value if isinstance(self.default, tuple) else (value,)
        if not values:
            return f"{self.name} is []: give {self.constraints}, such as {list(self.default)}"
        if any(isinstance(v, float) and not math.isfinite(v) for v in values):
            return f"{self.name} is {value}: give a finite {self.constraints}"
        if self.choices and any(v not in self.choices for v in values):
            return f"{self.name} is {value!r}: give {self.constraints}{_closest(str(value), self.choices)}"
        return self._topic_problem(values) if self.topic else None

    def _topic_problem(self, values: Sequence[str]) -> str | None:
        for value in values:
            name = self.topic.format(value)
            if not _is_topic(name) and not (self.optional and list(values) == [""]):
                allowed = "give letters, digits and _, and / between its parts, none of which begins with a digit"
                return f"{self.name} is {value!r}, which makes no name of a topic ({name!r}): {allowed}"
        twice = [value for value in values if values.count(value) > 1]
        return f"{self.name} names {twice[0]!r} twice: name each once" if twice else None


class Parameters:
    """Declares a table of parameters on a node and reads them back.

    take_on: called with what is about to be set, by name, where it differs from what is; raises ValueError where it cannot take effect.
    """

    def __init__(self, node: Node, table: Sequence[Parameter], take_on: Callable[[Mapping[str, Any]], None] = lambda changed: None) -> None:
        self._node, self._take_on = node, take_on
        self._table = {parameter.name: parameter for parameter in table}
        self._problems: dict[str, str] = {}
        overrides = getattr(node, "_parameter_overrides", {})  # private, but the only way to see a misspelt name
        for parameter in table:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            empty = parameter.name in overrides and overrides[parameter.name].value is None  # YAML's [], which has no type
            if empty:
                self._problems[parameter.name] = parameter.problem(()) or f"{parameter.name} has no value: give {parameter.constraints}"
            try:
                node.declare_parameter(parameter.name, default, parameter.descriptor(), ignore_override=empty)
            except (InvalidParameterTypeException, InvalidParameterValueException):
                given = overrides[parameter.name].value
                hint = f" (write {float(given)})" if isinstance(parameter.default, float) and type(given) is int else ""
                self._problems[parameter.name] = f"{parameter.name} is {given!r}: give {parameter.constraints}{hint}"
                node.declare_parameter(parameter.name, default, parameter.descriptor(), ignore_override=True)
        for name in overrides:
            if name not in self._table and not node.has_parameter(name) and not name.startswith(_OF_RCLPY):
                self._problems[name] = f"there is no parameter {name!r}{_closest(name, self._table)} (correct or remove it)"
        node.add_on_set_parameters_callback(self._on_set)

    def read(self, changed: Mapping[str, Any] | None = None) -> SimpleNamespace:
        """Every parameter by name (dots become underscores); arrays as tuples. changed: values that are to be. Raises ParameterError naming
        all that are wrong."""
        values = {name: self._node.get_parameter(name).value for name in self._table} | dict(changed or {})
        problems = dict(self._problems)
        for name, parameter in self._table.items():
            if isinstance(parameter.default, tuple):
                values[name] = tuple(values[name])
            if name not in problems and (problem := parameter.problem(values[name])):
                problems[name] = problem
        if problems:
            raise ParameterError("; ".join(problems.values()))
        return SimpleNamespace(**{name.replace(".", "_"): value for name, value in values.items()})

    def _on_set(self, parameters: Sequence[Any]) -> SetParametersResult:
        changed = {p.name: p.value for p in parameters if p.name in (*self._table, "use_sim_time") and self._differs(p)}
        problems = [self._table[name].problem(value) for name, value in changed.items() if name in self._table]
        try:
            if any(problems):
                raise ParameterError("; ".join(filter(None, problems)))
            self._take_on(changed)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        for parameter in parameters:
            self._problems.pop(parameter.name, None)
        return SetParametersResult(successful=True)

    def _differs(self, parameter: Any) -> bool:
        now = self._node.get_parameter_or(parameter.name).value
        return bool(list(parameter.value) != list(now or ()) if isinstance(parameter.value, (list, tuple)) else parameter.value != now)


def _is_topic(name: str) -> bool:
    try:
        validate_topic_name(name)
    except InvalidTopicNameException:
        return False
    return "//" not in name


def _kind(default: Any) -> str:
    if isinstance(default, tuple):
        return f"array of {_kind(default[0])}"
    return {bool: "true or false", int: "whole number", float: "number with a decimal point", str: "text"}[type(default)]


def _closest(given: str, known: Any) -> str:
    match = difflib.get_close_matches(given, [str(k) for k in known], n=1)
    return f"; did you mean {match[0]!r}?" if match else ""
