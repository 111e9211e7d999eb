"""The verb `convert`: recordings made elsewhere become a dataset to train on. docs/data.md is its guide."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import COUNT, POSITIVE, require_read
from ..stated import agreed
from .left_out import LeftOut
from .sources.lerobot_actions import KINDS, ROTATIONS, Declared
from .video_files import CODECS

if TYPE_CHECKING:
    from .dataset import DatasetWriter, Episode

EXAMPLES = """\
  ros2 bag record -o pick1 /camera/scene/image_raw /camera/wrist/image_raw /joint_states /end_effector_pose \\
      /servo_node/delta_twist_cmds /gripper
  bitvla convert pick1 pick2 pick3 picks --instruction "pick up the red block" --command servo_node/delta_twist_cmds \\
      --gripper gripper --gripper-open 0.08 --gripper-closed 0
  bitvla convert session.mcap picks --split task --camera scene=/front/color/image_raw --tf panda_link0 panda_hand
  bitvla convert teleop/ picks --profile fr3_crisp --instruction "pick up the red block"   a folder of bags, of an arm that has a profile
  bitvla convert libero_object/*.hdf5 libero-object                 LIBERO's demonstrations
  bitvla convert lerobot-libero mine --action-kind offsets --action-rotation axis-angle --state-rotation axis-angle --gripper-open -1 \\
      --gripper-closed 1 --camera scene=image --camera wrist=wrist_image
  bitvla convert lerobot-bridge mine --action-kind metres --metres-per-unit 0.02 --radians-per-unit 0.1 \\
      --gripper-open 1 --gripper-closed 0"""

DEFAULT_HZ = 20.0  # of teleoperated recordings: the rate of the published policies
DEFAULT_ROBOT = "panda"
_OUTCOMES = {True: "succeeded", False: "failed", None: "unknown"}

_MOTION = ("profile", "pose", "tf", "joints", "command", "command_frame", "split", "max_gap", "stamps")
_UNITS = ("metres_per_unit", "radians_per_unit")
_MEANING = ("action_kind", "action_rotation", "state_rotation")
_GRIPPER = ("gripper", "gripper_joints", "gripper_scale", "gripper_offset", "orientation_branch")
READ = {
    "rosbag2": (*_MOTION, *_UNITS, *_GRIPPER, "camera", "gripper_open", "gripper_closed"),
    "libero": ("keep_noops",),
    "lerobot": (*_MEANING, *_UNITS, "state", "action", "camera", "gripper_open", "gripper_closed", "orientation_branch"),
}
# Of a bag, what depends on other options.
READ_OF_BAGS = {
    "a pose topic": ("pose",),
    "--tf": ("tf",),
    "a command": ("command_frame",),
    "a gripper topic (--gripper)": ("gripper_open", "gripper_closed"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "rosbag2 folders (or folders of them, .mcap, .db3), LIBERO .hdf5 files, or one LeRobot dataset"
    parser.add_argument("sources", nargs="+", help=what)
    parser.add_argument("out", help="folder of the dataset, which must not exist yet")
    parser.add_argument("--name", help="name of the dataset, under which its statistics are kept (default: the folder's)")
    parser.add_argument("--robot-type", help=f"default: as a LeRobot dataset says, else {DEFAULT_ROBOT}")
    parser.add_argument("--instruction", default="", help="the task in words; default: what the recording says")
    parser.add_argument("--camera", action="append", type=_camera, default=[], metavar="ROLE=NAME", help="topic or feature; repeat it")
    parser.add_argument("--image-size", type=COUNT, metavar="N", help="shrink pictures until their shorter side has N pixels")
    parser.add_argument("--gripper-open", type=float, metavar="V", help="value of the gripper topic, or column, that means open")
    parser.add_argument("--gripper-closed", type=float, metavar="V", help="value that means closed")
    parser.add_argument("--control-hz", type=POSITIVE, help=f"rate (bags: default {DEFAULT_HZ:g}; others state their own)")
    bags = parser.add_argument_group("rosbag2 (names of topics may be given without their namespace)")
    bags.add_argument(
        "--profile", metavar="NAME", help="the arm's, in config/profiles, or a file: its joints, frames, units, rate and topics hold"
    )
    bags.add_argument("--pose", default="end_effector_pose", help="geometry_msgs/PoseStamped (default: %(default)s)")
    bags.add_argument("--tf", nargs=2, metavar=("BASE", "TIP"), help="take the pose of frame TIP in frame BASE from TF instead")
    bags.add_argument("--joints", default="joint_states", help="sensor_msgs/JointState with the fingers (default: %(default)s)")
    bags.add_argument(
        "--command",
        default="",
        help="teleoperation: EndEffectorCommand, TwistStamped or PoseStamped (target); none: take the measured motion "
        "(default: end_effector_command if recorded, else none)",
    )
    bags.add_argument("--command-frame", choices=("pose", "tool"), default="", help="axes of the command, where the headers' frames differ")
    bags.add_argument("--gripper", default="", help="its command: Bool, Float32, Float64 or JointState (default: the fingers' motion)")
    bags.add_argument("--split", default="", help="topic that begins and ends episodes: Bool, String (instruction) or bitvla_ros/Task")
    bags.add_argument("--max-gap", type=POSITIVE, default=0.15, help="longest silence of a stream, s (default: %(default)s)")
    bags.add_argument(
        "--stamps",
        choices=("header", "received"),
        default="header",
        help="when a message was captured: by its header or, where drivers leave that empty, when it was received (default: %(default)s)",
    )
    same = "as the policy node's parameter"
    bags.add_argument("--gripper-joints", nargs="+", default=["panda_finger_joint1", "panda_finger_joint2"], metavar="JOINT", help=same)
    bags.add_argument("--gripper-scale", nargs=2, type=float, default=[1.0, 1.0], metavar=("A", "B"), help=same)
    bags.add_argument("--gripper-offset", nargs=2, type=float, default=[0.0, 0.0], metavar=("A", "B"), help=same)
    both = parser.add_argument_group("rosbag2 and LeRobot")
    both.add_argument(
        "--metres-per-unit", type=POSITIVE, default=0.0135, help="motion of a full-scale action in one step (default: %(default)s)"
    )
    both.add_argument("--radians-per-unit", type=POSITIVE, default=0.07, help="the same for rotation (default: %(default)s)")
    both.add_argument("--orientation-branch", nargs=4, type=float, metavar=("X", "Y", "Z", "W"), help=same + " (default: the first)")
    other = parser.add_argument_group("LIBERO and LeRobot")
    other.add_argument("--keep-noops", action="store_true", help="LIBERO: keep frames in which nothing is commanded")
    other.add_argument("--state", default="observation.state", help="LeRobot: feature of the state (default: %(default)s)")
    other.add_argument("--action", default="action", help="LeRobot: feature of the actions (default: %(default)s)")
    choices = "; ".join(f"{name}: {what}" for name, what in KINDS.items())
    kinds = f"LeRobot: what its actions are, if bitvla did not write it. {choices}"
    other.add_argument("--action-kind", choices=tuple(KINDS), default="", help=kinds)
    choices = "; ".join(f"{name}: {what}" for name, what in ROTATIONS.items())
    rotations = f"where the features' names do not say it. {choices}"
    other.add_argument("--action-rotation", choices=tuple(ROTATIONS), default="", help=f"LeRobot: the actions' rotations, {rotations}")
    other.add_argument("--state-rotation", choices=tuple(ROTATIONS), default="", help="LeRobot: the same of the state")
    kept = "keep pictures as videos: small, to share and archive, not to train on (default: PNG)"
    parser.add_argument("--video", choices=tuple(CODECS), default="", help=kept)
    parser.add_argument("--skip-bad", action="store_true", help="leave out recordings and episodes that cannot be converted, and say which")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from .sources import ConversionError

    said: list[str] = []

    def say(text: str) -> None:
        if text not in said:
            said.append(text)
            print(text, file=sys.stderr)

    out = Path(arguments.out)
    if out.exists():
        raise ConversionError(f"{out} exists: a conversion writes a new folder")
    if (arguments.gripper_open is None) != (arguments.gripper_closed is None):
        raise ConversionError("give --gripper-open and --gripper-closed together")
    if len(arguments.gripper_joints) > 2:
        raise ConversionError(f"--gripper-joints has {len(arguments.gripper_joints)} names: give the two finger joints, or the only one")
    left_out = LeftOut(arguments.skip_bad)
    found = _open([Path(source) for source in arguments.sources], arguments, say, left_out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        writer = _write(partial, found, said, arguments, left_out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "out": str(out),
        "kind": found.kind,
        "fps": found.fps,
        "episodes": len(writer),
        "frames": writer.frames,
        "successes": {words: writer.successes.count(value) for value, words in _OUTCOMES.items()},
        "left_out": left_out.found,
        "said": said,
    }


def show(result: dict[str, Any]) -> None:
    seconds = result["frames"] / result["fps"]
    outcomes = ", ".join(f"{count} {words}" for words, count in result["successes"].items() if count)
    frames = f"{result['frames']} frames at {result['fps']:g} Hz ({seconds:.0f} s)"
    print(f"{result['out']}: {result['episodes']} episodes ({outcomes}), {frames}")
    for left in result["left_out"]:
        print(f"left out: {left['where']}: {left['why']}")


@dataclass(frozen=True)
class _Recordings:
    """kind: of recording. fps: their rate. robot: its type. origin: how a dataset of ours was made."""

    kind: str
    fps: float
    robot: str
    episodes: Iterator[tuple[str, Episode]]
    origin: Mapping[str, Any] | None = None


def _open(
    sources: list[Path], arguments: argparse.Namespace, say: Callable[[str], None], left_out: LeftOut
) -> _Recordings:
    """Raises UnreadOption and Contradiction too."""
    from .sources import ConversionError
    from .sources.bag import bags_in
    from .sources.lerobot import LerobotOptions, is_lerobot, origin, rate, read_lerobot, robot_type
    from .sources.libero_hdf5 import CONTROL_HZ, read_libero
    from .sources.rosbag import RosbagOptions, read_rosbags

    missing = [str(source) for source in sources if not source.exists()]
    if missing:
        raise ConversionError(f"{', '.join(missing)} does not exist")
    a = arguments
    gripper = None if a.gripper_open is None else (a.gripper_open, a.gripper_closed)
    if any(is_lerobot(source) for source in sources):
        if len(sources) > 1:
            raise ConversionError("give one LeRobot dataset at a time")
        require_read(a.given, READ, "lerobot")
        robot = agreed("--robot-type", a.robot_type, robot_type(sources[0]), sources[0]) or DEFAULT_ROBOT
        lerobot = LerobotOptions(dict(a.camera), a.state, a.action, gripper, a.instruction, a.control_hz, a.image_size, _declared(a))
        episodes = read_lerobot(sources[0], lerobot, say, left_out)
        return _Recordings("lerobot", rate(sources[0]), robot, episodes, origin(sources[0]))
    files = [file for source in sources for file in _hdf5_in(source)]
    bags = [bag for source in sources for bag in bags_in(source)]
    if files and bags:
        raise ConversionError(f"{files[0]} is HDF5 and {bags[0]} is a rosbag2: convert one kind at a time")
    for source in sources:
        if not _hdf5_in(source) and not bags_in(source):
            raise ConversionError(f"{source} is no rosbag2 (metadata.yaml, .mcap, .db3), HDF5 file or LeRobot dataset (meta/info.json)")
    robot = a.robot_type or DEFAULT_ROBOT
    if files:
        require_read(a.given, READ, "libero")
        agreed("--control-hz", a.control_hz, CONTROL_HZ, "LIBERO's recording")
        episodes = read_libero(
            files, keep_noops=a.keep_noops, shorter_side=a.image_size, instruction=a.instruction, say=say, left_out=left_out
        )
        return _Recordings("libero", CONTROL_HZ, robot, episodes)
    require_read(a.given, READ, "rosbag2")
    if a.profile:
        _take_on(a.profile, a)
    cameras = dict(a.camera)
    command = "the measured motion (--command none)" if a.command == "none" else "a command"
    opening = "a gripper topic (--gripper)" if a.gripper else "the fingers' motion"
    require_read(a.given, READ_OF_BAGS, "--tf" if a.tf else "a pose topic", command, opening)
    rosbag = RosbagOptions(
        control_hz=a.control_hz or DEFAULT_HZ,
        cameras=cameras,
        pose=a.pose,
        tf=None if a.tf is None else (a.tf[0], a.tf[1]),
        joints=a.joints,
        command=a.command,
        command_frame=a.command_frame,
        gripper=a.gripper,
        gripper_values=gripper,
        gripper_joints=a.gripper_joints,
        gripper_scale=tuple(a.gripper_scale),
        gripper_offset=tuple(a.gripper_offset),
        orientation_branch=None if a.orientation_branch is None else tuple(a.orientation_branch),
        instruction=a.instruction,
        split=a.split,
        max_gap=a.max_gap,
        stamps=a.stamps,
        metres_per_unit=a.metres_per_unit,
        radians_per_unit=a.radians_per_unit,
        shorter_side=a.image_size,
    )
    return _Recordings("rosbag2", rosbag.control_hz, robot, read_rosbags(bags, rosbag, say, left_out))


def _declared(arguments: argparse.Namespace) -> Declared:
    """What the options say of a LeRobot dataset's numbers; units only where they were given."""
    a = arguments
    metres, radians = (getattr(a, name) if name in a.given else None for name in _UNITS)
    branch = None if a.orientation_branch is None else tuple(a.orientation_branch)
    return Declared(a.action_kind, a.action_rotation, a.state_rotation, metres, radians, branch)


def _take_on(name: str, arguments: argparse.Namespace) -> None:
    """What the arm's profile states is in force; whoever says something else as well is wrong. Raises ProfileError, Contradiction."""
    from ..profiles import load_profile
    from .sources.profile import stated_by

    profile = load_profile(name)
    for option, stated in stated_by(profile).items():
        given = getattr(arguments, option) if option in arguments.given else None
        setattr(arguments, option, agreed("--" + option.replace("_", "-"), given, stated, profile.path))


def _write(
    folder: Path, found: _Recordings, said: list[str], arguments: argparse.Namespace, left_out: LeftOut
) -> DatasetWriter:
    from rich.console import Console
    from rich.progress import Progress

    from .dataset import DatasetError, DatasetWriter
    from .episode import DatasetNotWritten
    from .sources import ConversionError

    writer: DatasetWriter | None = None
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("converting", total=None)
        for where, episode in found.episodes:
            if writer is None:
                cameras = {role: (pictures.shape[1], pictures.shape[2]) for role, pictures in episode.images.items()}
                source = {"converted_from": found.kind, **({"original": found.origin} if found.origin else {})}
                name = arguments.name or Path(arguments.out).resolve().name
                described: dict[str, Any] = {"robot_type": found.robot, "source": source, "convention": episode.convention}
                writer = DatasetWriter(folder, found.fps, cameras, name=name, video=arguments.video, **described)
            try:
                writer.add(episode)
            except DatasetNotWritten:
                raise
            except (DatasetError, ConversionError) as error:
                left_out.add(where, type(error)(f"{where}: {error}"))
            bar.update(task, description=f"{len(writer)} episodes, {writer.frames} frames")
    if writer is None:
        raise ConversionError(f"the recordings hold no episode{_all_of(left_out)}")
    if not len(writer):
        raise ConversionError(f"no episode could be converted{_all_of(left_out)}")
    writer.note(conventions=said, **({"left_out": left_out.found} if left_out.found else {}))
    writer.close()
    return writer


def _all_of(left_out: LeftOut) -> str:
    found = left_out.found
    return f"; {len(found)} were left out, the first, {found[0]['where']}: {found[0]['why']}" if found else ""


def _hdf5_in(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(child for child in source.iterdir() if child.suffix in (".hdf5", ".h5"))
    return [source] if source.suffix in (".hdf5", ".h5") else []


def _camera(text: str) -> tuple[str, str]:
    role, _, name = text.partition("=")
    if not role or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ROLE=NAME, such as scene=/front/color/image_raw")
    return role, name
