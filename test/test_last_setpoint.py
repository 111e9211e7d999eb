"""What reaches an arm when its controller stops, and beside nodes that should not be there: a short run of those proofs."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from bitvla_ros.nodes.prove.last_setpoint import STOPS
from bitvla_ros.nodes.prove.verb import PROOFS

pytestmark = pytest.mark.ros

TRIALS = {
    "last_setpoint_twist": len(STOPS),
    "last_setpoint_pose": len(STOPS),
    "last_setpoint_servo": 3,
    "take_over": 5,
    "first_pose": 4,
    "second_policy": 4,
    "second_controller": 1,
}


@pytest.mark.parametrize("name", TRIALS)
def test_a_stop_ends_in_a_hold_at_whoever_moves_the_arm(name, tmp_path):
    promise = PROOFS[name].run(TRIALS[name], 0, tmp_path, lambda count: None)
    assert promise.met, promise.examples
