"""Checks of the pictures: do they decode, are they big enough, is each role another view, and does any of them stand still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from bitvla_ros.policy.gate import GateConfig

from .facts import Camera, Expected, Finding, Graph, Model, Pose

SAME = 2.0  # mean difference of grey values (0 to 255) below which two pictures show the same
DARK = 3.0  # standard deviation of grey values below which a picture shows nothing
DEFAULT_TRANSPORTS = 256 * 256 * 3  # bytes of an image that Fast DDS's default transports were seen to carry well

_GATE = GateConfig()


def check_camera(camera: Camera, graph: Graph, expected: Expected, model: Model | None) -> Iterator[Finding]:
    yield _image(camera, expected, model)
    if camera.problem:
        return
    yield _moving(camera, graph)


def check_distinct(cameras: Sequence[Camera]) -> Iterator[Finding]:
    """Two roles that show the same picture: a remapping that was copied, or a driver that opened one device twice."""
    seen = [camera for camera in cameras if camera.small is not None and camera.small.std() >= DARK]
    if len(seen) < 2:
        return
    same = [f"{one.role} and {other.role}" for one, other in combinations(seen, 2) if _difference(one, other) < SAME]
    if same:
        remedy = "give each role its own camera: cover one lens with your hand and see which picture goes dark"
        yield Finding("camera roles", "fail", f"{', '.join(same)} show the same picture", remedy)
    else:
        yield Finding("camera roles", "ok", f"{', '.join(camera.role for camera in seen)} show different pictures")


def _difference(one: Camera, other: Camera) -> float:
    assert one.small is not None and other.small is not None
    return float(np.abs(one.small - other.small).mean())


def _image(camera: Camera, expected: Expected, model: Model | None) -> Finding:
    name = f"camera {camera.role}: image"
    if camera.problem:
        return Finding(name, "fail", camera.problem, "set the driver's encoding to rgb8 or bgr8, or camera_transport to what it sends")
    size = f"{camera.width}x{camera.height}"
    found = f"{size} {camera.encoding}"
    asked = (int(expected.policy["image_height"]), int(expected.policy["image_width"]))
    if all(asked) and asked != (camera.height, camera.width):
        return Finding(
            name, "fail", f"{found}; the policy expects {asked[1]}x{asked[0]}", "set the camera's mode, or image_height and image_width"
        )
    if camera.small is not None and camera.small.std() < DARK:
        return Finding(name, "warn", f"{found}, of one colour", "is the lens covered, the exposure wrong, or the light off?")
    if model is not None and min(camera.height, camera.width) < model.image_size:
        found += f"; the model sees {model.image_size}x{model.image_size}"
        return Finding(name, "warn", found, "choose a mode of the camera that is no smaller, unless the training data was as small")
    if camera.height != camera.width:
        what = "squashed" if expected.policy["fit"] == "squash" else "cropped"
        found += f", {what} to a square as the parameter fit says"
    return Finding(name, "ok", found)


def _moving(camera: Camera, graph: Graph) -> Finding:
    name = f"camera {camera.role}: frozen"
    frames = dict(camera.digests)  # a stamp counts once
    if len(frames) < _GATE.frozen_frames:
        if graph.lockstep:
            return Finding(name, "ok", "the simulator waits between its pictures")
        return Finding(name, "skip", f"{len(frames)} pictures are too few to tell")
    if len(set(frames.values())) > 1:
        return Finding(name, "ok", "its pictures change")
    found = f"{len(frames)} pictures in a row have the same bytes"
    if moved(graph.poses):
        return Finding(name, "fail", f"{found} although the arm moved", "restart its driver: it repeats an old picture")
    if graph.tick:
        return Finding(name, "ok", f"{found}, as a simulator's do while nothing moves")
    remedy = "real sensors are noisy: wave a hand before it and look again; if it stays, restart its driver"
    return Finding(name, "warn", f"{found}; the arm did not move either", remedy)


def moved(poses: Sequence[Pose]) -> bool:
    """Whether the end effector left its place by more than what the policy's gate calls motion."""
    if not poses:
        return False
    first = poses[0]
    distances = [float(np.linalg.norm(pose.position - first.position)) for pose in poses]
    dots = [min(abs(float(pose.orientation @ first.orientation)), 1.0) for pose in poses]
    return max(distances) > _GATE.frozen_distance or 2 * float(np.arccos(min(dots))) > _GATE.frozen_angle
