"""The policy node under proof: it looks at cameras that its policy would not need, may pay for a network, and hangs when told so.

python -m bitvla_ros.nodes.prove.subject [--network MODEL] CAMERA … --ros-args -p policy:=expert …

It is PolicyNode with another word only inside `infer`, so streams, gate, schedule and publishing are those of the robot. With
--network each inference also runs that network on the same observation: its cost and latency, but the actions of the policy, so that
an arm keeps to its task for hours whatever weights are at hand. The service ~/hang (std_srvs/SetBool) makes every inference wait, also
the one that runs, until it is released; the answer's message is the time from which no chunk comes any more, ns of the steady clock.
What comes on the topic other_chunk (bitvla_ros/ActionChunk) it publishes as its own.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from rclpy.utilities import remove_ros_args
from std_srvs.srv import SetBool

from bitvla_ros.msg import ActionChunk as ActionChunkMsg
from bitvla_ros.policy.chunk import ActionChunk
from bitvla_ros.policy.observation import Observation
from bitvla_ros.policy.policy import Policy

from ..lifecycle import run
from ..policy import PolicyNode
from ..qos import COMMAND
from ..transports import chosen


class Hanging:
    """A policy whose inference can be held up. cameras: roles it asks for beside its own. network: runs too, for its cost."""

    def __init__(self, policy: Policy, cameras: Sequence[str], free: threading.Event, network: Policy | None) -> None:
        self._policy, self._free, self._network = policy, free, network
        self.spec = replace(policy.spec, cameras=tuple(dict.fromkeys((*policy.spec.cameras, *cameras))))

    def reset(self) -> None:
        self._policy.reset()

    def infer(self, observation: Observation) -> ActionChunk:
        cost = self._network.infer(observation).latency if self._network else None
        chunk = self._policy.infer(observation)
        self._free.wait()
        return replace(chunk, latency=cost) if cost else chunk


class SubjectNode(PolicyNode):
    def __init__(self, cameras: Sequence[str], network: str, **options: Any) -> None:
        """network: what the parameter `model` of a policy node may be; empty: none."""
        self._cameras, self._network = tuple(cameras), network
        self._free = threading.Event()
        self._free.set()
        super().__init__(**options)
        self.create_service(SetBool, "~/hang", self._on_hang)
        self.create_subscription(ActionChunkMsg, "other_chunk", lambda chunk: self._publisher.publish(chunk), COMMAND)

    def load(self, p: SimpleNamespace) -> Policy:
        network = super().load(SimpleNamespace(**{**vars(p), "policy": "bitvla", "model": self._network})) if self._network else None
        return Hanging(super().load(p), self._cameras, self._free, network)

    def deactivate(self) -> None:
        self._free.set()
        super().deactivate()

    def _on_hang(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data:
            self._free.clear()
        else:
            self._free.set()
        response.success, response.message = True, str(time.monotonic_ns())
        return response


def main(args: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv if args is None else args)
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="")
    parser.add_argument("cameras", nargs="*")
    own = parser.parse_args(remove_ros_args(arguments)[1:])
    with chosen():
        return run(lambda **options: SubjectNode(own.cameras, own.network, **options), arguments)


if __name__ == "__main__":
    raise SystemExit(main())
