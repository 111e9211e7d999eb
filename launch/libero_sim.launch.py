"""LIBERO, the controller and a policy. Then have an instruction carried out:

    ros2 action send_goal -f /execute_instruction bitvla_ros/action/ExecuteInstruction "{instruction: '...'}"

The simulator says its instruction on /simulation_state; /reset_episode begins another task.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from bitvla_ros.nodes.launching import ENVIRONMENT, LIBERO, simulation_graph
from launch import LaunchDescription


def nodes(context):
    arguments = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in LIBERO}
    config = Path(get_package_share_directory("bitvla_ros")) / "config"
    return [
        Node(
            package="bitvla_ros",
            executable=spec.executable,
            name=spec.name,
            parameters=[*(str(config / name) for name in spec.configs), dict(spec.parameters)],
            output="screen",
        )
        for spec in simulation_graph(arguments, "libero_sim.yaml")
    ]


def generate_launch_description():
    declared = [
        DeclareLaunchArgument(a.name, default_value=a.default, description=a.description, choices=a.choices or None) for a in LIBERO
    ]
    environment = [SetEnvironmentVariable(name, value) for name, value in ENVIRONMENT.items()]
    return LaunchDescription([*environment, *declared, OpaqueFunction(function=nodes)])
