"""A tiny fine-tuned checkpoint in the reference's layout, with sizes that are no multiples of anything."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from bitvla_ros.model.tokenizer import byte_tokenizer

VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 14,
    "vit_weight_bits": 1,
    "vit_act_bits": 8,
}
TEXT = {
    "model_type": "BitNet",
    "vocab_size": 514,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
STATISTICS = {
    "action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]},
    "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8},
}
PREPROCESSOR = {
    "size": {"height": 28, "width": 28},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
}


def tensors() -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint, by the reference's names."""
    linear = {"layer_norm1": (12,), "layer_norm2": (12,), "mlp.fc1": (20, 12), "mlp.fc2": (12, 20)}
    linear |= {f"self_attn.{name}_proj": (12, 12) for name in ("q", "k", "v", "out")}
    shapes = {"patch_embedding.weight": (12, 3, 14, 14), "patch_embedding.bias": (12,), "position_embedding.weight": (4, 12)}
    shapes = {f"vision_tower.vision_model.embeddings.{name}": shape for name, shape in shapes.items()}
    for i in range(2):
        for name, shape in linear.items():
            shapes[f"vision_tower.vision_model.encoder.layers.{i}.{name}.weight"] = shape
            shapes[f"vision_tower.vision_model.encoder.layers.{i}.{name}.bias"] = shape[:1]
    for name, shape in {"linear_1": (24, 12), "linear_2": (24, 24)}.items():
        shapes |= {f"multi_modal_projector.{name}.weight": shape, f"multi_modal_projector.{name}.bias": shape[:1]}
    layer = {"input_layernorm": (24,), "post_attention_layernorm": (24,), "self_attn.attn_sub_norm": (24,), "mlp.ffn_sub_norm": (36,)}
    layer |= {"self_attn.q_proj": (24, 24), "self_attn.k_proj": (12, 24), "self_attn.v_proj": (12, 24), "self_attn.o_proj": (24, 24)}
    layer |= {"mlp.gate_proj": (36, 24), "mlp.up_proj": (36, 24), "mlp.down_proj": (24, 36)}
    shapes |= {f"language_model.model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"language_model.model.embed_tokens.weight": (514, 24), "language_model.model.norm.weight": (24,)}
    shapes["language_model.lm_head.weight"] = (514, 24)
    generator = torch.Generator().manual_seed(0)
    return {name: (torch.randn(shape, generator=generator) / 4).bfloat16() for name, shape in shapes.items()}


def heads() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The states of action head and proprio projector, as the reference's trainer names them."""
    action = {"layer_norm1": (168,), "fc1": (24, 168), "layer_norm2": (24,), "fc2": (7, 24)}
    for i in range(2):
        action |= {f"mlp_resnet_blocks.{i}.ffn.0": (24,), f"mlp_resnet_blocks.{i}.ffn.1": (24, 24)}
    proprio = {"fc1": (24, 8), "fc2": (24, 24)}
    states = []
    for prefix, shapes in (("module.model.", action), ("module.", proprio)):
        states.append({})
        for name, shape in shapes.items():
            states[-1] |= {f"{prefix}{name}.weight": torch.randn(shape) / 4, f"{prefix}{name}.bias": torch.randn(shape[0]) / 4}
    return states[0], states[1]


def write_checkpoint(folder: Path) -> Path:
    byte_tokenizer().save_pretrained(folder)
    write(folder / "config.json", {"model_type": "bitvla", "vision_config": VISION, "text_config": TEXT, "vocab_size": 514})
    write(folder / "dataset_statistics.json", {"libero_goal_no_noops": STATISTICS})
    write(folder / "preprocessor_config.json", PREPROCESSOR)
    save_file(tensors(), folder / "model.safetensors")
    action, proprio = heads()
    torch.save(action, folder / "action_head--100_checkpoint.pt")
    torch.save(proprio, folder / "proprio_projector--100_checkpoint.pt")
    return folder


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def edit(path: Path, **changes: object) -> None:
    write(path, json.loads(path.read_text()) | changes)


def trainer_layout(folder: Path) -> Path:
    """As the reference's trainer leaves it by default: config and weights in lora_adapter/, all else beside it."""
    (folder / "lora_adapter").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / "lora_adapter" / name)
    return folder
