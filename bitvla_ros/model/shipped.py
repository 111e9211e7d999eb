"""Models that come with the package, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

SHIPPED = ("nano",)


class ShippedModelError(ValueError):
    """A model that should have come with the package is not there."""


def shipped(name: str) -> Path:
    """The directory of a shipped model, one of SHIPPED: models/ of the source tree, or share/bitvla_ros/models of the installation
    that this file belongs to. Raises ShippedModelError."""
    if name not in SHIPPED:
        raise ShippedModelError(f"no model {name!r} comes with the package: expected one of {', '.join(SHIPPED)}")
    for folder in _folders():
        if (folder / name / "config.json").is_file():
            return folder / name
    raise ShippedModelError(
        f"the shipped model {name!r} is not in this installation: looked for models/{name} in the source tree and for "
        f"share/bitvla_ros/models/{name} beside the installed package. Install the package again, or give a model's directory"
    )


def _folders() -> Iterator[Path]:
    here = Path(__file__)
    yield here.parents[2] / "models"
    for prefix in here.parents[2:]:
        yield prefix / "share" / "bitvla_ros" / "models"
