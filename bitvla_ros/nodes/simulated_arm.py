"""The built-in arm behind an interface like a driver's, driven live as the profile simulated_arm says: what its graph's nodes are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bitvla_ros.profiles import load_profile

if TYPE_CHECKING:
    from bitvla_ros.control.limits import Limits

PROFILE = "simulated_arm"


def simulation(suite: str) -> dict[str, Any]:
    """Parameters of the simulation node."""
    return {"suite": suite, "mode": "realtime", "interface": "pose"}


def controller() -> dict[str, Any]:
    """Parameters of the controller node. Its service `enable` has to be called before it moves the arm."""
    return {**load_profile(PROFILE).controller, "mode": "live"}


def policy() -> dict[str, Any]:
    """Parameters of the policy node, but for which policy it is."""
    return dict(load_profile(PROFILE).policy)


def rate() -> float:
    """Hz, of the setpoints."""
    return float(load_profile(PROFILE).controller["sink.rate"])


def limits() -> Limits:
    """What the controller keeps setpoints to."""
    from .control_parameters import control_config
    from .doctor.expected import load_expected

    expected = load_expected(PROFILE).controller
    return control_config(SimpleNamespace(**{name.replace(".", "_"): value for name, value in expected.items()})).limits
