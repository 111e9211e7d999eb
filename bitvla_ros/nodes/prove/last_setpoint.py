"""Whatever ends a task, the last setpoint that reaches an arm is a hold, and none leads it where it must not go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from lifecycle_msgs.msg import Transition

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.evaluation.proofs.findings import Advance, Promise
from bitvla_ros.msg import ActionChunk

from ..liveliness import Pulse
from ..qos import CHUNK_OFFERED, COMMAND
from .cell import ACCELERATION, LIMIT, SIGNALS, SPEED, Cell, cell

FAULT = ExecuteInstruction.Result.FAULT
NEAR = 0.01  # m from the arm, within which a task's first setpoint lies
BEGINNING = 1.0  # s within which a goal that nothing is in the way of moves the arm
SHORT = 1_500_000_000  # ns, of a goal that runs into its time limit
_EXAMPLES = 5

Stop = Callable[[Cell], object]


def _second_publisher(made: Cell) -> None:
    other = made.passing_publisher(made.kind, made.topic, COMMAND)
    made.until(lambda: made.ended, "end of the goal beside another publisher", LIMIT)
    made.destroy_publisher(other)
    made.until(lambda: made.count_publishers(made.topic) <= 1, "end of the other publisher")


def _end_policy(made: Cell) -> None:
    made.end_policy()
    made.until(lambda: made.ended, "end of the goal without a policy", LIMIT)


def _hide_pose(made: Cell) -> None:
    made.hide_pose()
    made.until(lambda: made.ended, "end of the goal without a pose", LIMIT)


def _succeed(made: Cell) -> None:
    made.success = True
    made.until(lambda: made.ended, "end of the goal that succeeded", LIMIT)


def _signal(number: int) -> Stop:
    return lambda made: made.end_controller(number)


ENDS: dict[str, Stop] = {
    "e-stop, service": lambda made: made.press(topic=False),
    "e-stop, topic": lambda made: made.press(topic=True),
    "cancel": Cell.cancel,
    "policy lost": _end_policy,
    "pose lost": _hide_pose,
}
# The goal that took over may not have begun: then it goes on waiting for what it lost.
TAKEN_OVER: dict[str, Stop] = {
    **ENDS,
    "policy lost": Cell.end_policy,
    "pose lost": Cell.hide_pose,
}
STOPS: dict[str, Stop] = {
    **ENDS,
    "disabled": lambda made: made.enable(False),
    "success": _succeed,
    "time limit": lambda made: made.until(lambda: made.ended, "end of the goal at its time limit", LIMIT),
    "second publisher": _second_publisher,
    "deactivated": lambda made: made.transition("controller", Transition.TRANSITION_DEACTIVATE),
    **{name: _signal(number) for name, number in SIGNALS.items()},
}


def _recover(made: Cell) -> None:
    """As it was before the stop."""
    made.pose_is_sent = True
    if not made.has_policy:
        made.start_policy()
    if "controller" not in made.graph.processes:
        made.start_controller()
        return
    if not made.ended:
        made.cancel()
    made.reset_fault()
    made.go_live()


def prove_last_setpoint(sink: str, trials: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """Every kind of stop in turn, at a random moment of a motion."""
    wrong: list[str] = []
    with cell(sink, logs, np.random.default_rng(seed)) as made:
        for trial in range(trials):
            name = tuple(STOPS)[trial % len(STOPS)]
            made.begin(SHORT if name == "time limit" else 600 * 10**9)
            STOPS[name](made)
            problem = made.problem()
            wrong += [f"{name}: {problem}"] if problem else []
            if name == "deactivated":
                made.transition("controller", Transition.TRANSITION_ACTIVATE)
            _recover(made)
            advance(1)
    return _promise(f"last_setpoint_{sink}", trials, wrong, "that end in motion")


def prove_take_over(trials: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """A goal takes over while the arm moves, and is ended before its own first setpoint or a little later."""
    wrong: list[str] = []
    with cell("pose", logs, np.random.default_rng(seed)) as made:
        for trial in range(trials):
            name = tuple(TAKEN_OVER)[trial % len(TAKEN_OVER)]
            made.begin()
            made.send()
            TAKEN_OVER[name](made)
            problem = made.problem() or _leap(made)
            wrong += [f"taken over, then {name}: {problem}"] if problem else []
            _recover(made)
            advance(1)
    return _promise("take_over", trials, wrong, "that end in motion")


def prove_first_pose(trials: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """Until a task's first setpoint, every fifth measured pose is zero, 0.5 m away."""
    wrong: list[str] = []
    with cell("pose", logs, np.random.default_rng(seed)) as made:
        for _ in range(trials):
            made.forget_setpoints()
            start, made.glitches = made.position.copy(), 0.2
            made.send()
            made.holds(lambda: made.reliable.values or made.ended, LIMIT)
            made.glitches = 0.0
            if made.reliable.values:
                made.holds(lambda: len(made.reliable.values) > 20 or made.ended, LIMIT)
                far = float(np.linalg.norm(made.reliable.values[0] - start))
                problem = f"the first setpoint is {far:.3f} m from the arm" if far > NEAR else _leap(made)
                wrong += [problem] if problem else []
                made.cancel()
                problem = made.problem()
                wrong += [problem] if problem else []
            _recover(made)
            advance(1)
    return _promise("first_pose", trials, wrong, "away from the arm")


def prove_second_policy(trials: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """A second node publishes chunks, in turn before a goal and while the arm moves."""
    wrong: list[str] = []
    with cell("pose", logs, np.random.default_rng(seed)) as made:
        for trial in range(trials):
            running = bool(trial % 2)
            if running:
                made.begin()
            publisher = made.passing_publisher(ActionChunk, "action_chunk", CHUNK_OFFERED)
            pulse = Pulse(publisher)
            if not running:
                made.until_controller_says("2 nodes publish action_chunk")
                made.forget_setpoints()
                made.send()
            if not made.holds(lambda: made.ended, LIMIT):
                wrong.append(f"a second policy {'beside a task' if running else 'before a goal'} was not noticed within {LIMIT:g} s")
                made.cancel()
            elif made.result().outcome != FAULT:
                wrong.append(f"the goal ended otherwise: {made.result().reason}")
            if running:
                problem = made.problem()
                wrong += [problem] if problem else []
            elif made.reliable.values:
                wrong.append("the arm was moved beside a second policy")
            pulse.close()
            made.destroy_publisher(publisher)
            _recover(made)
            made.until_controller_says("ready")
            advance(1)
    return _promise("second_policy", trials, wrong, "unnoticed")


def prove_second_controller(trials: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """Another controller in the namespace: a goal reaches both, and neither carries it out. Once it has gone, the first one does."""
    wrong: list[str] = []
    with cell("pose", logs, np.random.default_rng(seed), {"second_controller": "bitvla_ros.nodes.controller"}) as made:
        for _ in range(trials):
            made.transition("second_controller", Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
            made.until_controller_says("2 controllers")
            made.forget_setpoints()
            made.send()
            if not made.holds(lambda: made.ended, LIMIT):
                wrong.append(f"the goal is not refused within {LIMIT:g} s")
                made.cancel()
            if made.holds(lambda: made.reliable.values, BEGINNING):
                wrong.append("the arm was moved beside a second controller")
            made.transition("second_controller", Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)
            made.cancel()  # whichever of them has answered, the goal is over for the other one too
            made.until_controller_says("ready")
            made.begin()
            made.cancel()
            problem = made.problem()
            wrong += [problem] if problem else []
            advance(1)
    return _promise("second_controller", trials, wrong, "unnoticed")


def _leap(made: Cell) -> str | None:
    """A step between setpoints that no limit allows."""
    places, times = np.array(made.reliable.values), np.array(made.reliable.arrivals)
    if len(places) < 2:
        return None
    far = np.linalg.norm(np.diff(places, axis=0), axis=1)
    # By arrival, which comes in bunches where the observer is held up: so what a row of 20 may cover is looked at as well.
    allowed = SPEED * np.diff(times) / 1e9 + SPEED**2 / (2 * ACCELERATION)
    worst = int(np.argmax(far - allowed))
    return f"a step of {far[worst]:.3f} m" if far[worst] > allowed[worst] else None


def _promise(name: str, trials: int, wrong: list[str], unit: str) -> Promise:
    return Promise(name, trials, len(wrong), float(len(wrong)), unit, 0.0, tuple(wrong[:_EXAMPLES]))
