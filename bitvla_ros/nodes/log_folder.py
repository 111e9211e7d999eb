"""ROS's log folder: a process starts without a log file where there can be none."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def log_folder() -> Path:
    """Where rcl writes log files (docs.ros.org, "Logging", environment variables)."""
    if folder := os.environ.get("ROS_LOG_DIR"):
        return Path(folder).expanduser()
    return Path(os.environ.get("ROS_HOME") or "~/.ros").expanduser() / "log"


def log_arguments() -> list[str]:
    """What rclpy.init needs among its arguments: without it, it fails where the log folder cannot be written. Says so on stderr then."""
    folder = log_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        why = f"{folder} cannot be written ({error.strerror})"
        print(f"there will be no log file: {why}; set ROS_LOG_DIR to a folder that can be", file=sys.stderr)
        return ["--ros-args", "--disable-external-lib-logs"]
