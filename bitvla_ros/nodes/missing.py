"""Packages that come only with a ROS installation: import them where they are used, or say what brings them."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

# module -> name of its Debian package after ros-<distro>-. PyPI's `launch` and `cv-bridge` are other things.
_PACKAGES = {
    "control_msgs": "control-msgs",
    "cv_bridge": "cv-bridge",
    "launch": "launch",
    "launch_ros": "launch-ros",
    "moveit_msgs": "moveit-msgs",
    "ros2bag": "ros2bag",
    "tf2_ros": "tf2-ros-py",
}


class MissingPackage(ImportError):
    """A ROS package, or what it needs, is not installed; the message says which it is and what to do."""


def need(module: str) -> ModuleType:
    """Import a package that only a ROS installation has. Raises MissingPackage with the remedy."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            raise MissingPackage(
                f"{module} is installed but cannot be imported: it needs {error.name}, which is missing; install that for {sys.executable}"
            ) from error
        distro = os.environ.get("ROS_DISTRO", "$ROS_DISTRO")
        package = _PACKAGES.get(module.partition(".")[0], module.replace("_", "-"))
        raise MissingPackage(
            f"{module} is needed here and not installed: it comes with ROS, not from PyPI. Install it with "
            f"`sudo apt install ros-{distro}-{package}` and source /opt/ros/{distro}/setup.bash"
        ) from error
