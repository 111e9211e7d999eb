"""The end effector's pose out of a recorded TF tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .alignment import SECOND, Floats, Stamps, continued, interpolate, interpolate_rotation, rotated
from .bag import Bag, pose_of

TF = ("tf2_msgs/TFMessage",)


@dataclass(frozen=True)
class _Link:
    """A frame in its parent's: poses [N, 7] at stamps; a static one has a single pose and no stamps."""

    parent: str
    stamps: Stamps
    poses: Floats


def pose_from_tf(bag: Bag, base: str, tip: str, max_gap: float) -> tuple[Stamps, Floats]:
    """Stamps [N] and poses [N, 7] (m, quaternion xyzw) of frame `tip` in frame `base`, by way of their common ancestor: at the stamps of
    the moving link that is nearest to the tip, while all links are there; the others are interpolated. Raises ConversionError."""
    links = _links(bag)
    above_tip, above_base = _ancestors(tip.lstrip("/"), links), _ancestors(base.lstrip("/"), links)
    common = next((frame for frame in above_tip if frame in above_base), None)
    if common is None:
        known = ", ".join(sorted(set(links) | {link.parent for link in links.values()})) or "nothing"
        raise bag.error(f"TF has no way from {base} to {tip}; it has {known}", listing=not links)
    up = [links[frame] for frame in above_tip[: above_tip.index(common)]]
    down = [links[frame] for frame in above_base[: above_base.index(common)]]
    moving = [link.stamps for link in [*up, *down] if len(link.stamps)]
    if not moving:
        raise bag.error(f"TF: nothing moves between {base} and {tip}; expected the arm's joints between them")
    start, end = max(stamps[0] for stamps in moving), min(stamps[-1] for stamps in moving)
    times = moving[0][(moving[0] >= start) & (moving[0] <= end)]
    for stamps in moving[1:]:
        after = np.minimum(np.searchsorted(stamps, times), len(stamps) - 1)
        gap = np.where(stamps[after] == times, 0, stamps[after] - stamps[np.maximum(after - 1, 0)])
        times = times[gap <= max_gap * SECOND]  # where a link is silent there is no pose; the episode that needs it says so
    if not len(times):
        raise bag.error(f"TF: the links between {base} and {tip} were never there at the same time")
    tip_position, tip_turn = _along(up, times)
    base_position, base_turn = _along(down, times)
    back = base_turn * [-1.0, -1.0, -1.0, 1.0]
    return times, np.concatenate([rotated(back, tip_position - base_position), continued(_product(back, tip_turn))], axis=1)


def _ancestors(frame: str, links: Mapping[str, _Link]) -> list[str]:
    """The frame itself, its parent, and so on to the root; in a ring, each once."""
    found = [frame]
    while found[-1] in links and links[found[-1]].parent not in found:
        found.append(links[found[-1]].parent)
    return found


def _along(chain: Sequence[_Link], times: Stamps) -> tuple[Floats, Floats]:
    """Position [T, 3] and orientation [T, 4] of the chain's first child in its last parent; nothing moved where the chain is empty."""
    position, quaternion = np.zeros((len(times), 3)), np.tile([0.0, 0.0, 0.0, 1.0], (len(times), 1))
    for link in chain:
        if len(link.stamps):
            name = f"TF below {link.parent}"
            moved = interpolate(name, link.stamps, link.poses[:, :3], times, float("inf"))
            turned = interpolate_rotation(name, link.stamps, link.poses[:, 3:], times, float("inf"))
        else:
            moved, turned = np.repeat(link.poses[:, :3], len(times), 0), np.repeat(link.poses[:, 3:], len(times), 0)
        position = moved + rotated(turned, position)
        quaternion = _product(turned, quaternion)
    return position, quaternion


def _product(a: Floats, b: Floats) -> Floats:
    av, aw, bv, bw = a[:, :3], a[:, 3:], b[:, :3], b[:, 3:]
    return np.concatenate([aw * bv + bw * av + np.cross(av, bv), aw * bw - np.sum(av * bv, axis=1, keepdims=True)], axis=1)


def _links(bag: Bag) -> dict[str, _Link]:
    found: dict[str, list[tuple[int, str, Floats]]] = {}
    for name in ("tf_static", "tf"):
        topic = bag.find(name, TF, "TF (--tf)", required=name == "tf")
        for received, message in bag.messages(topic) if topic else ():
            for transform in message.transforms:
                child, parent = transform.child_frame_id.lstrip("/"), transform.header.frame_id.lstrip("/")
                stamp = 0 if name == "tf_static" else bag.stamp(received, transform)
                found.setdefault(child, []).append((stamp, parent, pose_of(transform.transform)))
    links = {}
    for child, rows in found.items():
        parents = {parent for _, parent, _ in rows}
        if len(parents) > 1:
            raise bag.error(f"TF: {child} has several parents: {', '.join(sorted(parents))}")
        stamps = np.array([stamp for stamp, _, _ in rows], np.int64)
        poses = bag.unit_poses(f"TF: transform of {child}", stamps, np.stack([pose for _, _, pose in rows]))
        if (stamps == 0).all():
            links[child] = _Link(rows[0][1], np.empty(0, np.int64), poses[-1:])
            continue
        order = np.argsort(stamps, kind="stable")
        kept = order[bag.check_stamps(f"TF: transform of {child}", stamps[order], poses[order])]
        links[child] = _Link(rows[0][1], stamps[kept], poses[kept])
    return links
