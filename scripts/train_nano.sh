#!/usr/bin/env bash
# How a nano is made from nothing (the shipped one was made in parts, with the commands in docs/learning.md): demonstrations, training, packing, evaluation. Each step goes on where it was stopped; run it again after a kill.
#   scripts/train_nano.sh [FOLDER]      FOLDER holds everything that comes up on the way (default: outputs/nano)
#   EPISODES=800 STEPS=60000            demonstrations of each suite; steps of 32 samples
# The result is FOLDER/packed. It becomes the shipped model by hand, with the figures of FOLDER/eval in its card:
#   cp FOLDER/packed/* models/nano/
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-outputs/nano}
suites=(tabletop_spatial tabletop_object tabletop_goal)
bitvla() { .venv/bin/bitvla "$@"; }
each() { printf -- "--suite %s " "${suites[@]}"; }
mkdir -p "$out"

# Noise shows how to come back to the path.
# shellcheck disable=SC2046  # an option a suite
bitvla record $(each) --episodes "${EPISODES:-800}" --noise 0.3 --workers 2 --output "$out/demonstrations"

# docs/learning.md says how fast this is, and why nano has the sizes it has.
bitvla train random:nano --dataset "$out/demonstrations" --output "$out/run" \
  --steps "${STEPS:-60000}" --batch-size 32 --learning-rate 1e-3 --warmup 500 --clip 1.0 --workers 1

[ -d "$out/packed" ] || bitvla pack "$out/run/checkpoint" "$out/packed"

# Seeds that no demonstration has: through the graph, as a robot would run it.
for suite in "${suites[@]}"; do
  [ -f "$out/eval/$suite.json" ] && continue
  mkdir -p "$out/eval"
  bitvla eval "$out/packed" --suite "$suite" --episodes 50 --through ros --json > "$out/eval/$suite.json.part"
  mv "$out/eval/$suite.json.part" "$out/eval/$suite.json"
done
