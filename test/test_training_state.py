"""A training state on disk: no bit of it changes unseen, and nothing is taken over from one that is not whole."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bitvla_ros.training.processes import Processes
from bitvla_ros.training.state import DESCRIPTION, TENSORS, StateError, load_state, save_state, states

SETTINGS = {"steps": 9, "learning_rate": 1e-4, "datasets": ["a", "b"], "clip": None}


def run(dtype: torch.dtype = torch.float32, columns: int = 3) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    """Two parameters that have taken a step."""
    torch.manual_seed(0)
    parameters = {"a.weight": nn.Parameter(torch.randn(2, columns).to(dtype)), "b.bias": nn.Parameter(torch.randn(5).to(dtype))}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    sum(parameter.square().sum() for parameter in parameters.values()).backward()
    optimizer.step()
    return parameters, optimizer


@pytest.fixture
def state(tmp_path: Path) -> Path:
    parameters, optimizer = run()
    save_state(tmp_path, 4, SETTINGS, parameters, optimizer, Processes())
    return states(tmp_path)[-1]


def load(folder: Path, **kind: object) -> int:
    parameters, optimizer = run(**kind)  # type: ignore[arg-type]
    return load_state(folder, SETTINGS, parameters, optimizer, Processes())


def rewrite(state: Path, **changes: torch.Tensor) -> None:
    """Other tensors, in a state of a version that wrote no hashes."""
    tensors = {name: tensor.clone() for name, tensor in load_file(state / TENSORS).items()}
    save_file(tensors | changes, state / "new")
    (state / "new").rename(state / TENSORS)
    described = json.loads((state / DESCRIPTION).read_text())
    (state / DESCRIPTION).write_text(json.dumps({"step": described["step"], "settings": described["settings"]}, indent=2))


def test_a_state_comes_back_as_it_was(state):
    before, old = run()
    with torch.no_grad():
        after = {name: nn.Parameter(torch.zeros_like(parameter)) for name, parameter in before.items()}
    optimizer = torch.optim.AdamW(after.values())
    assert load_state(state.parent, SETTINGS, after, optimizer, Processes()) == 4
    for name, parameter in after.items():
        assert torch.equal(parameter, before[name])
        assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], old.state[before[name]]["exp_avg_sq"])


@pytest.mark.parametrize("name", [TENSORS, DESCRIPTION])
def test_no_bit_changes_unseen(state, name):
    choice, content = random.Random(0), (state / name).read_bytes()
    for byte in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[byte] ^= 1 << choice.randrange(8)
        (state / "new").write_bytes(damaged)  # what is mapped must not be overwritten
        (state / "new").rename(state / name)
        with pytest.raises(StateError, match="damaged"):
            load(state.parent)


def test_a_state_under_the_name_of_another_step_is_refused(state):
    state.rename(state.with_name("state-00000005"))
    with pytest.raises(StateError, match=r"damaged \(state.json is not of state-00000005\)"):
        load(state.parent)


def test_a_state_of_an_earlier_version_without_hashes_is_continued(state):
    rewrite(state)
    assert load(state.parent) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight.a.weight": torch.full((2, 3), torch.nan)}, "damaged .weight.a.weight has NaN"),
        ({"exp_avg.b.bias": torch.full((5,), torch.inf)}, "damaged .exp_avg.b.bias has NaN or infinite"),
        ({"exp_avg_sq.b.bias": torch.full((5,), -1.0)}, "damaged .exp_avg_sq.b.bias has negative values"),
        ({"weight.b.bias": torch.zeros(1)}, r"has weight.b.bias as torch.float32 \[1\], the model as torch.float32 \[5\]"),
        ({"exp_avg.a.weight": torch.zeros(3)}, r"as torch.float32 \[3\], the model as torch.float32 \[2, 3\]"),
        ({"exp_avg.a.weight": torch.zeros(2, 3).double()}, "as torch.float64"),
    ],
)
def test_values_and_shapes_are_looked_at_without_hashes_too(state, changes, message):
    rewrite(state, **changes)
    with pytest.raises(StateError, match=message):
        load(state.parent)


def test_nothing_is_taken_over_from_a_damaged_state(state):
    rewrite(state, **{"exp_avg_sq.b.bias": torch.full((5,), torch.nan)})
    parameters, optimizer = run()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    with pytest.raises(StateError):
        load_state(state.parent, SETTINGS, parameters, optimizer, Processes())
    assert all(not parameter.any() for parameter in parameters.values())
