"""Training samples: what the policy will see, once an epoch each, and a function of the seed and the sample's number alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import CAMERAS, Demonstrations, prompt, samples

from bitvla_ros.policy.normalization import Bounds, normalise_proprio, unnormalise_actions
from bitvla_ros.policy.preprocessing import ImageRecipe
from bitvla_ros.training.dataset import DatasetError
from bitvla_ros.training.samples import Sample, normalise_actions, split_episodes


def equal(first: Sample, second: Sample) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_frame_comes_once_an_epoch_in_another_order():
    every = samples(episodes=(0, 2))
    epochs = [[every.frame(epoch * len(every) + i) for i in range(len(every))] for epoch in range(3)]
    assert len(every) == 11
    for epoch in epochs:
        assert sorted(epoch) == [*range(5), *range(12, 18)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_every_counterfactual_comes_once_an_epoch_with_its_instruction_and_actions():
    dataset = Demonstrations(others=2)
    every = samples(dataset, episodes=(0, 2), augment=False)
    assert len(every) == 11 + 2 * 6
    words = {tuple(prompt(task)): task for task in dataset.tasks}
    frames = [every.frame(i) for i in range(len(every))]
    for frame in (0, 3, 12):
        seen = [every[i] for i in range(len(every)) if frames[i] == frame]
        own = dataset.tasks[frame % 2]
        assert sorted(words[tuple(sample.input_ids)] == own for sample in seen) == [*[False] * (2 if frame % 2 == 0 else 0), True]
        assert all(np.array_equal(sample.pixels, seen[0].pixels) for sample in seen)
        others = sorted(float(sample.actions[0, -1]) for sample in seen if words[tuple(sample.input_ids)] != own)
        assert others == ([0.0, 1.0] if frame % 2 == 0 else [])


def test_an_approach_ends_where_the_hand_first_closes():
    dataset = Demonstrations(others=1)  # of 5, 7, 6 and 4 frames
    dataset.actions[:, 6] = 1.0
    dataset.actions[[3, 5, 14, 15], 6] = 0.0  # frame 3 of the first episode, 0 of the second, 2 and 3 of the third
    every = samples(dataset, augment=False, approach=True)
    own, other = [0, 1, 2, 12, 13, 18, 19, 20, 21], [0, 2, 12, 18, 20]
    assert sorted(every.frame(number) for number in range(len(every))) == sorted(own + other)
    chunk = next(every[number] for number in range(len(every)) if every.frame(number) == 2)
    assert chunk.actions[:, 6].tolist() in ([1.0, 0.0, 1.0, 1.0], [0.0] * 4), "the chunk goes on beyond the approach"
    with pytest.raises(DatasetError, match=r"no frames to train on: in no episode is the hand open at first"):
        samples(dataset, episodes=(1,), approach=True)


def test_in_their_own_order_samples_are_what_was_done():
    dataset = Demonstrations(others=2)
    every, plain = samples(dataset, seed=None, augment=False), samples(seed=None, augment=False)
    assert len(every) == len(plain) == len(dataset)
    assert all(equal(every[number], plain[number]) for number in range(len(plain)))


@given(numbers=st.lists(st.integers(0, 200), min_size=1, max_size=5), seed=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_a_sample_is_a_function_of_seed_and_number(numbers, seed):
    first, second = samples(seed=seed), samples(seed=seed)
    expected = {number: first[number] for number in numbers}
    for number in reversed(numbers):
        assert equal(second[number], expected[number])


def test_another_seed_and_another_epoch_augment_otherwise():
    one, other = samples(seed=1), samples(seed=2)
    again = next(number for number in range(len(one), 2 * len(one)) if one.frame(number) == one.frame(0))
    same = next(number for number in range(len(other)) if other.frame(number) == one.frame(0))
    assert np.array_equal(one[0].actions, one[again].actions)
    assert not np.array_equal(one[0].pixels, one[again].pixels)
    assert not np.array_equal(one[0].pixels, other[same].pixels)


def test_where_a_sample_is_in_its_episode():
    every = samples(seed=None, augment=False)
    assert [every.where(number) for number in (0, 4, 5, 11, 12)] == [(0, 0), (0, 4), (1, 0), (1, 6), (2, 0)]


def test_without_augmentation_inputs_are_exactly_the_policys():
    dataset, recipe = Demonstrations(), ImageRecipe(image_size=28)
    every = samples(dataset, seed=None, augment=False, recipe=recipe)
    batch = every.collate([every[3], every[5]])
    for row, number in enumerate((3, 5)):
        images, state, _, _ = dataset.frame(number)
        expected = torch.from_numpy(np.stack([recipe(images[role]) for role in CAMERAS]))
        assert torch.equal(batch.pixel_values[row], expected)
        proprio = normalise_proprio(state.astype(np.float64), every.statistics.proprio)
        assert torch.equal(batch.proprio[row], torch.from_numpy(proprio).float())


def test_augmented_images_have_the_networks_size_and_range():
    every = samples(recipe=ImageRecipe(image_size=32, output_size=(28, 28)))
    batch = every.collate([every[number] for number in range(4)])
    assert batch.pixel_values.shape == (4, 2, 3, 28, 28) and batch.pixel_values.dtype == torch.float32
    assert batch.pixel_values.abs().max() <= 1


def test_the_end_of_an_episode_is_padded_by_standing_still():
    dataset = Demonstrations()
    last = samples(dataset, seed=None, augment=False)[4]
    actions = unnormalise_actions(last.actions, samples(dataset).statistics.action)
    assert actions[0, :6] == pytest.approx(
        np.clip(dataset.actions[4, :6], *np.quantile(dataset.actions, (0.01, 0.99), axis=0)[:, :6]), abs=1e-6
    )
    assert actions[1:, :6] == pytest.approx(0, abs=1e-6)
    assert (actions[:, 6] == dataset.actions[4, 6]).all()


def test_prompts_of_other_lengths_are_padded_on_the_right():
    every = samples(seed=None, augment=False)
    batch = every.collate([every[0], every[1]])  # "push", "pull it"
    assert batch.prompt_lengths.tolist() == [14, 17]
    assert batch.input_ids[0, 14:].tolist() == [0, 0, 0]
    assert bytes(batch.input_ids[1, 10:].tolist()) == b"pull it"
    assert every.collate([every[0], every[2]]).input_ids.shape == batch.input_ids.shape, "every batch has one shape"


def test_nothing_is_masked_where_all_prompts_have_one_length():
    dataset = Demonstrations()
    dataset.tasks = tuple(f"task {i}" for i in range(len(dataset.tasks)))
    assert samples(dataset).collate([samples(dataset)[0]]).prompt_lengths is None


numbers = st.floats(-1, 1, width=32)


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=5))
def test_actions_come_back_from_normalisation(rows):
    bounds = Bounds(np.array([-0.5, -1.0, 0.3]), np.array([0.5, 1.0, 0.3]), np.array([True, True, True]))
    actions = np.array(rows, np.float32)
    normalised = normalise_actions(actions, bounds)
    assert np.abs(normalised).max() <= 1 and normalised.dtype == np.float32
    assert unnormalise_actions(normalised, bounds) == pytest.approx(np.clip(actions, bounds.q01, bounds.q99), abs=1e-6)
    assert (normalised[:, 2] == 0).all(), "a dimension that is never used"


def test_the_gripper_is_not_normalised():
    bounds = Bounds(np.array([0.0]), np.array([0.5]), np.array([False]))
    assert normalise_actions(np.array([[0.0], [1.0]], np.float32), bounds).tolist() == [[0.0], [1.0]]


@given(count=st.integers(1, 200), seed=st.integers(0, 5))
def test_held_out_episodes_are_apart_and_always_the_same(count, seed):
    train, held_out = split_episodes(count, 0.05, seed)
    assert sorted(train + held_out) == list(range(count)) and train
    assert len(held_out) == (0 if count == 1 else max(1, round(0.05 * count)))
    assert (train, held_out) == split_episodes(count, 0.05, seed)
