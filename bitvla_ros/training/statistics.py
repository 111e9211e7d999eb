"""Statistics of a dataset, in the reference's form: a checkpoint's dataset_statistics.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def dataset_statistics(actions: Sequence[NDArray[Any]], states: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """One entry of dataset_statistics.json: {"action", "proprio", "num_transitions", "num_trajectories"}.

    actions: of each episode [T, A], in the dataset's convention. states: of each episode [T, D].
    The mask says what is normalised by q01 and q99: all but the last action, the gripper, which is 0 or 1 already.
    """
    every_action, every_state = np.concatenate(list(actions)), np.concatenate(list(states))
    dimensions = every_action.shape[1]
    return {
        "action": {**_of(every_action), "mask": [True] * (dimensions - 1) + [False]},
        "proprio": _of(every_state),
        "num_transitions": len(every_action),
        "num_trajectories": len(actions),
    }


def _of(rows: NDArray[Any]) -> dict[str, list[float]]:
    rows = rows.astype(np.float64)
    low, high = np.quantile(rows, (0.01, 0.99), axis=0)
    values = {"mean": rows.mean(0), "std": rows.std(0), "max": rows.max(0), "min": rows.min(0), "q01": low, "q99": high}
    return {name: value.tolist() for name, value in values.items()}
