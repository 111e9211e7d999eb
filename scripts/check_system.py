"""Is everything here that pip cannot bring? Exits 0, or 1 after naming what is missing and the line that installs it.

Runs on the bare interpreter before a virtual environment exists: standard library only, and syntax that old Pythons can read.
`--packages` prints the Debian and Ubuntu packages that are missing, one line, nothing else (for .ci/run).
"""

import ctypes
import importlib.util
import os
import shutil
import sys
import sysconfig

OLDEST, NEWEST = (3, 10), (3, 13)


def loads(*names):
    """Whether one of these shared libraries can be loaded."""
    for name in names:
        try:
            ctypes.CDLL(name)
            return True
        except OSError:
            pass
    return False


def missing_packages():
    """(Debian package, what it is for) of everything that is not here."""
    found = []
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        found.append(("python3-venv", "virtual environments"))
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        found.append(("python3-dev", "compiling the ROS messages"))
    if shutil.which("c++") is None or shutil.which("cc") is None:
        found.append(("build-essential", "compiling the CPU kernel and the ROS messages"))
    if not loads("libEGL.so.1") and not loads("libOSMesa.so.8", "libOSMesa.so.6"):
        for package in ("libegl1", "libegl-mesa0", "libgl1-mesa-dri"):
            found.append((package, "rendering the simulator's cameras"))
    if not loads("libGL.so.1", "libOpenGL.so.0"):
        found.append(("libgl1", "rendering the simulator's cameras"))
    if "--libero" in sys.argv:
        if not loads("libOSMesa.so.8", "libOSMesa.so.6"):
            found.append(("libosmesa6", "rendering LIBERO in software"))
        if not loads("libglib-2.0.so.0"):
            found.append(("libglib2.0-0", "LIBERO's image libraries"))
    return found


def main():
    missing = missing_packages()
    if "--packages" in sys.argv:
        print(" ".join(package for package, _ in missing))
        return 0
    problems = []
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        problems.append(
            f"{sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}: this needs 3.10 to 3.13. "
            "Name another one: make PYTHON=python3.12 ..."
        )
    if sys.platform != "linux" or os.uname().machine not in ("x86_64", "AMD64"):
        problems.append(
            f"This is {sys.platform} on {os.uname().machine}: ROS 2 wheels exist for Linux on x86-64 only. "
            "Install ROS 2 from apt and build with colcon (README)."
        )
    if missing:
        width = max(len(package) for package, _ in missing)
        problems.append(
            "System packages are missing:\n"
            + "".join(f"    {package:{width}}  {use}\n" for package, use in missing)
            + "Install them and call make again:\n    sudo apt-get install -y --no-install-recommends "
            + " ".join(package for package, _ in missing)
        )
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
