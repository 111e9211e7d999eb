"""Records osc_response.json beside it: how far robosuite's OSC_POSE really moves the arm at full scale.

python test/data/record_osc_response.py     (needs the LIBERO extra and its assets, see bitvla_ros/simulation/libero.py)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from bitvla_ros.simulation.environment import Snapshot
from bitvla_ros.simulation.libero import LiberoEnvironment

AXES = ("x", "y", "z", "rx", "ry", "rz")
HELD, RELEASED = 20, 10


def play(environment: LiberoEnvironment, steps: int, axis: int = 0, value: float = 0.0) -> list[Snapshot]:
    action = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
    action[axis] = value
    return [environment.step(action) for _ in range(steps)]


def main() -> None:
    environment = LiberoEnvironment("libero_object", cameras=())
    responses = {}
    for axis, name in enumerate(AXES):
        for sign in (1, -1):
            environment.reset(0, 0)
            if (name, sign) == ("z", -1):
                play(environment, 10, 2, 1.0)  # 20 steps down from the start would end on the floor
            start = play(environment, 20)[-1]
            snapshots = play(environment, HELD, axis, sign) + play(environment, RELEASED)
            upright = Rotation.from_quat(start.orientation).inv()
            responses[f"{'+' if sign > 0 else '-'}{name}"] = {
                "start_position": start.position.round(5).tolist(),
                "translation": [(s.position - start.position).round(5).tolist() for s in snapshots],
                "rotation": [(Rotation.from_quat(s.orientation) * upright).as_rotvec().round(5).tolist() for s in snapshots],
            }
    environment.close()
    record = {
        "about": "Response of robosuite 1.4.0's OSC_POSE (mujoco 3.8.1) on LIBERO's Panda at 20 Hz, free motion, libero_object task 0, "
        "initial state 0, gripper open. Made by record_osc_response.py.",
        "actions": f"{HELD} steps of +1 or -1 on the named axis, everything else 0; then {RELEASED} steps of zeros.",
        "translation": "m, world frame: grip site after each step, minus the start. 30 rows of 3.",
        "rotation": "rad, world frame: rotation vector of R(after each step) R(start)^-1, hand body. 30 rows of 3. After the release it "
        "goes on towards the last goal, up to 0.5 rad away: a zero rotation leaves OSC_POSE's orientation goal where it was, while a zero "
        "translation sets the position goal to the measured position.",
        "held_steps": HELD,
        "control_hz": 20,
        "responses": responses,
    }
    text = json.dumps(record, indent=1)
    Path(__file__).with_name("osc_response.json").write_text(
        text.replace("\n     ", " ").replace("\n    ]", " ]").replace("[ ", "[").replace(" ]", "]") + "\n"
    )


if __name__ == "__main__":
    main()
