"""An argument and a file that say different things: an error that names both, whoever reads the file. Agreeing or filling in is fine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import STATISTICS, edit, write, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros import cli
from bitvla_ros.evaluation.evaluation import Choice
from bitvla_ros.evaluation.readiness import needs
from bitvla_ros.model import load, load_checkpoint, pack_model
from bitvla_ros.model.packed import read_packed
from bitvla_ros.model.saving import save_checkpoint
from bitvla_ros.policy.bitvla import BitVLAPolicy
from bitvla_ros.stated import TOLERANCE, Contradiction, agreed, same

STATED = {"control_hz": 10.0, "chunk": 5, "attention": "causal"}
OTHER = {"control_hz": 20.0, "chunk": 8, "attention": "bidirectional", "norm_key": "bridge"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that states everything."""
    folder = write_checkpoint(tmp_path_factory.mktemp("stated"))
    edit(folder / "config.json", **STATED, cameras=["front", "wrist"])
    return folder


@pytest.fixture(scope="module")
def packed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "model"
    pack_model(checkpoint, out)
    return out


# --- the rule -------------------------------------------------------------------------------------------------------------


@given(st.one_of(st.none(), st.integers(), st.text()), st.one_of(st.none(), st.integers(), st.text()))
def test_one_may_be_silent_and_two_must_agree(given, stated):
    if given is None or stated is None or given == stated:
        assert agreed("rate", given, stated, "a file") == (given if stated is None else stated)
    else:
        with pytest.raises(Contradiction, match=r"^rate is .*, but a file states .*: leave rate out$"):
            agreed("rate", given, stated, "a file")


@given(st.floats(1e-3, 1e4), st.floats(-0.9, 0.9))
def test_rates_that_differ_by_rounding_are_the_same_and_the_files_own_holds(rate, share):
    assert agreed("rate", rate * (1 + share * TOLERANCE), rate, "a file") == rate
    assert not same(rate * (1 + 3 * TOLERANCE), rate)


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [
        (29.97, 30000 / 1001, True),
        (20, 20.0, True),
        (float("nan"), 20.0, False),
        (0.0, 10.0, False),
        ("20", 20.0, False),
        (("scene", "wrist"), ["scene", "wrist"], True),
        (("wrist", "scene"), ("scene", "wrist"), False),
        ((0.0, 1.0), (0.0, 1.0 + 1e-9), True),
        (False, True, False),
    ],
)
def test_what_counts_as_the_same(one, two, equal):
    assert same(one, two) is equal and same(two, one) is equal


# --- who reads a model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("reads", [load_checkpoint, load, BitVLAPolicy.load, lambda path, **options: needs(str(path), **options)])
@pytest.mark.parametrize("kind", ["checkpoint", "packed"])
def test_whoever_loads_a_model_refuses_an_option_that_contradicts_it(request, kind, reads, option):
    path = request.getfixturevalue(kind)
    if kind == "packed" and reads is load_checkpoint:
        pytest.skip("load_checkpoint is for checkpoints")
    words = f"{option} is .*{re.escape(str(OTHER[option]).removesuffix('.0'))}"
    if option == "norm_key" and kind == "checkpoint":
        words = "no statistics under norm_key 'bridge'"
    with pytest.raises(ValueError, match=words):
        reads(path, **{option: OTHER[option]})


def test_what_agrees_and_what_fills_in_is_taken(checkpoint, packed, tmp_path):
    for path in (checkpoint, packed):
        policy = BitVLAPolicy.load(path, **STATED, cameras=("front", "wrist"), norm_key="libero_goal")
        assert (policy.spec.control_hz, policy.spec.horizon, policy.spec.cameras) == (10.0, 5, ("front", "wrist"))
    silent = write_checkpoint(tmp_path)
    policy = BitVLAPolicy.load(silent, **STATED, cameras=("top", "side"))
    assert (policy.spec.control_hz, policy.spec.horizon, policy.spec.cameras) == (10.0, 5, ("top", "side"))


@pytest.mark.parametrize("kind", ["checkpoint", "packed"])
def test_cameras_are_those_that_the_model_was_trained_on(request, kind):
    path = request.getfixturevalue(kind)
    assert BitVLAPolicy.load(path).spec.cameras == ("front", "wrist")
    with pytest.raises(Contradiction, match=r"cameras is 'wrist', 'front', but .*config.json states 'front', 'wrist': leave cameras out"):
        BitVLAPolicy.load(path, cameras=("wrist", "front"))


def test_cameras_survive_saving_and_packing(checkpoint, packed, tmp_path):
    model = load_checkpoint(checkpoint)
    assert load_checkpoint(save_checkpoint(model, tmp_path / "same")).cameras == ("front", "wrist")
    assert load_checkpoint(save_checkpoint(model, tmp_path / "other", cameras=["top"])).cameras == ("top",)
    assert read_packed(packed).cameras == ("front", "wrist")
    edit(tmp_path / "same" / "config.json", cameras="front")
    with pytest.raises(ValueError, match="cameras is 'front': expected a list of roles"):
        load_checkpoint(tmp_path / "same")


def test_random_weights_take_what_their_preset_states_and_nothing_else():
    policy = BitVLAPolicy.random("nano", control_hz=20.0, chunk=8, attention="bidirectional", norm_key="random", fit="crop")
    assert policy.spec.control_hz == 20.0 and policy.recipe.fit == "crop"
    for option, value in (("control_hz", 10.0), ("chunk", 5), ("attention", "causal"), ("norm_key", "bridge")):
        with pytest.raises(Contradiction, match=f"{option} is .* but random:nano states .*: leave {option} out"):
            BitVLAPolicy.random("nano", **{option: value})


# --- commands -------------------------------------------------------------------------------------------------------------


def refused(capfd: pytest.CaptureFixture[str], *command: object) -> str:
    assert cli.main([*map(str, command), "--json"]) == 2
    return json.loads(capfd.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--control-hz", "20"), r"control_hz is 20, but .*config\.json states 10: leave control_hz out"),
        (("--chunk", "8"), r"chunk is 8, but .*config\.json states 5"),
        (("--attention", "bidirectional"), r"attention is 'bidirectional', but .*config\.json states 'causal'"),
        (("--norm-key", "bridge"), "no statistics under norm_key 'bridge'"),
    ],
)
def test_pack_refuses_what_the_checkpoint_contradicts(checkpoint, tmp_path, capfd, options, words):
    assert re.search(words, refused(capfd, "pack", checkpoint, tmp_path / "out", *options))
    assert list(tmp_path.iterdir()) == []


def test_pack_takes_what_the_checkpoint_states_too(checkpoint, tmp_path):
    command = ["pack", str(checkpoint), str(tmp_path / "out"), "--control-hz", "10", "--chunk", "5", "--attention", "causal", "--json"]
    assert cli.main(command) == 0
    assert cli.main(["pack", "random:nano", str(tmp_path / "nano"), "--control-hz", "20", "--json"]) == 0


def test_eval_refuses_what_the_model_contradicts(packed, capfd):
    for model in (packed, "nano", "random:nano"):
        other = "20" if model == packed else "10"
        assert f"control_hz is {other}, but " in refused(capfd, "eval", model, "--control-hz", other, "--episodes", "1")
    assert Choice("random:nano", control_hz=20.0).load("tabletop_object").spec.control_hz == 20.0


def test_bench_times_a_checkpoint_at_any_rate(checkpoint, capfd):
    assert cli.main(["bench", "--model", str(checkpoint), "--chunks", "1", "--warmup", "1", "--json"]) == 0
    capfd.readouterr()
    assert "norm_key is 'x'" in refused(capfd, "bench", "--norm-key", "x")


def test_train_states_the_cameras_that_it_learned_from(tmp_path):
    from demonstrations import write_demonstrations

    write_demonstrations(tmp_path / "demos")
    quick = ["--steps", "1", "--batch-size", "2", "--warmup", "0", "--workers", "0", "--cameras", "wrist", "--json"]
    assert cli.main(["train", "random:nano", "--dataset", str(tmp_path / "demos"), "--output", str(tmp_path / "run"), *quick]) == 0
    assert load_checkpoint(tmp_path / "run" / "checkpoint").cameras == ("wrist",)
    assert BitVLAPolicy.load(tmp_path / "run" / "checkpoint").spec.cameras == ("wrist",)


# --- the policy node ------------------------------------------------------------------------------------------------------


def parameters(**changes: object) -> SimpleNamespace:
    pytest.importorskip("rclpy")
    from bitvla_ros.nodes.load import DEFAULTS

    return SimpleNamespace(**{**DEFAULTS, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "nano", "control_hz": 10.0}, r"control_hz is 10, but .*config\.json states 20"),
        ({"model": "nano", "chunk": 4}, r"chunk is 4, but .*config\.json states 8"),
        ({"model": "nano", "attention": "causal"}, r"attention is 'causal', but .*config\.json states 'bidirectional'"),
        ({"model": "nano", "norm_key": "bridge"}, r"norm_key is 'bridge', but .*config\.json states 'tabletop_few'"),
        ({"model": "nano", "activation_bits": 0}, r"activation_bits is 0, but .*config\.json states 8"),
        ({"model": "random:nano", "chunk": 4}, "chunk is 4, but random:nano states 8"),
        ({"policy": "expert", "control_hz": 10.0}, "control_hz is 10, but the expert of tabletop_object states 20"),
        ({"policy": "expert", "attention": "causal"}, "attention is not read by the expert, only by random weights, a trained model"),
        ({"policy": "replay", "model": "REPLAY", "control_hz": 10.0}, r"control_hz is 10, but .*replay\.npz states 20"),
        ({"policy": "replay", "model": "REPLAY", "norm_key": "x"}, "norm_key is not read by a replay"),
    ],
)
def test_the_policy_node_refuses_parameters_that_contradict_the_model(tmp_path, changes, words):
    import numpy as np

    from bitvla_ros.policy.replay import ReplayPolicy

    if changes["model" if "model" in changes else "policy"] == "REPLAY":
        ReplayPolicy(np.zeros((3, 7), np.float32), control_hz=20.0).save(tmp_path / "replay.npz")
        changes = {**changes, "model": str(tmp_path / "replay.npz")}
    p = parameters(**changes)
    from bitvla_ros.nodes.load import load_policy

    with pytest.raises(ValueError, match=words):
        load_policy(p, print)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "random:nano", "control_hz": 20.0},
        {"model": "random:nano", "control_hz": 20.0, "seed": 3, "fit": "crop", "cameras": ("front", "wrist")},
        {"model": "nano", "control_hz": 20.0, "chunk": 8, "norm_key": "tabletop_few"},
        {"policy": "expert", "control_hz": 20.0, "fit": "crop"},
    ],
)
def test_parameters_that_agree_are_taken(changes):
    p = parameters(**changes)
    from bitvla_ros.nodes.load import load_policy

    policy = load_policy(p, print)
    assert policy.spec.control_hz == 20.0
    if "cameras" in changes:
        assert policy.spec.cameras == changes["cameras"]


def test_the_doctor_says_what_contradicts(tmp_path):
    pytest.importorskip("rclpy")
    from dataclasses import replace

    from bitvla_ros.nodes.doctor import _model
    from bitvla_ros.nodes.doctor.expected import load_expected

    expected = load_expected()
    for option, value in (("attention", "causal"), ("chunk", 4), ("norm_key", "bridge"), ("cameras", ("front",))):
        folder = write_checkpoint(tmp_path / option) if not (tmp_path / option).mkdir() else tmp_path
        edit(folder / "config.json", **{**STATED, "attention": "bidirectional", "cameras": ["scene", "wrist"]})
        write(folder / "dataset_statistics.json", {"libero_goal_no_noops": STATISTICS})
        model, problem = _model(str(folder), replace(expected, policy={**expected.policy, option: value}))
        assert model is None and option in problem
        model, problem = _model(str(folder), expected)
        assert model is not None and model.cameras == ("scene", "wrist") and not problem
