"""Recorded demonstrations show what the expert meant, and depend on nothing but what was asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros import cli
from bitvla_ros.action_convention import OSC
from bitvla_ros.model.shipped import shipped
from bitvla_ros.policy.chunk import ActionChunk
from bitvla_ros.policy.normalization import Bounds, to_command, unnormalise_actions
from bitvla_ros.policy.observation import Observation
from bitvla_ros.policy.policy import PolicySpec
from bitvla_ros.policy.preprocessing import ImageRecipe
from bitvla_ros.simulation import FIRST_TRAINING_SEED, TABLETOP_SUITES, make
from bitvla_ros.simulation.expert import make_expert, plans_of
from bitvla_ros.training import recording
from bitvla_ros.training.dataset import Dataset, DatasetError, DatasetWriter
from bitvla_ros.training.demonstration import REACH, play, to_dataset
from bitvla_ros.training.recording import HORIZON, Recipe, RecordingError, Slot, record, record_slot, slots

pytest.importorskip("pyarrow", reason="the extra train is not installed")
pytest.importorskip("mujoco", reason="the extra sim is not installed")

SIZE = 16
SUITE = "tabletop_object"


def command(output: Path, *more: str, episodes: int = 2, suites: tuple[str, ...] = (SUITE,)) -> list[str]:
    chosen = [word for suite in suites for word in ("--suite", suite)]
    sizes = ["--image-size", str(SIZE), "--render-size", str(SIZE)]
    return ["record", *chosen, "--episodes", str(episodes), *sizes, "--output", str(output), "--json", *more]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes, in one process, without an interruption."""
    path = tmp_path_factory.mktemp("recorded") / "demonstrations"
    assert cli.main(command(path, episodes=4)) == 0
    return path


def test_the_record_says_what_was_recorded(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(recorded, episodes=4)) == 0  # again: nothing is left to do
    result = json.loads(capsys.readouterr().out)
    dataset = Dataset(recorded)
    assert (result["episodes"], result["continued_from"], result["failures"]) == (4, 4, 0)
    assert result["frames"] == len(dataset) == sum(dataset.lengths)
    assert result["by_task"] == dict.fromkeys(make(SUITE, cameras=()).tasks[:4], 1)
    assert dataset.name == SUITE and dataset.fps == 20.0
    assert dataset.cameras == {"scene": (SIZE, SIZE), "wrist": (SIZE, SIZE)}
    asked = {"policy": "expert", "suites": [SUITE], "noise": 0.2, "seed": 0, "render_size": SIZE, "counterfactuals": 3}
    assert dataset.source == asked
    assert {dataset.episode(i).seed for i in range(4)} == {FIRST_TRAINING_SEED}


def test_one_task_alone_can_be_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(tmp_path / "one", "--task", "2", episodes=2)) == 0
    dataset = Dataset(tmp_path / "one")
    wanted = make(SUITE, cameras=()).tasks[2]
    assert json.loads(capsys.readouterr().out)["by_task"] == {wanted: 2} and dataset.source["tasks"] == [2]
    assert len(set(dataset.tasks)) == 5, "frames on the way are still labelled for the others"
    assert cli.main(command(tmp_path / "none", "--task", "5")) == 2
    assert "no task 5" in capsys.readouterr().err and not (tmp_path / "none" / "meta").exists()


def test_actions_are_in_the_datasets_convention(recorded: Path) -> None:
    dataset = Dataset(recorded)
    for i in range(4):
        episode = dataset.episode(i)
        assert np.abs(episode.actions[:, :6]).max() <= 1.0
        assert set(episode.actions[:, 6]) == {0.0, 1.0}
        assert episode.actions[0, 6] == 1.0  # it approaches open, closes once, and opens once
        assert np.abs(np.diff(episode.actions[:, 6])).sum() == 2.0
        width = episode.state[:, 6] - episode.state[:, 7]
        assert width[0] > 0.07 and width.min() < 0.05
        assert episode.images["scene"].std() > 0 and not np.array_equal(episode.images["wrist"][0], episode.images["wrist"][-1])


def test_frames_on_the_way_are_labelled_for_other_instructions_too(recorded: Path) -> None:
    dataset, environment = Dataset(recorded), make(SUITE, cameras=())
    for number in range(2):
        episode = dataset.episode(number)
        others = episode.counterfactuals
        assert others is not None and others.actions.shape == (len(episode), 3, HORIZON, 7)
        asked = others.index >= 0
        things = environment.reset(number, FIRST_TRAINING_SEED).object_poses
        before = int(np.argmax(episode.actions[:, 6] == 0.0))  # the hand closes
        objects = np.array([pose[:3] for pose in things.values()])
        distance = np.linalg.norm(episode.state[:before, None, :3] - objects, axis=-1).min(1)
        assert (asked.all(1) == asked.any(1)).all() and not asked[episode.actions[:, 6] == 0.0].any()
        assert (asked.all(1)[:before] == (distance > REACH)).all() and asked[0].all() and not asked[before - 1].any()
        names = [[others.tasks[i] for i in row] for row in others.index[asked.all(1)]]
        assert all(len({*row, episode.task}) == 4 for row in names)
        assert {words for row in names for words in row} | {episode.task} == set(environment.tasks)
        for i in (0, 5):
            for which, words in enumerate(names[i]):
                way = things[plans_of(SUITE)[words].pick][:2] - episode.state[i, :2]
                if np.abs(way).min() > 0.03:  # m; nearer, the hand may still be on its way past it
                    assert (np.sign(others.actions[i, which, 0, :2]) == np.sign(way)).all()
        assert (others.actions[asked][..., 6] == 1.0).all()


def test_nobody_is_asked_for_what_is_not_there() -> None:
    environment, numbers = make("tabletop_few", cameras=()), set()
    for number in range(4):
        episode = record_slot(Recipe(("tabletop_few",), SIZE, render_size=SIZE), Slot("tabletop_few", number, 0))[0]
        there = environment.reset(number, FIRST_TRAINING_SEED).object_poses
        others = episode.counterfactuals
        assert others is not None
        asked = [others.tasks[i] for i in others.index[0] if i >= 0]
        assert len(set(asked)) == len(asked) == min(3, len(there) - 2) and episode.task not in asked
        assert {plans_of("tabletop_few")[words].pick for words in asked} < set(there)
        numbers.add(len(asked))
    assert len(numbers) > 1


@pytest.mark.parametrize(("suite", "count"), [("tabletop_spatial", 3), (SUITE, 0)])
def test_no_other_instruction_is_asked_where_it_has_no_meaning_or_none_is_wanted(suite: str, count: int) -> None:
    others = record_slot(Recipe((suite,), SIZE, render_size=SIZE, counterfactuals=count), Slot(suite, 0, 0))[0].counterfactuals
    assert others is None if count == 0 else (others is not None and (others.index == -1).all())


class Still:
    """A policy that does nothing, and counts how often it was asked."""

    spec = PolicySpec("still", ("scene",), 8, 20.0, privileged=False, model_hash="still")

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        actions = np.zeros((8, 7), np.float32)
        actions[:, 6] = 1.0
        return ActionChunk(actions, observation.stamp, self.spec.step_duration, instruction=observation.instruction)


def test_the_expert_is_recorded_from_where_it_takes_over() -> None:
    environment, policy = make(SUITE, cameras=("scene",), image_size=SIZE), Still()
    noise = np.zeros((environment.step_limit, 3), np.float32)
    whole = play(environment, make_expert(SUITE, horizon=1), 0, 7, noise)
    after = play(environment, make_expert(SUITE, horizon=1), 0, 7, noise, policy=policy, takeover=20)
    assert whole is not None and after is not None
    assert len(policy.seen) == 3, "whole chunks of 8, open loop"
    assert policy.seen[0].images["scene"].shape == (SIZE, SIZE, 3)
    assert after.state[0, 6] - after.state[0, 7] < 0.01 < whole.state[0, 6], "the policy had shut the gripper"
    assert after.actions[0, 6] == 1.0, "which the expert opens"
    assert len(after.actions) == len(after.images["scene"]) and abs(len(after.actions) - len(whole.actions)) < 30


def test_the_expert_goes_on_with_what_is_in_the_hand() -> None:
    environment, expert = make(SUITE, cameras=()), make_expert(SUITE)
    noise = np.zeros((environment.step_limit, 3), np.float32)
    whole = play(environment, make_expert(SUITE, horizon=1), 0, 7, noise)
    assert whole is not None
    closed = int(np.argmax(whole.actions[:, 6] == 0.0))
    after = play(environment, make_expert(SUITE, horizon=1), 0, 7, noise, policy=expert, takeover=closed + 24)
    assert after is not None
    assert after.actions[0, 6] == 0.0 and np.abs(np.diff(after.actions[:, 6])).sum() == 1.0, "it stays shut until it lets go"


def test_a_policy_that_needs_no_help_shows_nothing() -> None:
    environment = make(SUITE, cameras=())
    noise = np.zeros((environment.step_limit, 3), np.float32)
    assert play(environment, make_expert(SUITE, horizon=1), 0, 7, noise, policy=make_expert(SUITE), takeover=250) is None


@given(st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6), st.sampled_from([-1.0, 1.0]))
def test_a_command_survives_dataset_and_normalisation(offset: list[float], gripper: float) -> None:
    action = np.array([*offset, gripper], np.float32)
    stored = to_dataset(action)
    assert stored[6] == (1.0 if gripper == -1.0 else 0.0)
    identity = Bounds(-np.ones(7), np.ones(7), np.array([True] * 6 + [False]))
    np.testing.assert_allclose(to_command(unnormalise_actions(stored, identity)), action, atol=1e-6)


def test_the_label_is_what_the_expert_means_in_a_state_that_noise_has_led_to() -> None:
    environment, expert = make(SUITE, cameras=("scene",), image_size=SIZE), make_expert(SUITE, horizon=1)
    noise = np.random.default_rng(0).normal(0, 0.3, (environment.step_limit, 3)).astype(np.float32)
    episode = play(environment, expert, 1, FIRST_TRAINING_SEED, noise)
    assert episode is not None and list(episode.images) == ["scene"] and episode.task == environment.tasks[1]
    environment.reset(1, FIRST_TRAINING_SEED)
    meant = to_command(episode.actions.astype(np.float64))
    for i in range(len(episode)):
        executed = meant[i].copy()
        executed[:3] = np.clip(executed[:3] + noise[i], -1, 1)
        snapshot = environment.step(executed)
        assert snapshot.success == (i == len(episode) - 1)
        if i + 1 < len(episode):
            np.testing.assert_array_equal(snapshot.position.astype(np.float32), episode.state[i + 1, :3])
    clean = play(environment, expert, 1, FIRST_TRAINING_SEED, np.zeros_like(noise))
    assert clean is not None and not np.array_equal(clean.state[10], episode.state[10])


def test_a_model_may_be_given_by_its_shipped_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(tmp_path / "helped", "--policy", "nano", episodes=1)) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 1
    hashed = json.loads((shipped("nano") / "config.json").read_text(encoding="utf-8"))["model_hash"]
    assert Dataset(tmp_path / "helped").source["taken_over_from"] == hashed
    assert cli.main(command(tmp_path / "none", "--policy", "no/such/folder")) == 2
    assert "no directory no/such/folder" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_pictures_are_what_a_policy_makes_of_the_same_scene() -> None:
    environment = make(SUITE, cameras=("scene",))
    recipe = ImageRecipe(image_size=SIZE, crop_area=None)
    kept = play(environment, make_expert(SUITE, horizon=1), 0, FIRST_TRAINING_SEED, np.zeros((environment.step_limit, 3), np.float32), SIZE)
    assert kept is not None
    live = environment.reset(0, FIRST_TRAINING_SEED).images["scene"]
    assert live.shape == (256, 256, 3)
    np.testing.assert_array_equal(recipe.pixels(live), kept.images["scene"][0])


def test_what_takes_too_long_is_no_demonstration(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = make(SUITE, cameras=())
    environment.step_limit = 20
    assert play(environment, make_expert(SUITE, horizon=1), 0, 0, np.zeros((20, 3), np.float32)) is None


def test_a_failure_is_replaced_by_another_seed_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def first_fails(environment, expert, task, seed, noise, *rest):
        tried.append((task, seed))
        return play(environment, expert, task, seed, noise) if len(tried) > 1 else None

    monkeypatch.setattr(recording, "play", first_fails)
    recipe = Recipe((SUITE,), SIZE, render_size=SIZE)
    writer = DatasetWriter(tmp_path / "d", 20, dict.fromkeys(recording.CAMERAS, (SIZE, SIZE)), name="d")
    assert [failures for _, failures in record(recipe, 1, writer)] == [1]
    assert [task for task, _ in tried] == [0, 0] and tried[0][1] != tried[1][1] == writer.episodes[0][1]
    assert list(record(recipe, 1, writer)) == []  # and is known again
    monkeypatch.setattr(recording, "play", lambda *_: None)
    with pytest.raises(RecordingError, match=r"tabletop_object, task 1 \(pick up the green block.*failed 10 times.*noise is 0.2"):
        list(record(recipe, 2, writer))


@given(st.integers(1, 60), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_every_part_of_a_recording_is_balanced(episodes: int, tasks: list[int]) -> None:
    suites = TABLETOP_SUITES[: len(tasks)]
    every = list(slots([range(count) for count in tasks], suites, episodes))
    assert len(set(every)) == len(every) == episodes * len(tasks)
    for suite, count in zip(suites, tasks, strict=True):
        numbers = [slot.number for slot in every if slot.suite == suite]
        assert numbers == sorted(numbers) and {slot.task for slot in every if slot.suite == suite} == set(range(min(count, episodes)))
    longer = list(slots([range(count) for count in tasks], suites, episodes + 1))
    assert longer[: len(every)] == every  # so that a dataset can be extended


@given(st.integers(0, 99_999), st.integers(0, 1000), st.integers(0, recording.ATTEMPTS - 1))
def test_no_seed_is_one_of_evaluation(first: int, number: int, attempt: int) -> None:
    recipe = Recipe(TABLETOP_SUITES, first=first)
    seed = Slot("tabletop_goal", 0, number).seed(recipe, attempt)
    assert seed >= FIRST_TRAINING_SEED
    assert 0 <= Slot("libero_goal", 0, number).seed(recipe, attempt) < 50  # LIBERO's seeds are its initial states


def test_more_processes_give_the_same_dataset(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "demonstrations"
    assert cli.main(command(path, "--workers", "2", episodes=4)) == 0
    assert contents(path) == contents(recorded)


def test_a_recording_that_was_killed_is_continued_to_the_same_dataset(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "demonstrations"
    words = [sys.executable, "-m", "bitvla_ros.cli", *command(path, "--workers", "2", episodes=4)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (path / "data/chunk-000/file-000.parquet").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (path / "meta").exists()
    assert cli.main(command(path, episodes=4)) == 0
    assert contents(path) == contents(recorded)
    assert len(workers) >= 2
    while any(running(worker) for worker in workers):  # nobody works for a parent that is gone
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_suites_share_a_dataset_and_more_episodes_extend_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suites = ("tabletop_object", "tabletop_goal")
    assert cli.main(command(tmp_path / "both", episodes=1, suites=suites)) == 0
    before = contents(tmp_path / "both/data")
    assert cli.main(command(tmp_path / "both", episodes=2, suites=suites)) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["continued_from"], result["episodes"]) == (2, 4)
    assert before.items() <= contents(tmp_path / "both/data").items()
    dataset = Dataset(tmp_path / "both")
    assert dataset.name == "both"
    shown = {dataset.episode(i).task for i in range(4)}
    assert shown == {*make("tabletop_object", cameras=()).tasks[:2], *make("tabletop_goal", cameras=()).tasks[:2]}


def test_a_folder_recorded_otherwise_is_refused(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(recorded)
    for more in (["--noise", "0.1"], ["--seed", "5"], ["--image-size", "24"], ["--render-size", "24"]):
        assert cli.main(command(recorded, *more, episodes=5)) == 2
        assert "was begun with" in json.loads(capsys.readouterr().out)["error"]
    source = Recipe((SUITE,), render_size=SIZE).source()
    writer = DatasetWriter(recorded, 20, dict.fromkeys(recording.CAMERAS, (SIZE, SIZE)), name=SUITE, source=source, convention=OSC)
    with pytest.raises(DatasetError, match="episode 0 is 'pick up the red block and place it in the basket' from seed 1000000"):
        list(record(Recipe((SUITE,), SIZE, first=7, render_size=SIZE), 5, writer))
    assert contents(recorded) == before


@pytest.mark.parametrize("wrong", [["--noise", "2"], ["--seed", "-1"], ["--workers", "0"], ["--suite", "kitchen"]])
def test_a_wrong_option_is_refused(tmp_path: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(command(tmp_path / "d", *wrong))
    assert not (tmp_path / "d").exists()


@pytest.mark.libero
def test_libero_is_recorded_too(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cameras: rendering in software would take minutes."""
    pytest.importorskip("libero", reason="the extra LIBERO is not installed")
    if "BITVLA_LIBERO_ASSETS" not in os.environ:
        monkeypatch.setenv("BITVLA_LIBERO_ASSETS", str(shared / "libero_assets/assets"))
    monkeypatch.setattr(recording, "CAMERAS", ())
    writer = DatasetWriter(tmp_path / "d", 20, {}, name="libero_object")
    assert [failures for _, failures in record(Recipe(("libero_object",), noise=0.1), 1, writer)] == [0]
    writer.close()
    episode = Dataset(tmp_path / "d").episode(0)
    assert episode.seed == 0 and len(episode) > 50 and set(episode.actions[:, 6]) == {0.0, 1.0}


def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    program = f"import sys; sys.modules['pyarrow'] = None; from bitvla_ros import cli; sys.exit(cli.main({command(tmp_path / 'd')!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2 and "pip install '.[train]'" in done.stderr
    assert not (tmp_path / "d").exists()
