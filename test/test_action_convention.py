"""What the numbers of an action mean: stored, taken over, and compared wherever two meet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from converting import converted
from demonstrations import write_demonstrations

from bitvla_ros.action_convention import KEY, OSC, UNKNOWN, ActionConvention
from bitvla_ros.control.limits import Limits
from bitvla_ros.control.player import ChunkRefused, Player, PlayerConfig, Refusal
from bitvla_ros.model import load, pack_model
from bitvla_ros.model.checkpoint import CheckpointError
from bitvla_ros.policy.bitvla import PolicyError, require_known_gripper
from bitvla_ros.policy.chunk import ActionChunk
from bitvla_ros.stated import Contradiction
from bitvla_ros.training.dataset import Dataset, DatasetError, DatasetWriter, Episode
from bitvla_ros.training.joined import JoinedDataset

METRES = ActionConvention(1.0, 1.0)


@pytest.mark.parametrize("convention", [UNKNOWN, OSC, METRES, ActionConvention(frame="panda_link0")])
def test_is_whole_after_json(convention: ActionConvention) -> None:
    assert ActionConvention.from_json(json.loads(json.dumps(convention.to_json()))) == convention


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("LIBERO", "expected an object"),
        ({"metres": 1.0}, "has metres"),
        ({"metres_per_unit": 0}, "expected a positive number, or null"),
        ({"radians_per_unit": "0.07"}, "expected a positive number"),
        ({"metres_per_unit": float("nan")}, "expected a positive number"),
        ({"metres_per_unit": True}, "expected a positive number"),
        ({"gripper_open": 1.0}, "expected two numbers, or none"),
        ({"gripper_open": 1.0, "gripper_closed": 1.0}, "expected two numbers"),
        ({"orientation_branch": [1, 0, 0]}, "expected a quaternion"),
        ({"orientation_branch": [0, 0, 0, 0]}, "expected a quaternion"),
        ({"frame": ""}, "expected a frame's name"),
    ],
)
def test_refuses_what_is_none(stated: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ActionConvention.from_json(stated)


def test_only_what_both_state_can_differ() -> None:
    assert not list(UNKNOWN.differences(OSC)) and not list(OSC.differences(UNKNOWN))
    assert [name for name, _, _ in OSC.differences(METRES)] == ["metres_per_unit", "radians_per_unit"]
    assert not list(OSC.differences(replace(OSC, metres_per_unit=np.float32(0.0135).item())))  # as a message in single precision would say
    near, opposite = (0.9, 0.1, 0.1, 0.1), (-0.9, 0.1, 0.1, 0.1)
    assert not list(OSC.differences(ActionConvention(orientation_branch=near)))
    assert [name for name, _, _ in OSC.differences(ActionConvention(orientation_branch=opposite))] == ["orientation_branch"]


def test_a_dataset_keeps_it_and_takes_no_episode_of_another(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "d", 20.0, {}, name="d", convention=OSC)
    actions, state = np.ones((3, 7), np.float32), np.zeros((3, 8), np.float32)
    writer.add(Episode("pick", {}, state, actions, convention=OSC))
    with pytest.raises(DatasetError, match=r"episode 1: metres_per_unit is 1.0, and of those before 0.0135"):
        writer.add(Episode("pick", {}, state, actions, convention=METRES))
    writer.add(Episode("pick", {}, state, actions))  # which does not say
    writer.close()
    dataset = Dataset(tmp_path / "d")
    assert dataset.convention == OSC == dataset.episode(0).convention
    with pytest.raises(DatasetError, match="was begun with action_convention"):
        DatasetWriter(tmp_path / "d", 20.0, {}, name="d", convention=METRES)


def test_a_dataset_that_states_nonsense_is_refused(tmp_path: Path) -> None:
    info = write_demonstrations(tmp_path / "d") / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {KEY: {"metres_per_unit": -1}}))
    with pytest.raises(DatasetError, match=r"info.json: metres_per_unit is -1"):
        Dataset(tmp_path / "d")


def test_joined_datasets_mean_the_same(tmp_path: Path) -> None:
    def one(name: str, convention: ActionConvention) -> Dataset:
        writer = DatasetWriter(tmp_path / name, 20.0, {}, name=name, convention=convention)
        writer.add(Episode("pick", {}, np.zeros((3, 8), np.float32), np.ones((3, 7), np.float32)))
        writer.close()
        return Dataset(tmp_path / name)

    osc, silent, metres = one("osc", OSC), one("silent", UNKNOWN), one("metres", METRES)
    assert JoinedDataset([silent, osc]).convention == OSC
    with pytest.raises(DatasetError, match=r"metres has another metres_per_unit than .*osc: 1.0, expected 0.0135"):
        JoinedDataset([osc, metres])
    with pytest.raises(DatasetError, match="another metres_per_unit"):
        JoinedDataset([silent, osc, metres])


def test_packing_states_what_the_checkpoint_does_not(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    described = pack_model(checkpoint, tmp_path / "packed", control_hz=20, convention=METRES)
    assert described[KEY] == METRES.to_json() and load(tmp_path / "packed").convention == METRES
    assert pack_model(checkpoint, tmp_path / "silent", control_hz=20)[KEY] == UNKNOWN.to_json()
    config = checkpoint / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {KEY: OSC.to_json()}))
    with pytest.raises(Contradiction, match=r"metres_per_unit is 1, but .*config.json states 0.0135"):
        pack_model(checkpoint, tmp_path / "other", control_hz=20, convention=METRES)
    agreeing = ActionConvention(radians_per_unit=0.07)
    assert pack_model(checkpoint, tmp_path / "stated", control_hz=20, convention=agreeing)[KEY] == OSC.to_json()
    config.write_text(json.dumps(json.loads(config.read_text()) | {KEY: {"frame": 3}}))
    with pytest.raises(CheckpointError, match="frame is 3"):
        pack_model(checkpoint, tmp_path / "nonsense", control_hz=20)


def test_a_chunk_in_other_units_is_not_played() -> None:
    player = Player(PlayerConfig(), units=Limits().units)
    player.begin(1, 0, lockstep=True)
    chunk = ActionChunk(np.zeros((8, 7), np.float32), 0, 50_000_000, epoch=1)
    with pytest.raises(ChunkRefused, match=r"the policy's metres_per_unit is 1, and limits.metres_per_unit is 0.0135") as refused:
        player.accept(replace(chunk, units=METRES), 0)
    assert refused.value.reason is Refusal.UNITS
    player.accept(replace(chunk, units=OSC.units), 0)


def test_a_model_that_means_another_gripper_does_not_act() -> None:
    require_known_gripper(UNKNOWN, "it")
    with pytest.raises(PolicyError, match="open at -1 and closed at 1"):
        require_known_gripper(ActionConvention(gripper_open=-1.0, gripper_closed=1.0), "it")


def test_convert_states_what_it_converted_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rosbags")
    from recordings import Messages, standard, write_bag

    messages = Messages()
    bag = write_bag(tmp_path / "bag", messages, standard(messages))
    units = ["--metres-per-unit", "0.02", "--radians-per-unit", "0.1", "--orientation-branch", "1", "0", "0", "0"]
    converted(capsys, tmp_path / "units", bag, *units)
    assert Dataset(tmp_path / "units").convention == replace(OSC, metres_per_unit=0.02, radians_per_unit=0.1, frame="base")
    converted(capsys, tmp_path / "usual", bag)
    usual = Dataset(tmp_path / "usual").convention
    assert usual.units == OSC.units and usual.orientation_branch is not None
    converted(capsys, tmp_path / "again", tmp_path / "usual")
    assert Dataset(tmp_path / "again").convention == usual
