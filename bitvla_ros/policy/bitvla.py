"""BitVLA as a policy: an observation becomes the network's input, its output becomes a chunk of commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..action_convention import ActionConvention
from ..model import BitVLA, Prediction, build, default_dtype, load, with_byte_tokenizer
from ..model.autoregressive import AutoregressiveBitVLA
from ..model.checkpoint import read_statistics
from ..model.graph import predictor
from ..model.packed import require_agreement
from ..model.random_weights import RANDOM_KEY
from ..model.tokenizer import tokenizer_of
from ..stated import agreed
from .chunk import ACTION_DIM, ActionChunk, Latency
from .gate import Reason, Refused
from .normalization import Statistics, normalise_proprio, to_command, unnormalise_actions
from .observation import STATE_DIM, Observation
from .policy import PolicySpec
from .preprocessing import ImageRecipe
from .prompt import Prompt, PromptError, load_tokenizer


class PolicyError(ValueError):
    """A model that cannot act as it is: the message says what it lacks."""


class InferenceError(RuntimeError):
    """The network gave something that must not reach an arm."""


class BitVLAPolicy:
    """Joins preprocessing, prompt, network and normalisation. `load` and `random` make one.

    model: ready to predict, on its device, where it stays. tokenizer: see load_tokenizer. recipe: how images are prepared.
    cameras: roles, in the order of training; where the model does not say either, scene and wrist, and of a robot-pretrained base, which
    was trained with one camera, scene. statistics: by default the model's.
    control_hz: rate the actions are meant for, where the model does not say. frame: in which actions are expressed, that of the
    end-effector pose. counts: of a model that decodes token by token, action_tokens and foreign_tokens so far (see
    AutoregressiveBitVLA). Raises PolicyError, PromptError or StatisticsError where these do not fit together, and Contradiction.
    """

    def __init__(
        self,
        model: BitVLA,
        tokenizer: Any,
        *,
        recipe: ImageRecipe,
        cameras: tuple[str, ...] | None = None,
        statistics: Statistics | None = None,
        control_hz: float | None = None,
        frame: str = "",
    ) -> None:
        config = model.config
        where = "its configuration" if model.path is None else model.path / "config.json"
        cameras = agreed("cameras", cameras, model.cameras, where)
        cameras = config.usual_cameras if cameras is None else cameras
        control_hz = agreed("control_hz", control_hz, config.control_hz, where)
        if control_hz is None:
            raise PolicyError(
                "the checkpoint does not say at what rate its actions are meant to be played; give control_hz, the rate of the dataset "
                "that it was fine-tuned on (LIBERO: 20)"
            )
        if not (np.isfinite(control_hz) and control_hz > 0):
            raise PolicyError(f"control_hz is {control_hz}; expected a positive rate in Hz")
        if config.action_dim != ACTION_DIM or config.proprio_dim not in (None, STATE_DIM):
            raise PolicyError(
                f"the checkpoint has {config.action_dim} numbers an action and {config.proprio_dim} of proprioception; "
                f"this policy drives one end effector with {ACTION_DIM}, and {STATE_DIM} or none of proprioception"
            )
        if not config.acts:
            raise PolicyError(_why_it_cannot_act(model))
        if not cameras or len(set(cameras)) != len(cameras):
            raise PolicyError(f"cameras are {cameras}; name each of the checkpoint's cameras once, in the order of training")
        size = config.vision.image_size
        if recipe.shape != (size, size):
            raise PolicyError(
                f"preprocessing gives images of {recipe.shape}, the network takes {(size, size)}; do its files belong together?"
            )
        require_known_gripper(model.convention, where)
        kind = "user" if config.discrete is None else config.discrete.prompt
        self.prompt = Prompt(tokenizer, image_tokens=config.vision.num_patches, cameras=len(cameras), kind=kind)
        if (self.prompt.image_token_id, self.prompt.proprio_token_id) != (config.image_token_id, config.proprio_token_id):
            raise PolicyError("the tokenizer and the network disagree about the ids of the image and proprioception tokens")
        self.model = model
        self._predict = predictor(model)
        self.recipe = recipe
        self.statistics = statistics or Statistics.from_dict(model.norm_stats, action_dim=config.action_dim, proprio_dim=config.proprio_dim)
        self.frame = frame
        self.counts: dict[str, int] = {}
        self.spec = PolicySpec("bitvla", tuple(cameras), config.chunk, float(control_hz), False, model.model_hash, model.convention)

    @classmethod
    def load(
        cls,
        path_or_hub_id: Path | str,
        *,
        cameras: tuple[str, ...] | None = None,
        rotate_180: bool = False,
        jpeg: bool = False,
        fit: str = "squash",
        frame: str = "",
        **options: Any,
    ) -> BitVLAPolicy:
        """A packed model, or a fine-tuned checkpoint, which is packed in memory unless activation_bits is None.

        rotate_180, jpeg, fit: see ImageRecipe. options: device, backend, dtype and the rest of what model.load takes.
        """
        model = load(path_or_hub_id, **options)
        assert model.path is not None
        read = ImageRecipe.from_checkpoint if model.config.discrete is None else ImageRecipe.from_base
        recipe = read(model.path, rotate_180=rotate_180, jpeg=jpeg, fit=fit)
        return cls(model, load_tokenizer(model.path), recipe=recipe, cameras=cameras, frame=frame)

    @classmethod
    def random(
        cls,
        preset: str = "nano",
        seed: int = 0,
        *,
        cameras: tuple[str, ...] | None = None,
        rotate_180: bool = False,
        jpeg: bool = False,
        fit: str = "squash",
        frame: str = "",
        device: torch.device | str = "cpu",
        backend: str = "auto",
        dtype: torch.dtype | None = None,
        activation_bits: int | None = 8,
        **stated: Any,
    ) -> BitVLAPolicy:
        """Random weights, for tests and benchmarks: it moves, without sense. The options are those of `load`; stated: attention, chunk,
        control_hz and norm_key, all of which the preset states."""
        model = build(preset, seed=seed, dtype=dtype or default_dtype(device), activation_bits=activation_bits)
        require_agreement(f"random:{preset}", model.config, RANDOM_KEY, **stated)
        model.config = with_byte_tokenizer(model.config)
        if activation_bits is None:
            model.to(device)
        else:
            model.pack(backend, device)
        return cls(
            model,
            tokenizer_of(preset),
            recipe=ImageRecipe(image_size=model.config.vision.image_size, rotate_180=rotate_180, jpeg=jpeg, fit=fit),
            cameras=cameras,
            statistics=Statistics.identity(proprio_dim=model.config.proprio_dim),
            frame=frame,
        )

    def reset(self) -> None:
        """Nothing to forget: every chunk is made of one observation."""

    def infer(self, observation: Observation) -> ActionChunk:
        """One forward pass. Raises InferenceError where the network's output is not finite, and Refused where a camera is missing
        or the instruction holds a control token of the tokenizer."""
        start = time.perf_counter()
        missing = [role for role in self.spec.cameras if role not in observation.images]
        if missing:
            raise Refused(Reason.MISSING_STREAM, f"no image of {', '.join(missing)}; the policy needs {', '.join(self.spec.cameras)}")
        pixel_values = torch.from_numpy(np.stack([self.recipe(observation.images[role]) for role in self.spec.cameras]))
        try:
            input_ids = torch.tensor(self.prompt(observation.instruction))
        except PromptError as error:
            raise Refused(Reason.INVALID_INSTRUCTION, str(error)) from error
        bounds = self.statistics.proprio
        proprio = None if bounds is None else torch.from_numpy(normalise_proprio(observation.state, bounds))

        prepared = time.perf_counter()
        prediction = self._predict(pixel_values, input_ids, proprio)
        normalised = self._numbers(prediction)
        inferred = time.perf_counter()

        if not np.isfinite(normalised).all():
            raise InferenceError(
                f"{(~np.isfinite(normalised)).sum()} of the network's {normalised.size} numbers are not finite; nothing is published. "
                "Check the weights, and the dtype: bfloat16 or float32"
            )
        actions = to_command(unnormalise_actions(normalised, self.statistics.action))
        return ActionChunk(
            actions=actions,
            observation_stamp=observation.stamp,
            step_duration=self.spec.step_duration,
            frame=self.frame,
            epoch=observation.epoch,
            instruction=observation.instruction,
            model_hash=self.spec.model_hash,
            units=self.spec.convention.units,
            latency=Latency(prepared - start, inferred - prepared, time.perf_counter() - start),
        )

    def _numbers(self, prediction: Prediction) -> NDArray[np.floating[Any]]:
        """Normalised actions [H, A]: float64 of tokens, as they stand for exact numbers, else float32."""
        if not isinstance(self.model, AutoregressiveBitVLA):
            return prediction.normalized_actions.float().cpu().numpy()
        foreign = self.model.foreign_tokens(prediction.action_hidden)
        if foreign is not None:
            for name, count in (("action_tokens", self.model.config.action_dim), ("foreign_tokens", foreign)):
                self.counts[name] = self.counts.get(name, 0) + count
        return prediction.normalized_actions.cpu().numpy()

    def warm_up(self, runs: int = 2) -> Latency:
        """Infer from made-up observations, so that the first real chunk is not the slow one. Returns the last latency."""
        random = np.random.default_rng(0)
        images = {role: random.integers(0, 256, (256, 256, 3), dtype=np.uint8) for role in self.spec.cameras}
        observation = Observation(images, np.zeros(STATE_DIM), "warm up", dict.fromkeys((*self.spec.cameras, "state"), 1))
        chunks = [self.infer(observation) for _ in range(max(1, runs))]
        self.counts.clear()
        return chunks[-1].latency


def require_known_gripper(convention: ActionConvention, where: object) -> None:
    """Raises PolicyError where actions open and close the gripper otherwise than `to_command` takes them to."""
    if convention.gripper_open is not None and (convention.gripper_open, convention.gripper_closed) != (1.0, 0.0):
        raise PolicyError(
            f"{where} says that the gripper is open at {convention.gripper_open:g} and closed at {convention.gripper_closed:g}; expected 1 "
            "and 0: convert the dataset with --gripper-open and --gripper-closed, and train on that"
        )


def _why_it_cannot_act(model: BitVLA) -> str:
    keys = [] if model.path is None else list(read_statistics(model.path))
    if keys:
        return f"a robot-pretrained base acts with one of its datasets' statistics; give norm_key, of {', '.join(keys)}; or fine-tune it"
    return "the checkpoint has no action head; expected a fine-tuned one, with action_head--*_checkpoint.pt"
