"""Which policy a node runs: its parameters, loading it, and a first inference before anything depends on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from ..arguments import require_read
from ..policy.policy import Policy
from ..stated import agreed
from .parameters import Parameter, ParameterError

PARAMETERS = (
    Parameter("policy", "bitvla", "What infers: the network, the scripted expert, or a recording", choices=("bitvla", "expert", "replay")),
    Parameter("model", "", "bitvla: a checkpoint (directory or hub id: owner/name@revision), random:nano, random:3b. replay: a file"),
    Parameter("norm_key", "", "Which of the checkpoint's statistics to use; empty where it has only one"),
    Parameter("attention", "", "Mask of the language model, where the checkpoint does not say", choices=("", "bidirectional", "causal")),
    Parameter("prompt", "", "Prompt of a robot-pretrained base that does not say; empty: human", choices=("", "human", "user")),
    Parameter("chunk", 0, "Actions a forward pass, where the checkpoint does not say; 0: as it says", minimum=0, maximum=1000),
    Parameter("control_hz", 0.0, "Rate the actions are meant for, where the checkpoint does not say; 0: as it says", "Hz", 0, 1000),
    Parameter("use_proprio", True, "false: the checkpoint was fine-tuned without proprioception, where it does not say"),
    Parameter("activation_bits", 8, "Quantization of activations; 0: none", choices=(0, 8)),
    Parameter("dtype", "", "Of what is not ternary; empty: bfloat16 on a GPU, else float32", choices=("", "float32", "bfloat16")),
    Parameter("device", "cpu", "Where the network runs: cpu, cuda or cuda:N"),
    Parameter(
        "backend",
        "auto",
        "What ternary layers run on: cpu (the C library), triton (on CUDA), reference (plain torch, slow); auto: the fastest of the device",
        choices=("auto", "reference", "cpu", "triton"),
    ),
    Parameter("threads", 2, "CPU threads of the network; the same number gives the same actions", minimum=1, maximum=256),
    Parameter(
        "cameras",
        ("",),
        "bitvla: camera roles in the order of the training data; ['']: as the model says, else scene and wrist",
        topic="camera/{}/image_raw",
        optional=True,
    ),
    Parameter("rotate_180", False, "bitvla: turn images that nobody has turned upright yet, such as LIBERO's raw renderings"),
    Parameter("jpeg", False, "bitvla: the JPEG round trip that LIBERO's datasets went through; real cameras do not need it"),
    Parameter("fit", "squash", "bitvla: what the checkpoint's dataset did with frames that are not square", choices=("squash", "crop")),
    Parameter("suite", "tabletop_object", "expert: the suite whose tasks it solves"),
    Parameter("seed", 0, "bitvla: of random weights", minimum=0, maximum=2**31 - 1),
)
RANDOM = "random:"  # and a preset
DEFAULTS = {parameter.name: parameter.default for parameter in PARAMETERS}
# What model.load and the policy take.
OF_MODELS = ("norm_key", "prompt", "attention", "chunk", "control_hz", "use_proprio", "cameras", "rotate_180", "jpeg", "fit")
# Of the parameters that choose what acts, those that each reads. The others are about the cell, and stay in its profile whoever acts.
READ = {
    "the expert": ("control_hz", "chunk"),
    "a replay": ("model", "control_hz", "chunk"),
    "random weights": ("model", "norm_key", "attention", "chunk", "control_hz", "use_proprio", "activation_bits", "dtype", "seed"),
    "a trained model": ("model", "norm_key", "prompt", "attention", "chunk", "control_hz", "use_proprio", "activation_bits", "dtype"),
}


def load_policy(p: SimpleNamespace, log: Callable[[str], object]) -> Policy:
    """The policy that the parameters ask for, warmed up. log: what it runs on, and how fast. Raises what loading raises: nothing
    half-loaded is returned."""
    given = {name: value for name, default in DEFAULTS.items() if (value := getattr(p, name)) != default}
    require_read(given, READ, _kind(p), prefix="")
    if p.policy == "expert":
        from ..simulation.expert import make_expert

        return _as_stated(make_expert(p.suite), given, f"the expert of {p.suite}")
    if not p.model:
        raise ParameterError(f"the parameter model is empty: the policy {p.policy!r} needs it (bitvla without a checkpoint: random:nano)")
    if p.policy == "replay":
        from ..policy.replay import ReplayPolicy

        return _as_stated(ReplayPolicy.load(p.model), given, p.model)
    return _load_bitvla(p, given, log)


def _kind(p: SimpleNamespace) -> str:
    """A row of READ."""
    if p.policy != "bitvla":
        return {"expert": "the expert", "replay": "a replay"}[p.policy]
    return "random weights" if p.model.startswith(RANDOM) else "a trained model"


def _as_stated(policy: Policy, given: Mapping[str, Any], where: str) -> Policy:
    """The policy, whose rate and horizon are its own. Raises Contradiction."""
    agreed("control_hz", given.get("control_hz"), policy.spec.control_hz, where)
    agreed("chunk", given.get("chunk"), policy.spec.horizon, where)
    return policy


def _load_bitvla(p: SimpleNamespace, given: Mapping[str, Any], log: Callable[[str], object]) -> Policy:
    # OpenMP's threads spin while they wait for each other, which beside a simulator on a full machine takes ten times as long (2 threads,
    # 2 cores, load 10: 1.7 s against 0.24 s a chunk of nano). Read when torch loads the library.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from ..policy.bitvla import BitVLAPolicy, InferenceError

    try:
        device = torch.device(p.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ParameterError(f"device {p.device!r} cannot be used ({why}): give cpu, or cuda where there is one") from error
    torch.set_num_threads(p.threads)
    if p.backend != DEFAULTS["backend"] and not p.activation_bits:
        raise ParameterError(f"backend {p.backend!r} needs int8 activations, but activation_bits is 0: give 8, or backend auto")
    options = {
        "activation_bits": p.activation_bits or None,
        "dtype": getattr(torch, p.dtype) if p.dtype else None,
        "device": device,
        "backend": p.backend,
        **{name: value for name, value in given.items() if name in OF_MODELS},
    }
    if p.model.startswith(RANDOM):
        policy = BitVLAPolicy.random(p.model.removeprefix(RANDOM), seed=p.seed, **options)
    else:
        policy = BitVLAPolicy.load(p.model, **options)
    try:
        latency = policy.warm_up()
    except InferenceError as error:
        raise ValueError(f"{p.model} cannot infer: {error}") from error
    backend = policy.model.backend
    arithmetic = "float weights" if backend is None else f"backend {backend.name}"
    log(f"{p.model} runs on {policy.model.device}, {arithmetic}; a chunk took {latency.total:.2f} s")
    return policy
