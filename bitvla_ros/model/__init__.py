"""The BitVLA network."""

from .bitvla import BitVLA, Prediction
from .checkpoint import CheckpointError, load_checkpoint
from .config import BitVLAConfig, LanguageConfig, VisionConfig
from .packed import PackedModelError, default_dtype, load, load_packed
from .packing import pack_model
from .random_weights import build, with_byte_tokenizer

__all__ = [
    "BitVLA",
    "BitVLAConfig",
    "CheckpointError",
    "LanguageConfig",
    "PackedModelError",
    "Prediction",
    "VisionConfig",
    "build",
    "default_dtype",
    "load",
    "load_checkpoint",
    "load_packed",
    "pack_model",
    "with_byte_tokenizer",
]
