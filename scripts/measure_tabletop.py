"""The figures of the tabletop in the README: the expert's successes, and control steps a second with both cameras.

.venv/bin/python scripts/measure_tabletop.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from bitvla_ros.evaluation.rollout import rollout
from bitvla_ros.simulation import TABLETOP_SUITES, make
from bitvla_ros.simulation.expert import make_expert

SEEDS = range(100, 120)
RUNS, STEPS = 5, 60

for suite in TABLETOP_SUITES:
    environment, expert = make(suite), make_expert(suite)
    environment.reset(0, 0)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (RUNS * STEPS, 7)).astype(np.float32)
    rates = []
    for run in np.split(actions, RUNS):
        began = time.perf_counter()
        for action in run:
            environment.step(action)
        rates.append(STEPS / (time.perf_counter() - began))
    environment.close()

    blind = make(suite, cameras=())
    episodes = [rollout(blind, expert, task, seed).success for task in range(len(blind.tasks)) for seed in SEEDS]
    rate = f"{statistics.median(rates):.0f} control steps a second (lowest of {RUNS}: {min(rates):.0f})"
    print(f"{suite}: expert {sum(episodes)}/{len(episodes)}; two cameras at 256 px: {rate}", flush=True)
