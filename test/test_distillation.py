"""Quantize-then-distill: what trains, towards what, and what comes out."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import VISION, edit, write_checkpoint
from demonstrations import write_demonstrations
from torch import Tensor

from bitvla_ros.cli import given
from bitvla_ros.model import BitVLA, load_checkpoint, load_packed, pack_model
from bitvla_ros.stated import Contradiction
from bitvla_ros.training import distill as verb
from bitvla_ros.training.distillation import GAMMA, Distillation, DistillationError, hidden_error, make_student
from bitvla_ros.training.log import read
from bitvla_ros.training.objective import Batch, oft_loss, predict
from bitvla_ros.training.precision import in_precision
from bitvla_ros.training.state import StateError

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def teacher(tmp_path: Path) -> BitVLA:
    """Vision in full precision, the language model ternary."""
    torch.manual_seed(0)  # of the heads
    folder = tmp_path / "teacher"
    folder.mkdir()
    write_checkpoint(folder)
    in_full_precision(folder)
    return load_checkpoint(folder, control_hz=20.0)


def in_full_precision(folder: Path) -> None:
    edit(folder / "config.json", vision_config={key: value for key, value in VISION.items() if not key.startswith("vit_")})


def batch(model: BitVLA, size: int = 3, cameras: int = 2) -> Batch:
    config, generator = model.config, torch.Generator().manual_seed(1)
    prompt = [256, *[config.image_token_id] * (cameras * config.vision.num_patches), config.proprio_token_id, 5, 6, 7]

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    return Batch(
        pixel_values=random(size, cameras, 3, 28, 28),
        input_ids=torch.tensor([prompt] * size),
        prompt_lengths=torch.full((size,), len(prompt)),
        proprio=random(size, 8),
        actions=random(size, 8, 7),
    )


def test_only_the_students_vision_tower_gets_gradients(teacher):
    student = make_student(teacher)
    objective = Distillation(teacher.vision, student.vision)
    loss, _ = objective(student, batch(student))
    loss.backward()
    with_gradient = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in student.named_parameters() if name.startswith("vision.")}
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert sum(float(parameter.grad.abs().sum()) for parameter in student.vision.parameters()) > 0


def test_the_student_starts_as_the_teacher_and_shares_no_memory_with_it(teacher):
    student = make_student(teacher)
    assert student.config.vision.ternary and student.config.language == teacher.config.language
    assert len(student.ternary_layers()) == 2 * 6 + 7
    for (name, ours), theirs in zip(student.state_dict().items(), teacher.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr(), name


def test_a_student_in_full_precision_has_no_hidden_error_and_a_ternary_one_has(teacher):
    same = in_precision(teacher, vision=False, language=True)
    loss, parts = Distillation(teacher.vision, same.vision)(same, batch(same))
    assert float(parts["hidden"]) == 0.0 and float(loss.detach()) == float(parts["task"]) == float(oft_loss(same, batch(same)).detach())
    student = make_student(teacher)
    loss, parts = Distillation(teacher.vision, student.vision)(student, batch(student))
    assert float(parts["hidden"]) > 0.0
    torch.testing.assert_close(loss.detach(), parts["task"] + GAMMA * parts["hidden"])


def test_the_hidden_error_is_the_mean_over_layers_of_the_mean_square():
    teacher = [torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.zeros(1, 2, 2)]
    student = [torch.tensor([[[1.0, 0.0], [3.0, 3.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])]
    assert float(hidden_error(teacher, student)) == pytest.approx(((4 + 1) / 4 + 4 / 4) / 2)
    with pytest.raises(ValueError, match="2 and 1 layers"):
        hidden_error(teacher, student[:1])


def test_the_hidden_states_are_those_behind_each_layer_and_recording_leaves_no_trace(teacher):
    tower, pixels = teacher.vision, torch.randn(2, 3, 28, 28)
    with tower.recording() as states:
        features = tower(pixels)
    first = tower.layers[0](tower.embed(pixels))
    assert len(states) == 2
    assert torch.equal(states[0], first) and torch.equal(states[1], tower.layers[1](first)) and torch.equal(states[1], features)
    tower(pixels)
    assert len(states) == 2


def distil(teacher: BitVLA, gamma: float) -> list[tuple[float, float]]:
    """Loss and hidden error of 40 steps on the teacher's own actions."""
    student = make_student(teacher)
    objective = Distillation(teacher.vision, student.vision, gamma)
    sample = batch(student)
    sample = replace(sample, actions=predict(teacher, sample).detach())
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-3)
    history = []
    for _ in range(40):
        loss, parts = objective(student, sample)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((float(loss.detach()), float(parts["hidden"])))
    return history


def test_steps_bring_the_student_nearer_to_the_teacher_than_the_task_alone_does(teacher):
    history, task_alone = distil(teacher, gamma=1.0), distil(teacher, gamma=0.0)
    assert history[-1][0] < 0.8 * history[0][0]
    assert history[-1][1] < 0.9 * history[0][1] and history[-1][1] < task_alone[-1][1]


def test_a_ternary_teacher_is_refused(teacher):
    with pytest.raises(DistillationError, match="vit_weight_bits"):
        make_student(make_student(teacher))


def test_weights_rounded_after_training_act_as_the_same_weights_read_into_the_ternary_architecture(teacher):
    full = in_precision(teacher, vision=False, language=False)
    assert full.ternary_layers() == {} and full.backend is None
    rounded = in_precision(full, vision=True, language=True)
    assert len({model.model_hash for model in (teacher, full, rounded)}) == 3
    assert teacher.path is not None
    edit(teacher.path / "config.json", vision_config=VISION)
    read = load_checkpoint(teacher.path, control_hz=20.0)
    sample = batch(rounded)
    inputs = sample.pixel_values, sample.input_ids, sample.proprio, sample.prompt_lengths
    assert rounded.config == read.config
    assert torch.equal(rounded(*inputs).normalized_actions, read(*inputs).normalized_actions)
    assert not torch.equal(rounded(*inputs).normalized_actions, full(*inputs).normalized_actions)


def distill(folder: Path, *options: str, teacher: Path | None = None) -> dict[str, Any]:
    """`bitvla distill` on a small dataset, in `folder`."""
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    if not (folder / "demos").exists():
        write_demonstrations(folder / "demos")
    places = ["--dataset", str(folder / "demos"), "--output", str(folder / "student")]
    quick = ["--steps", "3", "--batch-size", "4", "--warmup", "0", "--workers", "0", "--learning-rate", "1e-3"]
    arguments = [str(teacher or folder / "teacher"), *places, *quick, *options]
    return verb.run(argparse.Namespace(**vars(parser.parse_args(arguments)), given=given(verb, arguments)))


def test_the_verb_makes_a_ternary_checkpoint_that_packs_and_predicts(teacher, tmp_path):
    result = distill(tmp_path)
    assert result["steps"] == 3 and result["hidden"] > 0 and result["validation_l1"] > 0
    assert result["loss"] == pytest.approx(result["task"] + GAMMA * result["hidden"], rel=1e-4)
    rows = read(tmp_path / "student" / "log.csv")
    assert len(rows) == 3 and {"loss", "task", "hidden"} <= rows[0].keys()

    student = load_checkpoint(result["checkpoint"])
    assert student.config == replace(teacher.config, vision=replace(teacher.config.vision, ternary=True))
    assert student.norm_stats == teacher.norm_stats and student.norm_key == teacher.norm_key
    ours, theirs = student.state_dict(), teacher.state_dict()
    moved = {name for name in ours if not torch.equal(ours[name], theirs[name].bfloat16().float())}
    assert moved and all(name.startswith("vision.") for name in moved if not name.startswith(("action_head", "proprio_projector")))

    description = pack_model(result["checkpoint"], tmp_path / "packed")
    assert sum(name.endswith(".words") for name in description["tensors"]) == 2 * 6 + 7
    sample = batch(student, size=1)
    chunk = load_packed(tmp_path / "packed").predict(sample.pixel_values[0], sample.input_ids[0], sample.proprio[0])
    assert bool(chunk.normalized_actions.isfinite().all())


def test_a_finished_run_is_kept_and_one_with_another_teacher_is_refused(teacher, tmp_path):
    first = distill(tmp_path)
    assert distill(tmp_path)["resumed_from"] == 3
    other = tmp_path / "other"
    other.mkdir()
    write_checkpoint(other)
    in_full_precision(other)
    edit(other / "config.json", attention="causal")
    with pytest.raises(StateError, match="teacher"):
        distill(tmp_path, teacher=other)
    assert load_checkpoint(first["checkpoint"]).config.attention == "bidirectional"


def test_a_teacher_that_cannot_teach_is_refused(teacher, tmp_path):
    (tmp_path / "ternary").mkdir()
    with pytest.raises(DistillationError, match="in full precision"):
        distill(tmp_path, teacher=write_checkpoint(tmp_path / "ternary"))
    edit(tmp_path / "teacher" / "config.json", control_hz=10.0)
    with pytest.raises(Contradiction, match=r"dataset's rate is 20, but .*config.json states 10: give the teacher"):
        distill(tmp_path)
    edit(tmp_path / "teacher" / "config.json", control_hz=20.0)
    pack_model(tmp_path / "teacher", tmp_path / "packed")
    with pytest.raises(DistillationError, match="packed"):
        distill(tmp_path, teacher=tmp_path / "packed")
    for head in (tmp_path / "teacher").glob("*_checkpoint.pt"):
        head.unlink()
    with pytest.raises(DistillationError, match="bitvla train"):
        distill(tmp_path)
    assert not (tmp_path / "student").exists()


def test_recomputed_layers_give_the_same_steps(teacher, tmp_path):
    """The hidden states are recorded once, not again when gradient checkpointing computes layers for the backward pass."""
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "teacher", tmp_path / "again" / "teacher")
    plain, recomputed = distill(tmp_path), distill(tmp_path / "again", "--gradient-checkpointing")
    assert {name: plain[name] for name in ("loss", "task", "hidden")} == {name: recomputed[name] for name in ("loss", "task", "hidden")}
