"""Training: it learns, it goes on after a kill as if nothing had been, and it stops before it learns nonsense."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_trainer import CONFIG
from safetensors.torch import load_file
from training import Demonstrations, in_two_processes, samples, tiny_model

from bitvla_ros.training.dataset import DatasetError
from bitvla_ros.training.log import draw_curves, read, smooth
from bitvla_ros.training.objective import oft_loss
from bitvla_ros.training.schedule import warmup_cosine
from bitvla_ros.training.state import StateError, states
from bitvla_ros.training.trainer import Trainer, TrainingError, recompute_layers, validate

pytestmark = pytest.mark.usefixtures("no_curves")

TEST = Path(__file__).parent
PROGRAM = TEST / "run_trainer.py"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(states(folder)[-1] / "tensors.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- learning -------------------------------------------------------------------------------------------------------------


def test_a_tiny_dataset_is_learned(tmp_path, monkeypatch):
    monkeypatch.setattr("bitvla_ros.training.trainer.draw_curves", draw_curves)
    dataset = Demonstrations([8, 8])
    config = replace(CONFIG, steps=100, batch_size=8, learning_rate=5e-3, warmup=10, save_every=100, validate_every=100)
    every = samples(dataset, seed=None, augment=False)
    trainer = Trainer(tiny_model(), samples(dataset), config, tmp_path, validation=every)
    before = validate(trainer.model, every)
    result = trainer.run()
    assert result["validation_l1"] < 0.5 * before["l1"]
    rows = read(tmp_path / "log.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 101))
    assert result["validation_l1"] == pytest.approx(validate(trainer.model, every)["l1"], abs=1e-5)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_compute_the_same(tmp_path):
    """Compilers are slow: one layer of each tower, and the vision tower only forwards."""
    results = {}
    for compiled in (False, True):
        config = replace(CONFIG, steps=2, compile=compiled, validate_every=2)
        model, validation = tiny_model(None), samples(seed=None, augment=False)
        del model.vision.layers[1:], model.language.layers[1:]
        model.vision.requires_grad_(False)
        results[compiled] = Trainer(model, samples(), config, tmp_path / str(compiled), validation=validation).run()
    for name in ("loss", "validation_l1"):
        assert results[True][name] == pytest.approx(results[False][name], abs=1e-4)


def test_validation_tells_each_kind_of_number_apart():
    errors = validate(tiny_model(), samples(seed=None, augment=False), batch_size=5, limit=9)
    assert errors["l1"] == pytest.approx((3 * errors["translation"] + 3 * errors["rotation"] + errors["gripper"]) / 7, rel=1e-5)


@given(steps=st.integers(1, 1000), warmup=st.integers(0, 1000))
def test_learning_rate_rises_in_a_line_then_falls_to_nothing(steps, warmup):
    warmup = min(warmup, steps)
    rates = [warmup_cosine(step, steps, warmup) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert all(later <= earlier for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert warmup_cosine(steps, steps, warmup) == pytest.approx(0 if steps > warmup else 1)


def test_the_vision_tower_has_a_rate_of_its_own(tmp_path):
    trainer = Trainer(tiny_model(), samples(), replace(CONFIG, steps=1, warmup=0, vision_learning_rate=1e-5), tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.run()
    for name, parameter in trainer.model.named_parameters():
        step = (parameter.detach() - before[name] * (1 - 1e-2 * (1e-5 if name.startswith("vision.") else 1e-3))).abs().max()
        assert float(step) <= (1.1e-5 if name.startswith("vision.") else 1.1e-3), name  # AdamW's first step is the rate


def test_only_what_requires_gradients_changes(tmp_path):
    model = tiny_model().requires_grad_(False)
    model.vision.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, samples(), CONFIG, tmp_path).run()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("vision.") for name in changed)
    assert all(".vision." in name for name in weights(tmp_path))


# --- equal ways -----------------------------------------------------------------------------------------------------------


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    oft_loss(model, batch).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradient(actual: Path, expected: Path) -> None:
    """Of the one step that both took: the first moments are a tenth of it."""
    stored = weights(actual)
    for name, tensor in weights(expected).items():
        if name.startswith("exp_avg."):
            assert float((stored[name] - tensor).norm()) <= 1e-4 * float(tensor.norm()) + 1e-7, name


def test_gradient_checkpointing_changes_nothing():
    model, every = tiny_model(), samples()
    batch = every.collate([every[number] for number in range(4)])
    expected = gradients(model, batch)
    recompute_layers(model)
    assert same(gradients(model, batch), expected)


def test_accumulated_passes_are_one_large_batch(tmp_path):
    for name, change in (("one", {"batch_size": 8}), ("parts", {"batch_size": 2, "accumulate": 4})):
        Trainer(tiny_model(activation_bits=None), samples(), replace(CONFIG, steps=1, **change), tmp_path / name).run()
    assert_same_gradient(tmp_path / "parts", tmp_path / "one")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tmp_path, workers):
    for count in (0, workers):
        Trainer(tiny_model(), samples(), replace(CONFIG, workers=count), tmp_path / str(count)).run()
    assert same(weights(tmp_path / "0"), weights(tmp_path / str(workers)))


def test_two_processes_have_the_gradient_of_the_joined_batch(tmp_path):
    pytest.importorskip("accelerate")
    in_two_processes([str(PROGRAM), str(tmp_path / "two"), json.dumps({"batch_size": 2, "steps": 1}), "smooth"])
    Trainer(tiny_model(activation_bits=None), samples(), replace(CONFIG, steps=1, batch_size=4), tmp_path / "one").run()
    assert_same_gradient(tmp_path / "two", tmp_path / "one")
    assert float(read(tmp_path / "two" / "log.csv")[0]["loss"]) == pytest.approx(
        float(read(tmp_path / "one" / "log.csv")[0]["loss"]), abs=1e-5
    )


def test_bfloat16_products_leave_float32_weights(tmp_path):
    Trainer(tiny_model(), samples(), replace(CONFIG, dtype=torch.bfloat16), tmp_path / "autocast").run()
    assert {tensor.dtype for tensor in weights(tmp_path / "autocast").values()} == {torch.float32}
    Trainer(tiny_model(), samples(), replace(CONFIG, dtype=torch.bfloat16, direct_bf16=True), tmp_path / "direct").run()
    assert {tensor.dtype for tensor in weights(tmp_path / "direct").values()} == {torch.bfloat16}


# --- going on -------------------------------------------------------------------------------------------------------------


def start(folder: Path, changes: dict[str, object]) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(folder), json.dumps(changes)]
    path = os.pathsep.join([str(TEST), str(TEST.parent)])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True, cwd=TEST)


def wait_for_state(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not states(folder) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be stopped"
    assert states(folder), "it saved nothing within 90 s"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of 40 steps that nothing stopped."""
    folder: Path = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    Trainer(tiny_model(), samples(), replace(CONFIG, steps=40), folder).run()
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stopped_run_goes_on_bit_for_bit(whole, tmp_path, number):
    changes = {"steps": 40, "workers": 1}
    stopped = start(tmp_path / "stopped", changes)
    wait_for_state(tmp_path / "stopped", stopped)
    stopped.send_signal(number)
    _, errors = stopped.communicate()
    assert stopped.returncode != 0
    at = int(states(tmp_path / "stopped")[-1].name.removeprefix("state-"))
    assert 0 < at < 40
    if number != signal.SIGKILL:
        assert f"KeyboardInterrupt: stopped after step {at}" in errors

    result = Trainer(tiny_model(), samples(), replace(CONFIG, steps=40), tmp_path / "stopped").run()
    assert result["resumed_from"] == at
    assert same(weights(tmp_path / "stopped"), weights(whole))
    assert (tmp_path / "stopped" / "log.csv").read_text() == (whole / "log.csv").read_text()


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    Trainer(tiny_model(), samples(), CONFIG, tmp_path).run()
    before = weights(tmp_path)
    result = Trainer(tiny_model(seed=9), samples(), CONFIG, tmp_path).run()
    assert (result["steps"], result["resumed_from"]) == (6, 6)
    assert same(weights(tmp_path), before)


def test_a_run_with_other_settings_is_not_continued(tmp_path):
    Trainer(tiny_model(), samples(), CONFIG, tmp_path, settings={"dataset": "a"}).run()
    with pytest.raises(StateError, match=r"dataset 'a' \(now 'b'\), steps 6 \(now 9\).*another --output"):
        Trainer(tiny_model(), samples(), replace(CONFIG, steps=9), tmp_path, settings={"dataset": "b"}).run()
    free = replace(CONFIG, workers=1, save_every=1, validate_every=1, checkpointing=True)
    Trainer(tiny_model(), samples(), free, tmp_path, settings={"dataset": "a"}).run()


def test_a_damaged_state_is_told(tmp_path):
    Trainer(tiny_model(), samples(), CONFIG, tmp_path).run()
    file = states(tmp_path)[-1] / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(StateError, match="damaged"):
        Trainer(tiny_model(), samples(), CONFIG, tmp_path).run()


def test_a_row_that_was_cut_short_is_left_out(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n2,0.4\n3,0.")
    assert [row["step"] for row in read(tmp_path / "log.csv")] == ["1", "2"]


# --- stopping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loss_that_is_not_finite_stops_before_it_is_learned(tmp_path, workers):
    dataset = Demonstrations()
    every = samples(dataset)
    bad = every.frame(13)  # in the fourth step
    dataset.states[bad] = math.nan
    saved: list[int] = []
    trainer = Trainer(tiny_model(), every, replace(CONFIG, workers=workers), tmp_path, save=saved.append)
    episode, frame = every.where(13)
    with pytest.raises(TrainingError, match=rf"step 4, batch 1 of 1 .*episode {episode} frame {frame}\b.*are good"):
        trainer.run()
    assert saved == [2] and [path.name for path in states(tmp_path)] == ["state-00000002"]
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    def objective(model, batch):
        loss = oft_loss(model, batch)
        return loss + (0 * loss).sqrt(), {}  # the slope of a root is infinite at 0

    with pytest.raises(TrainingError, match="the gradient is not finite in step 1"):
        Trainer(tiny_model(), samples(), CONFIG, tmp_path, objective=objective).run()


def test_a_picture_that_does_not_decode_is_named_by_workers_too(tmp_path):
    class Damaged(Demonstrations):
        def frame(self, index, chunk=1, other=None):
            raise DatasetError(f"frame {index} does not decode")

    with pytest.raises(DatasetError, match=r"^frame \d+ does not decode$"):
        Trainer(tiny_model(), samples(Damaged()), replace(CONFIG, workers=1), tmp_path).run()


def test_a_full_disk_keeps_the_state_before(tmp_path, monkeypatch):
    real, calls = os.posix_fallocate, []

    def full(*arguments: int) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StateError, match=r"after step 4 cannot be written .*No space left on device"):
        Trainer(tiny_model(), samples(), CONFIG, tmp_path).run()
    assert [path.name for path in states(tmp_path)] == ["state-00000002"]
    assert not (tmp_path / ".state.partial").exists()


# --- what is told ---------------------------------------------------------------------------------------------------------


def test_further_numbers_of_an_objective_are_logged(tmp_path):
    def objective(model, batch):
        loss = oft_loss(model, batch)
        return 2 * loss, {"task": loss.detach()}

    Trainer(tiny_model(), samples(), replace(CONFIG, clip=1.0), tmp_path, objective=objective).run()
    for row in read(tmp_path / "log.csv"):
        assert float(row["loss"]) == pytest.approx(2 * float(row["task"]), rel=1e-4)


def test_smoothing_has_no_bias():
    assert smooth([2.0] * 5, 10) == pytest.approx([2.0] * 5)
