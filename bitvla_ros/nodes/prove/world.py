"""A real graph to break: simulator, controller and policy as processes, and a witness in this one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.control.limits import Limits
from bitvla_ros.evaluation.proofs.stopping import Sent, Target, speeds
from bitvla_ros.simulation.tabletop_tasks import plans

from .. import simulated_arm
from ..conversions import duration_to_ns, stamp_to_ns
from ..processes import Graph
from ..transports import chosen, udp_alone
from .witness import PATIENCE, Witness

SUITE = "tabletop_object"
CAMERAS = ("scene", "wrist")
RAMP_STEPS = Limits().ramp_steps
GOAL = 600 * 10**9  # ns, longer than any trial
REMAPPED = [part for role in CAMERAS for part in ("-r", f"camera/{role}/image_raw:=sound/camera/{role}/image_raw")]


class World:
    """A context manager: on entering it, simulator (realtime), controller and policy start; each `begin` is a trial with a moving arm.

    The policy is the scripted expert. failing_cameras: it looks at images, which pass through prove.cameras. network: it also pays for
    this network at every inference. other_chunks: it publishes the witness's chunks as its own. live: the controller drives the arm by
    poses at 100 Hz, as it drives a real one. random: draws initial states and moments.
    """

    def __init__(
        self,
        logs: Path,
        random: np.random.Generator,
        *,
        failing_cameras: bool = False,
        network: str = "",
        other_chunks: bool = False,
        live: bool = False,
    ) -> None:
        self.graph = Graph(logs)
        self.random = random
        self.handle: Any = None  # of the goal
        self.epoch = self._guests = 0
        self._failing_cameras, self._network, self._live = failing_cameras, network, live
        self._subject = failing_cameras or bool(network) or other_chunks
        self._instructions = tuple(plans(SUITE))
        self._seed = int(random.integers(1 << 20))

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.graph)
            self._start()
            self.witness = stack.enter_context(Witness(check=self.graph.check))
            for name in ("simulation", "controller", "policy"):
                self.witness.wait_until_active(name, PATIENCE)
            if self._live:
                self.witness.go_live()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def _start(self) -> None:
        seen = self._failing_cameras or bool(self._network)
        simulation = {"suite": SUITE, "mode": "realtime", "cameras": CAMERAS if seen else ("",), "image_size": 256 if self._network else 64}
        if self._live:
            simulation |= simulated_arm.simulation(SUITE)
        remapped = ("--ros-args", *REMAPPED) if self._failing_cameras else ()
        with contextlib.ExitStack() as transports:
            if not seen:  # as docs/real-arm.md asks of an arm's driver; images need shared memory
                transports.enter_context(chosen())
                transports.enter_context(udp_alone())
            self.graph.start("simulation", "bitvla_ros.nodes.simulation", simulation, *remapped)
        controller = {"start_timeout": PATIENCE, **(simulated_arm.controller() if self._live else {})}
        self.graph.start("controller", "bitvla_ros.nodes.controller", controller)
        if self._failing_cameras:
            self.graph.start("cameras", "bitvla_ros.nodes.prove.cameras", None, *CAMERAS)
        self._start_policy()

    def _start_policy(self) -> None:
        parameters = {"policy": "expert", "suite": SUITE}
        network = ("--network", self._network) if self._network else ()
        cameras = CAMERAS if self._network or self._failing_cameras else ()
        module = "bitvla_ros.nodes.prove.subject" if self._subject else "bitvla_ros.nodes.policy"
        self.graph.start("policy", module, parameters, *network, *cameras)

    # Trials

    def begin(self) -> None:
        """A new episode and its goal; returns at a random moment while the arm moves."""
        self.begin_goal()
        self.until_moving()
        time.sleep(float(self.random.uniform(0.0, 0.4)))
        self.until_moving()
        self.epoch = 0 if self._live else self.witness.commands[-1].epoch

    def begin_goal(self) -> None:
        """A new episode and its goal."""
        witness = self.witness
        witness.reset_fault()
        self._seed += 1
        self._task = int(self.random.integers(len(self._instructions)))
        witness.reset(self._task, self._seed)
        witness.forget_all()
        self.handle = witness.send_goal(self._instructions[self._task], GOAL)
        self._result = self.handle.get_result_async()

    def until_moving(self) -> None:
        witness = self.witness
        witness.wait(lambda: moving_poses(witness.poses) if self._live else moving(witness.commands), "motion of the arm")

    def take_over(self) -> None:
        """Another goal, with other words, while the first one runs. Returns when it is accepted."""
        other = self._instructions[(self._task + 1) % len(self._instructions)]
        self.handle = self.witness.send_goal(other, GOAL)
        self._result = self.handle.get_result_async()

    def cancel(self) -> int:
        """Ask for a cancel; ns of the steady clock at which the answer came."""
        self.witness.cancel(self.handle)
        return time.monotonic_ns()

    @property
    def ended(self) -> bool:
        """The goal has."""
        return bool(self._result.done())

    def result(self) -> ExecuteInstruction.Result:
        """How the goal has ended; waits for it."""
        return self.witness.answer(self._result, "result of the goal").result

    def finish(self) -> None:
        """End the goal: nothing of the trial is left when this returns but a fault that the controller has latched."""
        self.cancel()
        self.result()

    def plan_ends(self, before: int) -> int | None:
        """ROS time in ns by which the newest chunk that arrived before `before` (steady clock) has been played: a chunk begins with its
        first action, or a later one, in the step in which it comes. None where no chunk was heard, as the policy's process learns of the
        witness seconds after the controller now and then."""
        chunks = [chunk for arrival, chunk in list(self.witness.chunks) if chunk.epoch == self.epoch and arrival <= before]
        if not chunks:
            return None
        return stamp_to_ns(chunks[-1].header.stamp) + chunks[-1].horizon * duration_to_ns(chunks[-1].step_duration)

    # The policy's process

    def signal_policy(self, number: int) -> int:
        """Send the policy's process group a signal; ns of the steady clock just before."""
        process = self.graph.processes["policy"]
        began = time.monotonic_ns()
        os.killpg(process.popen.pid, number)
        return began

    def continue_policy(self) -> None:
        self.signal_policy(signal.SIGCONT)

    def kill_policy(self) -> int:
        """SIGKILL; from here on nobody expects the process to live."""
        process = self.graph.processes.pop("policy")
        began = time.monotonic_ns()
        os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait(PATIENCE)
        return began

    def replace_policy(self) -> None:
        """After its death: the next goal waits for the new one."""
        self.witness.forget("policy")
        self._start_policy()

    # Others

    def entertain(self, killed: bool) -> None:
        """Somebody else joins the graph, and leaves nicely or is killed. Returns a second later."""
        self._guests += 1
        name = f"guest_{self._guests}"  # one that was killed is still known for 20 s, so each has its own
        guest = self.graph.start("guest", "bitvla_ros.nodes.prove.guest", None, "--ros-args", "-r", f"__node:={name}", "--")
        self.witness.wait(lambda: name in self.witness.get_node_names(), name)
        time.sleep(float(self.random.uniform(0.2, 0.6)))
        if killed:
            del self.graph.processes["guest"]
            os.killpg(guest.popen.pid, signal.SIGKILL)
            guest.popen.wait(PATIENCE)
        else:
            self.graph.stop("guest")
        time.sleep(1.0)


def moving(commands: Sequence[Sent]) -> bool:
    """The arm has been moving for a few steps, and fast enough that its stop cannot be overlooked."""
    last = commands[-4:]
    return len(last) == 4 and all(command.moves for command in last) and bool(np.abs(last[-1].action[:6]).max() > 0.1)


def moving_poses(poses: Sequence[Target]) -> bool:
    """The same of an arm that is driven by poses."""
    last = poses[-6:]
    return len(last) == 6 and bool(speeds(last)[1:].min() > 0.03)
