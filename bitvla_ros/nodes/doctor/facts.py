"""What the doctor looks at, as plain data: the checks are functions of it and know no ROS. Times in nanoseconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitvla_ros.action_convention import UNKNOWN, ActionConvention
from bitvla_ros.control.limits import Limits

Level = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. check: what was looked at. found: what was seen. remedy: what to do, "" where nothing is to be done."""

    check: str
    level: Level
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Expected:
    """What policy and controller were told, or would be: every parameter by its name, defaults included.

    profile: name of the file that said so, "" without one. remappings: FROM:=TO, as it says.
    """

    profile: str
    policy: Mapping[str, Any]
    controller: Mapping[str, Any]
    remappings: tuple[str, ...] = ()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Roles; where neither the profile nor the model names them, the policy's own."""
        return tuple(role for role in self.policy["cameras"] if role) or ("scene", "wrist")

    @property
    def simulator(self) -> bool:
        """A simulator moves the arm: it says on simulation_state what time it is and what succeeded."""
        return bool(self.controller["simulator"])

    @property
    def unseen(self) -> float:
        """How old the pose may be before the controller leads the arm no further, s: `Limits.unseen`."""
        names = ("max_state_age", "following_position", "following_angle", "speed", "angular_speed")
        return Limits(**{name: float(self.controller[f"limits.{name}"]) for name in names}).unseen

    @property
    def transforms(self) -> tuple[tuple[str, str], ...]:
        """What is looked up in TF: base_frame and ee_frame of policy and controller, each pair once; () where neither asks TF."""
        nodes = [node for node in (self.policy, self.controller) if node["state_source"] == "tf"]
        return tuple(dict.fromkeys((str(node["base_frame"]), str(node["ee_frame"])) for node in nodes))


@dataclass(frozen=True)
class Wanted:
    """A topic that policy or controller read. latched: its last value is asked for, else sensor data. suffix: of an image_transport, which
    follows the topic after its remapping."""

    name: str
    topic: str
    type: str
    role: str = ""  # of a camera
    latched: bool = False
    suffix: str = ""


@dataclass(frozen=True)
class Endpoint:
    """Somebody's publisher or subscription. qos: in words. mismatch: why it and ours cannot talk, "" where they can."""

    node: str
    type: str
    qos: str = ""
    mismatch: str = ""


@dataclass(frozen=True)
class Arrival:
    """A message came. stamp: its own; received: ROS time; steady: the same moment on the steady clock."""

    stamp: int
    received: int
    steady: int


@dataclass
class Stream:
    """What was heard on a wanted topic. asked, topic: its name before and after remapping. alike: other topics of its type in the graph.
    contradictions: what was said to have two values at one stamp, once each time."""

    name: str
    asked: str
    topic: str
    type: str
    publishers: tuple[Endpoint, ...] = ()
    alike: tuple[str, ...] = ()
    arrivals: list[Arrival] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)

    @property
    def stamps(self) -> NDArray[np.int64]:
        return np.array([arrival.stamp for arrival in self.arrivals], np.int64)

    @property
    def ages(self) -> NDArray[np.int64]:
        """Of each message when it came; negative where its stamp lies ahead of our clock."""
        return np.array([arrival.received - arrival.stamp for arrival in self.arrivals], np.int64)


@dataclass
class Camera:
    """Pictures of one role. problem: why the last one does not decode. digests: stamp and checksum of each.

    small: the last one, float32 [32, 32], grey values 0 to 255; None where it does not decode.
    """

    role: str
    encoding: str = ""
    height: int = 0
    width: int = 0
    bytes: int = 0
    problem: str = ""
    digests: list[tuple[int, int]] = field(default_factory=list)
    small: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Pose:
    """Of the end effector. position: float64 [3], m. orientation: float64 [4] xyzw."""

    stamp: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    frame: str


@dataclass
class Gated:
    """What the policy node's own inputs and gate said to observations taken while listening."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)  # the newest of each reason


@dataclass(frozen=True)
class Outlet:
    """A topic on which the controller commands. name: sink or gripper. topic: after remapping."""

    name: str
    topic: str
    type: str
    publishers: tuple[Endpoint, ...] = ()
    subscriptions: tuple[Endpoint, ...] = ()


@dataclass
class Graph:
    """Of the ROS graph, everything that was seen while listening. began, ended: on the steady clock.

    nodes: of others, by full name. tf_problem: why the first of Expected.transforms does not resolve, "" where it does or there is none.
    tf_ages: ns, of its newest transform at each look.
    tick: stamp of the simulator's newest tick, 0 without one. lockstep: it waits for its command.
    clock: publishers of /clock; clock_runs: something came from it. outlets: of the sink, then of the gripper, where they are topics.
    missing_server: action or service of the sink that nobody offers. policies: publishers of action_chunk.
    health: level (0 to 3) and message of each of our nodes on /diagnostics, the newest.
    """

    began: int = 0
    ended: int = 0
    nodes: tuple[str, ...] = ()
    domain: str = "0"
    discovery: str = ""
    streams: dict[str, Stream] = field(default_factory=dict)
    cameras: dict[str, Camera] = field(default_factory=dict)
    poses: list[Pose] = field(default_factory=list)
    joints: dict[str, float] = field(default_factory=dict)
    tf_problem: str = ""
    tf_ages: list[int] = field(default_factory=list)
    tick: int = 0
    lockstep: bool = False
    clock: int = 0
    clock_runs: bool = True
    gated: Gated | None = None
    outlets: tuple[Outlet, ...] = ()
    missing_server: str = ""
    policies: tuple[Endpoint, ...] = ()
    health: dict[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """This computer. Bytes. isa: instruction set of the C library, "" with kernel_problem. shm: size and free of /dev/shm, None without.

    gpu: bytes free on the policy's device, None where that is the CPU; gpu_problem: why it cannot be used.
    """

    rmw: str
    liveliness: bool
    isa: str = ""
    kernel_problem: str = ""
    available: int | None = None
    gpu: int | None = None
    gpu_problem: str = ""
    shm: tuple[int, int] | None = None
    transports: str = ""  # FASTDDS_BUILTIN_TRANSPORTS
    profile_for_images: str = "config/fastdds.xml"  # where it lies
    dds_profile: str = ""  # a Fast DDS XML file


@dataclass(frozen=True)
class Model:
    """What a model's files say. bytes: of its weights, packed. packed: on disk already. control_hz, cameras: None where it does not say.
    convention: what its actions mean.

    state_low, state_high: float64 [8], what 1 % and 99 % of the training data's states lie below; None without proprioception.
    """

    name: str
    packed: bool
    bytes: int
    chunk: int
    control_hz: float | None
    image_size: int
    state_low: NDArray[np.float64] | None = None
    state_high: NDArray[np.float64] | None = None
    cameras: tuple[str, ...] | None = None
    convention: ActionConvention = UNKNOWN
