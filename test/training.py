"""Demonstrations in memory and a tiny network, for tests of training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitvla_ros.model import BitVLA, BitVLAConfig, LanguageConfig, VisionConfig
from bitvla_ros.model.random_weights import draw
from bitvla_ros.model.tokenizer import BYTE_TOKENS, END_OF_TEXT, IMAGE_PAD, PROPRIO_PAD
from bitvla_ros.policy.normalization import Statistics
from bitvla_ros.policy.preprocessing import ImageRecipe
from bitvla_ros.training.samples import Samples
from bitvla_ros.training.statistics import dataset_statistics

IMAGE, PROPRIO, STOP = (BYTE_TOKENS.index(token) for token in (IMAGE_PAD, PROPRIO_PAD, END_OF_TEXT))
SIZE = 28
CAMERAS = ("scene", "wrist")


class Demonstrations:
    """Two tasks; the action of a frame can be told from the colour of its images. `lengths` frames an episode. Even frames have
    `others` counterfactuals: the other task, and actions of which each number is that of the counterfactual."""

    name = "synthetic"
    fps = 20.0
    tasks = ("push", "pull it")

    def __init__(self, lengths: Sequence[int] = (5, 7, 6, 4), seed: int = 0, others: int = 0) -> None:
        self.count_of_others = others
        self.cameras = dict.fromkeys(CAMERAS, (SIZE, SIZE))
        self.lengths = tuple(lengths)
        random = np.random.default_rng(seed)
        count = sum(lengths)
        self.actions = random.uniform(-1, 1, (count, 7)).astype(np.float32)
        self.actions[:, 3:6] = 0
        self.actions[:, 6] = random.integers(0, 2, count)
        self.states = random.normal(size=(count, 8)).astype(np.float32)
        self.ends = np.repeat(np.cumsum(lengths), lengths)
        parts = np.split(np.arange(count), np.cumsum(lengths)[:-1])
        self.statistics = dataset_statistics([self.actions[part] for part in parts], [self.states[part] for part in parts])

    def __len__(self) -> int:
        return len(self.actions)

    def numbers(self, index: int) -> tuple[Any, Any]:
        frames = slice(sum(self.lengths[:index]), sum(self.lengths[: index + 1]))
        return self.actions[frames], self.states[frames]

    def others(self, index: int) -> Any:
        start = sum(self.lengths[:index])
        even = np.arange(start, start + self.lengths[index]) % 2 == 0
        return np.repeat(even[:, None], self.count_of_others, axis=1)

    def frame(self, index: int, chunk: int = 1, other: int | None = None) -> tuple[dict[str, Any], Any, Any, str]:
        actions = np.zeros((chunk, 7), np.float32)
        actions[:, 6] = self.actions[self.ends[index] - 1, 6]
        following = self.actions[index : min(index + chunk, self.ends[index])]
        actions[: len(following)] = following
        noise = np.random.default_rng(index).integers(0, 20, (SIZE, SIZE, 3))
        colour = 128 + 100 * self.actions[index, :3]
        images = {role: np.clip(colour + noise, 0, 255).astype(np.uint8) for role in CAMERAS}
        if other is not None:
            actions[:] = other
        return images, self.states[index], actions, self.tasks[(index + (other is not None)) % 2]


def prompt(task: str) -> np.ndarray[Any, Any]:
    return np.array([256, *[IMAGE] * 4 * len(CAMERAS), PROPRIO, *task.encode()])


def samples(dataset: Demonstrations | None = None, episodes: Sequence[int] | None = None, **options: Any) -> Samples:
    dataset = dataset or Demonstrations()
    options.setdefault("recipe", ImageRecipe(image_size=SIZE))
    return Samples(
        dataset,
        range(len(dataset.lengths)) if episodes is None else episodes,
        prompt=prompt,  # type: ignore[arg-type]
        statistics=Statistics.from_dict(dataset.statistics),
        chunk=4,
        **options,
    )


def tiny_config(activation_bits: int | None = 8) -> BitVLAConfig:
    return BitVLAConfig(
        vision=VisionConfig(hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE),
        language=LanguageConfig(
            vocab_size=len(BYTE_TOKENS),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        ),
        image_token_id=IMAGE,
        proprio_token_id=PROPRIO,
        stop_token_id=STOP,
        chunk=4,
        activation_bits=activation_bits,
        control_hz=20.0,
    )


def tiny_model(activation_bits: int | None = 8, seed: int = 0) -> BitVLA:
    with torch.device("meta"):
        model = BitVLA(tiny_config(activation_bits))
    weights = {name: torch.cat(list(parts)) for name, _, parts in draw(model, seed=seed, dtype=torch.float32)}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True)


def in_two_processes(arguments: Sequence[str], **environment: str) -> list[str]:
    """Run `python ARGUMENTS` as `accelerate launch` would in two processes on the CPU; what each writes to stdout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    test = Path(__file__).parent
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join([str(test), str(test.parent)]), **environment}
    both = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=test,
        )
        for rank in "01"
    ]
    try:
        results = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    for process, (_, errors) in zip(both, results, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in results]
