#!/usr/bin/env bash
# test_colcon.sh kilted|jazzy: builds the package against that release of ROS 2 outside the checkout, with pip and then with colcon,
# and smoke-tests both installations from there. The environment .venv-<release> must be complete.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
release=$1
export VIRTUAL_ENV=$PWD/.venv-$release
export PATH=$VIRTUAL_ENV/bin:$PATH
constraints=$PWD/constraints.txt
if [ "$release" = jazzy ]; then constraints=$VIRTUAL_ENV/constraints.txt; fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_PYTHON_CHECK_FIELDS=1
unset AMENT_PREFIX_PATH CMAKE_PREFIX_PATH PYTHONPATH COLCON_PREFIX_PATH

workspace=$(mktemp -d "${TMPDIR:-/tmp}/bitvla_ros.XXXXXX")
trap 'rm -rf "$workspace"' EXIT
source=$workspace/src/bitvla_ros
mkdir -p "$source"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
  if [ -e "$file" ]; then printf '%s\0' "$file"; fi
done | tar --create --null --files-from - | tar --extract --directory "$source"
cd "$workspace"

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

say "$release: pip install"
# Jazzy's generators are not those of pyproject.toml, so pip must take the ones in the environment.
if [ "$release" = jazzy ]; then
  python -m pip install --quiet --constraint "$constraints" --no-build-isolation "$source[sim]"
else
  python -m pip install --quiet --constraint "$constraints" --build-constraint "$constraints" "$source[ros,sim]"
fi
python "$source/scripts/smoke.py" "$VIRTUAL_ENV"
python -m pip uninstall --quiet --yes bitvla_ros

say "$release: colcon build"
export AMENT_PREFIX_PATH=$VIRTUAL_ENV CMAKE_PREFIX_PATH=$VIRTUAL_ENV
colcon build --event-handlers console_cohesion- --cmake-args -GNinja -DBUILD_TESTING=OFF
set +u
source install/setup.bash
set -u
python "$source/scripts/smoke.py" "$workspace/install/bitvla_ros"
say "$release: passed"
