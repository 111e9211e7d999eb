"""What policy and controller will be told: the parameters' defaults, and over them a profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from bitvla_ros.profiles import ProfileError, load_profile

from .. import control_parameters, sinks
from ..parameters import Parameter
from .facts import Expected

CONTROLLER = (*control_parameters.PARAMETERS, *sinks.PARAMETERS)


def load_expected(profile: str | None = None) -> Expected:
    """profile: name of a file in config/profiles, or a path; None for the defaults. Raises ProfileError."""
    from ..policy import PARAMETERS as POLICY

    policy, controller = defaults(POLICY), defaults(CONTROLLER)
    if profile is None:
        return Expected("", policy, controller)
    found = load_profile(profile)
    problems = [*_problems("policy", POLICY, found.policy), *_problems("controller", CONTROLLER, found.controller)]
    policy |= {name: _value(value) for name, value in found.policy.items()}
    controller |= {name: _value(value) for name, value in found.controller.items()}
    if not problems:
        p = SimpleNamespace(**{name.replace(".", "_"): value for name, value in controller.items()})
        try:
            control_parameters.control_config(p)
            if controller["sink.kind"] != sinks.SIMULATOR:
                sinks.check(p)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ProfileError(f"{found.path}: {'; '.join(problems)}")
    return Expected(profile, policy, controller, tuple(f"{start}:={to}" for start, to in found.remappings))


def defaults(table: Sequence[Parameter]) -> dict[str, Any]:
    return {parameter.name: parameter.default for parameter in table}


def _problems(node: str, table: Sequence[Parameter], given: Mapping[str, Any]) -> Iterator[str]:
    """What the node would refuse in configure."""
    known = {parameter.name: parameter for parameter in table}
    for name, value in given.items():
        parameter, value = known.get(name), _value(value)
        if parameter is None:
            if name not in ("autostart", "use_sim_time"):
                yield f"{node} has no parameter {name}"
        elif _kind(value) != _kind(parameter.default) or _out_of_range(parameter, value):
            yield f"{node}'s {name} is {value!r}: give {parameter.constraints}"
        elif problem := parameter.problem(value):
            yield f"{node}'s {problem}"


def _out_of_range(parameter: Parameter, value: Any) -> bool:
    """What rclpy itself refuses, by the parameter's descriptor."""
    low, high = parameter.minimum, parameter.maximum
    return low is not None and high is not None and not all(low <= v <= high for v in _all(value))


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _kind(value: Any) -> tuple[bool, frozenset[type]]:
    return isinstance(value, tuple), frozenset(map(type, _all(value)))
