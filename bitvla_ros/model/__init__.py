"""The BitVLA network."""

from .bitvla import BitVLA, Prediction
from .checkpoint import CheckpointError, load_checkpoint
from .config import BitVLAConfig, LanguageConfig, VisionConfig
from .random_weights import build, with_byte_tokenizer

__all__ = [
    "BitVLA",
    "BitVLAConfig",
    "CheckpointError",
    "LanguageConfig",
    "Prediction",
    "VisionConfig",
    "build",
    "load_checkpoint",
    "with_byte_tokenizer",
]
