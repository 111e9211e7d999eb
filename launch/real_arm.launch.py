"""The controller and a policy for a real arm, in shadow mode unless told otherwise. Cameras and the arm's driver must already run:
docs/real-arm.md says what, and in which order.

    ros2 launch bitvla_ros real_arm.launch.py profile:=fr3_crisp model:=PATH_OR_HUB_ID

An argument wins over every file, a file given as params_file over the profile. --show-args lists them all.
"""

from bitvla_ros.nodes.launching import REAL_ARM, describe_graph, real_arm_graph


def generate_launch_description():
    return describe_graph(REAL_ARM, real_arm_graph)
