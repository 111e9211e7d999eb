"""LIBERO, the controller and a policy. Then have an instruction carried out:

    ros2 action send_goal -f /execute_instruction bitvla_ros/action/ExecuteInstruction "{instruction: '...'}"

The simulator says its instruction on /simulation_state; /reset_episode begins another task.
"""

from bitvla_ros.nodes.launching import LIBERO, describe


def generate_launch_description():
    return describe(LIBERO, "libero_sim.yaml")
