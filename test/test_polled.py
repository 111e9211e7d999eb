"""Subscriptions that are asked: what they keep, and that no executor wakes for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]'")

from graph import TestGraph
from std_msgs.msg import Int64

from bitvla_ros.nodes.polled import Polled
from bitvla_ros.nodes.qos import JOINTS, NEWEST, SENSOR

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestGraph]:
    with TestGraph(tmp_path_factory.mktemp("polled")) as graph:
        yield graph


@pytest.mark.parametrize(("qos", "kept"), [(NEWEST, 1), (JOINTS, 20)], ids=["newest", "joints"])
def test_the_newest_messages_wait_to_be_taken_once_and_nobody_wakes_for_them(graph: TestGraph, qos, kept: int) -> None:
    polled, publisher = Polled(graph.node, Int64, "fast", pytest.fail, qos), graph.node.create_publisher(Int64, "fast", SENSOR)
    heard = graph.collect(Int64, "fast", SENSOR)  # by a callback; what it has heard has arrived
    assert list(polled.take()) == []

    def arrive(number: int) -> None:
        def arrived() -> bool:
            publisher.publish(Int64(data=number))
            return bool(heard) and heard[-1].data == number

        graph.wait(arrived, f"message {number}")

    arrive(0)
    graph.wait(lambda: arrive(0) or list(polled.take()), "the match")
    for number in range(1, 31):
        arrive(number)
    graph.spin(0.1)
    taken = [message.data for message in polled.take()]
    assert taken[-1] == 30 and taken == sorted(taken) and len(taken) <= kept and (kept == 1 or taken[0] > 0)
    assert list(polled.take()) == []
    arrive(31)
    more = (arrive(number) for number in range(32, 100))
    assert sum(1 for _ in zip(polled.take(), more, strict=False)) <= kept, "what comes while others are taken waits for the next time"
    publishers = graph.node.count_subscribers("fast")
    polled.close()
    graph.wait(lambda: graph.node.count_subscribers("fast") < publishers, "the end of the subscription")
    graph.node.destroy_publisher(publisher)
