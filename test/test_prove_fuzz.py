"""The fuzzer gets deep, finds nothing in what is here, and finds what a missing check lets through."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

import numpy as np

from bitvla_ros.control import motion
from bitvla_ros.control.guard import Guard
from bitvla_ros.control.player import Player
from bitvla_ros.control.setpoint_checks import SetpointChecks
from bitvla_ros.nodes.prove import fuzz
from bitvla_ros.nodes.prove.messages import Messages
from bitvla_ros.policy.gate import Gate

MESSAGES = 12_000


def run(folder, messages: int = MESSAGES, seed: int = 0):
    return fuzz.prove_fuzz(messages, seed, folder, lambda count: None)


def test_malformed_messages_are_refused_for_every_reason_and_nothing_bad_comes_out(tmp_path):
    counted = []
    found = fuzz.prove_fuzz(MESSAGES, 1, tmp_path, counted.append)
    assert found.problem is None, found.examples
    assert sum(counted) == MESSAGES
    reasons = {"chunk.malformed", "chunk.non_finite", "chunk.epoch", "chunk.stale", "guard.state", "guard.workspace", "guard.joint"}
    reasons |= {"input.non_finite", "input.zero_stamp", "input.wrong_size", "input.backward_stamp"}
    reasons |= {"gate.future", "gate.wrong_size", "gate.wrong_encoding"}
    assert reasons <= set(found.refused)


def test_the_same_seed_sends_the_same_messages(tmp_path):
    assert run(tmp_path, 500, seed=7).refused == run(tmp_path, 500, seed=7).refused != run(tmp_path, 500, seed=8).refused


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_guard_that_does_not_look_lets_commands_beyond_a_limit_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Guard, "_within", lambda self, now, command, arm: command)
    found = run(tmp_path)
    assert found.outside and "beyond" in found.problem


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nobody_looking_for_what_is_not_finite_lets_it_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Guard, "_within", lambda self, now, command, arm: command)
    monkeypatch.setattr(Player, "_validate", lambda self, chunk: None)
    assert run(tmp_path).nonfinite_out


def test_a_gate_that_crashes_is_counted(tmp_path, monkeypatch):
    def crash(*_, **__):
        raise IndexError("gate")

    monkeypatch.setattr(Gate, "check", crash)
    found = run(tmp_path, 500)
    assert found.crashes and "IndexError" in found.examples[0] and "crashes" in found.problem


def test_messages_that_are_not_spoiled_are_good():
    draw = Messages(np.random.default_rng(0), spoiled=0.0)
    chunk = draw.chunk(10**12, 3)
    assert len(chunk.actions) == chunk.horizon * chunk.action_dimension and chunk.epoch == 3
    image = draw.image(10**12)
    assert len(image.data) == image.height * image.step and image.encoding == "rgb8"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_setpoints_that_nobody_checks_are_found_too(tmp_path, monkeypatch):
    """Motion without limits, and a guard that lets every setpoint pass."""
    monkeypatch.setattr(motion, "shortened", lambda vector, length: vector)
    monkeypatch.setattr(SetpointChecks, "_check_motion", lambda *_: None)
    found = run(tmp_path, 3000)
    assert found.outside and "setpoint" in found.examples[0]
