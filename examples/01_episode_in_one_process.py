"""A tabletop episode in one process: the loop that the ROS graph plays in lockstep, action for action.

    python examples/01_episode_in_one_process.py [SUITE] [TASK] [SEED]
"""

import sys

from bitvla_ros.evaluation.rollout import rollout
from bitvla_ros.simulation import make
from bitvla_ros.simulation.expert import make_expert

suite = sys.argv[1] if len(sys.argv) > 1 else "tabletop_object"
task, seed = (int(argument) for argument in (sys.argv[2:4] if len(sys.argv) > 3 else ("0", "0")))

environment = make(suite, cameras=())  # the scripted expert looks at the simulator's truth, not at images
episode = rollout(environment, make_expert(suite), task, seed)
print(f"{environment.tasks[task]!r}: {'success' if episode.success else 'no success'} after {episode.steps} steps, {episode.chunks} chunks")
