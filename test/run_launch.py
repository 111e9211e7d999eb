"""python run_launch.py FILE NAME:=VALUE ...: what `ros2 launch` does with a launch file, where ros2cli is not installed."""

from __future__ import annotations

import sys

from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription, LaunchService


def main(file: str, *arguments: str) -> int:
    given = [tuple(argument.split(":=", 1)) for argument in arguments]
    service = LaunchService(argv=list(arguments))
    service.include_launch_description(
        LaunchDescription([IncludeLaunchDescription(PythonLaunchDescriptionSource(file), launch_arguments=given)])
    )
    return service.run()


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
