"""ROS parameter files: what they say to one node, and one file in place of several.

rcl gives a parameter the value of the last *key* that names the node, in the order in which keys appeared first. So of several files a
later one with `/**` loses to an earlier one with `/**/controller`. Where the last file shall win, it takes one file with one key.
Values stay the text that they are in the file: rcl reads some of them otherwise than YAML libraries do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from .processes import parameter

_PARAMETERS = "ros__parameters"


class ParameterFileError(ValueError):
    """A file that cannot be read as ROS parameters; the message says what would do."""


def read(path: Path, node: str) -> dict[str, str]:
    """Parameters, as YAML text by dotted name, that the file gives a node. node: fully qualified. Raises ParameterFileError."""
    found: dict[str, str] = {}
    for key, values in _sections(path):
        if re.fullmatch(key.replace("/*", r"(/\w+)"), node):  # as rclpy reads wildcards
            found.update(_flat(path, values))
    return found


def keys(path: Path) -> list[str]:
    """The nodes, with wildcards, that the file says something to. Raises ParameterFileError."""
    return [key for key, _ in _sections(path)]


def write(path: Path, parameters: Mapping[str, str]) -> None:
    """A file that gives every node these parameters, at least one, as `read` returns them."""
    lines = [f"    {parameter(name)}: {value}\n" for name, value in parameters.items()]
    path.write_text("".join(["/**:\n", f"  {_PARAMETERS}:\n", *lines]))


def _sections(path: Path) -> Iterator[tuple[str, yaml.MappingNode]]:
    try:
        root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterFileError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if root is not None:
        yield from _nodes(path, "", root)


def _nodes(path: Path, prefix: str, branch: yaml.Node) -> Iterator[tuple[str, yaml.MappingNode]]:
    if not isinstance(branch, yaml.MappingNode):
        raise ParameterFileError(f"{path} holds no ROS parameters: expected NODE, under it {_PARAMETERS}, under it NAME: VALUE")
    for key, value in branch.value:
        if key.value != _PARAMETERS:
            yield from _nodes(path, f"{prefix}/{key.value.strip('/')}", value)
        elif isinstance(value, yaml.MappingNode):
            yield prefix, value
        else:
            raise ParameterFileError(f"{path}: {_PARAMETERS} of {prefix} holds no parameters: write NAME: VALUE under it, or remove it")


def _flat(path: Path, values: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _flat(path, value, f"{name}.")
        elif (text := _text(value)) == "":
            raise ParameterFileError(f"{path}: {name} has no value: give one, '' for an empty text, or remove the line")
        else:
            yield name, text


def _text(value: yaml.Node) -> str:
    if isinstance(value, yaml.SequenceNode):
        return "[" + ", ".join(map(_text, value.value)) + "]"
    if value.style is None and not set(value.value) & set(",[]{}"):  # these end a text inside brackets
        return str(value.value)
    return parameter(value.value)
