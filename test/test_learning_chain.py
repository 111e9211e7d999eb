"""From demonstrations to a number: record, train, distill, pack, eval, each as its verb does it, at toy size."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitvla_ros.action_convention import OSC
from bitvla_ros.cli import VERBS, given
from bitvla_ros.policy.bitvla import BitVLAPolicy
from bitvla_ros.policy.observation import Observation
from bitvla_ros.training.dataset import Dataset

ROOT = Path(__file__).resolve().parents[1]


def bitvla(verb: str, *options: str | Path) -> dict[str, Any]:
    """What `bitvla VERB OPTIONS --json` prints."""
    module = importlib.import_module(VERBS[verb].module)
    parser, words = argparse.ArgumentParser(), list(map(str, options))
    module.add_arguments(parser)
    result: dict[str, Any] = module.run(argparse.Namespace(**vars(parser.parse_args(words)), given=given(module, words)))
    return result


@pytest.mark.timeout(600)
def test_demonstrations_become_a_ternary_policy_that_is_evaluated(tmp_path):
    demos, suite = tmp_path / "demos", "tabletop_spatial"  # the suite with the shortest episodes
    bitvla("record", "--suite", suite, "--episodes", 2, "--image-size", 112, "--render-size", 112, "--output", demos)
    dataset = Dataset(demos)
    assert len(dataset.lengths) == 2 and dataset.fps == 20.0

    quick = ["--dataset", demos, "--batch-size", 2, "--warmup", 0, "--workers", 0]
    teacher = bitvla("train", "random:nano", *quick, "--steps", 2, "--full-precision", "vision", "--output", tmp_path / "teacher")
    student = bitvla("distill", teacher["checkpoint"], *quick, "--steps", 2, "--output", tmp_path / "student")
    assert teacher["steps"] == student["steps"] == 2 and student["hidden"] > 0

    packed = tmp_path / "packed"
    bitvla("pack", student["checkpoint"], packed)
    result = bitvla("eval", packed, "--suite", suite, "--episodes", 1, "--image-size", 112)
    assert result["suite"] == suite and result["episodes"] == 1 and len(result["episodes_detail"]) == 1
    assert result["episodes_detail"][0]["steps"] > 0

    images, state, _, task = dataset.frame(0)
    observation = Observation(images, state.astype(np.float64), task, dict.fromkeys((*images, "state"), 1))
    from_packed, from_checkpoint = (BitVLAPolicy.load(path).infer(observation).actions for path in (packed, student["checkpoint"]))
    conventions = [dataset.convention, *(BitVLAPolicy.load(path).spec.convention for path in (student["checkpoint"], packed))]
    assert conventions == [OSC] * 3
    assert from_packed.shape == (8, 7) and np.array_equal(from_packed, from_checkpoint)


def test_triton_loads_in_a_process_that_has_rendered_a_picture():
    """torch loads it at odd moments; with Mesa's LLVM before its own the process was gone."""
    pytest.importorskip("triton")
    program = "from bitvla_ros.simulation import make; make('tabletop_object', image_size=32).reset(0, 0); import triton"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
