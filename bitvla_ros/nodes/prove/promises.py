"""Promises that a running graph keeps: no old epoch after a cancel, nobody else on the sink, no false stop, a player in time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray

from bitvla_ros.action import ExecuteInstruction
from bitvla_ros.evaluation.proofs.findings import Advance, Promise, Samples
from bitvla_ros.evaluation.proofs.steps import rhythm
from bitvla_ros.evaluation.proofs.stopping import Target, find_stop, problems_of
from bitvla_ros.msg import ActionChunk

from .. import simulated_arm
from ..conversions import ns_to_stamp
from ..qos import COMMAND
from ..recorder import GraphError
from .faults import STEP
from .lifecycle import GROWTH_LIMIT, largest_growth, resident
from .world import RAMP_STEPS, World

NETWORK = "random:nano"  # what it costs does not depend on its weights
SECOND_PUBLISHER_LIMIT = 2.0  # s
JITTER_LIMIT = 5.0  # ms
_EXAMPLES = 5


def prove_old_epoch(trials: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """Cancels in mid chunk. After the answer no command of the task comes but those of its stop, although another chunk of it does."""
    wrong: list[str] = []
    with World(logs, np.random.default_rng(seed), other_chunks=True) as world:
        late = world.witness.create_publisher(ActionChunk, "other_chunk", COMMAND)
        world.witness.wait(late.get_subscription_count, "subscription to other_chunk")
        for _ in range(trials):
            world.begin()
            witness = world.witness
            chunk = witness.chunks[-1][1]
            began = time.monotonic_ns()
            world.cancel()
            answered = time.time_ns()
            chunk.epoch, chunk.observation_stamp, chunk.header.stamp = world.epoch, ns_to_stamp(answered), ns_to_stamp(answered)
            late.publish(chunk)
            witness.holds(lambda began=began: _stop(world, began) is not None, 2.0)
            time.sleep(0.15)
            problem = _after_cancel(world, began, answered)
            wrong += [problem] if problem else []
            world.result()
            advance(1)
    return Promise("old_epoch", trials, len(wrong), float(len(wrong)), "cancels followed by the old task", 0.0, tuple(wrong[:_EXAMPLES]))


def _stop(world: World, began: int) -> int | None:
    return find_stop(list(world.witness.commands), began, RAMP_STEPS, STEP)


def _after_cancel(world: World, began: int, answered: int) -> str | None:
    """answered: ROS time, ns."""
    commands = list(world.witness.commands)
    stop = _stop(world, began)
    if stop is None:
        return "the arm did not stop"
    if commands[stop].stamp > answered:
        return f"the stop began {(commands[stop].stamp - answered) / 1e6:.1f} ms after the cancel was answered"
    return next(iter(problems_of(commands, stop, RAMP_STEPS)), None)


def prove_second_publisher(trials: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """Somebody else publishes on the arm's topic, before live mode is asked for and while a goal runs in it."""
    wrong: list[str] = []
    noticed: list[float] = []
    with World(logs, np.random.default_rng(seed), live=True) as world:
        witness = world.witness
        for _ in range(trials):
            witness.enable(False)
            other = witness.passing_publisher(PoseStamped, "target_pose", COMMAND)
            time.sleep(0.5)  # until the controller has discovered it
            answer = witness.enable()
            if answer.success or "publish" not in answer.message:
                wrong.append(f"live mode beside another publisher: {answer.message}")
            witness.destroy_publisher(other)
            witness.go_live()
            world.begin_goal()
            witness.wait(lambda: len(witness.poses) > 50, "setpoints")
            began = time.monotonic_ns()
            other = witness.passing_publisher(PoseStamped, "target_pose", COMMAND)
            if witness.holds(lambda: world.ended, SECOND_PUBLISHER_LIMIT):
                noticed.append((time.monotonic_ns() - began) / 1e6)
                if world.result().outcome != ExecuteInstruction.Result.FAULT:
                    wrong.append(f"the goal ended otherwise: {world.result().reason}")
            else:
                wrong.append(f"not noticed within {SECOND_PUBLISHER_LIMIT:g} s while a goal ran")
            witness.destroy_publisher(other)
            world.finish()
            witness.reset_fault()
            advance(1)
    samples = Samples("until another publisher ended the goal, ms", tuple(noticed), 1e3 * SECOND_PUBLISHER_LIMIT)
    return Promise("second_publisher", trials, len(wrong), float(len(wrong)), "unnoticed", 0.0, tuple(wrong[:_EXAMPLES]), samples)


def prove_guests(trials: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """Nodes that have nothing to do with it join the graph while the arm moves, listen, and leave; every other one is killed."""
    wrong: list[str] = []
    with World(logs, np.random.default_rng(seed), live=True) as world:
        for trial in range(trials):
            world.begin_goal()
            world.until_moving()
            world.entertain(killed=bool(trial % 2))
            world.finish()
            result = world.result()
            if result.outcome == ExecuteInstruction.Result.FAULT:
                wrong.append(f"{'killed' if trial % 2 else 'leaving'}: {result.reason}")
            advance(1)
    return Promise("guests", trials, len(wrong), float(len(wrong)), "false stops", 0.0, tuple(wrong[:_EXAMPLES]))


def prove_false_stop(seconds: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """Task after task for so long, at 100 Hz, with a network inferring in the policy's process. Nothing is injected: any fault is false.
    Nor may a node's memory grow."""
    wrong: list[str] = []
    memory: defaultdict[str, list[float]] = defaultdict(list)
    minutes: list[float] = []
    began = time.monotonic()
    with World(logs, np.random.default_rng(seed), network=NETWORK, live=True) as world:
        for _ in _goals(world, seconds, advance):
            result = world.result()
            if result.outcome == ExecuteInstruction.Result.FAULT:
                wrong.append(result.reason)
            minutes.append((time.monotonic() - began) / 60.0)
            for name, process in world.graph.processes.items():
                memory[name].append(resident(process.popen.pid))
    hourly = round(3600.0 * len(wrong) / seconds, 3)
    worst, growth = largest_growth(memory)
    if growth > GROWTH_LIMIT:
        wrong.append(f"{worst} grew by {growth:.2f} MB in the second half")
    samples = Samples(f"memory of the {worst} node, MB", tuple(memory[worst]), None, tuple(minutes), "minutes")
    return Promise("false_stop", seconds, len(wrong), hourly, "false stops an hour", 0.0, tuple(wrong[:_EXAMPLES]), samples)


def prove_player_rate(seconds: int, seed: int, logs: Path, advance: Advance) -> Promise:
    """How regularly setpoints leave at 100 Hz while a network infers on the same processors: by their stamps, and as they arrive."""
    period = 1e9 / simulated_arm.rate()
    stamps: list[NDArray[np.int64]] = []
    arrivals: list[NDArray[np.int64]] = []
    with World(logs, np.random.default_rng(seed), network=NETWORK, live=True) as world:
        for poses in _goals(world, seconds, advance):
            if len(poses) > 2:
                stamps.append(np.diff([pose.stamp for pose in poses]))
                arrivals.append(np.diff([pose.arrival for pose in poses]))
    if not stamps:
        raise GraphError("no setpoints came; the nodes say: " + world.witness.health())
    intervals, at_arm = np.concatenate(stamps), np.concatenate(arrivals)
    player = {"rate_hz": round(1e9 / float(intervals.mean()), 3), **rhythm(intervals, period), "arrival": rhythm(at_arm, period)}
    share = round(100.0 * player["misses"] / (len(intervals) + player["misses"]), 4)
    p99 = player["jitter_ms"]["p99"]
    problems = () if p99 < JITTER_LIMIT else (f"jitter p99 is {p99:.1f} ms, promised is less than {JITTER_LIMIT:g}",)
    samples = Samples("between setpoints, ms", tuple(np.round(intervals / 1e6, 3).tolist()), period / 1e6 + JITTER_LIMIT)
    return Promise("player_rate", seconds, len(problems), share, "% missed", 0.1, problems, samples, player)


def _goals(world: World, seconds: int, advance: Advance) -> Iterator[list[Target]]:
    """Goal after goal for so many seconds; after each, the arrivals and stamps of its setpoints. The last one is cancelled."""
    witness = world.witness
    began, counted = time.monotonic(), 0
    while (left := seconds - (time.monotonic() - began)) > 0:
        world.begin_goal()
        end = time.monotonic() + left
        while not world.ended and time.monotonic() < end:
            witness.holds(lambda: world.ended, min(1.0, max(0.0, end - time.monotonic())))
            passed = min(seconds, int(time.monotonic() - began))
            advance(passed - counted)
            counted = passed
        poses = list(witness.poses)
        world.finish()
        yield poses
    advance(seconds - counted)
