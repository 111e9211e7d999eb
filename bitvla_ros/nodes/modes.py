"""The ways in which a graph with the simulator runs, and what its three nodes are told of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import simulated_arm

LOCKSTEP, REALTIME, ARM = "lockstep", "realtime", "arm"
MODES = (LOCKSTEP, REALTIME, ARM)

# What renders and films beside policy and simulator holds their processes up for longer, now and then, than a robot's computer should.
_PATIENT = {"limits.liveliness_grace": 0.1, "limits.max_state_age": 0.5}


class Parameters(NamedTuple):
    """policy: but for which policy it is."""

    simulation: dict[str, Any]
    controller: dict[str, Any]
    policy: dict[str, Any]


def parameters(mode: str, suite: str) -> Parameters:
    """arm: see simulated_arm. Lockstep: the simulator waits for every answer, and its clock is the graph's."""
    if mode == ARM:
        return Parameters(simulated_arm.simulation(suite), {**simulated_arm.controller(), **_PATIENT}, simulated_arm.policy())
    clock = {"use_sim_time": mode == LOCKSTEP}
    return Parameters({"suite": suite, "mode": mode}, {**clock, **_PATIENT}, {**clock, "synchronised": mode == LOCKSTEP})
