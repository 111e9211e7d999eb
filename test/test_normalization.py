"""Proprioception and actions against the reference's recorded numbers, and as properties."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bitvla_ros.policy.normalization import (
    CLOSED,
    OPEN,
    Bounds,
    Statistics,
    StatisticsError,
    normalise_proprio,
    to_command,
    unnormalise_actions,
)

VARIANTS = ("fp32", "bf16", "noactq_fp32", "int8_fp32", "int8_bf16")


@pytest.fixture(scope="module")
def raw(shared: Path) -> dict:
    file = shared / "golden/bitvla_tiny/checkpoint/bitvla_tiny_a/dataset_statistics.json"
    return json.loads(file.read_text())["libero_spatial_no_noops"]


@pytest.mark.parametrize("case", [0, 1])
def test_proprioception_is_normalised_as_by_the_reference(shared, raw, case):
    inputs = np.load(shared / f"golden/bitvla_tiny/inputs/case{case}.npz")
    state = inputs["state"].copy()
    bounds = Statistics.from_dict(raw).proprio
    np.testing.assert_array_equal(normalise_proprio(state, bounds), inputs["proprio_normalized"])
    np.testing.assert_array_equal(state, inputs["state"])  # the reference normalises in place, so twice where it is called twice
    if case == 1:
        assert np.sum(np.abs(inputs["proprio_normalized"]) == 1) == 2  # it was made to be clipped in two


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("mask", ["bidir", "causal"])
def test_actions_and_commands_are_the_references(shared, raw, variant, case, mask):
    from safetensors.torch import load_file

    expected = load_file(shared / f"golden/bitvla_tiny/expected/case{case}.{variant}.safetensors")
    normalised = expected[f"{mask}.normalized_actions"].float().numpy()
    actions = unnormalise_actions(normalised, Statistics.from_dict(raw).action)
    np.testing.assert_array_equal(actions, expected[f"{mask}.actions"].numpy())
    command = to_command(actions)
    assert command.dtype == np.float32
    np.testing.assert_array_equal(command, expected[f"{mask}.env_actions"].numpy().astype(np.float32))


finite = st.floats(-1e3, 1e3, width=64)


@st.composite
def bounds(draw, masked=True):
    q01 = draw(arrays(np.float64, 7, elements=finite))
    width = draw(arrays(np.float64, 7, elements=st.floats(1e-3, 1e3)))
    mask = draw(arrays(np.bool_, 7)) if masked else np.ones(7, np.bool_)
    return Bounds(q01, q01 + width, mask)


@given(bounds(), arrays(np.float64, 7, elements=st.floats(-1, 1)))
def test_normalising_undoes_unnormalising(bounds, action):
    back = normalise_proprio(unnormalise_actions(action, bounds), bounds)
    np.testing.assert_allclose(back, action, atol=1e-8 * max(1.0, np.abs(bounds.q01).max() * 100))


@given(bounds(masked=False), arrays(np.float64, 7, elements=st.floats(-1e6, 1e6)))
def test_normalised_proprioception_never_leaves_the_unit_range(bounds, state):
    assert np.abs(normalise_proprio(state, bounds)).max() <= 1


@given(bounds(), arrays(np.float64, (8, 7), elements=st.floats(-2, 2)))
def test_masked_out_dimensions_pass_unchanged_and_the_others_keep_their_order(bounds, actions):
    out = unnormalise_actions(actions, bounds)
    np.testing.assert_array_equal(out[:, ~bounds.mask], actions[:, ~bounds.mask])
    low, high = unnormalise_actions(-np.ones(7), bounds), unnormalise_actions(np.ones(7), bounds)
    np.testing.assert_allclose(low[bounds.mask], bounds.q01[bounds.mask], atol=1e-6)
    np.testing.assert_allclose(high[bounds.mask], bounds.q99[bounds.mask], atol=1e-6)


@given(arrays(np.float64, (8, 7), elements=st.floats(-5, 5)))
def test_a_command_is_within_its_convention(actions):
    command = to_command(actions)
    assert np.abs(command).max() <= 1
    assert np.isin(command[:, 6], (OPEN, CLOSED)).all()
    inside = np.abs(actions[:, :6]) <= 1
    np.testing.assert_array_equal(command[:, :6][inside], actions[:, :6].astype(np.float32)[inside])


@pytest.mark.parametrize(("gripper", "command"), [(1.0, OPEN), (0.51, OPEN), (0.5, CLOSED), (0.49, CLOSED), (0.0, CLOSED), (-3.0, CLOSED)])
def test_gripper_convention_is_turned_round_and_a_tie_does_not_let_go(gripper, command):
    actions = np.zeros((1, 7))
    actions[0, 6] = gripper
    assert to_command(actions)[0, 6] == command


def test_non_finite_actions_stay_visible():
    actions = np.full((1, 7), np.nan)
    assert np.isnan(to_command(actions)).all()


def test_identity_statistics_change_nothing_but_epsilon():
    statistics = Statistics.identity()
    actions = np.linspace(-1, 1, 56).reshape(8, 7)
    np.testing.assert_allclose(unnormalise_actions(actions, statistics.action), actions, atol=1e-7)
    np.testing.assert_allclose(normalise_proprio(actions[0, :1].repeat(8) / 2, statistics.proprio), actions[0, :1].repeat(8) / 2, atol=1e-7)


def test_statistics_without_proprioception_serve_a_model_without(raw):
    assert Statistics.from_dict({"action": raw["action"]}, proprio_dim=None).proprio is None
    with pytest.raises(StatisticsError, match="proprio"):
        Statistics.from_dict({"action": raw["action"]})


def change(part: str, key: str, value):
    def apply(statistics: dict) -> None:
        if value is None:
            del statistics[part][key]
        else:
            statistics[part][key] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("action", "q01", None), "q01 is missing"),
        (change("action", "q99", [0.0] * 6), "expected 7 numbers"),
        (change("proprio", "q01", [0.0] * 7), "expected 8 numbers"),
        (change("action", "q99", [float("nan")] * 7), "not finite"),
        (change("proprio", "q99", [float("inf")] * 8), "not finite"),
        (change("action", "q01", [9.0] * 7), "above q99"),
        (change("action", "q01", ["a"] * 7), "expected 7 numbers"),
        (change("action", "mask", [1] * 7), "booleans"),
        (change("action", "mask", [True] * 3), "booleans"),
        (lambda statistics: statistics.pop("action"), "action"),
        (lambda statistics: statistics.update(action=[1, 2]), "object"),
    ],
)
def test_bad_statistics_are_refused(raw, spoil, message):
    statistics = copy.deepcopy(raw)
    spoil(statistics)
    with pytest.raises(StatisticsError, match=message):
        Statistics.from_dict(statistics)


def test_missing_statistics_are_refused():
    with pytest.raises(StatisticsError, match=r"dataset_statistics\.json"):
        Statistics.from_dict(None)
