"""Between the network's [-1, 1] and the robot's units, by the q01/q99 statistics of the data it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRIPPER = 6  # column of an action
OPEN, CLOSED = -1.0, 1.0  # of a command; datasets and the network mean 1 = open, 0 = closed
EPSILON = 1e-8  # the reference's, against a zero range


class StatisticsError(ValueError):
    """Normalisation statistics that are missing, of the wrong length, not finite or upside down."""


@dataclass(frozen=True)
class Bounds:
    """The 1 % and 99 % quantiles of every dimension, float64 [D]; mask, bool [D]: False leaves a dimension as it is."""

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mask: NDArray[np.bool_]

    @property
    def range(self) -> NDArray[np.float64]:
        return self.q99 - self.q01 + EPSILON

    @classmethod
    def from_dict(cls, statistics: Mapping[str, Any], name: str, dimensions: int) -> Bounds:
        """Read q01, q99 and mask (absent: all True) as dataset_statistics.json has them. name: for messages."""
        if not isinstance(statistics, Mapping):
            raise StatisticsError(f"{name}: expected an object with q01 and q99, got {statistics!r:.80}")
        q01, q99 = (_numbers(statistics, key, name, dimensions) for key in ("q01", "q99"))
        if (q01 > q99).any():
            raise StatisticsError(
                f"{name}: q01 is above q99 in dimensions {np.flatnonzero(q01 > q99).tolist()}; expected quantiles in order"
            )
        mask = np.asarray(statistics.get("mask", [True] * dimensions))
        if mask.shape != (dimensions,) or mask.dtype != np.bool_:
            raise StatisticsError(f"{name}.mask: expected {dimensions} booleans, got {statistics['mask']!r:.80}")
        return cls(q01, q99, mask)


@dataclass(frozen=True)
class Statistics:
    """What a checkpoint's dataset says about actions and, where the network takes it, proprioception."""

    action: Bounds
    proprio: Bounds | None

    @classmethod
    def from_dict(cls, statistics: Mapping[str, Any] | None, *, action_dim: int = 7, proprio_dim: int | None = 8) -> Statistics:
        """statistics: {"action": {...}, "proprio": {...}}, one entry of dataset_statistics.json. Raises StatisticsError."""
        wanted = ("action",) if proprio_dim is None else ("action", "proprio")
        missing = [key for key in wanted if statistics is None or key not in statistics]
        if statistics is None or missing:
            raise StatisticsError(
                f"no normalisation statistics of {', '.join(missing)}; expected them in the checkpoint's dataset_statistics.json "
                "under the key of the dataset that it was fine-tuned on"
            )
        return cls(
            Bounds.from_dict(statistics["action"], "action", action_dim),
            None if proprio_dim is None else Bounds.from_dict(statistics["proprio"], "proprio", proprio_dim),
        )

    @classmethod
    def identity(cls, *, action_dim: int = 7, proprio_dim: int | None = 8) -> Statistics:
        """q01 = -1, q99 = 1, the gripper as it is: for a network with random weights."""
        mask = np.ones(action_dim, np.bool_)
        mask[GRIPPER:] = False
        proprio = None if proprio_dim is None else Bounds(-np.ones(proprio_dim), np.ones(proprio_dim), np.ones(proprio_dim, np.bool_))
        return cls(Bounds(-np.ones(action_dim), np.ones(action_dim), mask), proprio)


def _numbers(statistics: Mapping[str, Any], key: str, name: str, dimensions: int) -> NDArray[np.float64]:
    if key not in statistics:
        raise StatisticsError(f"{name}: {key} is missing; expected {dimensions} numbers")
    try:
        values = np.asarray(statistics[key], np.float64)
    except (TypeError, ValueError) as error:
        raise StatisticsError(f"{name}.{key}: expected {dimensions} numbers, got {statistics[key]!r:.80}") from error
    if values.shape != (dimensions,):
        raise StatisticsError(f"{name}.{key}: expected {dimensions} numbers, got shape {values.shape}; is this another robot's checkpoint?")
    if not np.isfinite(values).all():
        raise StatisticsError(f"{name}.{key}: dimensions {np.flatnonzero(~np.isfinite(values)).tolist()} are not finite")
    return values


def normalise_proprio(state: NDArray[np.float64], bounds: Bounds) -> NDArray[np.float64]:
    """float64 [D], m and rad -> float64 [D] in [-1, 1]; what lies outside q01..q99 is clipped. The argument stays as it is."""
    normalised = 2.0 * (np.asarray(state, np.float64) - bounds.q01) / bounds.range - 1.0
    clipped: NDArray[np.float64] = np.where(bounds.mask, np.clip(normalised, -1.0, 1.0), state)
    return clipped


def unnormalise_actions(actions: NDArray[np.floating[Any]], bounds: Bounds) -> NDArray[np.float64]:
    """[..., D] as the network gives them -> float64 [..., D] in the dataset's units, not clipped.

    The shift to [0, 1] happens in the network's own float32, as in the reference; only the rest is float64.
    """
    scaled: NDArray[np.float64] = np.where(bounds.mask, 0.5 * (actions + 1) * bounds.range + bounds.q01, actions)
    return scaled


def to_command(actions: NDArray[np.float64]) -> NDArray[np.float32]:
    """float64 [..., 7] in the dataset's convention -> float32 [..., 7], rows of an ActionChunk (msg/ActionChunk.msg).

    Gripper: the network's 0 (closed) ... 1 (open) becomes -1 (open) or +1 (closed), as the reference's 2g - 1, sign, negation do.
    Where those give 0, at exactly one half, the gripper is closed: a tie must not drop what is held.
    Translation and rotation are limited to [-1, 1], as robosuite's OSC_POSE limits its input. NaN stays NaN.
    """
    command = np.clip(actions, -1.0, 1.0).astype(np.float32)
    gripper = actions[..., GRIPPER]
    command[..., GRIPPER] = np.where(np.isnan(gripper), np.nan, np.where(gripper > 0.5, OPEN, CLOSED))
    return command
