#!/usr/bin/env bash
# environment.sh FOLDER KIND: makes the virtual environment FOLDER and installs into it, every version from constraints.txt.
#   main    this package in place, ROS 2 Kilted from PyPI, the built-in simulator, the development tools
#   libero  the same and LIBERO
#   lerobot  LeRobot 0.6 alone, whose pins are others than ours; it wants Python 3.12 or newer
#   kilted, jazzy   colcon and what it needs to build against that release's wheels; not this package
# PYTHON names the interpreter, TORCH_INDEX an index to take torch from. Calling it again only installs what changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$1 kind=$2
python=${PYTHON:-python3}

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

"$python" scripts/check_system.py $([ "$kind" = libero ] && echo --libero)

# The file pins ROS 2 Kilted; Jazzy's pins stand in it behind "#jazzy ".
constraints=$PWD/constraints.txt
if [ "$kind" = jazzy ]; then
  mkdir -p "$folder"
  sed -e '/^ros-/d' -e 's/^#jazzy //' "$constraints" > "$folder/constraints.txt"
  constraints=$PWD/$folder/constraints.txt
fi
export PIP_BUILD_CONSTRAINT=$constraints PIP_DISABLE_PIP_VERSION_CHECK=1
install() { "$folder/bin/python" -m pip install --constraint "$constraints" "$@"; }

# torch first and alone: an index of torch's serves other packages too, which must come from pip's own.
install_torch() {
  local version
  version=$(sed -n 's/^torch==//p' "$constraints")
  if [ -n "${TORCH_INDEX:-}" ]; then
    say "Installing torch $version from $TORCH_INDEX"
    install --extra-index-url "$TORCH_INDEX" "torch==$version"
  elif ! nvidia-smi -L > /dev/null 2>&1 && install --quiet "torch==$version+cpu" 2> /dev/null; then
    say "Installed torch $version, CPU build"
  else
    say "Installing torch $version from pip's index, which holds the CUDA build: 3 GB. Without a GPU, stop here and call make"
    say "with TORCH_INDEX set to the CPU index that pytorch.org names under \"Get started\": 0.2 GB."
    install "torch==$version"
  fi
}

if ! [ -x "$folder/bin/python" ]; then
  say "Setting up $folder with $("$python" --version): about 0.5 GB to download and torch, 0.2 GB as the CPU build and 3 GB with CUDA"
  say "(pip's cache spares what it holds), then a minute of compiling."
  "$python" -m venv "$folder"
fi
if [ "$kind" = lerobot ]; then
  say "Installing LeRobot with a torch of its own: 3 GB, unless TORCH_INDEX names an index with a CPU build"
  "$folder/bin/python" -m pip install --quiet --upgrade pip
  "$folder/bin/python" -m pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --group lerobot
  touch "$folder/complete"
  say "$folder is ready."
  exit
fi
install --quiet pip setuptools wheel
install_torch
say "Installing the rest"
case $kind in
  main) install --editable '.[ros,sim,dev]' ;;
  libero)
    install --editable '.[ros,sim,libero,dev]'
    install --no-deps --group libero
    ;;
  kilted | jazzy) install --group "$kind" ;;
  *) say "unknown kind of environment: $kind"; exit 2 ;;
esac
touch "$folder/complete"
say "$folder is ready."
