"""LIBERO's demonstrations in HDF5: the originals, and those that OpenVLA's script regenerated from them.

What the datasets behind the published policies went through is done here: frames are turned by 180 degrees, the gripper's command
becomes 1 = open, 0 = closed, and frames in which nothing is commanded are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...action_convention import OSC
from ..dataset import Episode
from ..left_out import LeftOut
from . import ConversionError
from .pictures import LazyPictures, shrunk, shrunk_size

CONTROL_HZ = 20.0
CAMERAS = {"scene": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
Turn = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
NOOP_THRESHOLD = 1e-4  # norm of an offset below which nothing is commanded


def read_libero(
    files: Sequence[Path], *, keep_noops: bool, shorter_side: int | None, instruction: str, say: Callable[[str], None], left_out: LeftOut
) -> Iterator[tuple[str, Episode]]:
    """Where it comes from, and the episode, whose pictures are read while the next one has not been asked for. instruction: instead of
    the files' own. Raises ConversionError."""
    import h5py

    say("gripper: -1 (open), +1 (closed) converted to 1 = open, 0 = closed")
    kept = total = 0
    for path in files:
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            left_out.add(str(path), ConversionError(f"{path} is no readable HDF5 file ({error})"))
            continue
        with file:
            try:
                data = _demonstrations(path, file)
                task, turn = instruction or _instruction(path, data), _turn(path, data, say)
            except ConversionError as error:
                left_out.add(str(path), error)
                continue
            for name in sorted(data, key=_number):
                where = f"{path}, {name}"
                try:
                    episode, length = _episode(data[name], task, turn, keep_noops, shorter_side, say)
                except ConversionError as error:
                    left_out.add(where, ConversionError(f"{where}: {error}"))
                    continue
                except (KeyError, OSError, TypeError, ValueError, AttributeError, IndexError) as error:  # other types, shapes
                    left_out.add(where, ConversionError(f"{where}: {error}; expected actions and obs/ as LIBERO writes them"))
                    continue
                kept, total = kept + len(episode), total + length
                yield where, episode
    if not keep_noops:
        say(f"dropped {total - kept} of {total} frames in which nothing is commanded (--keep-noops keeps them)")


def _demonstrations(path: Path, file: Any) -> Any:
    if "data" not in file or not len(file["data"]):
        raise ConversionError(f"{path} has no group data with demonstrations: expected data/demo_0, data/demo_1, ...")
    return file["data"]


def is_noop(action: NDArray[np.floating[Any]], previous: NDArray[np.floating[Any]] | None) -> bool:
    """Nothing is asked of the arm, and nothing new of the gripper. previous: the last action that was kept."""
    return bool(np.linalg.norm(action[:-1]) < NOOP_THRESHOLD) and (previous is None or bool(action[-1] == previous[-1]))


def _episode(
    demo: Any, task: str, turn: Turn, keep_noops: bool, shorter_side: int | None, say: Callable[[str], None]
) -> tuple[Episode, int]:
    """The episode, and how many frames it had before any was dropped."""
    observed = demo["obs"]
    actions = _numbers(demo["actions"], "actions", 7)
    if "ee_states" in observed:
        pose = _numbers(observed["ee_states"], "obs/ee_states", 6)
    else:
        pose = np.concatenate([_numbers(observed[f"ee_{part}"], f"obs/ee_{part}", 3) for part in ("pos", "ori")], axis=1)
    state = np.concatenate([pose, _numbers(observed["gripper_states"], "obs/gripper_states", 2)], axis=1)
    lengths = {"actions": len(actions), "obs states": len(state), **{key: len(observed[key]) for key in CAMERAS.values()}}
    if len(set(lengths.values())) > 1:
        raise ConversionError(f"frame {min(lengths.values())}: lengths differ: {', '.join(f'{key} {n}' for key, n in lengths.items())}")
    limit = np.abs(actions[:, :6]).max(axis=1) > 1 + 1e-6
    if limit.any():
        frame = int(np.argmax(limit))
        raise ConversionError(f"frame {frame}: action {actions[frame]} leaves [-1, 1]; these are no commands of LIBERO's controller")
    seen = np.arange(len(actions))
    if _follows_the_action(demo, observed):
        say("observations were recorded after their actions (LIBERO's originals): each is paired with the next action")
        seen, actions = seen[:-1], actions[1:]
    kept: list[int] = []
    for i, action in enumerate(actions):
        if keep_noops or not is_noop(action, actions[kept[-1]] if kept else None):
            kept.append(i)
    if not kept:
        raise ConversionError("in none of its frames anything is commanded (--keep-noops keeps them)")
    images = {role: _pictures(observed[key], key, seen[kept], turn, shorter_side) for role, key in CAMERAS.items()}
    actions = actions[kept]
    actions[:, 6] = 1.0 - np.clip(actions[:, 6], 0.0, 1.0)
    episode = Episode(
        task, images, state[seen[kept]].astype(np.float32), actions.astype(np.float32), success=_success(demo), convention=OSC
    )
    return episode, len(seen)


def _pictures(pictures: Any, key: str, frames: NDArray[np.intp], turn: Turn, shorter_side: int | None) -> LazyPictures:
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise ConversionError(f"obs/{key} is {pictures.dtype} {list(pictures.shape)}, expected uint8 [T, H, W, 3]")

    def decode() -> Iterator[NDArray[np.uint8]]:
        for frame, number in enumerate(frames):
            try:
                yield shrunk(turn(pictures[number]), shorter_side)
            except OSError as error:
                raise ConversionError(f"frame {frame}: obs/{key}: {error}") from error

    size = shrunk_size(pictures.shape[1], pictures.shape[2], shorter_side)
    return LazyPictures(key, len(frames), size, decode)


def _success(demo: Any) -> bool | None:
    """LIBERO ends a demonstration when its goal is reached, and marks that; None where nothing is marked at all."""
    marked = [name for name in ("dones", "rewards") if name in demo]
    return any(bool(np.asarray(demo[name]).any()) for name in marked) if marked else None


def _follows_the_action(demo: Any, observed: Any) -> bool:
    """Whether observation i was taken after action i. The simulator's state i, which holds the joints behind the time, is always the one
    before action i: the observed joints agree with it, or with the next."""
    if "states" not in demo or "joint_states" not in observed or len(demo["states"]) < 4:
        return False
    joints, states = np.asarray(observed["joint_states"]), np.asarray(demo["states"])
    if joints.shape[1] != 7 or states.shape[1] < 8 or len(joints) != len(states):
        return False
    before = np.abs(joints[1:-1] - states[1:-1, 1:8]).mean()
    after = np.abs(joints[1:-1] - states[2:, 1:8]).mean()
    return bool(after < before)


def _turn(path: Path, data: Any, say: Callable[[str], None]) -> Turn:
    """To how the datasets of the published policies have it: the renderer's frame, whose first row is the lowest, turned by 180 degrees."""
    convention = _text(data.attrs.get("macros_image_convention", "opengl"))
    if convention == "opengl":
        say("pictures: turned by 180 degrees, once")
        return lambda picture: picture[::-1, ::-1]
    if convention == "opencv":  # its rows are in order already
        say("pictures: mirrored, which makes of the file's convention (opencv) frames turned by 180 degrees")
        return lambda picture: picture[:, ::-1]
    raise ConversionError(f"{path}: macros_image_convention is {convention!r}, expected opengl or opencv")


def _instruction(path: Path, data: Any) -> str:
    """Of the attribute problem_info, or of the file's name, which LIBERO makes of the instruction."""
    if "problem_info" in data.attrs:
        try:
            words = json.loads(_text(data.attrs["problem_info"]))["language_instruction"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConversionError(f"{path}: problem_info has no language_instruction ({error}); give --instruction") from error
        return ("".join(words) if isinstance(words, list) else str(words)).strip().strip('"')
    name = re.sub(r"^.*SCENE\d+_", "", path.stem.removesuffix("_demo"))
    return name.replace("_", " ")


def _numbers(dataset: Any, name: str, dimensions: int) -> NDArray[np.float64]:
    rows = np.asarray(dataset, np.float64)
    if rows.ndim != 2 or rows.shape[1] != dimensions or not len(rows):
        raise ConversionError(f"{name} is {list(rows.shape)}, expected [T, {dimensions}]")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ConversionError(f"frame {bad[0]}: {name} is {rows[bad[0]]}; expected finite numbers")
    return rows


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _number(name: str) -> tuple[int, str]:
    digits = re.sub(r"\D", "", name)
    return (int(digits) if digits else 0, name)
