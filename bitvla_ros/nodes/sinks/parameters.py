"""The controller's parameters that say how an arm is driven; config/profiles has them for known arms."""

from __future__ import annotations

from ..parameters import Parameter

SIMULATOR = "simulator"  # the one kind that is no Sink: the controller answers a simulator's control steps itself
KINDS = (SIMULATOR, "pose", "twist_stamped", "twist")
GRIPPERS = ("none", "float64", "gripper_command", "parallel_gripper")
MODES = ("shadow", "dry", "live")

# What `sink.accept_no_timeout` must hold, word for word, before an arm without a time-out is driven.
ACCEPTANCE = "I accept that this arm does not stop by itself"

PARAMETERS = (
    Parameter(
        "mode",
        "shadow",
        "Of arms that are no simulator. dry: speak to topics under dry/; live: move, once `enable` was called",
        choices=MODES,
    ),
    Parameter("sink.kind", SIMULATOR, "What moves the arm", choices=KINDS),
    Parameter("sink.rate", 100.0, "Setpoints a second", "Hz", 10.0, 1000.0),
    Parameter("sink.topic", "", "Where setpoints go; empty: target_pose or target_twist", topic="{}", optional=True),
    Parameter("sink.frame", "", "Frame that the arm takes its targets in; poses measured in another are refused. Empty: not checked"),
    Parameter("sink.silence_timeout", 0.0, "After so much silence the arm's own controller stops it; 0: it does not", "s", 0.0, 60.0),
    Parameter("sink.accept_no_timeout", "", f"Live mode with silence_timeout 0: write '{ACCEPTANCE}'"),
    Parameter(
        "sink.servo_node",
        "",
        "Of MoveIt Servo, whose command type is switched when live mode is enabled; empty: no Servo",
        topic="{}/switch_command_type",
        optional=True,
    ),
    Parameter("sink.twist_frame", "pose", "Axes of a twist: of the pose's frame, or of the tool", choices=("pose", "tool")),
    Parameter("sink.angular_unit", "rad", "Unit of a twist's angular part, a second", choices=("rad", "deg")),
    Parameter("gripper.kind", "none", "What moves the gripper: nothing, a std_msgs/Float64, a control_msgs action", choices=GRIPPERS),
    Parameter("gripper.topic", "target_gripper", "Of float64", topic="{}"),
    Parameter("gripper.action", "gripper_command", "Of gripper_command and parallel_gripper", topic="{}"),
    Parameter("gripper.joint", "", "parallel_gripper: the joint that is commanded"),
    Parameter("gripper.open", -1.0, "What is sent to open"),
    Parameter("gripper.closed", 1.0, "What is sent to close"),
    Parameter("gripper.effort", 0.0, "Greatest effort of the actions; 0: not given", "N", 0.0, 1000.0),
    Parameter("gripper.hysteresis", 0.3, "Closes above this, opens below its negative (-1 open, +1 closed), else stays", "", 0.0, 0.99),
    Parameter("state_source", "pose", "Measured pose from the topic end_effector_pose, or from TF", choices=("pose", "tf")),
    Parameter("base_frame", "base", "With TF: frame of the pose and of the setpoints"),
    Parameter("ee_frame", "panda_hand", "With TF: frame of the end effector"),
    Parameter("joints", ("",), "The arm's joints in joint_states, in the order of limits.joint_min; [''] leaves them unchecked"),
)
