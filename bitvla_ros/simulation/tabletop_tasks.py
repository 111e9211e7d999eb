"""The tabletop suites: what stands where, what is asked, and when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from . import scene
from .plan import ExpertError, PickAndPlace
from .scene import Item

Array = NDArray[np.float64]
Layout = dict[str, tuple[float, float, float]]  # name -> x, y (m) and yaw (rad) on the table

# Where a thing must be to be "at" another: half a side or radius around its middle, and the range of the height (m) of the lower end
# of what was put there above the table. Left and right are those of the scene camera's picture: left is -y.
_REGIONS: Mapping[str, tuple[str, float, float, float]] = {
    "bowl": ("circle", scene.BOWL_RADIUS, 0.0, 0.030),
    "plate": ("circle", scene.PLATE_RADIUS, 0.0, scene.PLATE_TOP + 0.006),
    "basket": ("square", scene.BASKET_HALF, 0.0, 0.050),
    "mat": ("square", scene.MAT_HALF, -0.005, 0.006),
    "block": ("circle", 0.024, 2 * scene.BLOCK - 0.006, 2 * scene.BLOCK + 0.008),
}


@dataclass(frozen=True)
class Task:
    """instruction: the words. target: what must move. goal: where it must rest."""

    instruction: str
    target: str
    goal: str


@dataclass(frozen=True)
class Suite:
    """One scene with several tasks. layout: draws the initial state of a task; what it leaves out is not there."""

    name: str
    items: tuple[Item, ...]
    tasks: tuple[Task, ...]
    layout: Callable[[int, np.random.Generator], Layout]
    step_limit: int

    def item(self, name: str) -> Item:
        return next(item for item in self.items if item.name == name)

    def initial_poses(self, task: int, rng: np.random.Generator) -> dict[str, Array]:
        """Name -> float64 [7], position (m) and quaternion wxyz in the world frame."""
        layout = self.layout(task, rng)
        poses = {}
        for name, (x, y, yaw) in layout.items():
            box = layout.get("wooden_box")
            on_box = box is not None and name != "wooden_box" and max(abs(x - box[0]), abs(y - box[1])) < scene.BOX_HALF / 2
            height = self.item(name).half_height + (scene.BOX_HEIGHT if on_box else 0.0)
            poses[name] = np.array([x, y, height, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
        return poses

    def at_goal(self, task: Task, poses: Mapping[str, Array]) -> bool:
        """The target's middle is over the goal and its lower end at the goal's height."""
        shape, extent, low, high = _REGIONS[self.item(task.goal).kind]
        target, goal = poses[task.target], poses[task.goal]
        dx, dy = target[:2] - goal[:2]
        inside = np.hypot(dx, dy) < extent if shape == "circle" else max(abs(dx), abs(dy)) < extent
        goal_height = goal[2] - self.item(task.goal).half_height
        height = target[2] - self.item(task.target).half_height - goal_height
        return bool(inside and low <= height <= high)


def _around(rng: np.random.Generator, x: float, y: float, jitter: float = 0.015, yaw: float = 0.25) -> tuple[float, float, float]:
    dx, dy = rng.uniform(-jitter, jitter, 2)
    return x + dx, y + dy, rng.uniform(-yaw, yaw)


# --- tabletop_spatial: two equal blocks, only the words say which -------------------------------------------------------------

_PLACES = ("on the left", "next to the bowl", "on the wooden box", "between the bowl and the wooden box")


def _spatial_layout(task: int, rng: np.random.Generator) -> Layout:
    layout = {
        "plate": _around(rng, 0.06, 0.17, 0.02, 0.0),
        "bowl": _around(rng, -0.11, -0.01, 0.01, 0.0),
        "wooden_box": _around(rng, 0.15, -0.01, 0.01, 0.0),
    }
    (bowl_x, bowl_y, _), (box_x, box_y, _) = layout["bowl"], layout["wooden_box"]
    middle_x, middle_y = (bowl_x + box_x) / 2 + 0.008, (bowl_y + box_y) / 2  # the bowl is the wider one
    places = (
        _around(rng, 0.02, -0.19, 0.035),
        _around(rng, bowl_x, bowl_y + 0.115, 0.008),
        _around(rng, box_x, box_y, 0.008),
        _around(rng, middle_x, middle_y, 0.008),
    )
    other = (task + 1 + int(rng.integers(len(places) - 1))) % len(places)
    return {**layout, "red_block_1": places[task], "red_block_2": places[other]}


SPATIAL = Suite(
    "tabletop_spatial",
    (
        Item("red_block_1", "block", "red"),
        Item("red_block_2", "block", "red"),
        Item("plate", "plate"),
        Item("bowl", "bowl"),
        Item("wooden_box", "wooden_box"),
    ),
    tuple(Task(f"pick up the red block {place} and place it on the plate", "red_block_1", "plate") for place in _PLACES),
    _spatial_layout,
    220,
)

# --- tabletop_object: many things, one basket ---------------------------------------------------------------------------------

_THINGS = {"red_block": "red block", "green_block": "green block", "blue_block": "blue block", "yellow_block": "yellow block",
           "orange_can": "orange can"}  # fmt: skip


def _object_layout(task: int, rng: np.random.Generator) -> Layout:
    slots = [(x, y) for x in (-0.09, 0.06) for y in (-0.21, -0.10, 0.01)]
    order = rng.permutation(len(slots))[: len(_THINGS)]
    places = (slots[slot] for slot in order)
    layout = {name: _around(rng, x, y, 0.018) for name, (x, y) in zip(_THINGS, places, strict=True)}
    return {**layout, "basket": _around(rng, 0.0, 0.18, 0.015, 0.0)}


OBJECT = Suite(
    "tabletop_object",
    (*(Item(name, "can" if "can" in name else "block", name.split("_")[0]) for name in _THINGS), Item("basket", "basket")),
    tuple(Task(f"pick up the {words} and place it in the basket", name, "basket") for name, words in _THINGS.items()),
    _object_layout,
    280,
)

# --- tabletop_few: some of tabletop_object's things, to learn from --------------------------------------------------------------


def _few_layout(task: int, rng: np.random.Generator) -> Layout:
    layout = _object_layout(task, rng)
    others = rng.permutation([name for place, name in enumerate(_THINGS) if place != task])
    for name in others[: rng.integers(len(others) + 1)]:
        del layout[name]
    return layout


FEW = replace(OBJECT, name="tabletop_few", layout=_few_layout)

# --- tabletop_goal: one scene, many goals -------------------------------------------------------------------------------------


def _goal_layout(task: int, rng: np.random.Generator) -> Layout:
    red, green = (_around(rng, x, -0.01, 0.02) for x in rng.permutation([-0.10, 0.03]))
    return {
        "red_block": red,
        "green_block": green,
        "bowl": _around(rng, -0.09, -0.17, 0.012, 0.0),
        "plate": _around(rng, 0.09, -0.17, 0.012, 0.0),
        "basket": _around(rng, -0.01, 0.19, 0.012, 0.0),
        "mat": _around(rng, 0.17, 0.0, 0.005, 0.0),
    }


GOAL = Suite(
    "tabletop_goal",
    (
        Item("red_block", "block", "red"),
        Item("green_block", "block", "green"),
        Item("bowl", "bowl"),
        Item("plate", "plate"),
        Item("basket", "basket"),
        Item("mat", "mat"),
    ),
    (
        Task("put the red block in the bowl", "red_block", "bowl"),
        Task("put the red block on the plate", "red_block", "plate"),
        Task("put the red block in the basket", "red_block", "basket"),
        Task("put the green block on the plate", "green_block", "plate"),
        Task("stack the red block on the green block", "red_block", "green_block"),
        Task("put the green block on the purple mat", "green_block", "mat"),
    ),
    _goal_layout,
    300,
)

SUITES: Mapping[str, Suite] = {suite.name: suite for suite in (SPATIAL, OBJECT, GOAL, FEW)}


# --- what the expert does -----------------------------------------------------------------------------------------------------

_RELEASE = {"bowl": 0.065, "plate": 0.045, "basket": 0.085, "mat": 0.030, "block": 2 * scene.BLOCK + 0.006}  # m, above the goal


def plans(suite: str) -> dict[str, PickAndPlace]:
    """Instruction -> plan, for every task of a tabletop suite. Raises ExpertError for another suite."""
    if suite not in SUITES:
        raise ExpertError(f"unknown suite {suite!r}: the tabletop has {', '.join(SUITES)}")
    chosen = SUITES[suite]
    return {
        task.instruction: PickAndPlace(
            task.target,
            task.goal,
            grasp=(0.0, 0.0, 0.0),
            release=_RELEASE[chosen.item(task.goal).kind] + chosen.item(task.target).half_height - scene.BLOCK,
            close_steps=8,
            open_steps=8,
        )
        for task in chosen.tasks
    }
