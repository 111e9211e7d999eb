"""The recorder's way with servers that do not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from graph import TestGraph


@pytest.mark.ros
def test_a_request_that_is_lost_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestGraph(tmp_path) as graph:
        from rclpy.task import Future

        from bitvla_ros.nodes.recorder import GraphError, Recorder

        monkeypatch.setattr("bitvla_ros.nodes.recorder.ASK_AGAIN", 0.1)
        monkeypatch.setattr("bitvla_ros.nodes.recorder.PATIENCE", 0.1)
        sent: list[Future] = []

        def send() -> Future:
            future = Future()
            if len(sent) == 1:
                future.set_result("an answer")
            sent.append(future)
            return future

        with Recorder((), lockstep=False, check=graph.check) as recorder:
            assert recorder._ask("something", lambda: True, send) == "an answer" and len(sent) == 2
            with pytest.raises(GraphError, match="something is not answered"):
                recorder._ask("something", lambda: True, send)
            with pytest.raises(GraphError, match="nobody offers something"):
                recorder._ask("something", lambda: False, send)


@pytest.mark.ros
def test_a_goal_is_sent_when_chunks_and_commands_would_be_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestGraph(tmp_path) as graph:
        from bitvla_ros.msg import ActionChunk, EndEffectorCommand
        from bitvla_ros.nodes.recorder import Recorder

        known: list[tuple[int, int]] = []

        class Asked(Exception):
            """The goal would be sent now."""

        def ask(*_: object) -> None:
            known.append((recorder.count_publishers("action_chunk"), recorder.count_publishers("end_effector_command")))
            raise Asked

        publishers = [(ActionChunk, "action_chunk"), (EndEffectorCommand, "end_effector_command")]
        with Recorder((), lockstep=False, check=graph.check) as recorder:
            monkeypatch.setattr(recorder, "_ask", ask)

            def check() -> None:
                if publishers:
                    kind, topic = publishers.pop()
                    graph.node.create_publisher(kind, topic, 10)

            monkeypatch.setattr(recorder, "_check", check)
            with pytest.raises(Asked):
                recorder.send_goal("stand", 0)
        assert known == [(1, 1)]
