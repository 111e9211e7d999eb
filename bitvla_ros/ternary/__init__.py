"""W1.58-A8 arithmetic: ternary weights, int8 activations."""

from .backends import Backend, BackendError, choose
from .linear import TernaryLinear

__all__ = ["Backend", "BackendError", "TernaryLinear", "choose"]
