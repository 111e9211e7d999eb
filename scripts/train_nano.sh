#!/usr/bin/env bash
# How a nano is made from nothing: demonstrations, training, packing, evaluation. Each step goes on where it was stopped; run it again after a kill.
# The shipped one was made in parts, with the commands in docs/learning.md.
#   scripts/train_nano.sh [FOLDER]      FOLDER holds everything that comes up on the way (default: outputs/nano)
#   EPISODES=300 FEW=500 STACK=90       demonstrations of each suite, of tabletop_few, and more of stacking
#   GRASP=20000 READ=4000 JOIN=5000     steps of 32 samples: everything; what to reach for; everything again
# The result is FOLDER/packed. It becomes the shipped model by hand, with the figures of FOLDER/eval in its card:
#   cp FOLDER/packed/* models/nano/
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-outputs/nano}
suites=(tabletop_spatial tabletop_object tabletop_goal)
bitvla() { .venv/bin/bitvla "$@"; }
each() { printf -- "--suite %s " "${suites[@]}"; }
mkdir -p "$out"

# Noise shows how to come back to the path. Colours are found sooner among few things.
# shellcheck disable=SC2046  # an option a suite
bitvla record $(each) --episodes "${EPISODES:-300}" --noise 0.3 --workers 2 --output "$out/demonstrations"
bitvla record --suite tabletop_few --episodes "${FEW:-500}" --noise 0.3 --counterfactuals 4 --workers 2 --output "$out/few"

bitvla record --suite tabletop_goal --task 4 --seed 30000 --episodes "${STACK:-90}" --noise 0.3 --workers 2 --output "$out/stack"

# train START OUTPUT STEPS RATE DATASET... [OPTIONS]: docs/learning.md says how fast this is, and why nano has the sizes it has.
train() {
  local start=$1 run=$2 steps=$3 rate=$4
  shift 4
  bitvla train "$start" --output "$run" --steps "$steps" --learning-rate "$rate" --batch-size 32 --warmup 50 --clip 1.0 --no-augmentation --compile \
    --dataset "$@"
}
train random:nano "$out/grasp" "${GRASP:-20000}" 1e-3 "$out/demonstrations"
# A dataset that is named three times counts three times.
train "$out/grasp/checkpoint" "$out/read" "${READ:-4000}" 4e-4 "$out/demonstrations" "$out/few" "$out/few" "$out/few" --approach
train "$out/read/checkpoint" "$out/join" "${JOIN:-5000}" 4e-4 "$out/demonstrations" "$out/few" "$out/stack"

[ -d "$out/packed" ] || bitvla pack "$out/join/checkpoint" "$out/packed"

# Seeds that no demonstration has: through the graph, as a robot would run it.
for suite in "${suites[@]}"; do
  [ -f "$out/eval/$suite.json" ] && continue
  mkdir -p "$out/eval"
  bitvla eval "$out/packed" --suite "$suite" --episodes 50 --through ros --json > "$out/eval/$suite.json.part"
  mv "$out/eval/$suite.json.part" "$out/eval/$suite.json"
done
