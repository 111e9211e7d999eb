"""Configure, activate, deactivate, clean up, a thousand times: no failure, and memory does not grow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from bitvla_ros.evaluation.proofs.findings import Advance, Promise, Samples

from ..processes import Graph
from .witness import Witness
from .world import SUITE

NODES = {
    "simulation": ("bitvla_ros.nodes.simulation", {"suite": SUITE, "mode": "realtime"}),
    "controller": ("bitvla_ros.nodes.controller", {}),
    "policy": ("bitvla_ros.nodes.policy", {"policy": "expert", "suite": SUITE}),
}
CYCLE = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}
GROWTH_LIMIT = 4.0  # MB in the second half
WARM_UP = 30  # loops or tasks that fill caches and pools, and show no growth yet
_EXAMPLES = 5


def prove_lifecycle(loops: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """All three nodes go round together. value: how much the largest of them grew, least squares over the second half of the loops."""
    wrong: list[str] = []
    memory: dict[str, list[float]] = {name: [] for name in NODES}
    with Graph(logs) as graph:
        pids = {name: graph.start(name, module, {**p, "autostart": False}).popen.pid for name, (module, p) in NODES.items()}
        with Witness(check=graph.check) as witness:
            clients = {name: witness.create_client(ChangeState, f"{name}/change_state") for name in NODES}
            for name, client in clients.items():
                witness.wait(client.service_is_ready, f"{name}/change_state")
            for _ in range(loops):
                for word, number in CYCLE.items():
                    request = ChangeState.Request(transition=Transition(id=number))
                    for name, future in {name: client.call_async(request) for name, client in clients.items()}.items():
                        if not witness.answer(future, f"{name}/change_state").success:
                            wrong.append(f"{name} did not {word}: {witness.health()}")
                for name, pid in pids.items():
                    memory[name].append(resident(pid))
                advance(1)
    worst, growth = largest_growth(memory)
    examples = (*wrong[:_EXAMPLES], *([f"{worst} grew by {growth:.2f} MB"] if growth > GROWTH_LIMIT else []))
    samples = Samples(f"memory of the {worst} node, MB", tuple(memory[worst]), None, tuple(map(float, range(1, loops + 1))), "loops")
    return Promise("lifecycle", loops, len(wrong), round(growth, 3), "MB grown in the second half", GROWTH_LIMIT, examples, samples)


def largest_growth(memory: Mapping[str, list[float]]) -> tuple[str, float]:
    """Who grew most, and by how many MB: least squares over the second half. memory: MB, of each node after each loop or task."""
    growth = {name: _growth(values) for name, values in memory.items()}
    worst = max(growth, key=growth.__getitem__)
    return worst, growth[worst]


def _growth(megabytes: list[float]) -> float:
    half = np.array(megabytes[max(WARM_UP, len(megabytes) // 2) :])
    if len(half) < 3:
        return 0.0
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0])
    return slope * len(half)


def resident(pid: int) -> float:
    """MB of a process's own memory (RssAnon of /proc/PID/status)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return float(fields["RssAnon"].split()[0]) / 1024
