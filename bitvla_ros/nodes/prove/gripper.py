"""A gripper's action server fails at random while the arm moves: whether the controller keeps to the rule of ActionGripper.

The server is a process of its own (prove.gripper_server), with the actions of the real control_msgs. Arm and policy are the observer's:
the arm is where its last target was, the policy moves it to and fro.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from bitvla_ros.control.limits import Limits
from bitvla_ros.evaluation.proofs.findings import Advance, Promise, Samples
from bitvla_ros.evaluation.proofs.steps import Steps
from bitvla_ros.evaluation.proofs.stopping import Target
from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.msg import Task
from bitvla_ros.policy.chunk import ActionChunk

from ..conversions import chunk_to_msg, pose_to_msg, stamp_to_ns
from ..liveliness import Pulse
from ..missing import need
from ..processes import Graph
from ..qos import CHUNK_OFFERED, LATCHED, SENSOR
from ..recorder import PATIENCE, GraphError, Recorder, target
from ..sinks.gripper import ANSWER, RESULT, RETRIES, RETRY
from .gripper_server import ACTION, ACTIONS, GOALS, GONE

LIMITS = Limits(speed=0.2, acceleration=2.0, liveliness_grace=0.5, max_state_age=1.0, gripper_rate=100.0, clamp=("offset",))
POSITIONS = {False: 0.04, True: 0.0}  # m, by whether it is closed
HOME = np.array([0.4, 0.0, 0.3])
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
REACH = 0.05  # m to both sides of HOME
SILENCE = 0.2  # s after which an arm's own controller would stop it
TOLERANCE = 0.1  # relative, of the setpoints' limits: by stamps, which a full machine reads later than it counts
PARAMETERS = {
    "simulator": False,
    "mode": "live",
    "sink.kind": "pose",
    "sink.frame": "base",
    "sink.silence_timeout": SILENCE,
    "time_limit": 3600.0,
    "gripper.action": ACTION,
    "gripper.joint": "knuckle",
    "gripper.open": POSITIONS[False],
    "gripper.closed": POSITIONS[True],
    "limits.speed": LIMITS.speed,
    "limits.acceleration": LIMITS.acceleration,
    "limits.liveliness_grace": LIMITS.liveliness_grace,
    "limits.gripper_rate": LIMITS.gripper_rate,
    "limits.max_state_age": LIMITS.max_state_age,
}

GOAL = 36_000 * 10**9  # ns, longer than all trials together
Script: TypeAlias = tuple[str, ...]

# What one command meets, and how often of 100 times. TAKEN_OVER: the next command comes while its goal runs.
TAKEN_OVER = ("endless",)
SCRIPTS: dict[Script, int] = {
    ("succeed",): 14,
    ("succeed_stalled",): 10,
    ("abort_stalled", "succeed"): 16,
    ("abort", "succeed"): 12,
    ("refuse", "succeed"): 12,
    ("vanish", "succeed"): 11,
    TAKEN_OVER: 10,
    ("refuse", "abort", "succeed"): 4,
    ("vanish", "abort_stalled", "refuse", "succeed"): 2,
    ("abort",) * (RETRIES + 1): 3,
    ("refuse", "vanish", "abort", "refuse"): 2,
    ("mute", "succeed"): 3,
    ("endless", "succeed"): 1,
}
FAILURES = {
    "abort": "aborted it",
    "abort_stalled": "aborted it, stalled",
    "refuse": "refused it",
    "vanish": "is gone",
    "mute": "gave no answer",
    "endless": "gave no result",
}
DURATIONS = {"vanish": GONE, "mute": ANSWER, "endless": RESULT}  # s that a failure takes
_SLACK = 5.0  # s
_EXAMPLES = 5


@dataclass(frozen=True)
class Expected:
    """What the rule makes of a script. goals: how many are sent. failures: what is said of each that failed. state: in the end."""

    goals: int
    failures: tuple[str, ...]
    state: str


def expected(script: Script, closed: bool) -> Expected:
    """closed: the command; else open."""
    failures: list[str] = []
    for fate in script:
        if closed and fate.endswith("stalled"):
            return Expected(len(failures) + 1, tuple(failures), "holds an object")
        if fate.startswith("succeed"):
            state = ("closed" if closed else "open") + (", stalled on the way" if fate.endswith("stalled") else "")
            return Expected(len(failures) + 1, tuple(failures), state)
        failures.append(FAILURES[fate])
    return Expected(len(failures), tuple(failures), f"gives up to {'close' if closed else 'open'} after {RETRIES + 1} goals")


class Observer(Recorder):
    """Arm and policy, and what the controller then does. closed: what the policy asks of the gripper.

    goals: when each came to the server (s of its clock), by what becomes of it and its position. states: what the controller says of the
    gripper. stamp: of the last setpoint, gap: the longest between two, ns, since it was set to 0. steps: checks them.
    """

    def __init__(self, graph: Graph) -> None:
        self.closed, self.goals, self.states, self.scripts = False, list[tuple[float, str, float]](), list[str](), list[str]()
        self.steps, self.stamp, self.gap = Steps(LIMITS, TOLERANCE), 0, 0
        self._position: NDArray[np.float64] = HOME
        self._task: Task | None = None
        self._ticks, self._way = 0, 1.0
        super().__init__((), lockstep=False, check=graph.check)
        self._pose = self.create_publisher(PoseStamped, "end_effector_pose", SENSOR)
        self._chunk = self.create_publisher(ActionChunkMsg, "action_chunk", CHUNK_OFFERED)
        self._pulse = Pulse(self._chunk)
        self._script = self.create_publisher(String, "gripper_script", LATCHED)
        self.create_subscription(Task, "task", self._on_task, LATCHED)
        self.create_subscription(JointState, "gripper_goals", self._on_goal, GOALS)
        self.create_timer(0.01, self._on_tick)

    def __exit__(self, *error: Any) -> None:
        self._pulse.close()
        super().__exit__(*error)

    def prepare(self, script: Script) -> None:
        """Until the server knows what becomes of the next goals."""
        self.scripts.clear()
        self._script.publish(String(data=",".join(script)))
        if not self._until(lambda: self.scripts == [",".join(script)], PATIENCE):
            raise GraphError(f"the gripper's server takes no script; the nodes say: {self.health()}")

    def until(self, condition: Callable[[], object], patience: float) -> bool:
        """Whether the condition comes to hold within `patience` s. `enable`, which changes nothing, has the diagnostics published."""
        end = time.monotonic() + patience
        while not condition() and time.monotonic() < end:
            self.enable()
            self._until(condition, 0.1)
        return bool(condition())

    def _on_task(self, task: Task) -> None:
        self._task = task

    def _on_goal(self, message: JointState) -> None:
        if message.position:
            self.goals.append((stamp_to_ns(message.header.stamp) / 1e9, message.name[0], message.position[0]))
        else:
            self.scripts.append(message.name[0])

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        super()._on_diagnostics(array)
        for status in array.status:
            self.states += [value.value for value in status.values if status.name == "controller" and value.key == "gripper"]

    def _on_target(self, pose: PoseStamped) -> None:
        sent: Target = target(pose, 0)
        self.gap = max(self.gap, sent.stamp - (self.stamp or sent.stamp))
        self.steps.take(sent, sent.stamp)
        self.stamp, self._position = sent.stamp, sent.position

    def _on_tick(self) -> None:
        now = self.get_clock().now().nanoseconds
        self._pose.publish(pose_to_msg(self._position, DOWN, now, "base"))
        self._ticks += 1
        if self._ticks % 10 or self._task is None or not self._task.active:
            return
        if abs(self._position[0] - HOME[0]) > REACH:
            self._way = -float(np.sign(self._position[0] - HOME[0]))
        row = np.array([0.2 * self._way, 0, 0, 0, 0, 0, 1.0 if self.closed else -1.0], np.float32)
        chunk = ActionChunk(np.tile(row, (8, 1)), now, 50_000_000, frame="base", epoch=self._task.epoch)
        self._chunk.publish(chunk_to_msg(chunk, now))


def prove_gripper_aborts(trials: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """A trial is a command and what its goals meet. value: trials in which anything was not by the rule. Half of the trials with each of
    control_msgs' two actions. Raises MissingPackage where it is not installed."""
    need("control_msgs.action")
    random = np.random.default_rng(seed)
    chances = np.array(list(SCRIPTS.values())) / sum(SCRIPTS.values())
    scripts = [list(SCRIPTS)[index] for index in random.choice(len(SCRIPTS), trials, p=chances)]
    wrong: list[str] = []
    times: list[float] = []
    for turn, kind in enumerate(ACTIONS):
        for script, seconds, problems in _trials(kind, scripts[turn :: len(ACTIONS)], logs / kind):
            times.append(round(seconds, 3))
            wrong += [f"{kind}, {', '.join(script)}: {'; '.join(problems)}"] if problems else []
            advance(1)
    samples = Samples("until a command of the gripper has ended, s", tuple(times))
    examples = tuple(wrong[:_EXAMPLES])
    return Promise("gripper_aborts", trials, len(wrong), float(len(wrong)), "trials against the rule", 0.0, examples, samples)


def _trials(kind: str, scripts: Sequence[Script], logs: Path) -> Iterator[tuple[Script, float, list[str]]]:
    """Each script, how long its command took, s, and what was not by the rule."""
    if not scripts:
        return
    with Graph(logs) as graph:
        graph.start("gripper", "bitvla_ros.nodes.prove.gripper_server", None, kind)
        graph.start("controller", "bitvla_ros.nodes.controller", {**PARAMETERS, "gripper.kind": kind})
        with Observer(graph) as observer:
            observer.wait_until_active("controller", PATIENCE)
            observer.go_live()
            result = observer.send_goal("go on", GOAL).get_result_async()
            for script in scripts:
                began = time.monotonic()
                problems = _try(observer, script)
                seconds = time.monotonic() - began
                if result.done():
                    problems.append(f"the task ended: {result.result().result.reason}")
                    observer.reset_fault()
                    result = observer.send_goal("go on", GOAL).get_result_async()
                yield script, seconds, problems


def _try(observer: Observer, script: Script) -> list[str]:
    """One command; what was not by the rule."""
    observer.prepare(script)
    taken_over, closed = script == TAKEN_OVER, not observer.closed
    rule = Expected(1, (), f"told to {'close' if closed else 'open'}") if taken_over else expected(script, closed)
    goals, states, violations = len(observer.goals), len(observer.states), observer.steps.violations
    observer.gap, observer.closed = 0, closed
    limit = sum(DURATIONS.get(fate, 0.0) + RETRY for fate in script) + _SLACK
    ended = observer.until(lambda: _ends(observer, rule, goals, states), limit)
    given_up = rule.state.startswith("gives up")
    if given_up:
        observer.until(lambda: False, 1.5 * RETRY)
    said, sent = observer.states[states:], observer.goals[goals:]
    problems = [] if ended else [f"it should end with {rule.state!r} after {rule.goals} goals, and says {said[-1:]} after {len(sent)}"]
    if len(sent) > rule.goals or any(abs(position - POSITIONS[closed]) > 1e-9 for _, _, position in sent):
        problems.append(f"the goals were {[(fate, position) for _, fate, position in sent]}")
    if len(sent) > 1 and (soonest := min(np.diff([when for when, _, _ in sent]))) < 0.95 * RETRY:
        problems.append(f"a goal was sent again after {soonest:.2f} s")
    for failure in rule.failures:
        if not any(failure in text for text in said):
            problems.append(f"{failure!r} was never said")
    if observer.steps.violations > violations:
        problems.append(f"a setpoint went beyond a limit: {observer.steps.problems[-1]}")
    if observer.gap > SILENCE * 1e9:
        problems.append(f"no setpoint for {observer.gap / 1e9:.2f} s")
    return problems


def _ends(observer: Observer, rule: Expected, goals: int, states: int) -> bool:
    last = observer.states[states:][-1:]
    return len(observer.goals) - goals == rule.goals and bool(last) and last[0].startswith(rule.state)
