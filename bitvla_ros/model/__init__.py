"""The BitVLA network."""

from .bitvla import BitVLA, Prediction
from .checkpoint import CheckpointError, build, load_checkpoint
from .config import BitVLAConfig, LanguageConfig, VisionConfig

__all__ = [
    "BitVLA",
    "BitVLAConfig",
    "CheckpointError",
    "LanguageConfig",
    "Prediction",
    "VisionConfig",
    "build",
    "load_checkpoint",
]
