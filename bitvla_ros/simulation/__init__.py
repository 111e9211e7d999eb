"""Simulators behind one interface: the built-in tabletop, and LIBERO where it is installed."""

from __future__ import annotations

from collections.abc import Sequence

from .environment import Environment, Snapshot

TABLETOP_SUITES = ("tabletop_spatial", "tabletop_object", "tabletop_goal", "tabletop_few")
LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
SUITES = TABLETOP_SUITES + LIBERO_SUITES
# Each instruction has a meaning in every initial state, if what it names is there.
ONE_SCENE_SUITES = ("tabletop_object", "tabletop_goal", "tabletop_few", "libero_goal")
FIRST_TRAINING_SEED = 1_000_000  # tabletop demonstrations start from this seed on; demo and evaluation take smaller ones

__all__ = ["FIRST_TRAINING_SEED", "LIBERO_SUITES", "ONE_SCENE_SUITES", "SUITES", "TABLETOP_SUITES", "Environment", "Snapshot", "make"]


def make(suite: str, *, cameras: Sequence[str] = ("scene", "wrist"), image_size: int = 256) -> Environment:
    """The simulator that has `suite` (one of SUITES).

    cameras: roles to render in every snapshot; () renders nothing and needs no OpenGL. image_size: edge of the square pictures, pixels.
    Make, use and close an environment in one thread: an OpenGL context belongs to the thread that made it.
    Raises ValueError for an unknown suite."""
    if suite in TABLETOP_SUITES:
        from .tabletop import TabletopEnvironment

        return TabletopEnvironment(suite, cameras=cameras, image_size=image_size)
    if suite in LIBERO_SUITES:
        from .libero import LiberoEnvironment

        return LiberoEnvironment(suite, cameras=cameras, image_size=image_size)
    raise ValueError(f"unknown suite {suite!r}: expected one of {', '.join(SUITES)}")
