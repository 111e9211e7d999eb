"""Profiles of arms: ROS parameter files in config/profiles, for policy and controller, that also say what is remapped.

A profile's section `/**/launch` belongs to no node. Its one parameter `remappings` is a list of "from:=to", which the launch file applies
to both nodes, because a parameter file cannot.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .share import share_folder


class ProfileError(ValueError):
    """A profile that is not there, or says something that no node understands; the message says what would do."""


@dataclass(frozen=True)
class Profile:
    """policy, controller: parameters by name, nested names with dots. remappings: (from, to)."""

    path: Path
    policy: Mapping[str, Any]
    controller: Mapping[str, Any]
    remappings: tuple[tuple[str, str], ...]


def load_profile(name: str) -> Profile:
    """name: of a file in config/profiles, or a path. Raises ProfileError."""
    import yaml

    path = find_profile(name)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ProfileError(f"{path} cannot be read: {error}") from error
    sections = {f"/**/{node}" for node in ("policy", "controller", "launch")}
    if not isinstance(content, dict) or not set(content) <= sections:
        raise ProfileError(f"{path} is no profile: expected the sections {', '.join(sorted(sections))}")
    policy, controller, launch = (
        dict(_flat((content.get(f"/**/{node}") or {}).get("ros__parameters") or {})) for node in ("policy", "controller", "launch")
    )
    remappings = launch.pop("remappings", [])
    if launch or not all(isinstance(rule, str) and rule.count(":=") == 1 for rule in remappings):
        raise ProfileError(f"{path}: /**/launch has one parameter, remappings, a list of texts like 'joint_states:=/my_arm/joint_states'")
    rules = tuple((start, to) for start, _, to in (rule.partition(":=") for rule in remappings))
    return Profile(path, policy, controller, rules)


def find_profile(name: str) -> Path:
    """The file of a profile: a path, or a name in config/profiles of the source tree or of the installation. Raises ProfileError."""
    if name.endswith(".yaml") or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise ProfileError(f"there is no file {name}")
    folder = share_folder("config") / "profiles"
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ProfileError(f"there is no profile {name!r} in {folder}: give one of {', '.join(known)}, or a file{hint}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
