"""The quality of service of every topic of the graph, in one place."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSLivelinessPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_profile_sensor_data,
)

from bitvla_ros.policy.streams import STATES_KEPT

SENSOR = qos_profile_sensor_data

# Sensor data that is asked for at our rate and not at the driver's. NEWEST: of one publisher. JOINTS: of several, none of which hides
# another that is slower. STATES: all of them since the image before, one of which is of the image's moment.
NEWEST = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
JOINTS = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=20, reliability=QoSReliabilityPolicy.BEST_EFFORT)
STATES = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=STATES_KEPT, reliability=QoSReliabilityPolicy.BEST_EFFORT)

# The last value counts and a late subscriber gets it: task, instruction, simulation_state, and every input in lockstep.
LATCHED = QoSProfile(
    history=QoSHistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
)

# What a simulator in lockstep publishes of a tick. Readers look at the last value (LATCHED), but the history lets a sample that was
# lost on the way be sent again after the next was written: recorders miss nothing.
TICK = QoSProfile(
    history=QoSHistoryPolicy.KEEP_LAST,
    depth=20,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
)

# The task, with the liveliness by which controllers see whether they are alone.
TASK = QoSProfile(
    history=QoSHistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
    liveliness=QoSLivelinessPolicy.AUTOMATIC,
    liveliness_lease_duration=Duration(seconds=2),
)

LIVELINESS_LEASE = Duration(nanoseconds=60_000_000)


def _chunk(liveliness: QoSLivelinessPolicy) -> QoSProfile:
    """No lifespan: the player refuses by age and epoch. A publisher that died or hangs is noticed within the lease."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=QoSReliabilityPolicy.RELIABLE,
        durability=QoSDurabilityPolicy.VOLATILE,
        liveliness=liveliness,
        liveliness_lease_duration=LIVELINESS_LEASE,
    )


# CHUNK: what the controller asks for, so what any policy must offer at least. Ours says itself that it lives: those assertions that Fast
# DDS makes were seen to pause for 0.3 s now and then, when nodes came or went.
CHUNK = _chunk(QoSLivelinessPolicy.AUTOMATIC)
CHUNK_OFFERED = _chunk(QoSLivelinessPolicy.MANUAL_BY_TOPIC)

COMMAND = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.RELIABLE)

# Of topics that anybody may publish: see listening.py. ANYBODY: commands. ANYBODY_LATCHED: where a value that was published before counts.
ANYBODY = (COMMAND, NEWEST)
ANYBODY_LATCHED = (LATCHED, *ANYBODY)


def state_qos(synchronised: bool) -> QoSProfile:
    """Of cameras, joint states and poses: sensor data, or reliable and latched where a simulator waits for an answer to each tick."""
    return LATCHED if synchronised else SENSOR
