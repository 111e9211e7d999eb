"""The tabletop scene as MJCF, from primitive shapes: a 7-joint arm with a parallel gripper, a table, and things to move.

World frame: origin at the middle of the table top, x away from the robot's base, y to the robot's left, z up (REP-103); metres.
The arm has the proportions and joint limits that Franka publishes for the Panda (joint origins of its URDF, FCI joint limits);
shapes, masses and colours are our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ARM_JOINTS = tuple(f"joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("panda_finger_joint1", "panda_finger_joint2")
HAND_BODY = "hand"
GRIP_SITE = "grip_site"
CAMERAS = ("scene", "wrist")

BLOCK = 0.022  # half the edge of a block, m
CAN_RADIUS, CAN_HALF_HEIGHT = 0.022, 0.03
BOWL_RADIUS, BOWL_HEIGHT = 0.062, 0.042  # inside the rim; of the rim
PLATE_RADIUS, PLATE_TOP = 0.075, 0.008  # of the rim; height of the surface that carries
BASKET_HALF, BASKET_HEIGHT = 0.075, 0.07  # half the inner edge; of the rim
BOX_HALF, BOX_HEIGHT = 0.042, 0.03  # the wooden box is a low platform
MAT_HALF = 0.055

COLOURS = {
    "red": "0.84 0.13 0.12 1",
    "green": "0.15 0.62 0.26 1",
    "blue": "0.13 0.36 0.82 1",
    "yellow": "0.96 0.77 0.10 1",
    "orange": "0.95 0.48 0.10 1",
}


CUPBOARD = -0.99  # m: height of the shelf, below the floor, on which things lie that an episode does not have


@dataclass(frozen=True)
class Item:
    """A thing on the table. kind: block, can, bowl, plate, basket, wooden_box or mat; only blocks and cans move."""

    name: str
    kind: str
    colour: str = ""

    @property
    def movable(self) -> bool:
        return self.kind in ("block", "can")

    @property
    def half_height(self) -> float:
        """Height of the body's origin above what it stands on, m."""
        return {"block": BLOCK, "can": CAN_HALF_HEIGHT}.get(self.kind, 0.0)


# Contact: what moves and what is fixed touch each other, the hand and the table; the arm's other links touch nothing.
_HEADER = """
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.0025" integrator="implicitfast" cone="elliptic" impratio="10" iterations="20"/>
  <size memory="4M"/>
  <statistic extent="1" center="0 0 0.2"/>
  <visual>
    <headlight ambient="0.34 0.34 0.36" diffuse="0.34 0.34 0.34" specular="0 0 0"/>
    <quality shadowsize="0" offsamples="0" numslices="18" numstacks="8" numquads="1"/>
    <map znear="0.02" zfar="6"/>
    <global offwidth="2048" offheight="2048"/>
  </visual>
  <default>
    <geom contype="0" conaffinity="0" group="0"/>
    <default class="link"><geom rgba="0.93 0.94 0.95 1" mass="0"/></default>
    <default class="dark"><geom rgba="0.20 0.22 0.25 1" mass="0"/></default>
    <default class="accent"><geom rgba="0.05 0.55 0.62 1" mass="0"/></default>
    <default class="solid"><geom contype="1" conaffinity="1" friction="1 0.01 0.0002" condim="4" solref="0.006 1"/></default>
    <default class="pad"><geom contype="1" conaffinity="1" friction="1.6 0.02 0.0002" condim="4" solref="0.006 1"
      rgba="0.13 0.14 0.16 1" mass="0"/></default>
    <default class="arm"><joint armature="0.05" solreflimit="0.005 1"/></default>
    <default class="finger"><joint type="slide" axis="0 1 0" armature="0.2" damping="12"/></default>
  </default>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.93 0.94 0.95" rgb2="0.62 0.68 0.74" width="32" height="192"/>
  </asset>
"""

_ROOM = """
    <light directional="true" pos="0 0 3" dir="-0.35 -0.3 -1" diffuse="0.44 0.42 0.39" specular="0.12 0.12 0.12" castshadow="false"/>
    <camera name="scene" pos="0.80 0 0.62" xyaxes="0 1 0 -0.5 0 0.866" fovy="37"/>
    <geom name="floor" type="box" size="2.5 2.5 0.01" pos="0 0 -0.75" rgba="0.55 0.58 0.61 1"/>
    <geom name="cupboard" class="solid" type="box" size="0.5 0.1 0.01" pos="0 0 -1"/>
    <geom name="table" class="solid" type="box" size="0.50 0.55 0.02" pos="-0.22 0 -0.02" rgba="0.83 0.73 0.60 1"/>
    <geom name="table_edge" type="box" size="0.505 0.555 0.012" pos="-0.22 0 -0.0275" rgba="0.46 0.34 0.23 1"/>
    <geom name="base_plate" type="box" size="0.13 0.12 0.003" pos="-0.63 0 0.003" rgba="0.30 0.32 0.35 1"/>
"""

# Origins and axes of the joints as in the Panda's URDF; the base stands 0.6 m behind the middle of the table.
_ARM = """
    <body name="link0" pos="-0.6 0 0" childclass="arm">
      <geom class="link" type="cylinder" fromto="0 0 0.006 0 0 0.14" size="0.075"/>
      <geom class="link" type="box" pos="-0.07 0 0.06" size="0.06 0.055 0.055"/>
      <geom class="dark" type="cylinder" fromto="0 0 0.14 0 0 0.155" size="0.072"/>
      <body name="link1" pos="0 0 0.333">
        <inertial mass="4.0" pos="0 -0.02 -0.08" diaginertia="0.05 0.05 0.02"/>
        <joint name="joint1" axis="0 0 1" range="-2.8973 2.8973"/>
        <geom class="link" type="cylinder" fromto="0 0 -0.178 0 0 -0.05" size="0.068"/>
        <geom class="link" type="sphere" size="0.078"/>
        <body name="link2" quat="0.70710678 -0.70710678 0 0">
          <inertial mass="3.5" pos="0 -0.08 0.02" diaginertia="0.05 0.02 0.05"/>
          <joint name="joint2" axis="0 0 1" range="-1.7628 1.7628"/>
          <geom class="dark" type="cylinder" fromto="0 0 -0.088 0 0 0.088" size="0.062"/>
          <geom class="accent" type="cylinder" fromto="0 0 -0.090 0 0 0.090" size="0.030"/>
          <geom class="link" type="cylinder" fromto="0 -0.05 0 0 -0.20 0" size="0.062"/>
          <body name="link3" pos="0 -0.316 0" quat="0.70710678 0.70710678 0 0">
            <inertial mass="3.0" pos="0.03 0 -0.05" diaginertia="0.03 0.03 0.015"/>
            <joint name="joint3" axis="0 0 1" range="-2.8973 2.8973"/>
            <geom class="dark" type="cylinder" fromto="0 0 -0.116 0 0 -0.103" size="0.060"/>
            <geom class="link" type="cylinder" fromto="0 0 -0.103 0 0 -0.02" size="0.062"/>
            <geom class="link" type="capsule" fromto="0.01 0 -0.02 0.0825 0 0" size="0.058"/>
            <body name="link4" pos="0.0825 0 0" quat="0.70710678 0.70710678 0 0">
              <inertial mass="2.7" pos="-0.04 0.05 0" diaginertia="0.02 0.015 0.02"/>
              <joint name="joint4" axis="0 0 1" range="-3.0718 -0.0698"/>
              <geom class="dark" type="cylinder" fromto="0 0 -0.074 0 0 0.074" size="0.052"/>
              <geom class="accent" type="cylinder" fromto="0 0 -0.076 0 0 0.076" size="0.026"/>
              <geom class="link" type="capsule" fromto="-0.02 0.02 0 -0.0825 0.10 0" size="0.052"/>
              <body name="link5" pos="-0.0825 0.384 0" quat="0.70710678 -0.70710678 0 0">
                <inertial mass="2.4" pos="0 0.03 -0.12" diaginertia="0.03 0.03 0.01"/>
                <joint name="joint5" axis="0 0 1" range="-2.8973 2.8973"/>
                <geom class="dark" type="cylinder" fromto="0 0 -0.275 0 0 -0.262" size="0.054"/>
                <geom class="link" type="capsule" fromto="0 0 -0.24 0 0.055 -0.10" size="0.050"/>
                <geom class="link" type="capsule" fromto="0 0.055 -0.10 0 0.02 0" size="0.047"/>
                <body name="link6" quat="0.70710678 0.70710678 0 0">
                  <inertial mass="1.5" pos="0.05 0 0" diaginertia="0.006 0.006 0.006"/>
                  <joint name="joint6" axis="0 0 1" range="-0.0175 3.7525"/>
                  <geom class="dark" type="cylinder" fromto="0 0 -0.060 0 0 0.060" size="0.046"/>
                  <geom class="accent" type="cylinder" fromto="0 0 -0.062 0 0 0.062" size="0.022"/>
                  <geom class="link" type="capsule" fromto="0 0 0 0.088 0 0" size="0.044"/>
                  <body name="link7" pos="0.088 0 0" quat="0.70710678 0.70710678 0 0">
                    <inertial mass="0.7" pos="0 0 0.06" diaginertia="0.003 0.003 0.002"/>
                    <joint name="joint7" axis="0 0 1" range="-2.8973 2.8973"/>
                    <geom class="link" type="cylinder" fromto="0 0 0 0 0 0.085" size="0.045"/>
                    <geom class="dark" type="cylinder" fromto="0 0 0.085 0 0 0.107" size="0.040"/>
                    <body name="hand" pos="0 0 0.107" quat="0.92387953 0 0 -0.38268343">
                      <inertial mass="0.7" pos="0 0 0.03" diaginertia="0.002 0.001 0.002"/>
                      <geom class="link" type="box" pos="0 0 0.030" size="0.028 0.100 0.026" contype="1" conaffinity="1"/>
                      <geom class="dark" type="box" pos="0 0 0.059" size="0.020 0.096 0.004"/>
                      <site name="grip_site" pos="0 0 0.1034" size="0.002" rgba="0 0 0 0"/>
                      <camera name="wrist" pos="0.075 0 0.030" xyaxes="0 1 0 0.906 0 0.423" fovy="75"/>
                      <body name="finger1" pos="0 0 0.0584">
                        <inertial mass="0.05" pos="0 0.01 0.02" diaginertia="3e-5 3e-5 1e-5"/>
                        <joint name="panda_finger_joint1" class="finger" range="0 0.04"/>
                        <geom class="dark" type="box" pos="0 0.014 0.012" size="0.010 0.012 0.012"/>
                        <geom class="pad" type="box" pos="0 0.007 0.035" size="0.010 0.007 0.018"/>
                      </body>
                      <body name="finger2" pos="0 0 0.0584">
                        <inertial mass="0.05" pos="0 -0.01 0.02" diaginertia="3e-5 3e-5 1e-5"/>
                        <joint name="panda_finger_joint2" class="finger" range="-0.04 0"/>
                        <geom class="dark" type="box" pos="0 -0.014 0.012" size="0.010 0.012 0.012"/>
                        <geom class="pad" type="box" pos="0 -0.007 0.035" size="0.010 0.007 0.018"/>
                      </body>
                    </body>
                  </body>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
"""

# Fingers are coupled as in the real hand, so that a grasp centres what it holds. Torque limits of the arm: FCI, 87 and 12 Nm.
_FOOTER = """
  <tendon>
    <fixed name="opening"><joint joint="panda_finger_joint1" coef="1"/><joint joint="panda_finger_joint2" coef="-1"/></fixed>
  </tendon>
  <equality>
    <joint joint1="panda_finger_joint1" joint2="panda_finger_joint2" polycoef="0 -1 0 0 0" solref="0.006 1"/>
  </equality>
  <actuator>
    {motors}
    <position name="gripper" tendon="opening" kp="600" kv="40" ctrlrange="0 0.08" forcerange="-30 30"/>
  </actuator>
</mujoco>
"""


def _moving(item: Item) -> str:
    rgba = COLOURS[item.colour]
    if item.kind == "block":
        shape = f'<geom name="{item.name}" class="solid" type="box" size="{BLOCK} {BLOCK} {BLOCK}" rgba="{rgba}" mass="0.06"/>'
    else:
        top = f'<geom type="cylinder" pos="0 0 {CAN_HALF_HEIGHT}" size="{CAN_RADIUS - 0.004} 0.0008" rgba="0.85 0.86 0.88 1" mass="0"/>'
        shape = (
            f'<geom name="{item.name}" class="solid" type="cylinder" size="{CAN_RADIUS} {CAN_HALF_HEIGHT}" rgba="{rgba}" mass="0.06"/>{top}'
        )
    return f'<body name="{item.name}"><freejoint name="{item.name}"/>{shape}</body>'


def _box(pos: Sequence[float], size: Sequence[float], rgba: str, extra: str = "") -> str:
    numbers = ['"' + " ".join(f"{v:.5f}" for v in vector) + '"' for vector in (pos, size)]
    return f'<geom class="solid" type="box" pos={numbers[0]} size={numbers[1]} rgba="{rgba}" {extra}/>'


def _bowl() -> str:
    """A ring of staves that lean outwards, on a disc."""
    rgba, inner = "0.30 0.47 0.78 1", "0.22 0.37 0.66 1"
    count, lean, low = 16, 0.42, 0.6 * BOWL_RADIUS
    parts = [f'<geom class="solid" type="cylinder" pos="0 0 0.004" size="{low + 0.004:.5f} 0.004" rgba="{inner}"/>']
    radius = (low + BOWL_RADIUS) / 2
    half_width = BOWL_RADIUS * math.tan(math.pi / count) + 0.001
    half_height = BOWL_HEIGHT / 2 / math.cos(lean)
    for i in range(count):
        angle = 2 * math.pi * i / count
        x, y = radius * math.cos(angle), radius * math.sin(angle)
        euler = f'euler="0 {lean:.4f} 0"'
        parts.append(
            f'<body pos="{x:.5f} {y:.5f} {BOWL_HEIGHT / 2:.5f}" euler="0 0 {angle:.5f}">'
            + _box((0, 0, 0), (0.0025, half_width, half_height), rgba if i % 2 else "0.28 0.45 0.76 1", euler)
            + "</body>"
        )
    return "".join(parts)


def _basket() -> str:
    rgba, rim = "0.66 0.45 0.24 1", "0.52 0.33 0.16 1"
    half, height, wall = BASKET_HALF, BASKET_HEIGHT, 0.005
    parts = [_box((0, 0, 0.003), (half, half, 0.003), "0.58 0.39 0.21 1")]
    for sign in (-1, 1):
        along_y = (sign * (half + wall), 0), (wall, half + 2 * wall)
        along_x = (0, sign * (half + wall)), (half, wall)
        for (x, y), (sx, sy) in (along_y, along_x):
            parts.append(_box((x, y, height / 2), (sx, sy, height / 2), rgba))
            for z in (0.28 * height, 0.62 * height):  # woven bands, for the eye
                parts.append(f'<geom type="box" pos="{x} {y} {z:.4f}" size="{sx + 0.0012:.5f} {sy + 0.0012:.5f} 0.004" rgba="{rim}"/>')
            parts.append(f'<geom type="box" pos="{x} {y} {height:.4f}" size="{sx + 0.002:.5f} {sy + 0.002:.5f} 0.004" rgba="{rim}"/>')
    return "".join(parts)


def _fixed(item: Item) -> str:
    if item.kind == "bowl":
        shape = _bowl()
    elif item.kind == "plate":
        discs = (
            ("solid", PLATE_RADIUS, PLATE_TOP, "0.95 0.95 0.94 1"),
            ("", 0.80 * PLATE_RADIUS, PLATE_TOP + 0.0006, "0.45 0.60 0.78 1"),
            ("", 0.74 * PLATE_RADIUS, PLATE_TOP + 0.0012, "0.93 0.93 0.92 1"),
        )
        shape = "".join(
            f'<geom {"class=" + chr(34) + kind + chr(34) if kind else ""} type="cylinder" pos="0 0 {top / 2:.5f}" '
            f'size="{radius:.5f} {top / 2:.5f}" rgba="{rgba}"/>'
            for kind, radius, top, rgba in discs
        )
    elif item.kind == "basket":
        shape = _basket()
    elif item.kind == "wooden_box":
        shape = _box((0, 0, BOX_HEIGHT / 2), (BOX_HALF, BOX_HALF, BOX_HEIGHT / 2), "0.55 0.36 0.20 1")
        shape += f'<geom type="box" pos="0 0 {BOX_HEIGHT}" size="{BOX_HALF - 0.006} {BOX_HALF - 0.006} 0.0006" rgba="0.64 0.44 0.26 1"/>'
    else:
        shape = f'<geom type="box" pos="0 0 0.0008" size="{MAT_HALF} {MAT_HALF} 0.0008" rgba="0.47 0.30 0.62 1"/>'
        shape += f'<geom type="box" pos="0 0 0.0014" size="{MAT_HALF - 0.008} {MAT_HALF - 0.008} 0.0006" rgba="0.60 0.44 0.75 1"/>'
    return f'<body name="{item.name}" mocap="true">{shape}</body>'


def tabletop_mjcf(items: Sequence[Item]) -> str:
    """MJCF text of the table, the arm and the items. What moves hangs on a free joint, what is fixed for an episode on a mocap body."""
    torques = (87, 87, 87, 87, 12, 12, 12)
    motors = "".join(
        f'<motor name="{name}" joint="{name}" ctrlrange="-{torque} {torque}"/>' for name, torque in zip(ARM_JOINTS, torques, strict=True)
    )
    bodies = "".join(_moving(item) if item.movable else _fixed(item) for item in items)
    return _HEADER + "<worldbody>" + _ROOM + _ARM + bodies + "</worldbody>" + _FOOTER.format(motors=motors)
