"""Checks of this computer: kernels, memory, the ROS middleware; and of the model that is to run on it."""

from __future__ import annotations

from collections.abc import Iterator

from bitvla_ros.action_convention import ActionConvention
from bitvla_ros.stated import same

from .cameras import DEFAULT_TRANSPORTS
from .facts import Expected, Finding, Graph, Machine, Model

MB = 1_000_000
# Beside the weights: Python, torch and activations. The 3b preset's peak was 1,720 MB with 1,585 MB of weights on disk, nano's 462 MB
# with 3 MB (docs/performance.md, "Memory").
OVERHEAD = 500 * MB
TESTED_RMW = "rmw_fastrtps_cpp"
SHARED_MEMORY = 60 * MB  # a few nodes with segments of 16 MB; a container gets 64 MiB where nobody asks for more


def check_model(model: Model | None, problem: str, expected: Expected) -> Iterator[Finding]:
    """problem: why the model cannot be read, "" where it can or none was named."""
    if problem:
        yield Finding("model", "fail", problem, "correct the profile, or give --model a model, a checkpoint, its hub id, or random:nano")
        return
    if model is None:
        yield Finding("model", "skip", "none was named", "give --model to check its control rate, memory and training data")
        return
    size = f"{model.bytes / MB:,.0f} MB of weights, chunks of {model.chunk}"
    if model.name.startswith("random:"):
        yield Finding("model", "ok", f"{model.name}: random weights, {size}")
    elif not model.packed:
        yield Finding("model", "warn", f"{model.name}: a checkpoint, {size} once packed", "bitvla pack it once: it then loads in seconds")
    else:
        yield Finding("model", "ok", f"{model.name}: packed and whole, {size}")
    yield _rate(model, expected)
    yield _units(model, expected)


def _rate(model: Model, expected: Expected) -> Finding:
    name = "control rate"
    asked, steps = float(expected.policy["control_hz"]), float(expected.controller["control_hz"])
    if model.control_hz is None and not asked:
        remedy = "set the policy's control_hz to the rate of the dataset that it was fine-tuned on (LIBERO: 20)"
        return Finding(name, "fail", "the model does not say at what rate its actions are to be played", remedy)
    if asked and model.control_hz is not None and not same(asked, model.control_hz):
        found = f"the policy's control_hz is {asked:g}, the model's own {model.control_hz:g}"
        return Finding(name, "fail", found, "leave the policy's control_hz at 0")
    rate = model.control_hz or asked
    if not same(rate, steps):
        found = f"the model's actions are meant for {rate:g} Hz, the controller steps at {steps:g} Hz and would refuse them"
        return Finding(name, "fail", found, f"set the controller's control_hz to {rate:g}")
    return Finding(name, "ok", f"{rate:g} Hz, the model's and the controller's")


def _units(model: Model, expected: Expected) -> Finding:
    name = "units"
    metres, radians = (float(expected.controller[f"limits.{unit}_per_unit"]) for unit in ("metres", "radians"))
    taken = f"the controller takes a full-scale action for {metres:g} m or {radians:g} rad a step"
    for unit, stated, own in model.convention.differences(ActionConvention(metres, radians)):
        found = f"the model's {unit} is {stated:g}, the controller's {own:g}: it would refuse the chunks"
        return Finding(name, "fail", found, f"set limits.{unit} to {stated:g}, or take a model that was trained for this arm")
    if None in (model.convention.metres_per_unit, model.convention.radians_per_unit) and not model.name.startswith("random:"):
        remedy = "look up how its dataset was scaled, and state it: bitvla pack --metres-per-unit M --radians-per-unit R"
        return Finding(name, "warn", f"the model does not say what its actions mean; {taken}", remedy)
    return Finding(name, "ok", taken)


def check_machine(machine: Machine, model: Model | None, expected: Expected) -> Iterator[Finding]:
    yield _kernels(machine, expected)
    if model is not None:
        yield _memory(machine, model)
    yield _rmw(machine)


def check_transports(machine: Machine, graph: Graph) -> Iterator[Finding]:
    """Fast DDS only: what others need is not known here."""
    if "fastrtps" not in machine.rmw:
        return
    yield _shared_memory(machine)
    biggest = max((camera.bytes for camera in graph.cameras.values()), default=0)
    chosen = machine.transports or "the default"
    found = f"FASTDDS_BUILTIN_TRANSPORTS is {chosen}" + (f"; images have {biggest / 1000:,.0f} kB" if biggest else "")
    if machine.dds_profile:
        yield Finding("transports", "ok", f"as {machine.dds_profile} says")
    elif biggest > DEFAULT_TRANSPORTS:
        remedy = (
            "images beyond 256x256 are lost on the built-in transports, most of them on the default ones: export "
            f"FASTDDS_DEFAULT_PROFILES_FILE={machine.profile_for_images} (on Humble and Jazzy FASTRTPS_DEFAULT_PROFILES_FILE) where the "
            "camera's driver is started, and here"
        )
        yield Finding("transports", "warn", found, remedy)
    else:
        yield Finding("transports", "ok", found)


def _kernels(machine: Machine, expected: Expected) -> Finding:
    device = str(expected.policy["device"])
    if device.startswith("cuda"):
        if machine.gpu_problem:
            return Finding(
                "kernels", "fail", f"device {device}: {machine.gpu_problem}", "set device: cpu, or install the GPU's torch and driver"
            )
        return Finding("kernels", "ok", f"{device}, through Triton")
    if machine.kernel_problem:
        return Finding("kernels", "fail", machine.kernel_problem, "without the C library a chunk takes far longer: build the package again")
    if machine.isa == "scalar":
        return Finding(
            "kernels", "warn", "the C library without vector instructions", "unset BITVLA_ISA; else this processor has none for it"
        )
    return Finding("kernels", "ok", f"the C library with {machine.isa}")


def _memory(machine: Machine, model: Model) -> Finding:
    where, free = ("memory of the GPU", machine.gpu) if machine.gpu is not None else ("memory", machine.available)
    needed = model.bytes + OVERHEAD
    if free is None:
        return Finding("memory", "skip", "this system does not say how much memory is available")
    found = f"{free / MB:,.0f} MB of {where} are available, the policy needs about {needed / MB:,.0f}"
    if free < needed:
        return Finding("memory", "fail", found, "stop other programs, or choose a smaller model")
    if free < 1.25 * needed:
        return Finding("memory", "warn", found, "little is left for drivers and images")
    return Finding("memory", "ok", found)


def _rmw(machine: Machine) -> Finding:
    if not machine.liveliness:
        found = f"{machine.rmw} reports no liveliness: a dead policy would go unseen, and the controller refuses to start"
        return Finding("middleware", "fail", found, f"export RMW_IMPLEMENTATION={TESTED_RMW} for every node")
    if machine.rmw != TESTED_RMW:
        remedy = f"export RMW_IMPLEMENTATION={TESTED_RMW} for every node, or run bitvla prove with this one"
        return Finding("middleware", "warn", f"{machine.rmw} reports liveliness; tested is {TESTED_RMW}", remedy)
    return Finding("middleware", "ok", f"{machine.rmw}, which reports liveliness")


def _shared_memory(machine: Machine) -> Finding:
    remedy = "run the container with --shm-size=512m or --ipc=host; else remount /dev/shm larger, or remove what fills it"
    if machine.shm is None:
        return Finding("shared memory", "warn", "there is no /dev/shm: images go through the network stack", remedy)
    size, free = machine.shm
    found = f"/dev/shm has {size / MB:,.0f} MB, {free / MB:,.0f} MB of them free"
    return Finding("shared memory", "warn" if free < SHARED_MEMORY else "ok", found, remedy if free < SHARED_MEMORY else "")
