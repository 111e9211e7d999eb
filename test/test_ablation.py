"""The ablation: arms that differ in precision alone, with equal budgets, compared on the same episodes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from demonstrations import write_demonstrations

from bitvla_ros.evaluation import ablation as verb
from bitvla_ros.evaluation.ablation_table import draw, markdown, summarise
from bitvla_ros.evaluation.episodes import Attempt
from bitvla_ros.evaluation.intervals import paired_difference, wilson
from bitvla_ros.model import load_checkpoint, pack_model
from bitvla_ros.model.safetensors_file import read_header
from bitvla_ros.training.ablation import ARMS, TEACHER, Recipe, own_steps, stored_bytes, train_arm

SUITE = "tabletop_object"


@pytest.fixture(autouse=True, scope="module")
def no_curves() -> Iterator[None]:
    """A picture of a run costs more than a run of three steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitvla_ros.training.trainer.draw_curves", lambda log, picture: None)
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "start").mkdir()
    write_checkpoint(folder / "start")
    demos = write_demonstrations(folder / "demos", suites=(SUITE,))
    return Recipe(dataset=demos, start=str(folder / "start"), steps=3, batch_size=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("arms")
    return {arm.name: train_arm(arm, recipe, 0, folder) for arm in ARMS}


@pytest.mark.parametrize("steps", [2, 3, 100, 20_000])
def test_every_arm_has_the_same_number_of_steps_behind_it(steps):
    own = {arm.name: own_steps(arm, steps) for arm in (*ARMS, TEACHER)}
    assert {own[arm.name] + own.get(arm.origin or "", 0) for arm in ARMS} == {steps}
    assert all(number > 0 for name, number in own.items() if name != "rounded")


def test_arms_are_of_the_precision_that_they_are_named_after(trained):
    ternary = {}
    for name, arm in trained.items():
        config = load_checkpoint(arm.checkpoint).config
        ternary[name] = (config.vision.ternary, config.language.ternary)
        assert config.control_hz == 20.0 and arm.steps == 3
        assert set(arm.action_error) == {"l1", "translation", "rotation", "gripper"}
    assert ternary == {
        "full": (False, False),
        "language": (False, True),
        "ternary": (True, True),
        "plain": (True, True),
        "distilled": (True, True),
        "rounded": (True, True),
    }


def test_rounding_takes_the_weights_of_full_precision_and_students_those_of_the_teacher(trained):
    weights = {name: load_checkpoint(arm.checkpoint).state_dict() for name, arm in trained.items()}
    teacher = load_checkpoint(trained["plain"].checkpoint.parents[1] / TEACHER.name / "checkpoint").state_dict()
    assert all(torch.equal(weights["rounded"][name], tensor) for name, tensor in weights["full"].items())
    for arm in ("plain", "distilled"):
        frozen = [name for name in teacher if not name.startswith("vision.")]
        assert all(torch.equal(weights[arm][name].bfloat16(), teacher[name].bfloat16()) for name in frozen)
        assert any(not torch.equal(weights[arm][name], teacher[name]) for name in teacher if name.startswith("vision."))
    assert any(not torch.equal(weights["plain"][name], tensor) for name, tensor in weights["distilled"].items())
    assert trained["rounded"].action_error != trained["full"].action_error


@pytest.mark.parametrize("arm", ["full", "language", "ternary"])
def test_the_bytes_are_those_of_a_packed_model(trained, tmp_path, arm):
    pack_model(trained[arm].checkpoint, tmp_path / "packed")
    entries = read_header(tmp_path / "packed" / "model.safetensors")[1]
    float32 = sum(entry.end - entry.begin for name, entry in entries.items() if name.startswith("proprio_projector."))  # kept as saved
    assert trained[arm].bytes["packed"] == sum(entry.end - entry.begin for entry in entries.values()) - float32 // 2
    model = load_checkpoint(trained[arm].checkpoint)
    assert trained[arm].bytes["bf16"] == 2 * sum(parameter.numel() for parameter in model.parameters())
    assert stored_bytes(replace(model.config, activation_bits=8)) == trained[arm].bytes


def test_what_is_trained_is_not_trained_again(trained, recipe, monkeypatch):
    monkeypatch.setattr("bitvla_ros.training.ablation.train_on", None)
    folder = trained["full"].checkpoint.parents[1]
    assert {arm.name: train_arm(arm, recipe, 0, folder) for arm in ARMS} == trained


# ---- the verb


class Player:
    """Stands in for `evaluate`: every arm but the rounded one succeeds at its first `good` trials. May be stopped at an arm."""

    def __init__(self, good: int = 3) -> None:
        self.good, self.played, self.stop_at = good, [], ""

    def __call__(self, choice: Any, suite: str, trials: Any, **options: Any) -> list[Attempt]:
        arm = Path(choice.model).parent.name
        if arm == self.stop_at:
            raise KeyboardInterrupt
        assert options["image_size"] == 28 and Path(choice.model, "config.json").exists()
        self.played.append(arm)
        good = 0 if arm == "rounded" else self.good
        return [Attempt(trial.task, trial.seed, "words", "success" if i < good else "time_limit", "", 10) for i, trial in enumerate(trials)]


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    player = Player()
    monkeypatch.setattr("bitvla_ros.evaluation.evaluation.evaluate", player)
    return player


def ablate(recipe: Recipe, output: Path, *options: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    sizes = ["--steps", "2", "--batch-size", "2", "--seeds", "1", "--episodes", "5"]
    places = ["--dataset", str(recipe.dataset), "--start", recipe.start, "--output", str(output)]
    return verb.run(parser.parse_args([*places, *sizes, *options]))


def test_one_command_makes_the_table_and_goes_on_where_it_was_stopped(recipe, player, tmp_path, capsys):
    player.stop_at = "plain"
    with pytest.raises(KeyboardInterrupt):
        ablate(recipe, tmp_path / "out")
    assert player.played == ["full", "language", "ternary"] and not (tmp_path / "out" / "ablation.json").exists()
    player.stop_at = ""
    result = ablate(recipe, tmp_path / "out")
    assert player.played == [arm.name for arm in ARMS]
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["arms"] == result["arms"]
    rows = {row["arm"]: row for row in result["arms"]}
    assert result["suites"] == [SUITE] and rows["full"]["successes"] == 3 and rows["full"]["episodes"] == 5
    assert rows["rounded"]["difference"]["mean"] == -0.6 and rows["full"]["difference"] is None
    assert rows["ternary"]["bytes"]["packed"] < rows["language"]["bytes"]["packed"] < rows["full"]["bytes"]["packed"]
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert table.count("\n| ") == len(ARMS) and "quantize-then-distill" in table
    verb.show(result)
    assert "rounded" in capsys.readouterr().out

    ablate(recipe, tmp_path / "out", "--seeds", "2")
    assert player.played == 2 * [arm.name for arm in ARMS]
    with pytest.raises(verb.AblationError, match="episodes 5, not 6"):
        ablate(recipe, tmp_path / "out", "--episodes", "6")


def test_a_seed_that_another_process_is_at_comes_last(tmp_path):
    folders = [tmp_path / f"seed-{seed}" for seed in range(3)]
    with verb._claim(folders[0]):
        seeds = verb._unclaimed_first(folders)
        assert [next(seeds), next(seeds)] == [1, 2]
        with pytest.raises(BlockingIOError), verb._claim(folders[2], wait=False):
            pass
        with verb._claim(folders[1], wait=False):
            pass
    assert list(seeds) == [0]


def test_a_folder_with_something_else_and_a_dataset_without_a_suite_are_refused(recipe, player, tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(verb.AblationError, match="something else"):
        ablate(recipe, tmp_path)
    nowhere = replace(recipe, dataset=write_demonstrations(tmp_path / "demos"))
    with pytest.raises(verb.AblationError, match="--suite"):
        ablate(nowhere, tmp_path / "out")
    with pytest.raises(SystemExit):
        ablate(recipe, tmp_path / "out", "--steps", "1")
    assert "give 2 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- the table


def run(arm: str, seed: int, outcomes: dict[str, list[bool]], error: float = 0.1) -> dict[str, Any]:
    episodes = {
        suite: [{"task": 0, "seed": i, "success": success, "steps": 9} for i, success in enumerate(all_of)]
        for suite, all_of in outcomes.items()
    }
    numbers = {"steps": 2, "bytes": {"packed": 1, "bf16": 2}, "training_seconds": 1.5, "action_error": {"l1": error}}
    return {"arm": arm, "seed": seed, "episodes": episodes, **numbers}


def test_rows_pool_suites_and_training_seeds_and_pair_every_episode():
    full = [run("full", 0, {"a": [True, True], "b": [True, False]}), run("full", 1, {"a": [False, True], "b": [True, True]})]
    other = [run("other", 0, {"a": [True, False], "b": [True, False]}, 0.2), run("other", 1, {"a": [True, True], "b": [False, True]}, 0.4)]
    reference, row = summarise({"full": "f", "other": "o"}, {"full": full, "other": other})
    assert (reference["successes"], row["successes"], row["episodes"]) == (6, 5, 8)
    assert row["interval"] == [round(end, 4) for end in wilson(5, 8)]
    assert row["by_suite"]["a"]["successes"] == 3 and row["by_suite"]["b"]["successes"] == 2
    expected = paired_difference([1, 0, 1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 1, 1, 1])
    assert row["difference"] == {"mean": -0.125, "interval": [round(expected.low, 4), round(expected.high, 4)]}
    assert row["action_error"]["l1"] == pytest.approx(0.3) and row["training_seconds"] == 3.0


def test_arms_that_played_other_episodes_are_not_compared():
    with pytest.raises(ValueError, match="other episodes"):
        summarise({"full": "f", "x": "x"}, {"full": [run("full", 0, {"a": [True]})], "x": [run("x", 0, {"a": [True, True]})]})


def test_the_table_has_a_column_a_suite_and_the_picture_is_one(tmp_path):
    runs = {name: [run(name, 0, {"a": [True, False], "b": [True, True]})] for name in ("full", "other")}
    rows = summarise({"full": "full precision", "other": "other"}, runs)
    numbers = {"episodes": 2, "steps": 2, "batch_size": 4, "teacher_steps": 1, "student_steps": 1}
    result = {"suites": ["a", "b"], "arms": rows, **numbers}
    lines = markdown(result).splitlines()
    assert lines[0].count("|") == lines[2].count("|") == 9 and "| a | b |" in lines[0]
    assert "75.0 % [30.1, 95.4]" in lines[2]
    pytest.importorskip("matplotlib")
    draw(result, tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
