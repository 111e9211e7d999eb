"""The proofs that need no ROS: they hold, and each of them sees what it is there to see."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from bitvla_ros.control import motion
from bitvla_ros.control.limits import Limits
from bitvla_ros.control.player import decelerated
from bitvla_ros.control.rotation import turned
from bitvla_ros.control.session import ControlConfig
from bitvla_ros.control.setpoint_checks import SetpointChecks
from bitvla_ros.evaluation.proofs import seam
from bitvla_ros.evaluation.proofs.findings import Fault, Fuzz, Promise, Samples, Trial, result_of
from bitvla_ros.evaluation.proofs.report import Measured, write_report
from bitvla_ros.evaluation.proofs.stale import KINDS, prove_stale
from bitvla_ros.evaluation.proofs.steps import figures
from bitvla_ros.evaluation.proofs.stopping import Sent, Target, bad_commands, find_braking, find_stop, problems_of
from bitvla_ros.policy import gate as gate_module
from bitvla_ros.policy.gate import Gate

STEP = 50_000_000
PERIOD = 10_000_000
DOWN = np.array([1.0, 0.0, 0.0, 0.0])


def nothing(trials: int) -> None:
    pass


# ---- stale observations


def test_no_false_stamp_and_no_frozen_camera_gets_through():
    promise = prove_stale(30 * len(KINDS), seed=3, advance=nothing)
    assert promise.met and promise.trials == 30 * len(KINDS), promise.examples


@pytest.mark.parametrize(
    ("removed", "kinds"),
    [
        ("_check_frozen", {"frozen"}),
        ("_check_times", {"stale", "silent", "future"}),
    ],
)
def test_a_gate_that_misses_a_check_is_found_out(monkeypatch, removed, kinds):
    monkeypatch.setattr(Gate, removed, lambda *_: None)
    promise = prove_stale(10 * len(KINDS), seed=0, advance=nothing)
    assert not promise.met and promise.violations >= 5 * len(kinds)
    assert {example.split()[0] for example in promise.examples} & kinds


def test_a_state_whose_newer_part_is_not_looked_at_is_found_out(monkeypatch):
    """The pose may be from the future while the gripper's stamp, the older one, is good."""
    monkeypatch.setattr(gate_module, "STATE_PARTS", ())
    promise = prove_stale(20 * len(KINDS), seed=0, advance=nothing)
    assert not promise.met and all(example.startswith("future") for example in promise.examples)


def test_a_crash_is_a_miss(monkeypatch):
    def crash(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Gate, "check", crash)
    promise = prove_stale(6, seed=0, advance=nothing)
    assert promise.violations == 6 and "ZeroDivisionError" in promise.examples[0]


# ---- seams


@pytest.fixture
def short_segments(monkeypatch):
    """So that few steps see many configurations."""
    monkeypatch.setattr(seam, "SEGMENT", 600)


def test_setpoints_never_jump(short_segments):
    promise = seam.prove_seam(6000, seed=1, advance=nothing)
    assert promise.met, promise.examples
    assert max(promise.samples.values) > 0.9, "the limits were never met: this proves nothing"


def test_a_motion_that_ignores_a_limit_is_found_out_by_the_guard(short_segments, monkeypatch):
    monkeypatch.setattr(motion, "shortened", lambda vector, length: vector)
    promise = seam.prove_seam(2400, seed=1, advance=nothing)
    assert not promise.met and any("guard" in example for example in promise.examples)


def test_and_without_a_guard_by_the_steps_themselves(short_segments, monkeypatch):
    monkeypatch.setattr(motion, "shortened", lambda vector, length: vector)
    monkeypatch.setattr(SetpointChecks, "_check_motion", lambda *_: None)
    promise = seam.prove_seam(2400, seed=1, advance=nothing)
    assert not promise.met and "times the limit" in promise.examples[0]


def test_a_task_that_begins_where_a_lagging_arm_is_measured_is_found_out(short_segments, monkeypatch):
    monkeypatch.setattr(SetpointChecks, "settling", lambda *_: False)
    monkeypatch.setattr(seam, "ControlConfig", partial(ControlConfig, hold_repeats=0))
    assert not seam.prove_seam(6000, seed=1, advance=nothing).met


# ---- where a stop begins


def row(*sizes: float, holds: int = 3) -> list[Sent]:
    """Commands a step apart with these offsets along x, then holds."""
    given = [*sizes, *[0.0] * holds]
    actions = [np.array([size, 0, size / 2, 0, 0, 0, 1], np.float32) for size in given]
    return [Sent(index * STEP, index * STEP, 1, index >= len(sizes), action) for index, action in enumerate(actions)]


def stopped_from(size: float, before: int = 5, ramp_steps: int = 4) -> list[Sent]:
    action = np.array([size, 0, size / 2, 0, 0, 0, 1], np.float32)
    ramp = [float(decelerated(action, step, ramp_steps, 1).action[0]) for step in range(1, ramp_steps)]
    return row(*[size] * before, *ramp)


def test_a_ramp_by_time_is_one_too_and_its_last_command_may_be_all_but_a_hold():
    action = np.array([0.8, 0, 0.4, 0, 0, 0, 1], np.float32)
    commands = row(*[0.8] * 5, holds=0)
    for count, late in enumerate((0, 4_000_000, -3_000_000, -1_000_000, 2_000_000)):
        stamp = (5 + count) * STEP + late
        ramp = decelerated(action, 1 + (stamp - 5 * STEP) / STEP, 4, 1)
        commands.append(Sent(stamp, stamp, 1, ramp.hold, ramp.action))
    assert [command.hold for command in commands[5:]] == [False, False, False, False, True]
    assert find_stop(commands, since=3 * STEP, ramp_steps=4, step=STEP) == 5


@pytest.mark.parametrize("ramp_steps", [2, 4, 10])
def test_the_first_command_of_a_ramp_is_where_the_stop_begins(ramp_steps):
    commands = stopped_from(0.8, before=5, ramp_steps=ramp_steps)
    assert find_stop(commands, since=3 * STEP, ramp_steps=ramp_steps, step=STEP) == 5
    assert problems_of(commands, 5, ramp_steps) == []


def test_a_hold_without_a_ramp_is_the_stop_and_is_abrupt():
    commands = row(0.8, 0.8, 0.8, 0.8)
    assert find_stop(commands, since=STEP, ramp_steps=4, step=STEP) == 4
    assert "at once" in problems_of(commands, 4, 4)[0]


def test_the_stop_of_an_arm_at_rest_is_a_hold():
    commands = row(0.5, 0.2, 0.0, 0.0, 0.0, 0.0)
    assert find_stop(commands, since=STEP, ramp_steps=4, step=STEP) == 6
    assert problems_of(commands, 6, 4) == []


def test_no_hold_is_no_stop():
    assert find_stop(row(0.5, 0.5, holds=0), since=0, ramp_steps=4, step=STEP) is None
    assert find_stop(stopped_from(0.5), since=100 * STEP, ramp_steps=4, step=STEP) is None


def test_an_arm_that_moves_after_its_hold_is_found_out():
    commands = stopped_from(0.8) + [Sent(60 * STEP, 60 * STEP, 1, False, np.array([0.1, 0, 0, 0, 0, 0, 1], np.float32))]
    assert "again" in problems_of(commands, 5, 4)[0]


def test_commands_that_no_arm_should_be_sent_are_found():
    good, bad = np.ones(7, np.float32), np.ones(7, np.float32) * np.nan
    assert bad_commands([Sent(0, 0, 1, False, good)]) == []
    assert "not finite" in bad_commands([Sent(0, 0, 1, False, bad)])[0]
    assert "beyond" in bad_commands([Sent(0, 0, 1, False, 2 * good)])[0]


def targets(*velocities: float) -> list[Target]:
    """One every 10 ms, at these velocities (m/s) along x."""
    positions = np.cumsum(velocities) * 0.01
    return [Target(k * PERIOD, k * PERIOD, np.array([x, 0.0, 0.3]), DOWN) for k, x in enumerate(positions)]


def test_the_first_target_that_brakes_is_where_the_stop_begins():
    assert find_braking(targets(0, 0.3, 0.3, 0.3, 0.27, 0.24, 0.04, 0.0), 30_000_000, acceleration=20.0) == 6, (
        "before it the arm slows by itself"
    )
    assert find_braking(targets(0, 0.5, 0.5, 0.3, 0.1, 0.0, 0.0), 10_000_000, acceleration=20.0) == 3
    assert find_braking(targets(0, 0.1, 0.1, 0.0), 10_000_000, acceleration=20.0) == 3, "slow enough to stand at once"
    assert find_braking(targets(0, 0.5, 0.5, 0.5), 0, acceleration=20.0) is None
    assert find_braking([], 0, acceleration=20.0) is None


# ---- setpoints as they were published


def moved(*steps: tuple[float, float], late: tuple[int, ...] = ()) -> list[Target]:
    """A setpoint every 10 ms, each by a step (m along x, rad about z) from the one before; those in `late` come a period later."""
    positions, angles = np.cumsum([(0.0, 0.0), *steps], axis=0).T
    stamps = np.cumsum([0, *(PERIOD * (2 if k in late else 1) for k in range(len(steps)))])
    return [
        Target(int(t), int(t), np.array([x, 0.0, 0.3]), turned(DOWN, np.array([0.0, 0.0, angle])))
        for t, x, angle in zip(stamps, positions, angles, strict=True)
    ]


SMOOTH = [(0.001 * k, 0.005 * k) for k in (0, 1, 2, 3, 4, 4, 4, 3, 2, 1, 0)]  # at most 0.4 m/s, 10 m/s2, 2 rad/s, 50 rad/s2


def test_smooth_setpoints_break_no_limit():
    found = figures(moved(*SMOOTH), Limits(), rate=100.0)
    assert found["setpoints"] == len(SMOOTH) + 1 and found["seam_violations"] == 0 and found["seam_problems"] == []
    assert found["largest_share"] == pytest.approx(0.8)
    assert (found["rate_hz"], found["misses"], found["jitter_ms"]) == (100.0, 0, {"p99": 0.0})


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ([*SMOOTH[:6], (0.004 - 0.0021, 0.02), *SMOOTH[7:]], "acceleration"),
        ([*SMOOTH[:6], (0.004, 0.02 - 0.0103), *SMOOTH[7:]], "angular acceleration"),
        ([*SMOOTH[:6], (float("nan"), 0.02), *SMOOTH[7:]], "not finite"),
        ([(0.0018 * k, 0.0) for k in range(4)], "speed"),
        ([(0.0, 0.009 * k) for k in range(4)], "angular speed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_recorded_jump_is_a_violation(steps, what):
    """By little more than a limit allows."""
    found = figures(moved(*steps), Limits(), rate=100.0)
    assert found["seam_violations"] >= 1 and found["seam_problems"][0].startswith(what)


def test_setpoints_that_are_late_are_missed_and_may_go_further():
    steps = [(0.004, 0.0)] * 10
    steps[5] = (0.008, 0.0)
    begins = [(0.001 * k, 0.0) for k in range(4)]
    found = figures(moved(*begins, *steps, late=(9,)), Limits(), rate=100.0)
    assert (found["misses"], found["seam_violations"]) == (1, 0)
    assert figures(moved(*begins, *steps), Limits(), rate=100.0)["seam_violations"] == 2, "there and back"


def test_setpoints_under_one_stamp_are_a_violation():
    twice = [target for target in moved(*SMOOTH) for _ in range(2)]
    assert "no later" in figures(twice, Limits(), rate=100.0)["seam_problems"][0]


@pytest.mark.parametrize("count", [0, 1])
def test_few_setpoints_have_no_rhythm(count):
    found = figures(moved(*SMOOTH)[:count], Limits(), rate=100.0)
    assert found["setpoints"] == count and found["seam_violations"] == 0
    assert found["rate_hz"] is found["misses"] is found["jitter_ms"]["p99"] is None


# ---- the JSON


def test_the_result_has_the_names_that_were_fixed():
    fault = Fault("policy_sigkill", (Trial(80.0), Trial(100.0), Trial(None, ("no stop",))))
    rate = Promise("player_rate", 100, 0, 0.05, "%", 0.1, player={"rate_hz": 100.0, "misses": 1, "jitter_ms": {"p99": 1.0}})
    result = result_of([fault, rate, Fuzz("fuzz", 10, 0, 0, 0)])
    assert json.loads(json.dumps(result)) == result
    assert result["faults"] == [
        {"name": "policy_sigkill", "trials": 3, "stopped": 2, "stop_ms": {"p50": 80.0, "p99": 100.0, "max": 100.0}, "violations": 1}
    ]
    assert result["promises"] == [
        {"name": "player_rate", "trials": 100, "violations": 0, "value": 0.05, "unit": "%", "target": 0.1, "met": True}
    ]
    assert {"messages": 10, "crashes": 0, "nonfinite_out": 0}.items() <= result["fuzz"].items()
    assert result["player"]["jitter_ms"]["p99"] == 1.0
    assert "no stop" in result["error"]


@pytest.mark.parametrize(
    "finding",
    [
        Fault("camera_loss", (Trial(80.0, ("moved again",)),)),
        Fault("policy_sigkill", (Trial(101.0),), p99_ms=100.0),
        Promise("seam", 10, 1, 0.0, "steps", 0.0),
        Promise("lifecycle", 10, 0, 2.0, "KiB", 1.0),
        Fuzz("fuzz", 10, 1, 0, 0),
        Fuzz("fuzz", 10, 0, 0, 1),
    ],
)
def test_a_broken_promise_is_an_error(finding):
    assert finding.name in result_of([finding])["error"]


def test_nothing_wrong_is_no_error():
    assert "error" not in result_of([Fault("camera_loss", (Trial(80.0),)), Promise("seam", 10, 0, 0.0, "steps", 0.0)])


# ---- the report


def test_a_folder_keeps_findings_and_shows_all_of_them(tmp_path):
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install '.[plot]'")
    fault = Fault("camera_loss", (Trial(300.0), Trial(420.0), Trial(None, ("the arm did not stop",))), max_ms=400.0)
    seam = Promise("seam", 100, 0, 0.0, "steps", 0.0, samples=Samples("share", (0.2, 1.0), 1.0))
    memory = Promise("lifecycle", 3, 0, 0.1, "MB", 4.0, ("x",), Samples("MB", (50.0, 51.0, 51.0), at=(1.0, 2.0, 3.0), at_label="loops"))
    fuzz = Fuzz("fuzz", 10, 0, 0, 0, {"chunk.stale": 3})
    rhythm = {"misses": 2, "jitter_ms": {"p99": 0.4}}
    rate = Promise("player_rate", 9, 0, 0.02, "% missed", 0.1, player={"rate_hz": 99.98, **rhythm, "arrival": rhythm})
    for finding in (fault, seam):
        Measured(finding, "what it does", "trials", 0, 0.01, "abc1234").save(tmp_path)
    for finding in (memory, fuzz, rate):  # another run, into the same folder
        kept = Measured(finding, "what it does", "trials", 1, None, "def5678+")
        kept.save(tmp_path)
        assert Measured.load(tmp_path / f"{finding.name}.json") == kept
    page = write_report(tmp_path, ("camera_loss", "seam", "lifecycle", "player_rate", "fuzz", "never_run")).read_text()
    assert "| `camera_loss` | what it does | 3 | 2 | 300 | 420 | 420 | max 400 | 1 | 1.0% | `abc1234` |" in page
    assert "`seam`" in page and "chunk.stale 3" in page and "the arm did not stop" in page and "seed 0, 1" in page
    assert "99.98 setpoints a second: 2 missed, jitter p99 0.40 ms" in page
    pictures = {line.rpartition("(")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")}
    assert pictures == {"faults.png", "seam.png", "lifecycle.png"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
