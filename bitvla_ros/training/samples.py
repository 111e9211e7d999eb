"""Frames of demonstrations become training samples, the way the policy will see observations.

Everything random about a sample, which frame it is and how its images are augmented, is a function of the seed and the sample's
number alone. So a run can be continued anywhere, and neither the number of workers nor that of processes changes what is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data

from ..policy.normalization import GRIPPER, Bounds, Statistics, normalise_proprio
from ..policy.preprocessing import ImageRecipe, normalise, resize_bicubic
from ..policy.prompt import Prompt
from .augmentation import augment
from .dataset import DatasetError
from .objective import Batch


class Demonstrations(Protocol):
    """What is needed of a training.dataset.Dataset. cameras: roles, in their order."""

    @property
    def cameras(self) -> Any: ...

    @property
    def tasks(self) -> Sequence[str]: ...

    @property
    def lengths(self) -> Sequence[int]: ...

    def frame(
        self, index: int, chunk: int = 1, other: int | None = None
    ) -> tuple[dict[str, NDArray[np.uint8]], NDArray[np.float32], NDArray[np.float32], str]: ...

    def others(self, index: int) -> NDArray[np.bool_]: ...

    def numbers(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...


class Sample(NamedTuple):
    """pixels: uint8 [n, h, w, 3]. input_ids: int64 [P]. proprio: float32 [D] normalised, or None. actions: float32 [chunk, A]."""

    pixels: NDArray[np.uint8]
    input_ids: NDArray[np.int64]
    proprio: NDArray[np.float32] | None
    actions: NDArray[np.float32]


class Samples(data.Dataset[Sample]):
    """Sample number 0, 1, 2 ... without end: every frame of `episodes`, and every counterfactual that it has, once an epoch, each time
    in another order.

    recipe: the policy's; augment: with a random crop and light in the place of the centre crop. prompt: the policy's. statistics: of
    the dataset; proprioception is left out where they have none. chunk: actions a sample; beyond the end of an episode the arm is
    asked to stay, with no offset and the gripper as it was last. seed: None for frames in their own order, without counterfactuals.
    approach: only frames before the hand first closes.
    """

    def __init__(
        self,
        dataset: Demonstrations,
        episodes: Sequence[int],
        *,
        recipe: ImageRecipe,
        prompt: Prompt,
        statistics: Statistics,
        chunk: int,
        seed: int | None = 0,
        augment: bool = True,
        approach: bool = False,
    ) -> None:
        self.dataset, self.recipe, self.statistics, self.chunk = dataset, recipe, statistics, chunk
        self.seed, self.augment = seed, augment
        self.cameras = tuple(dataset.cameras)
        self._prepare = replace(recipe, crop_area=None, output_size=None).pixels  # all that comes before the crop
        self.episodes = tuple(episodes)
        starts = np.concatenate([[0], np.cumsum(dataset.lengths)])
        ends = [starts[i] + (_closes(dataset.numbers(i)[0]) if approach else dataset.lengths[i]) for i in self.episodes]
        self._frames = np.concatenate([np.arange(starts[i], end) for i, end in zip(self.episodes, ends, strict=True)])
        self._others = np.full(len(self._frames), -1)  # of each sample: which counterfactual; -1: what was done
        if seed is not None:
            found = [np.nonzero(dataset.others(i)[: end - starts[i]]) for i, end in zip(self.episodes, ends, strict=True)]
            frames = [starts[i] + frames for i, (frames, _) in zip(self.episodes, found, strict=True)]
            self._frames, self._others = np.concatenate([self._frames, *frames]), np.concatenate([self._others, *(n for _, n in found)])
        if not len(self._frames):
            why = ": in no episode is the hand open at first, so leave out --approach" if approach else ""
            raise DatasetError(f"no frames to train on{why}")
        self._starts = starts
        self._input_ids = {task: prompt(task) for task in dataset.tasks}
        lengths = {len(ids) for ids in self._input_ids.values()}
        self._longest, self._padded = max(lengths), len(lengths) > 1

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self._frames)

    def frame(self, number: int) -> int:
        """The frame of the dataset that a sample is."""
        return int(self._frames[self._place(number)])

    def _place(self, number: int) -> int:
        if self.seed is None:
            return number
        epoch, place = divmod(number, len(self._frames))
        return int(_order(len(self._frames), self.seed, epoch)[place])

    def where(self, number: int) -> tuple[int, int]:
        """Episode of a sample, and the frame in it."""
        frame = self.frame(number)
        episode = int(np.searchsorted(self._starts, frame, side="right")) - 1
        return episode, frame - int(self._starts[episode])

    def __getitem__(self, number: int) -> Sample:
        place = self._place(number)
        other = int(self._others[place])
        images, state, actions, task = self.dataset.frame(int(self._frames[place]), self.chunk, None if other < 0 else other)
        random = np.random.default_rng((self.seed or 0, number)) if self.augment else None
        bounds = self.statistics.proprio
        return Sample(
            pixels=np.stack([self._pixels(images[role], random) for role in self.cameras]),
            input_ids=self._input_ids[task],
            proprio=None if bounds is None else normalise_proprio(state.astype(np.float64), bounds).astype(np.float32),
            actions=normalise_actions(actions, self.statistics.action),
        )

    def _pixels(self, image: NDArray[np.uint8], random: np.random.Generator | None) -> NDArray[np.uint8]:
        if random is None:
            return self.recipe.pixels(image)
        return resize_bicubic(augment(self._prepare(image), random, self.recipe.crop_area), self.recipe.shape)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """All batches have one shape, that of the longest prompt: what is compiled once serves all of them."""
        lengths = [len(sample.input_ids) for sample in samples]
        input_ids = np.zeros((len(samples), self._longest), np.int64)
        for row, sample in zip(input_ids, samples, strict=True):
            row[: len(sample.input_ids)] = sample.input_ids
        recipe = self.recipe
        pixels = np.stack([sample.pixels for sample in samples])
        flat = normalise(pixels.reshape(-1, *pixels.shape[-2:]), recipe.mean, recipe.std, recipe.rescale)  # [3, B * n * h, w]
        images = flat.reshape(3, *pixels.shape[:-1]).transpose(1, 2, 0, 3, 4)
        states = [sample.proprio for sample in samples if sample.proprio is not None]
        return Batch(
            pixel_values=torch.from_numpy(np.ascontiguousarray(images)),
            input_ids=torch.from_numpy(input_ids),
            prompt_lengths=torch.tensor(lengths) if self._padded else None,
            proprio=torch.from_numpy(np.stack(states)) if states else None,
            actions=torch.from_numpy(np.stack([sample.actions for sample in samples])),
        )


def normalise_actions(actions: NDArray[np.float32], bounds: Bounds) -> NDArray[np.float32]:
    """[..., A] in the dataset's units -> float32 [..., A], clipped to [-1, 1]; the inverse of policy.unnormalise_actions within.

    A dimension that the dataset never uses, q01 = q99, becomes 0, as in the reference. One that is not masked stays as it is.
    """
    normalised = np.clip(2.0 * (np.asarray(actions, np.float64) - bounds.q01) / bounds.range - 1.0, -1.0, 1.0)
    normalised = np.where(bounds.q01 == bounds.q99, 0.0, normalised)
    result: NDArray[np.float32] = np.where(bounds.mask, normalised, actions).astype(np.float32)
    return result


def split_episodes(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Episodes to train on, and a share of them, at least one, to hold out for validation; none of a single episode, or of a share 0."""
    held_out = 0 if count < 2 or share == 0 else max(1, round(share * count))
    order = np.random.default_rng((seed, count)).permutation(count)
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())


def _closes(actions: NDArray[np.float32]) -> int:
    """The first frame at which the hand is told to close (1 = open, 0 = closed); their number where it never is."""
    closed = actions[:, GRIPPER] < 0.5
    return int(np.argmax(closed)) if closed.any() else len(actions)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    # 1: not the random numbers that a sample's augmentation draws
    return np.random.default_rng((seed, epoch, 1)).permutation(count)
