#!/usr/bin/env bash
# Rewrites constraints.txt from setup.cfg and pyproject.toml: one resolution for Python 3.10 to 3.13 with markers. Versions that are
# in the file already stay as they are where they still fit. Then requirements-robot.txt: the part of it that a robot needs, for numpy 1.
# Needs uv (pip install uv) on PATH or named by UV.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=${UV:-uv}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 - > "$folder/requirements.in" <<'PYTHON'
import configparser, re

setup = configparser.ConfigParser()
setup.read("setup.cfg")
lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
print("pip\nwheel\ntorch==2.13.0")
print("\n".join(line for text in lines for line in text.splitlines() if not line.startswith(("bitvla_ros", "#"))))
build = re.search(r"^requires = \[(.*?)^\]", open("pyproject.toml").read(), re.M | re.S).group(1)
print("\n".join(requirement for _, requirement in re.findall(r"""(['"])(.*)\1,?$""", build, re.M)))
PYTHON
cp constraints.txt "$folder/kilted.txt"
cp constraints.txt "$folder/jazzy.txt"
# What a robot needs beside ROS and torch: requirements of the package, the simulator and the report's pictures, for the numpy of cv_bridge.
python3 - > "$folder/robot.in" <<'PYTHON'
import configparser

setup = configparser.ConfigParser()
setup.read("setup.cfg")
extras = setup["options.extras_require"]
text = setup["options"]["install_requires"] + extras["sim"] + extras["plot"]
print("numpy<2\nopencv-python-headless<4.12")
print("\n".join(line for line in text.splitlines() if not line.startswith(("torch", "#"))))
PYTHON

compile() { "$uv" pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header --no-emit-package torch "$@"; }

compile --output-file "$folder/kilted.txt" "$folder/requirements.in" --group kilted
grep -v '^ros-' "$folder/requirements.in" > "$folder/common.in"
grep -v '^ros-' "$folder/kilted.txt" > "$folder/pins.txt"
compile --output-file "$folder/jazzy.txt" --constraint "$folder/pins.txt" "$folder/common.in" --group jazzy

# The package runs on Linux; uv also pins what only other systems need.
linux_only() {
  grep -v "sys_platform == '\(win32\|emscripten\)'" "$1" | sed "s/ and sys_platform [!=]= '[a-z0-9]*'//g; s/ ; sys_platform [!=]= '[a-z0-9]*'\$//"
}

{
  sed -n '/^#jazzy /d; /^#/p' constraints.txt
  echo "torch==2.13.0"
  sed -n 's/^libero = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '" ' | tr ',' '\n'
  linux_only "$folder/kilted.txt"
  sed -n 's/^ros-/#jazzy ros-/p' "$folder/jazzy.txt"
} > "$folder/constraints.txt"
cp "$folder/constraints.txt" constraints.txt

grep -v '^\(#\|ros-\|torch=\|numpy=\|opencv-python-headless=\)' constraints.txt > "$folder/pins.txt"
compile --output-file "$folder/robot.txt" --constraint "$folder/pins.txt" "$folder/robot.in"
{
  sed -n '/^#/p' requirements-robot.txt
  linux_only "$folder/robot.txt"
} > "$folder/requirements-robot.txt"
cp "$folder/requirements-robot.txt" requirements-robot.txt
