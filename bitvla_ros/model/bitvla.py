"""BitVLA: images, an instruction and the robot's state in, a chunk of actions out, in one forward pass.

The sequence that the language model sees, P being the length of the prompt:

    0 ... P-1          the prompt; each image is `num_patches` image tokens in it, proprioception is one token
    P ... P+55         one placeholder for each number of the chunk (8 actions x 7), embedded as zeros
    P+56               the stop token

The hidden states of positions P-1 ... P+54 become the actions: as in next-token prediction, a position speaks for the one
that follows it. arXiv 2506.07530, sections III and IV.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..action_convention import UNKNOWN
from ..ternary import Backend, TernaryLinear, choose
from ..ternary.pack import PackedWeight, pack_weight
from .config import BitVLAConfig
from .heads import ActionHead, Connector, ProprioProjector
from .language import LanguageModel
from .vision import VisionTower

# Layers that read the same input: a backend quantizes it once, and may serve them in one launch.
SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Prediction(NamedTuple):
    """action_hidden: [chunk * action_dim, hidden_size]. normalized_actions: [chunk, action_dim], in the units of the dataset's
    statistics. A batch has one more dimension in front."""

    action_hidden: Tensor
    normalized_actions: Tensor


class Inputs(NamedTuple):
    """What `BitVLA.compute` reads of a batch: B samples of n cameras, sequences of S tokens, T of all B * S being words.

    `source` says what each token is, by its row among: zeros, for placeholders and padding; the patches of all images; the state
    of each sample; the words. Without proprioception there are no states.
    """

    pixel_values: Tensor  # float [B, n, 3, H, W]
    proprio: Tensor | None  # float [B, proprio_dim]
    words: Tensor  # float [T, hidden_size], embeddings
    source: Tensor  # int64 [B, S]
    read: Tensor  # int64 [B, action_tokens], positions that speak for actions
    padding: Tensor | None  # bool [B, S]; None: there is none

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """On `device`, and what is float in `dtype`."""
        return Inputs._make(x if x is None else x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype) for x in self)


class BitVLA(nn.Module):
    """The network. `load_checkpoint` and `build` make one that has weights.

    norm_stats: {"action": ..., "proprio": ...}, the dataset statistics under norm_key; None where a model has none.
    cameras: roles in the order of training; None where the files do not say. convention: what the numbers of an action mean.
    path: the directory the weights came from, which holds the tokenizer too; None for random weights.
    model_hash: identifies configuration and weights as they are stored. So a checkpoint and its packed form, which give the same
    chunks up to int8 rounding, have two hashes; the packed directory names the checkpoint's as its provenance.
    """

    def __init__(self, config: BitVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.norm_stats: dict[str, Any] | None = None
        self.norm_key: str | None = None
        self.cameras: tuple[str, ...] | None = None
        self.convention = UNKNOWN
        self.path: Path | None = None
        self.model_hash = ""

        hidden_size = config.language.hidden_size
        self.vision = VisionTower(config.vision, config.activation_bits)
        self.connector = Connector(config.vision.hidden_size, hidden_size)
        self.language = LanguageModel(config.language, config.activation_bits)
        self.proprio_projector = ProprioProjector(config.proprio_dim, hidden_size) if config.proprio_dim else None
        self.action_head = ActionHead(config.action_dim, hidden_size) if config.action_head else None

    @torch.inference_mode()
    def predict(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None) -> Prediction:
        """One chunk for one observation.

        pixel_values: float [n, 3, image_size, image_size], n cameras in the order of training, scaled to [-1, 1].
        input_ids: int [P], the tokenized prompt, with one image token for each patch of each image.
        proprio: float [proprio_dim], already normalised; None for a model without proprioception.
        """
        batch = self(pixel_values[None], input_ids[None], None if proprio is None else proprio[None])
        return Prediction(batch.action_hidden[0], batch.normalized_actions[0])

    def forward(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None, prompt_lengths: Tensor | None = None) -> Prediction:
        """A batch, for training too: [B, n, 3, H, W], [B, P], [B, proprio_dim] or None, on any device.

        prompt_lengths: int [B]; `input_ids` beyond a prompt's length are padding, which nothing sees. None: no padding.
        Raises ValueError for inputs that do not fit the model.
        """
        return self.compute(self.prepare(pixel_values, input_ids, proprio, prompt_lengths).to(self.device, self.dtype))

    def prepare(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None, prompt_lengths: Tensor | None = None) -> Inputs:
        """The part of `forward` that looks at values: on the host, and the embeddings of words where the table lies."""
        if self.action_head is None:
            raise ValueError(
                "this is a base checkpoint without an action head, so it cannot act: load a fine-tuned one (it has "
                "action_head--*_checkpoint.pt beside model.safetensors), or a robot-pretrained base with norm_key, one of its statistics"
            )
        self.check_inputs(pixel_values, input_ids, proprio)
        ids = input_ids.cpu()
        longest, actions = ids.shape[1], self.config.action_tokens
        lengths = ids.new_full(ids.shape[:1], longest) if prompt_lengths is None else prompt_lengths.cpu()
        if lengths.shape != ids.shape[:1] or not bool(((lengths > 0) & (lengths <= longest)).all()):
            raise ValueError(f"prompt_lengths {lengths.tolist()}: expected {len(ids)} numbers from 1 to {longest}")
        start, stop = lengths[:, None], lengths[:, None] + actions
        position = torch.arange(longest + actions + 1)

        ids = F.pad(ids, (0, actions + 1)).masked_fill(position >= start, self.config.stop_token_id)
        is_image = ids == self.config.image_token_id
        is_state = (ids == self.config.proprio_token_id) & (self.proprio_projector is not None)
        is_word = ((position < start) | (position == stop)) & ~is_image & ~is_state
        _require_tokens(is_image, pixel_values.shape[1] * self.config.vision.num_patches, "image")
        if self.proprio_projector is not None:
            _require_tokens(is_state, 1, "proprioception")

        table = self.language.embed_tokens
        return Inputs(
            pixel_values=pixel_values,
            proprio=proprio,
            words=table(ids[is_word].to(table.weight.device)),
            source=_rows_of(is_image, is_state, is_word),
            read=self.read_positions(lengths),
            padding=None if prompt_lengths is None else position > stop,
        )

    def compute(self, inputs: Inputs) -> Prediction:
        """The part of `forward` that computes, on this model's device and in its dtype.

        It asks for no value of a tensor, and every shape follows from those of `inputs`: so a CUDA graph can hold all of it.
        """
        embeddings = self.embed(inputs)
        action_hidden = self.language(embeddings, self.attention_mask(inputs.padding, embeddings.shape[1]), inputs.read)
        assert self.action_head is not None
        return Prediction(action_hidden, self.action_head(action_hidden.unflatten(1, (self.config.chunk, -1)).flatten(2)))

    def embed(self, inputs: Inputs) -> Tensor:
        """Every token's embedding, [B, S, hidden_size]."""
        zeros = inputs.words.new_zeros(1, inputs.words.shape[1])
        images = self.connector(self.vision(inputs.pixel_values.flatten(0, 1))).flatten(0, 1)
        states = [] if self.proprio_projector is None else [self.proprio_projector(inputs.proprio)]
        return F.embedding(inputs.source, torch.cat([zeros, images, *states, inputs.words]))

    def read_positions(self, prompt_lengths: Tensor) -> Tensor:
        """int [B, action_tokens]: where the hidden states of the actions are read, from the prompt's last token on."""
        return prompt_lengths[:, None] - 1 + torch.arange(self.config.action_tokens, device=prompt_lengths.device)

    def attention_mask(self, is_padding: Tensor | None, length: int) -> Tensor | None:
        """bool, True where a row sees a column; None where every token sees every token. is_padding: bool [B, length] or None."""
        mask = None if is_padding is None else ~is_padding[:, None, None, :]
        if self.config.attention == "bidirectional":
            return mask
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        return causal if mask is None else causal & mask

    # ---- packed weights

    @torch.no_grad()
    def pack(self, backend: str = "auto", device: torch.device | str = "cpu") -> BitVLA:
        """Quantize every ternary weight once and for all, to two bits: small and fast, but without further training.

        backend, device: see `set_packed`. Returns the model. Master weights go one by one, so that both are never there at once.
        """
        if self.config.activation_bits is None:
            raise ValueError("packed weights need int8 activations: a model without activation quantization keeps its master weights")
        choose(backend, device)  # raises before anything is lost
        weights = {}
        for name, layer in self.ternary_layers().items():
            if layer.weight is None:
                raise RuntimeError("this model is packed already")
            weights[name] = pack_weight(layer.weight)
            layer.weight = None
        return self.set_packed(weights, backend, device)

    def set_packed(self, weights: Mapping[str, PackedWeight], backend: str = "auto", device: torch.device | str = "cpu") -> BitVLA:
        """Take packed weights, one for each of `ternary_layers` by its name, in the layout of `ternary.pack`, and move to `device`.

        backend: of `ternary.choose`, which raises BackendError. The embedding table stays where it is, memory-mapped perhaps: a few
        rows of it are read in a forward pass. Returns the model, for inference only.
        """
        layers, device, chosen = self.ternary_layers(), torch.device(device), choose(backend, device)
        if weights.keys() != layers.keys():
            differing = sorted(weights.keys() ^ layers.keys())
            raise ValueError(f"{len(weights)} packed weights for {len(layers)} ternary layers: {differing[0]} is in one of them only")
        if chosen.problem(device) is not None:  # a GPU for which `auto` found no Triton
            device = torch.device("cpu")
        for group in _sharing_input(layers):
            for name, weight in zip(group, chosen.prepare([weights[name] for name in group], device), strict=True):
                layers[name].set_packed(weight, chosen)
        for module in (self.vision, self.connector, self.language.layers, self.language.norm, self.proprio_projector, self.action_head):
            if module is not None:
                module.to(device)
        return self.eval().requires_grad_(False)

    def ternary_layers(self) -> dict[str, TernaryLinear]:
        return {name: module for name, module in self.named_modules() if isinstance(module, TernaryLinear)}

    @property
    def backend(self) -> Backend | None:
        """What packed layers run on; None while they hold master weights, and where no layer is ternary."""
        return next((layer.backend for layer in self.ternary_layers().values()), None)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.connector.linear_1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, between ternary layers."""
        return self.connector.linear_1.weight.dtype

    def train(self, mode: bool = True) -> BitVLA:
        if mode and self.backend is not None:
            raise RuntimeError("a packed model has no master weights left to train: load the checkpoint again")
        return super().train(mode)

    def check_inputs(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None) -> None:
        """Raises ValueError for shapes that do not fit the model or each other."""
        size = self.config.vision.image_size
        if pixel_values.shape[2:] != (3, size, size):
            raise ValueError(f"pixel_values {list(pixel_values.shape[1:])}: expected [cameras, 3, {size}, {size}]")
        if (proprio is None) != (self.proprio_projector is None):
            expected = f"[{self.config.proprio_dim}] numbers" if proprio is None else "None, as this model has no proprioception"
            raise ValueError(f"proprio is {'missing' if proprio is None else 'given'}: expected {expected}")
        if proprio is not None and proprio.shape[1:] != (self.config.proprio_dim,):
            raise ValueError(f"proprio {list(proprio.shape[1:])}: expected [{self.config.proprio_dim}]")
        sizes = [len(x) for x in (pixel_values, input_ids, proprio) if x is not None]
        if len(set(sizes)) != 1:
            raise ValueError(f"batches of {sizes} samples in pixel_values, input_ids and proprio: expected one size")


def _rows_of(*kinds: Tensor) -> Tensor:
    """bool [B, S] each -> int64 [B, S]: tokens of the first kind numbered from 1 on, then those of the next; 0 for all others."""
    rows, first = torch.zeros(kinds[0].shape, dtype=torch.int64), 1
    for kind in kinds:
        count = int(kind.sum())
        rows[kind] = torch.arange(first, first + count)
        first += count
    return rows


def _require_tokens(where: Tensor, expected: int, what: str) -> None:
    """`expected` of them in each row of bool [B, S], or ValueError."""
    found = where.sum(1)
    if bool((found != expected).any()):
        raise ValueError(f"the prompt has {found.tolist()} {what} tokens: expected {expected} in each")


def _sharing_input(names: Iterable[str]) -> list[list[str]]:
    """The names of ternary layers, those together that read the same input."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        together = next((leaves for leaves in SHARED_INPUT if leaf in leaves), (leaf,))
        groups.setdefault((parent, together), []).append(name)
    return list(groups.values())
