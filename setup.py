"""pip's way to the package: run CMakeLists.txt, the same that colcon runs, and hand its results to setuptools.

CMake generates the interfaces and compiles the CPU kernel; setuptools packs the Python modules, the generated modules, their C
libraries and share/. Without ROS, CMake compiles the kernel alone.
Metadata stands in setup.cfg, the version in package.xml.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

NAME = "bitvla_ros"
ROOT = Path(__file__).resolve().parent
EXECUTABLES = ("policy_node", "controller_node", "simulation_node", "bitvla")
KERNEL = f"{NAME}/ternary/kernel"
LIBRARY = "libternary.so"
SHARED = ("launch", "config", "models", "msg", "srv", "action")  # of share/bitvla_ros; the rest serves CMake and colcon

# `ros2 run` and launch files look for executables in lib/bitvla_ros, pip puts console scripts into bin/.
TRAMPOLINE = '#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/../../bin/{name}" "$@"\n'


def ros_prefixes() -> list[Path]:
    """Where ROS is: a sourced one (AMENT_PREFIX_PATH) if there is one, else the wheels in Python's path."""
    sourced = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    wheels = [parent for entry in sys.path for parent in Path(entry).parents[2:3]]
    for candidates in (sourced, wheels):
        if any((prefix / "share/rosidl_default_generators").is_dir() for prefix in candidates):
            return list(dict.fromkeys(prefix for prefix in candidates if (prefix / "share/ament_index").is_dir()))
    return []


def replace(library: Path, folder: Path) -> None:
    """Copies it there under another name first: a process that runs on the old library keeps it."""
    os.replace(shutil.copy2(library, folder / f"{library.name}.new"), folder / library.name)


class BuildNative(Command):
    """Runs CMake and installs what a Python process needs of msg/, srv/, action/ and the CPU kernel."""

    description = "compile the CPU kernel, generate and compile the ROS interfaces with CMake"
    user_options: list[tuple[str, str, str]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.build_temp: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_temp", "build_temp"))

    def run(self) -> None:
        # In place the libraries stand beside the sources.
        target = ROOT / NAME if self.editable_mode else Path(self.build_lib or "") / NAME
        prefixes = ros_prefixes()
        if not prefixes:
            print(
                f"{NAME}: no ROS with interface generators here (x86-64 wheels, or a sourced installation), so this installs the "
                "core alone: no bitvla_ros.msg, no nodes. With a ROS from apt, source it and use `colcon build`.",
                file=sys.stderr,
            )
            stage = self.cmake(ROOT / KERNEL)
            replace(stage / LIBRARY, target / "ternary")
            return
        path = os.pathsep.join(map(str, prefixes))
        packages = [entry for prefix in prefixes for entry in map(str, prefix.glob("**/python3*/*-packages"))]
        python = os.pathsep.join([*packages, *filter(None, sys.path)])
        stage = self.cmake(ROOT, AMENT_PREFIX_PATH=path, CMAKE_PREFIX_PATH=path, PYTHONPATH=python)
        generated = next(stage.glob(f"**/*-packages/{NAME}"))
        for folder in ("msg", "srv", "action"):
            shutil.rmtree(target / folder, ignore_errors=True)
            shutil.copytree(generated / folder, target / folder, ignore=shutil.ignore_patterns("*.c", "__pycache__"))
        for library in generated.glob("*.so"):
            replace(library, target)
        replace(generated / "ternary" / LIBRARY, target / "ternary")
        self.add_data_files(stage)

    def cmake(self, source: Path, **environment: str) -> Path:
        """Configure, build and install into a staging folder; returns it."""
        # A cache from another isolated build names folders that are gone.
        folder = Path(self.build_temp or "").resolve() / "cmake"
        shutil.rmtree(folder, ignore_errors=True)
        stage = folder / "stage"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        options = [f"-DPython3_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_PREFIX={stage}", "-DBUILD_TESTING=OFF"]
        for command in (
            ["cmake", "-S", str(source), "-B", str(folder), *generator, "-DCMAKE_BUILD_TYPE=Release", *options],
            ["cmake", "--build", str(folder), "--parallel"],
            ["cmake", "--install", str(folder)],
        ):
            subprocess.run(command, check=True, env={**os.environ, **environment})
        return stage

    def add_data_files(self, stage: Path) -> None:
        """Adds libraries, share/ and executables to the distribution's data files, which go to the environment's prefix."""
        files = [path for path in stage.glob("lib/*.so") if not path.stem.endswith("_cpp")]
        files += [path for path in stage.glob("share/ament_index/**/*") if path.is_file()]
        shared = stage / "share" / NAME
        files += [shared / "package.xml"]
        files += [path for folder in SHARED for path in (shared / folder).glob("**/*") if path.is_file()]
        for name in EXECUTABLES:
            path = stage / "lib" / NAME / name
            path.write_text(TRAMPOLINE.format(name=name))
            path.chmod(0o755)
            files.append(path)
        assert self.distribution.data_files is not None
        for path in files:
            self.distribution.data_files.append((str(path.parent.relative_to(stage)), [str(path)]))

    def get_source_files(self) -> list[str]:
        folders = ("cmake/*", "msg/*", "srv/*", "action/*", "launch/*", "config/*", "models/*/*", f"{KERNEL}/*")
        patterns = ("CMakeLists.txt", "package.xml", *folders)
        return [str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]


class PlatformDistribution(Distribution):
    """The libraries are compiled: the wheel belongs to one platform and one Python, and its data files are known only later."""

    def has_ext_modules(self) -> bool:
        return True

    def has_data(self) -> bool:  # asked by setuptools' editable_wheel
        return True

    has_data_files = has_data


setup(
    version=ElementTree.parse(ROOT / "package.xml").getroot().findtext("version"),
    data_files=[],
    cmdclass={"build": Build, "build_native": BuildNative},
    distclass=PlatformDistribution,
)
