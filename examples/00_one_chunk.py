"""One action chunk from BitVLA, without ROS and without a robot.

    python examples/00_one_chunk.py                                   # a small network with random weights
    python examples/00_one_chunk.py PATH_OR_HUB_ID                    # a checkpoint in the reference's layout
"""

import sys

import numpy as np

from bitvla_ros.policy.bitvla import BitVLAPolicy
from bitvla_ros.policy.observation import Observation, state_vector

policy = BitVLAPolicy.load(sys.argv[1], control_hz=20.0) if len(sys.argv) > 1 else BitVLAPolicy.random("nano", seed=0)

picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
observation = Observation(
    images=dict.fromkeys(policy.spec.cameras, picture),
    state=state_vector(position=np.array([0.5, 0.0, 0.3]), quaternion=np.array([1.0, 0.0, 0.0, 0.0]), gripper=np.array([0.04, -0.04])),
    instruction="pick up the red block and place it in the basket",
    stamps=dict.fromkeys((*policy.spec.cameras, "state"), 0),
)
chunk = policy.infer(observation)

print(f"{policy.spec.name}: {chunk.horizon} actions of {chunk.step_duration / 1e6:.0f} ms in {chunk.latency.total * 1e3:.0f} ms")
print(np.array2string(chunk.actions, precision=3, suppress_small=True))
